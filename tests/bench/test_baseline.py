"""The published loop as a baseline: it is the published computation, and its tokens ignore the denoiser."""

import pytest
import torch

from dllm_kernels import LDLM, LDLMConfig
from dllm_kernels.bench.baseline import explicit_attention, published_generate, random_model
from dllm_kernels.inference.weights import RandomModel
from dllm_kernels.model.checkpoint import convert_open_dllm
from dllm_kernels.model.config import open_dllm_config
from dllm_kernels.model.layers import sdpa
from tests.models import randomized
from tests.numerics import assert_contract
from tests.published import Published

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(3)
    model = Published(64, 101, 13, depth=2, decoder_num_layers=1, diffusion_head_depth=2).double().eval()
    with torch.no_grad():
        # Noise of deviation 0.1 would hardly reach the tokens of a random decoder.
        for layer in model.latent_decoder.layers:
            layer[1].fn.to_q.weight.mul_(20)
            layer[1].fn.to_v.weight.mul_(200)
    return model


@pytest.fixture(scope="module")
def ours(published):
    config, state = convert_open_dllm(published.checkpoint())
    model = LDLM(config, explicit_attention).double().eval()
    model.load_state_dict(state)
    return model


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("length, keys, causal", [(1, 1, True), (13, 13, True), (13, 65, False), (63, 5, False)])
def test_explicit_attention(length, keys, causal):
    q, k, v = (torch.randn(2, n, 3, 32, dtype=torch.float64) + 0.3 for n in (length, keys, keys))
    exact = sdpa(q, k, v, None, causal)
    assert torch.allclose(explicit_attention(q, k, v, None, causal), exact, rtol=0, atol=1e-13)
    halves = [x.bfloat16() for x in (q, k, v)]
    exact = sdpa(*(x.double() for x in halves), None, causal)
    assert_contract(explicit_attention(*halves, None, causal), exact, sdpa(*halves, None, causal))


def test_explicit_attention_takes_no_key_mask():
    x = torch.ones(1, 2, 1, 4)
    with pytest.raises(ValueError, match="takes no key mask"):
        explicit_attention(x, x, x, torch.ones(1, 2, dtype=torch.bool))


@torch.no_grad()
def test_the_loop_is_the_published_one(published, ours):
    """Every step's input and time, and the tokens, against the independent restatement."""
    seen = []
    hook = ours.denoiser.register_forward_pre_hook(lambda module, inputs: seen.append((inputs[0], inputs[1].tolist())))
    tokens = published_generate(ours, 4, 13, 2, seeded())
    hook.remove()

    noise = seeded()
    z = torch.randn(2, 13, 64, dtype=torch.float64, generator=noise)
    for (latents, times), t in zip(seen, (0.25, 0.5, 0.75, 1.0), strict=True):
        assert times == [t, t]
        assert torch.allclose(latents, z, rtol=0, atol=1e-9)
        alpha_bar = 1 - t**2
        prediction = published.diffusion_head(z, torch.tensor([t, t]))
        z = alpha_bar**0.5 * prediction + 0.1 * (1 - alpha_bar) ** 0.5 * torch.randn(z.shape, dtype=z.dtype, generator=noise)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, published.decode(z)[1].argmax(-1))
    assert len(tokens.unique()) > 5


def test_tokens_do_not_depend_on_the_denoiser(ours):
    """The last step multiplies the prediction by zero: a denoiser that predicts anything else gives the same tokens."""
    before = published_generate(ours, 3, 13, 1, seeded())
    hook = ours.denoiser.register_forward_hook(lambda module, inputs, prediction: 7 - 30 * prediction)
    changed = published_generate(ours, 3, 13, 1, seeded())
    hook.remove()
    assert torch.equal(changed, before)
    assert not torch.equal(published_generate(ours, 3, 13, 1, seeded(6)), before)


def test_fewer_tokens_than_the_model_has(ours):
    assert published_generate(ours, 2, 7, 3, seeded()).shape == (3, 7)


@pytest.mark.parametrize(
    "config",
    [open_dllm_config(64, 101, 13, perceiver_layers=1), LDLMConfig.preset("tiny", seq_len=13, vocab_size=101)],
    ids=["open-dllm", "ldlm"],
)
def test_random_model(config):
    default = torch.get_default_dtype()
    model = random_model(config, torch.bfloat16, CPU, seed=4)
    assert torch.get_default_dtype() == default
    assert {t.dtype for t in model.state_dict().values()} == {torch.bfloat16}
    source = RandomModel(config, 4, torch.bfloat16)
    for part in ("denoiser", "token_decoder", "lm_head"):
        expected = source(part).state_dict()
        found = getattr(model, part).state_dict()
        assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)
    functions = {module.attention for module in model.modules() if hasattr(module, "attention")}
    assert functions == {sdpa}
    assert published_generate(model, 2, 13, 2, seeded()).shape == (2, 13)


def test_too_little_memory_is_said_before_anything_is_made(monkeypatch):
    monkeypatch.setattr("dllm_kernels.bench.baseline.free_memory", lambda device: 10**9)
    monkeypatch.setattr("dllm_kernels.bench.baseline.RandomModel", lambda *args: pytest.fail("it was made"))
    with pytest.raises(MemoryError, match=r"^the model needs 2\.8 GB on cpu and 1\.0 GB are free$"):
        random_model(LDLMConfig.preset("open-dllm-35b-a3b"), torch.bfloat16, CPU)


def test_the_contract_of_the_baseline_in_bf16():
    """The explicit model errs like SDPA's in bf16, so it is no straw man."""
    config = open_dllm_config(64, 101, 13, perceiver_layers=2, denoiser_layers=2)
    exact_model, half = randomized(config, torch.float64), randomized(config, torch.bfloat16)
    explicit = LDLM(config, explicit_attention).bfloat16().eval()
    explicit.load_state_dict(half.state_dict())
    z, t = torch.randn(1, 13, 64, dtype=torch.float64) + 0.3, torch.tensor([0.4])
    with torch.no_grad():
        exact = exact_model.denoise(z, t)
        assert_contract(explicit.denoise(z.bfloat16(), t), exact, half.denoise(z.bfloat16(), t))
