"""A case of the harness on small models: who is built, what is checked, what a row says, and what gives no speed."""

import dataclasses

import pytest
import torch

from dllm_kernels import LDLMConfig
from dllm_kernels.bench import generation, ops, peers
from dllm_kernels.bench.baseline import published_generate
from dllm_kernels.bench.generation import Bench, failed, measure
from dllm_kernels.bench.groups import groups
from dllm_kernels.bench.peers import EAGER_BF16, FP8, GRAPH, OURS, PEERS, PUBLISHED_BF16, PUBLISHED_FP32, Case, Weights
from dllm_kernels.bench.results import Row
from dllm_kernels.bench.roofline import Card
from dllm_kernels.bench.timing import Effort, Sample
from dllm_kernels.model.config import PRESETS, open_dllm_config
from dllm_kernels.model.layers import sdpa
from dllm_kernels.utils.machine import Machine, Nvml
from tests.inference.reference_sampler import reference_sample
from tests.models import randomized

CPU = torch.device("cpu")
OPEN = open_dllm_config(64, 101, 16, perceiver_layers=2, denoiser_layers=2)
LDLM_LIKE = LDLMConfig.preset("tiny", seq_len=16, vocab_size=101)
CASE = Case("open-dllm-35b-a3b", 3, 2, 16)


@pytest.fixture
def bench(monkeypatch):
    """A machine whose calls take a second each, those of the baseline two."""
    machine = Machine(CPU)
    monkeypatch.setattr(machine, "sample", lambda: Sample())
    monkeypatch.setattr(generation, "stopwatch", lambda device: lambda call: 1.0 if isinstance(call, peers.Sampled) else 2.0)
    return Bench(machine, Card("card", 1e9, {torch.bfloat16: 1e12}, "made up"), Effort(rounds=3, warm_s=0.0))


def weights(config=OPEN):
    return Weights(randomized(config, torch.bfloat16).requires_grad_(False), CPU)


def by_name(rows):
    return {row.contender: row for row in rows}


class TestReference:
    @pytest.mark.parametrize(("config", "prompt"), [(OPEN, 0), (LDLM_LIKE, 0), (LDLM_LIKE, 5)])
    def test_it_is_the_model_in_float64(self, config, prompt):
        found, case = weights(config), dataclasses.replace(CASE, prompt=prompt)
        exact = found.exact(case)
        model = randomized(config, torch.bfloat16).double()
        context = None if not prompt else found.context(case)[:1].double()
        latents, logits = reference_sample(model, 3, noise=found.noise(case)[:1], context=context)
        assert torch.allclose(exact.latents, latents[0], rtol=0, atol=1e-12)
        assert torch.equal(exact.tokens, logits[0].argmax(-1))

    def test_a_vocabulary_in_parts_has_the_same_argmax(self, monkeypatch):
        whole = weights().exact(CASE).tokens
        monkeypatch.setattr("dllm_kernels.bench.reference._VOCABULARY_CHUNK", 7)
        assert torch.equal(weights().exact(CASE).tokens, whole)

    def test_it_is_the_published_loop_in_float64(self):
        found = Weights(randomized(OPEN, torch.float64), CPU)
        generator = torch.Generator().manual_seed(0)
        tokens = published_generate(found.model, CASE.steps, CASE.seq_len, CASE.batch, generator)
        assert torch.equal(found.exact_published(CASE, torch.float64).tokens, tokens[0])


@torch.no_grad()
def test_the_loop_beside_ours_is_a_generation_through_the_model():
    found = weights()
    run = peers.ddim_loop(found.model, found, CASE)
    out, z = run(), found.noise(CASE).bfloat16()
    for t, a, b in peers.ddim_steps(found.model, CASE.steps):
        z = a * z + b * found.model.denoise(z, torch.full((2,), t))
    assert torch.equal(out.latents, z)
    assert torch.equal(out.tokens, found.model.logits(found.model.decode(z)).argmax(-1))
    assert torch.equal(run().tokens, out.tokens)


def test_attention_is_replaced_on_the_same_tensors():
    model = weights().model
    other = peers.with_attention(model, sdpa)
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)


class TestRows:
    def test_values(self, bench):
        rows = by_name(measure(CASE, (OURS, PUBLISHED_FP32, PUBLISHED_BF16, EAGER_BF16), weights(), bench))
        ours, eager = rows[OURS], rows[EAGER_BF16]
        assert (ours.ms, ours.ratio, eager.ms, eager.ratio) == (1000, 2, 2000, 1)
        assert ours.tokens_per_s == 2 * 16 and rows[PUBLISHED_FP32].ratio == 1
        assert ours.max_error < 1e-2 and 0 < eager.max_error < 0.1 and rows[PUBLISHED_FP32].max_error is None
        assert rows[PUBLISHED_FP32].token_agreement == ours.token_agreement == 1
        # 48 d^2 a layer of the denoiser is 4 layers' 12 d^2; here two.
        d = 64
        weights_read = 3 * 2 * 12 * d**2 + 2 * 16 * d**2 - 5 * d**2 + 2 * 16 * d**2 + 101 * d
        assert ours.gb_per_s == pytest.approx(2 * weights_read / 1e9)
        assert rows[PUBLISHED_FP32].gb_per_s == pytest.approx(eager.gb_per_s * 2)
        assert ours.streaming_share == pytest.approx(ours.gb_per_s)
        assert ours.floor_share == pytest.approx(ours.floor_ms / 1000) and eager.floor_ms == ours.floor_ms
        assert set(ours.phases_ms) == {"noise", "denoise", "decode", "lm_head"} and eager.phases_ms is None
        assert ours.first_s > 0 and ours.build_s > 0 and ours.watts is None and ours.launches is None

    def test_an_unsteady_machine_gives_no_ratio(self, bench, monkeypatch):
        monkeypatch.setattr(bench.machine, "sample", lambda: Sample(1500.0, "the card was throttled"))
        rows = measure(CASE, (OURS, EAGER_BF16), weights(), bench)
        assert all(row.unstable == "the card was throttled during FusedSampler" for row in rows)
        assert all(row.ratio is None and row.ms for row in rows)

    def test_the_witness_is_told_of_our_call(self, bench):
        told = []
        measure(CASE, (OURS, EAGER_BF16), weights(), bench, lambda call: told.append(call()))
        assert len(told) == 1

    @pytest.mark.parametrize("prompt", [0, 5])
    def test_a_prompt(self, bench, prompt):
        rows = measure(dataclasses.replace(CASE, prompt=prompt), (OURS, EAGER_BF16), weights(LDLM_LIKE), bench)
        assert all(row.reason is None and row.max_error < 0.1 for row in rows)
        # The roofline knows of no prompt.
        assert all((row.floor_ms is None) == bool(prompt) for row in rows)


class TestNoSpeed:
    @pytest.mark.parametrize("name", [OURS, EAGER_BF16])
    @pytest.mark.parametrize("wrong", [1.0, float("nan")])
    def test_a_failed_check(self, bench, monkeypatch, name, wrong):
        original = PEERS[EAGER_BF16]
        planted = dataclasses.replace(PEERS[name], build=lambda *a: _planted(original.build(*a), wrong))
        monkeypatch.setitem(PEERS, name, planted)
        rows = by_name(measure(CASE, (OURS, EAGER_BF16), weights(), bench))
        row = rows[name]
        assert row.reason.startswith("its error against float64 is ")
        assert (row.ms, row.tokens_per_s, row.gb_per_s, row.ratio, row.floor_share) == (None,) * 5
        assert bool(failed(rows.values())) == (name == OURS)
        assert next(row for other, row in rows.items() if other != name).ms

    def test_more_than_twice_the_baselines_error(self, bench, monkeypatch):
        original = PEERS[EAGER_BF16]
        monkeypatch.setitem(PEERS, OURS, dataclasses.replace(PEERS[OURS], build=lambda *a: _planted(original.build(*a), 0.05)))
        row = by_name(measure(CASE, (OURS, EAGER_BF16), weights(), bench))[OURS]
        assert "is more than twice the baseline's" in row.reason and row.ms is None and row.ratio is None

    def test_wrong_tokens_of_a_loop_that_keeps_its_latents(self, bench, monkeypatch):
        original = PEERS[PUBLISHED_BF16]

        def build(*arguments):
            run = original.build(*arguments)
            return lambda: peers.Output((run().tokens + 1) % 101, None)

        monkeypatch.setitem(PEERS, PUBLISHED_BF16, dataclasses.replace(original, build=build))
        row = by_name(measure(CASE, (EAGER_BF16, PUBLISHED_BF16), weights(), bench))[PUBLISHED_BF16]
        assert row.reason == "only 0% of its tokens are those of float64" and row.ms is None

    def test_a_peer_that_fails_is_a_row_and_we_are_a_bug(self, bench, monkeypatch):
        def build(*_):
            raise RuntimeError("no\nkernel")

        monkeypatch.setitem(PEERS, PUBLISHED_BF16, dataclasses.replace(PEERS[PUBLISHED_BF16], build=build))
        rows = by_name(measure(CASE, (OURS, PUBLISHED_BF16, EAGER_BF16), weights(), bench))
        assert rows[PUBLISHED_BF16].reason == "RuntimeError: no kernel" and rows[OURS].ms
        monkeypatch.setitem(PEERS, OURS, dataclasses.replace(PEERS[OURS], build=build))
        with pytest.raises(RuntimeError, match="kernel"):
            measure(CASE, (OURS, EAGER_BF16), weights(), bench)

    def test_a_missing_peer_is_named(self, bench, monkeypatch):
        rows = by_name(measure(CASE, (GRAPH, EAGER_BF16), weights(), bench))
        assert rows[GRAPH].reason == "needs a CUDA card" and rows[EAGER_BF16].ms
        monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
        assert PEERS[FP8].unsupported_reason(torch.device("cuda")) == "torchao is not installed"
        assert PEERS[GRAPH].unsupported_reason(torch.device("cuda")) is None


def _planted(run, wrong):
    """A contender whose latents are off by `wrong` times the largest."""

    def call():
        out = run()
        return peers.Output(out.tokens, out.latents + wrong * out.latents.abs().max())

    return call


def test_a_copy_that_does_not_fit_is_timed_alone_from_the_same_weights(bench, monkeypatch):
    monkeypatch.setattr(generation, "free_memory", lambda device: 0)
    found = weights()
    before = {name: tensor.clone() for name, tensor in found.model.state_dict().items()}
    rows = by_name(measure(CASE, (OURS, EAGER_BF16, PUBLISHED_FP32), found, bench))
    assert rows[PUBLISHED_FP32].ratio == 1 and rows[PUBLISHED_FP32].token_agreement == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in found.model.state_dict().items())


class TestOps:
    def test_every_op_is_right_and_timed(self, bench, monkeypatch):
        monkeypatch.setattr(ops, "stopwatch", lambda device: lambda call: 1.0)
        made = ops.make_weights(LDLM_LIKE, CPU, cache_bytes=0)
        rows = [row for op in ops.ops(made) for row in ops.measure_op(op, "tiny", bench)]
        assert failed(rows) == [] and all(row.ms and row.ratio == 1 for row in rows)
        qkv = next(row for row in rows if row.case["op"] == "linear qkv")
        # A call is one rotation through the layers.
        assert qkv.ms == 1000 / len(made.model.denoiser.blocks)
        assert qkv.gb_per_s == pytest.approx(2 * (3 * 64 * 64 + 16 * 4 * 64) / qkv.ms / 1e6)
        assert {row.case["op"] for row in rows} >= {
            "linear down",
            "attention",
            "LayerNorm",
            "denoise_update",
            "lm_head, argmax",
        }

    def test_a_wrong_op_has_no_speed(self, bench, monkeypatch):
        op = next(iter(ops.ops(ops.make_weights(LDLM_LIKE, CPU, 0))))
        wrong = dataclasses.replace(op, ours=lambda i: op.ours(i) + 1)
        ours, library = ops.measure_op(wrong, "tiny", bench)
        assert ours.ms is None and ours.reason.startswith("its error against float64 is ") and library.ms
        assert len(failed([ours, library])) == 1

    def test_a_token_is_judged_by_its_logit(self):
        exact = torch.tensor([[[1.0, 4.0, 3.99]]], dtype=torch.float64)
        row = Row({}, "ours")
        assert ops.check(row, torch.tensor([[2]]), exact) is None and row.token_agreement == 0
        assert ops.check(row, torch.tensor([[0]]), exact) is not None

    def test_weights_are_more_than_three_caches(self):
        # 2 d^2 bytes of the least layer; the CPU's limit is four layers.
        assert len(ops.make_weights(LDLM_LIKE, CPU, 10**9).model.denoiser.blocks) == 4


class TestGroups:
    def test_a_card_runs_the_published_table_every_op_and_every_axis(self):
        found = groups(torch.device("cuda"))
        small = found["table-open-dllm-35b-a3b"]
        assert {(case.preset, case.steps) for case in small.cases} == {("open-dllm-35b-a3b", 10), ("open-dllm-35b-a3b", 4)}
        assert set(small.contenders) >= {OURS, GRAPH, FP8, PUBLISHED_FP32, PUBLISHED_BF16, peers.COMPILED}
        spans = {
            name: [getattr(c, axis) for c in found[f"sweep-{name}"].cases]
            for name, axis in (
                ("length-open-dllm-35b-a3b", "seq_len"),
                ("batch-open-dllm-35b-a3b", "batch"),
                ("steps-open-dllm-35b-a3b", "steps"),
                ("prompt-ldlm-35b-a3b", "prompt"),
            )
        }
        assert [(min(v), max(v)) for v in spans.values()] == [(16, 1024), (1, 256), (1, 50), (0, 4096)]
        assert "ops-open-dllm-27b" in found and "table-open-dllm-27b" in found
        assert not any("autotune" in name for name in found)
        assert sum("autotune" in name for name in groups(torch.device("cuda"), max_autotune=True)) == 4

    def test_a_cpu_says_what_it_leaves_out(self):
        found = groups(CPU)
        assert {group.preset for group in found.values()} == {"tiny", "open-dllm-35b-a3b"}
        said = " ".join(sentence for group in found.values() for sentence in group.left_out)
        assert "open-dllm-27b needs a CUDA card" in said and "sweeps of length, batch, prompt" in said
        assert all(group.preset in PRESETS for group in found.values())


class FakeNvml:
    """What pynvml says of a card."""

    NVML_CLOCK_SM = 1
    nvmlClocksThrottleReasonHwSlowdown, nvmlClocksThrottleReasonSwThermalSlowdown = 8, 32
    clock, reasons, processes = 1500, 4, ["ours"]

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return self.clock

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self.reasons

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return self.processes


@pytest.mark.parametrize(
    ("reasons", "processes", "said"),
    [
        (4, ["ours"], None),
        (32, ["ours"], "the card was throttled"),
        (4, ["ours", "theirs"], "another process computed on the card"),
    ],
)
def test_a_card_says_what_troubles_it(reasons, processes, said):
    card = Nvml.__new__(Nvml)
    card._nvml, card._handle, card._brakes = FakeNvml(), None, 8 | 32
    card._nvml.reasons, card._nvml.processes = reasons, processes
    assert card.sample() == Sample(1500.0, said)
