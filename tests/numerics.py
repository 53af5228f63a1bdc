"""The numerics contract of docs/design.md, "Numerics and tests", and memory that shows what was not written."""

import torch
from torch import Tensor


def assert_contract(actual: Tensor, reference: Tensor, baseline: Tensor) -> None:
    """The error against `reference`, RMS and maximum, is at most twice `baseline`'s plus one unit in the last place.

    Args:
        actual: what the code under test gave.
        reference: the same computed in float64.
        baseline: what PyTorch gives in `actual`'s dtype; its dtype sets the unit in the last place.
    """
    assert reference.dtype == torch.float64
    actual, reference, baseline64 = actual.detach().cpu(), reference.detach().cpu(), baseline.detach().cpu().double()
    assert actual.shape == reference.shape == baseline64.shape, (actual.shape, reference.shape, baseline64.shape)
    assert torch.isfinite(actual).all(), f"{(~torch.isfinite(actual)).sum()} values are not finite"
    ulp = torch.finfo(baseline.dtype).eps * reference.abs().max().item()
    error, allowed = (actual.double() - reference).abs(), (baseline64 - reference).abs()
    for name, e, a in (
        ("maximum", error.max(), allowed.max()),
        ("RMS", error.square().mean().sqrt(), allowed.square().mean().sqrt()),
    ):
        assert e <= 2 * a + ulp, (
            f"{name} error {e:.3e} exceeds twice PyTorch's {a:.3e} plus one unit in the last place {ulp:.3e}"
        )


def poisoned(*shape: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """An uninitialised-looking tensor: NaN everywhere, or the most negative integer, so that what is not written shows."""
    value = float("nan") if dtype.is_floating_point else torch.iinfo(dtype).min
    return torch.full(shape, value, dtype=dtype, device=device)
