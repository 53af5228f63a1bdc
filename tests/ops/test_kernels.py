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
    assert len({tile.shape for tile in TILES["linear_skinny"]}) == 8
    assert {tile.split_k for tile in TILES["linear_skinny_wgmma"] if tile.tile_n == 128} == {1, 2, 4, 8}
    assert {tile.split_k for tile in TILES["linear_skinny_wgmma"] if tile.tile_n == 96} == {1, 2, 4}
    assert LIMITS["attention"] == {"min_head_dim": 32, "max_head_dim": 640, "head_dim_multiple": 8}
