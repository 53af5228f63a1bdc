"""How a time grows with an axis: ms = constant + slope x^exponent, by least squares of the relative error."""

from dataclasses import dataclass

import numpy as np

_EXPONENTS = np.arange(0.05, 3.0001, 0.01)


@dataclass(frozen=True)
class Growth:
    """ms = constant_ms + slope_ms x^exponent; `residual` is the root mean square of the relative errors."""

    constant_ms: float
    slope_ms: float
    exponent: float
    residual: float

    def __str__(self) -> str:
        return f"{self.constant_ms:.3g} + {self.slope_ms:.3g} x^{self.exponent:.2f} ms (residual {self.residual:.1%})"


def growth(xs: list[float], ms: list[float]) -> Growth:
    """The law with the least residual, its constant not negative.

    Args:
        xs: positive, at least four different ones: the law has three numbers.
        ms: positive, as many.

    Raises:
        ValueError: too few points, or one that is not positive.
    """
    x, y = np.asarray(xs, dtype=float), np.asarray(ms, dtype=float)
    if len(x) != len(y) or len(set(xs)) < 4 or (x <= 0).any() or (y <= 0).any():
        raise ValueError(f"a fit needs at least four positive points, not {list(zip(xs, ms, strict=False))}")
    best = None
    for exponent in _EXPONENTS:
        powers = x**exponent
        design = np.stack([np.ones_like(x), powers], axis=1) / y[:, None]
        constant, slope = np.linalg.lstsq(design, np.ones_like(y), rcond=None)[0]
        if constant < 0:
            # The best law through the origin.
            ratio = powers / y
            constant, slope = 0.0, ratio.sum() / (ratio**2).sum()
        residual = float(np.sqrt(np.mean(((constant + slope * powers) / y - 1) ** 2)))
        if best is None or residual < best.residual:
            best = Growth(float(constant), float(slope), float(exponent), residual)
    return best
