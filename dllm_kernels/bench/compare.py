"""Two results side by side: whether a time moved beyond noise, and the guard against a ratio that fell."""

from dllm_kernels.bench.generation import OUR_NAMES
from dllm_kernels.bench.results import Result, Row

MAX_FALL = 0.05
"""Of a ratio to the baseline, before the guard fails."""


def matching(old: Result, row: Row) -> Row | None:
    """The row of `old` with the same case and contender that has a time, or None."""
    return next((r for r in old.rows if r.case == row.case and r.contender == row.contender and r.ms is not None), None)


def verdict(old: Row, new: Row) -> str:
    """Faster or slower where the ranges from p20 to p80 are apart; otherwise within noise."""
    if old.unstable or new.unstable:
        return "no verdict: not steady"
    change = f"{abs(old.ms / new.ms - 1):.1%}"
    if new.p80_ms < old.p20_ms:
        return f"faster by {change}"
    if new.p20_ms > old.p80_ms:
        return f"slower by {change}"
    return "within noise"


def guard(old: Result, new: Result) -> list[str]:
    """Why the guard fails, a line each: ours among `new` whose ratio to the baseline fell by more than MAX_FALL, or that have
    none although `old` has one.

    Raises:
        ValueError: they share no case with a ratio, or were measured on other machines or against another baseline.
    """
    if old.machine["name"] != new.machine["name"]:
        raise ValueError(f"the earlier result is of {old.machine['name']}, and this machine is {new.machine['name']}")
    if old.baseline != new.baseline:
        raise ValueError(f"the earlier ratios are to {old.baseline!r}, and these to {new.baseline!r}")
    pairs = [(matching(old, row), row) for row in new.rows if row.contender in OUR_NAMES]
    pairs = [(before, row) for before, row in pairs if before is not None and before.ratio is not None]
    if not pairs:
        raise ValueError("the earlier result has no ratio for what was measured")
    failures = []
    for before, row in pairs:
        case = ", ".join(f"{key} {value}" for key, value in row.case.items())
        if row.ratio is None:
            failures.append(f"{case}: no ratio now, {row.reason or row.unstable}; {before.ratio:.3f} before")
        elif row.ratio < (1 - MAX_FALL) * before.ratio:
            failures.append(
                f"{case}: the ratio fell by {1 - row.ratio / before.ratio:.1%}, from {before.ratio:.3f} to {row.ratio:.3f}"
            )
    return failures
