"""Keywords that calls hand on, and dtypes by their names."""

import pytest
import torch

from dllm_kernels.utils.keywords import as_dtype, keywords


@pytest.mark.parametrize(
    "dtype, names",
    [
        (torch.bfloat16, ("bf16", "bfloat16", "torch.bfloat16")),
        (torch.float16, ("fp16", "float16", "half", "torch.half")),
        (torch.float32, ("fp32", "float32", "float", "torch.float32")),
        (torch.float64, ("fp64", "float64", "double", torch.float64)),
    ],
)
def test_dtypes_by_their_names(dtype, names):
    assert {as_dtype(name) for name in names} == {dtype}


@pytest.mark.parametrize("name", ["bf17", "", "int8", "BF16 ", None, "nn"])
def test_what_names_no_dtype(name):
    with pytest.raises(ValueError, match=f"^dtype is {name!r}; it must be one of bf16, bfloat16, fp16, float16, half, fp32"):
        as_dtype(name)


def test_keywords():
    known, listed = ("dtype", "device", "revision"), "; its arguments: dtype, device, revision"
    assert keywords("f", {"torch_dtype": 1, "device": 2}, known) == {"dtype": 1, "device": 2}
    for given, said in (
        ({"revison": "a"}, "f has no argument 'revison' (did you mean 'revision'?)" + listed),
        (
            {"device_map": "auto"},
            "f has no argument 'device_map' (did you mean 'device'?); its arguments: dtype, device, revision",
        ),
        ({"zzz": 1}, "f has no argument 'zzz'" + listed),
        ({"torch_dtype": 1, "dtype": 1}, "f is given 'dtype' by two names"),
    ):
        with pytest.raises(TypeError) as caught:
            keywords("f", given, known)
        assert str(caught.value) == said
