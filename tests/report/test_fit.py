"""How a time grows with an axis, fitted."""

import numpy as np
import pytest

from benchmarks.report.fit import growth


@pytest.mark.parametrize(("constant", "slope", "exponent"), [(2.0, 0.5, 1.0), (0.0, 3.0, 0.5), (1.0, 0.01, 1.9)])
def test_a_known_law(constant, slope, exponent):
    xs = [1.0, 2.0, 4.0, 16.0, 64.0, 256.0]
    found = growth(xs, [constant + slope * x**exponent for x in xs])
    assert (found.constant_ms, found.slope_ms, found.exponent) == pytest.approx((constant, slope, exponent), rel=1e-6, abs=1e-6)
    assert found.residual < 1e-6


def test_what_the_law_does_not_explain_is_its_residual():
    xs, noise = np.array([1.0, 2, 4, 8, 16, 32, 64, 128]), np.array([1, -1, 1, -1, 1, -1, 1, -1]) * 0.1
    found = growth(list(xs), list((1 + xs) * (1 + noise)))
    assert 0.05 < found.residual < 0.11 and found.exponent == pytest.approx(1, abs=0.2)


def test_a_constant_is_never_negative():
    xs = [1.0, 2.0, 3.0, 4.0]
    assert growth(xs, [0.1, 1.1, 2.1, 3.1]).constant_ms >= 0


@pytest.mark.parametrize(("xs", "ms"), [([1, 2, 3], [1, 2, 3]), ([0, 1, 2, 3], [1, 1, 1, 1]), ([1, 2, 3, 4], [1, 2, 3, 0])])
def test_too_little_to_fit(xs, ms):
    with pytest.raises(ValueError, match="at least four positive points"):
        growth(xs, ms)
