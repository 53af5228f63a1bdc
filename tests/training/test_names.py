"""Files and folders that are not ours stay as they are beside checkpoints and cached blocks."""

import pytest

from dllm_kernels.training.checkpoints import Checkpoints
from dllm_kernels.training.hidden import Cache


@pytest.mark.parametrize("name", ["step-00000010.bak", "step-", "step-x", "step-10", "step-00000010 (copy)", "step-\u0661" * 8])
def test_a_folder_that_is_no_checkpoint_is_left_alone(tmp_path, name):
    for step in ("step-00000005", "step-00000010", name):
        (tmp_path / step).mkdir()
    (tmp_path / "step-00000099").write_text("a file")
    assert Checkpoints(tmp_path, keep=1).steps() == [5, 10]
    assert (tmp_path / name).is_dir()


def test_only_our_blocks_make_room(tmp_path):
    ours, theirs = tmp_path / f"{'a' * 64}.safetensors", tmp_path / "model.safetensors"
    for path in (ours, theirs):
        path.write_bytes(bytes(100))
    cache = Cache(tmp_path, 5000)
    cache.reserve(["b" * 64], 850)
    cache.make_room()
    assert theirs.exists() and not ours.exists()
