"""What `unaffected` keeps out, and that it leaves all of it as it was."""

import pytest
import torch

from dllm_kernels.utils.ambient import PROCESS, unaffected
from tests.ambient import SWITCHES
from tests.threads import together


def switches():
    """Everything that `unaffected` changes, as it is now."""
    return {
        "process": [get() for get, _, _ in PROCESS],
        "autocast": [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")],
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "functions": torch.overrides._len_torch_function_stack(),
        "dispatch": torch._C._len_torch_dispatch_stack(),
        "device": torch.get_default_device(),
        "denormals": float(torch.tensor(1e-310, dtype=torch.float64, device="cpu") * 2) > 0,
    }


@pytest.mark.parametrize("switch", [name for name in SWITCHES if name != "fake tensors"])
def test_inside_there_are_defaults_and_afterwards_what_was_there(switch):
    with unaffected():
        plain = switches()
    with SWITCHES[switch]():
        before = switches()
        with unaffected():
            inside = switches()
            with unaffected():
                assert switches() == inside
            assert switches() == inside
        assert switches() == before
        with pytest.raises(KeyError), unaffected():
            raise KeyError
        assert switches() == before
    allowed = [values for _, _, values in PROCESS]
    assert all(value in values for value, values in zip(inside.pop("process"), allowed, strict=True))
    assert inside == {name: value for name, value in plain.items() if name != "process"}


def test_threads_at_once_leave_the_process_as_it_was():
    def work(number):
        for _ in range(50):
            with unaffected():
                assert torch.backends.cuda.flash_sdp_enabled() and not torch.are_deterministic_algorithms_enabled()

    torch.backends.cuda.enable_flash_sdp(False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        together(6, work)
        assert not torch.backends.cuda.flash_sdp_enabled()
        assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
        with unaffected():
            torch.backends.cuda.enable_flash_sdp(False)
        # It was set to what it was before, so nothing is put back over it.
        assert not torch.backends.cuda.flash_sdp_enabled()
    finally:
        torch.backends.cuda.enable_flash_sdp(True)
        torch.use_deterministic_algorithms(False)


def test_every_switch_of_the_process_is_put_back():
    others = {"highest": "high", "none": "tf32", True: False, False: True, (False, False): (True, False)}
    for get, put, values in PROCESS:
        before = get()
        other = before[::-1] if isinstance(before, list) else others.get(values[0], (False, False))
        try:
            put(other)
        except RuntimeError as error:
            # A switch that this processor does not have.
            assert "not supported by the CPU" in str(error)
            continue
        try:
            changed = get()
            assert changed not in values
            with unaffected():
                assert get() in values
            assert get() == changed
        finally:
            put(before)
