"""FusedSampler's captured graph: what only a card can show. Every test here is skipped, and says so, without one."""

import threading

import pytest
import torch

from dllm_kernels import LDLM, FusedSampler, LDLMConfig
from dllm_kernels.bench.peers import Weights
from dllm_kernels.inference.sampler import PLAN_OVERHEAD
from dllm_kernels.model.config import open_dllm_config
from dllm_kernels.ops import extension
from dllm_kernels.ops.extension import cuda_unsupported_reason
from tests.inference.reference_sampler import reference_sample
from tests.models import randomized
from tests.numerics import assert_contract

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")

CONFIGS = {
    "ldlm": LDLMConfig.preset("tiny", seq_len=13, dim=128, hidden_dim=192, latent_dim=96, vocab_size=1009, num_heads=4),
    "open-dllm": open_dllm_config(512, 1009, 64, perceiver_layers=2, denoiser_layers=2),
    "open-dllm with proj_in": open_dllm_config(512, 1009, 64, proj_in=True, perceiver_layers=2, denoiser_layers=2),
}


def context_for(config, batch, length):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, length, config.hidden_dim, generator=generator, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp_2m"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_plan_keeps_the_contract(name, dtype, solver, backend):
    config, eta = CONFIGS[name], float(solver == "ddpm")
    torch.backends.cuda.matmul.allow_tf32 = False
    exact, _ = reference_sample(randomized(config, torch.float64), 4, 2, solver=solver, eta=eta, seed=5)
    baseline, _ = reference_sample(OnCard(randomized(config, dtype).cuda()), 4, 2, solver=solver, eta=eta, seed=5)
    sampler = FusedSampler(randomized(config), num_steps=4, batch_size=2, solver=solver, dtype=dtype, backend=backend)
    assert_contract(sampler(seed=5).latents, exact, baseline.to(dtype))


class OnCard:
    """A model on the card for a reference sampler whose state and noise are on the CPU."""

    def __init__(self, model):
        self.config, self.model = model.config, model

    def parameters(self):
        return (parameter.cpu() for parameter in self.model.parameters())

    def denoise(self, *tensors):
        return self.model.denoise(*(t if t is None else t.cuda() for t in tensors)).cpu()

    def decode(self, latents):
        return self.model.decode(latents.cuda())

    def logits(self, hidden):
        return self.model.logits(hidden).cpu()


@pytest.mark.parametrize("guidance_scale", [None, 2.5])
def test_prompt_in_the_graph(guidance_scale):
    config = CONFIGS["ldlm"]
    context, mask = context_for(config, 2, 6), torch.arange(6) < torch.tensor([[4], [6]])
    scale = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
    exact, _ = reference_sample(randomized(config, torch.float64), 3, 2, seed=2, context=context, context_mask=mask, **scale)
    on_card = OnCard(randomized(config, torch.bfloat16).cuda())
    baseline, _ = reference_sample(on_card, 3, 2, seed=2, context=context.bfloat16(), context_mask=mask, **scale)
    sampler = FusedSampler(randomized(config), num_steps=3, batch_size=2, context_len=9, guidance=bool(scale))
    sampler(seed=1, context=torch.full((2, 9, config.hidden_dim), 7.0, device="cuda"))
    out = sampler(seed=2, context=context.cuda(), context_mask=mask.cuda(), **scale)
    assert_contract(out.latents, exact, baseline.bfloat16())
    unprompted, _ = reference_sample(randomized(config, torch.float64), 3, 2, seed=2)
    assert (sampler(seed=2).latents.cpu() - unprompted).abs().mean() < 0.1 * (exact - unprompted).abs().mean()


class TestReplays:
    @pytest.fixture
    def sampler(self):
        return FusedSampler(randomized(CONFIGS["open-dllm"]), num_steps=4, batch_size=2, solver="ddpm", logprobs=True)

    def test_a_hundred_replays_are_identical(self, sampler):
        first = sampler(seed=11, temperature=0.8)
        for _ in range(100):
            again = sampler(seed=11, temperature=0.8)
            assert torch.equal(first.tokens, again.tokens)
            assert torch.equal(first.latents, again.latents)
            assert torch.equal(first.logprobs, again.logprobs)

    def test_seed_temperature_and_sample_change_without_a_new_capture(self, sampler):
        graph, base = sampler.graph, sampler(seed=1).latents
        assert not torch.equal(base, sampler(seed=2).latents)
        assert torch.equal(base[1:], sampler(seed=1, first_sample=1).latents[:1])
        tokens = {tuple(sampler(seed=1, temperature=t).tokens.flatten().tolist()) for t in (0.0, 1.0, 5.0)}
        assert len(tokens) == 3 and sampler.graph is graph

    def test_a_call_does_not_wait_for_the_card(self, sampler):
        sampler()
        torch.cuda.set_sync_debug_mode("error")
        try:
            out = sampler(seed=3, temperature=0.5)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.isfinite(out.latents).all()

    def test_a_graph_of_its_own_tells_of_phases_and_replays_the_last_call(self, sampler):
        expected, seen = sampler(seed=5, temperature=0.9), []
        captured = sampler.capture(lambda phase, number: seen.append((phase, number)))
        steps = [("denoise", step) for step in range(4)]
        assert seen == [("begin", 0), ("noise", 0), *steps, ("decode", 0), ("lm_head", 0)]
        assert captured.graph is not sampler.graph.graph
        for graph in (captured, sampler.graph):
            out = graph.replay()
            assert torch.equal(out.tokens, expected.tokens) and torch.equal(out.latents, expected.latents)
        assert not torch.equal(sampler(seed=6, temperature=0.9).latents, expected.latents)
        assert not torch.equal(captured.replay().latents, expected.latents)

    def test_outputs_survive_the_next_call(self, sampler):
        first = sampler(seed=1)
        kept = first.tokens.clone(), first.latents.clone(), first.logprobs.clone()
        sampler(seed=2, temperature=2.0)
        assert all(torch.equal(a, b) for a, b in zip((first.tokens, first.latents, first.logprobs), kept, strict=True))

    def test_two_threads_on_two_streams(self, sampler):
        expected, wrong = [sampler(seed=s, temperature=1.0) for s in range(8)], []

        def work(order):
            with torch.cuda.stream(torch.cuda.Stream()):
                for s in order:
                    out = sampler(seed=s, temperature=1.0)
                    torch.cuda.current_stream().synchronize()
                    if not (torch.equal(out.tokens, expected[s].tokens) and torch.equal(out.latents, expected[s].latents)):
                        wrong.append(s)

        threads = [threading.Thread(target=work, args=(list(range(8))[::step] * 20,)) for step in (1, -1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_batch_invariance(name, dtype):
    options = {"num_steps": 3, "dtype": dtype, "solver": "ddpm", "batch_invariant": True, "logprobs": True}
    model = randomized(CONFIGS[name])
    batch = FusedSampler(model, batch_size=8, **options)(seed=9, first_sample=12, temperature=0.7)
    alone = FusedSampler(model, batch_size=1, **options)(seed=9, first_sample=17, temperature=0.7)
    assert torch.equal(batch.tokens[5:6], alone.tokens)
    assert torch.equal(batch.latents[5:6], alone.latents)
    assert torch.equal(batch.logprobs[5:6], alone.logprobs)


def test_changed_weights_are_detected_and_packed_again():
    model = randomized(CONFIGS["open-dllm"]).cuda()
    sampler = FusedSampler(model, num_steps=2)
    before = sampler().latents
    with torch.no_grad():
        model.denoiser.blocks[0].mlp.down.weight.neg_()
    with pytest.raises(RuntimeError, match=r"denoiser\.blocks\.0\.mlp\.down\.weight"):
        sampler()
    sampler.refresh()
    assert not torch.equal(sampler().latents, before)
    assert torch.equal(sampler().latents, FusedSampler(model, num_steps=2)().latents)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA cards")
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_second_card_in_the_same_process(backend):
    """A graph that is captured on another card's stream is empty, and gives what ran before it."""
    model = randomized(CONFIGS["ldlm"])
    first, second = (FusedSampler(model, 2, 2, backend=backend, device=f"cuda:{n}") for n in (0, 1))
    for seed in (0, 1, 0):
        expected, found = first(seed=seed), second(seed=seed)
        assert found.latents.device.index == 1 and torch.equal(found.latents.cpu(), expected.latents.cpu())
        assert torch.equal(found.tokens.cpu(), expected.tokens.cpu())


def test_memory_of_a_plan_beside_a_live_model():
    """N = 50, B = 1, T = 64: the allocator's peak grows by at most 1.15 times the packed weights, which exceed 1 GB."""
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LDLM(open_dllm_config(1280, 248_320)).eval()
    torch.set_default_dtype(torch.float32)
    FusedSampler(LDLM(LDLMConfig.preset("tiny")))()  # what libraries allocate at their first use is not the plan's
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    sampler = FusedSampler(model, num_steps=50)
    sampler()
    packed = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("latent_encoder")) * 2
    grown = torch.cuda.max_memory_allocated() - before
    assert packed > 1e9
    assert 0.9 * packed <= grown <= PLAN_OVERHEAD * packed, f"{grown / packed:.3f} times the packed weights"


def test_too_little_memory_is_said_in_numbers(monkeypatch):
    monkeypatch.setattr("dllm_kernels.inference.sampler.free_memory", lambda device: 10**6)
    with pytest.raises(MemoryError, match=r"the plan needs about .* GB on cuda:0 and 0\.0 GB are free"):
        FusedSampler(randomized(CONFIGS["open-dllm"]))


def test_the_published_size_is_the_same_in_a_hundred_replays_and_without_overlapping_launches():
    weights = Weights.of(LDLMConfig.preset("open-dllm-35b-a3b"), torch.device("cuda", 0))
    sampler = FusedSampler(weights.model)
    first = sampler(seed=3)
    assert all(torch.equal(sampler(seed=3).latents, first.latents) for _ in range(100))
    if cuda_unsupported_reason(sampler.device) is not None:
        return
    extension.load().set_overlapping(False)
    try:
        apart = FusedSampler(weights.model)(seed=3)
    finally:
        extension.load().set_overlapping(True)
    assert torch.equal(apart.latents, first.latents) and torch.equal(apart.tokens, first.tokens)
