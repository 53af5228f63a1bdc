"""Training on a card: what compilation and the captured step must not change. Skipped, and says so, without one."""

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

from accelerate.state import AcceleratorState

from dllm_kernels.training.run import Run
from tests.training.parts import lines, save_parts, tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")

SHORT = {"optimizer__steps": 20, "checkpoint_every": 10, "log_every": 1, "held_out_every": 5}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def eager(parts):
    Run(tiny(parts, "eager", optimizer__compile=False, **SHORT), device="cuda").train()
    return lines(parts / "eager")


def losses(found, name="loss"):
    return [line[name] for line in found if name in line]


def test_the_compiled_step_learns_what_the_eager_one_does(parts, eager):
    """CUDA graphs hand their outputs' memory out again: a loss that was kept would read as that of a later step."""
    torch.compiler.reset()
    Run(tiny(parts, "compiled", optimizer__compile=True, **SHORT), device="cuda").train()
    found = lines(parts / "compiled")
    assert len(found) == 20
    for name in ("loss", "diffusion", "held_out_hidden"):
        assert losses(found, name) == pytest.approx(losses(eager, name), rel=0.02)
    assert losses(found)[-1] < 0.97 * losses(found)[0]


def test_a_compiled_run_goes_on_where_it_was_stopped(parts):
    torch.compiler.reset()
    Run(tiny(parts, "whole", optimizer__compile=True, **SHORT), device="cuda").train()
    stopped = tiny(parts, "stopped", optimizer__compile=True, **SHORT)
    run = Run(stopped, device="cuda")
    run.joint.train()
    while run.step < 10:
        run._update()
        run.step += 1
    run.checkpoints.save(run.step, run._state())
    torch.compiler.reset()
    Run(stopped, resume=True, device="cuda").train()
    expected = [line["loss"] for line in lines(parts / "whole")][10:]
    assert [line["loss"] for line in lines(parts / "stopped")] == pytest.approx(expected, rel=1e-3)


def test_a_card_and_a_cpu_have_the_same_loss(parts, eager):
    # A process of 🤗 Accelerate's is on a card or on a CPU.
    AcceleratorState._reset_state(reset_partial_state=True)
    Run(tiny(parts, "cpu", optimizer__compile=False, **SHORT), device="cpu").train()
    assert losses(lines(parts / "cpu"))[:5] == pytest.approx(losses(eager)[:5], rel=0.02)
