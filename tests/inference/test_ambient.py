"""A sampler's and a pipeline's results depend on nothing that is switched in PyTorch, at any moment of their lives."""

from contextlib import nullcontext

import pytest
import torch

from dllm_kernels import LDLM, FusedSampler, LDLMConfig, LDLMPipeline
from dllm_kernels.inference.weights import RandomModel
from tests.ambient import SWITCHES
from tests.evaluation.words import save_encoder, save_model
from tests.models import randomized

MOMENTS = ("load", "pack", "call")
CONFIG = LDLMConfig.preset("tiny", seq_len=13, vocab_size=101)
CONTEXT = torch.randn(2, 4, CONFIG.hidden_dim, generator=torch.Generator().manual_seed(1))
MASK = torch.arange(4) < torch.tensor([[2], [4]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def results(folder, dtype, around=nullcontext, moment=None):
    """Tokens, latents and log-probabilities; `around` is on at one moment."""
    at = {name: around if name == moment else nullcontext for name in MOMENTS}
    with at["load"]():
        model = LDLM.from_pretrained(folder)
    with at["pack"]():
        options = {"context_len": 4, "guidance": True, "solver": "ddpm", "logprobs": True, "dtype": dtype}
        sampler = FusedSampler(model, 2, 2, **options, device="cpu")
    with at["call"]():
        return sampler(seed=4, context=CONTEXT, context_mask=MASK, temperature=0.7, guidance_scale=2.0)


@pytest.fixture(scope="module")
def expected(folder):
    return {dtype: results(folder, dtype) for dtype in (torch.bfloat16, torch.float32)}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_samplers_results(folder, expected, switch, moment):
    for dtype, out in expected.items():
        found = results(folder, dtype, SWITCHES[switch], moment)
        assert torch.equal(found.tokens, out.tokens)
        # A library divides sums by the number of threads, so that number alone may change the last bits.
        close = {"rtol": 0, "atol": 1e-4 if switch == "three threads" else 0}
        assert torch.allclose(found.latents, out.latents, **close) and torch.allclose(found.logprobs, out.logprobs, **close)
        assert not (found.tokens.is_inference() or found.latents.requires_grad)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    pytest.importorskip("transformers")
    return save_encoder(tmp_path_factory.mktemp("encoder"))


def texts(folder, encoder, around=nullcontext, moment=None):
    at = {name: around if name == moment else nullcontext for name in ("load", "call")}
    with at["load"]():
        pipe = LDLMPipeline.from_pretrained(folder, encoder=str(encoder), dtype=torch.float32, device="cpu", context_len=5)
    with at["call"]():
        first = pipe(["w7 w8 w9", "w50"], 2, guidance_scale=2.0, seed=4, temperature=0.5).tokens
    # The encoder and the samplers that were loaded meanwhile are as good afterwards.
    return torch.cat((first, pipe(["w7 w8 w9", "w50"], 2, guidance_scale=2.0, seed=5, temperature=0.5).tokens))


@pytest.mark.parametrize("moment", ("load", "call"))
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_pipelines_tokens(folder, encoder, switch, moment, request):
    if not hasattr(test_a_pipelines_tokens, "expected"):
        test_a_pipelines_tokens.expected = texts(folder, encoder)
    assert torch.equal(texts(folder, encoder, SWITCHES[switch], moment), test_a_pipelines_tokens.expected)


@pytest.mark.parametrize("switch", SWITCHES)
def test_random_weights(switch):
    expected = RandomModel(CONFIG, 3)("denoiser").state_dict()
    state = torch.random.get_rng_state()
    with SWITCHES[switch]():
        part = RandomModel(CONFIG, 3)("denoiser")
    found = part.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_that_was_made_in_inference_mode():
    expected = FusedSampler(randomized(CONFIG), 1, device="cpu")(seed=2)
    with torch.inference_mode():
        model = randomized(CONFIG)
    assert torch.equal(FusedSampler(model, 1, device="cpu")(seed=2).latents, expected.latents)
