"""dllm_kernels/ops/kernels.json is what csrc says."""

import pytest

from dllm_kernels.ops.kernels import LIMITS, TILES
from tests.emulator import emulate
from tests.emulator.describe import PATH


@pytest.mark.skipif(emulate.COMPILER is None, reason="no g++: csrc was not asked")
def test_python_knows_what_the_kernels_have_code_for():
    assert PATH.read_text() == emulate.describe(), "python -m tests.emulator.describe writes it"


def test_tiles_and_limits_by_kernel():
    assert [tile.shape for tile in TILES["linear_persistent"]] == [(128, 256, 64, 8, 1)]
    slices = {}
    for tile in TILES["linear_skinny"]:
        slices.setdefault((tile.wgmma, tile.shape), set()).add(tile.split_k)
    assert sum(wgmma for wgmma, _ in slices) == 7 and sum(not wgmma for wgmma, _ in slices) == 9
    assert slices[True, (64, 128, 64, 4, 1)] == {1, 2, 4, 8} and slices[True, (64, 96, 64, 4, 1)] == {1, 2, 4}
    assert slices[False, (64, 64, 64, 2, 2)] == {1, 2, 3, 4, 5, 7, 8} and slices[False, (64, 64, 32, 2, 2)] == {5}
    assert LIMITS["attention"] == {"min_head_dim": 32, "max_head_dim": 640, "head_dim_multiple": 8}
