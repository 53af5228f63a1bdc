"""How numbers are told."""

import pytest

from dllm_kernels.bench.wording import number, share


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "-"),
        (0, "0"),
        (0.00123456, "0.00123"),
        (1.5, "1.5"),
        (123456.0, "123,000"),
        (0.5, "0.5"),
        (3e-5, "3.0e-05"),
        (99.96, "100"),
    ],
)
def test_numbers(value, said):
    assert number(value) == said


def test_shares():
    assert share(None) == "-" and share(0.621) == "62%"
