"""What a model may be named by, and that no keyword is swallowed on the way."""

import pytest
import torch

from dllm_kernels import LDLM, FusedSampler, LDLMConfig, LDLMPipeline
from dllm_kernels.inference.options import Dtype
from dllm_kernels.inference.weights import LiveModel, RandomModel, StoredModel, source_of
from dllm_kernels.model.checkpoint import BUNDLED
from tests.models import randomized

DEMO = BUNDLED / "ldlm-demo"
TINY = LDLMConfig.preset("tiny", seq_len=5)


def tokens(sampler):
    return sampler(seed=1).tokens


def test_a_sampler_takes_a_model_by_any_of_its_names():
    options = {"num_steps": 1, "device": "cpu", "dtype": "fp32"}
    expected = tokens(FusedSampler(LDLM.from_pretrained(DEMO), **options))
    for name in ("ldlm-demo", DEMO, str(DEMO)):
        assert torch.equal(tokens(FusedSampler(name, **options)), expected)
        assert torch.equal(tokens(FusedSampler.from_pretrained(name, **options)), expected)
    random = tokens(FusedSampler(RandomModel(LDLMConfig.preset("tiny"), dtype=torch.float32), **options))
    for sampler in (FusedSampler("tiny", **options), FusedSampler.from_pretrained("tiny", **options)):
        assert torch.equal(tokens(sampler), random)
    assert tokens(FusedSampler(TINY, **options)).shape == (1, 5)


def test_sources():
    model = randomized(TINY)
    assert source_of(model).model is model and isinstance(source_of("ldlm-demo"), StoredModel)
    source = LiveModel(model)
    assert source_of(source) is source
    assert source_of("tiny").config == LDLMConfig.preset("tiny") and source_of(TINY).config == TINY
    with pytest.raises(ValueError, match="unknown preset 'nothing', and no such file or folder; known presets: open-dllm-35b"):
        source_of("nothing")


CALLS = {
    "LDLM.from_pretrained": lambda **given: LDLM.from_pretrained(DEMO, **given),
    "FusedSampler.from_pretrained": lambda **given: FusedSampler.from_pretrained(DEMO, **given),
    "LDLMPipeline.from_pretrained": lambda **given: LDLMPipeline.from_pretrained(DEMO, **given),
    "StoredModel": lambda **given: StoredModel(DEMO, **given),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name, meant", [("revison", "revision"), ("local_file_only", "local_files_only"), ("nonsense", None)])
def test_a_keyword_that_is_not_known_is_an_error(call, name, meant):
    with pytest.raises(TypeError) as caught:
        CALLS[call](**{name: True})
    hint = f" (did you mean {meant!r}?)" if meant else ""
    assert str(caught.value).startswith(f"{call} has no argument {name!r}{hint}; its arguments: ")


def test_saving_swallows_nothing(tmp_path):
    with pytest.raises(TypeError, match=r"LDLM\.save_pretrained has no argument 'safe_serialization'; its arguments: config"):
        randomized(TINY).save_pretrained(tmp_path / "model", safe_serialization=True)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "given", [{"dtype": "bf16"}, {"torch_dtype": torch.bfloat16}, {"dtype": "torch.bfloat16", "device": "cpu"}]
)
def test_usual_keywords_work(given):
    assert {tensor.dtype for tensor in LDLM.from_pretrained("ldlm-demo", **given).state_dict().values()} == {torch.bfloat16}
    sampler = FusedSampler.from_pretrained("ldlm-demo", num_steps=1, **{"device": "cpu"} | given)
    assert sampler.numerics.weights == torch.bfloat16


def test_what_names_no_weights_or_no_dtype():
    with pytest.raises(ValueError, match="tiny is a preset and has no weights; "):
        LDLM.from_pretrained("tiny")
    for call in (FusedSampler, LDLM.from_pretrained, LDLMPipeline.from_pretrained):
        with pytest.raises(ValueError, match=r"^dtype is 'bf17'; it must be one of bf16, bfloat16"):
            call("ldlm-demo", dtype="bf17")
    with pytest.raises(ValueError, match="unknown device 'gpu'; known devices"):
        LDLM.from_pretrained("ldlm-demo", device="gpu")


def test_the_command_lines_dtypes():
    assert [Dtype(name) for name in ("bf16", "torch.float16", "float", "double")] == [*Dtype]


def test_repr():
    sampler = FusedSampler(randomized(TINY), 2, 3, context_len=4, dtype="fp32", device="cpu")
    assert repr(sampler) == (
        "FusedSampler(num_steps=2, batch_size=3, seq_len=5, context_len=4, guidance=False, solver='ddim', "
        "dtype=torch.float32, device='cpu')"
    )
