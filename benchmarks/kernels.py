"""The CUDA kernels on this card: checked, then timed beside what a user would take instead.

    python benchmarks/kernels.py OUTPUT.json [linear attention lm_head generation-2048 generation-5120 generation-batch]

Every ratio's contenders share a process and take turns; a group's results are written as soon as they are there.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels import LDLM, FusedSampler, LDLMConfig, extension, tune
from dllm_kernels.baseline import published_generate, random_model
from dllm_kernels.ops.attention import attention
from dllm_kernels.ops.packing import pack
from dllm_kernels.ops.stream_linear import cut_for
from dllm_kernels.ops.stream_lm_head import choose as choose_lm_head
from dllm_kernels.ops.stream_lm_head import stream_lm_head

CARD = torch.device("cuda")
BF16 = torch.bfloat16
SMALL, LARGE = "open-dllm-35b-a3b", "open-dllm-27b"
Contenders = dict[str, Callable[[], object]]


def in_turns(contenders: Contenders, rounds: int = 15) -> dict[str, list[float]]:
    """[p20, median, p80] in milliseconds of each, timed by events, one call of each in every round."""
    times = {name: [] for name in contenders}
    for turn in range(rounds + 2):
        for name, call in contenders.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            call()
            end.record()
            end.synchronize()
            if turn >= 2:
                times[name].append(begin.elapsed_time(end))
    return {name: spread(values) for name, values in times.items()}


def spread(values: list[float]) -> list[float]:
    """[p20, median, p80]."""
    p20, *_, p80 = statistics.quantiles(values, n=5, method="inclusive")
    return [round(value, 4) for value in (p20, statistics.median(values), p80)]


def captured(call: Callable[[], object], launches: int = 1) -> Callable[[], None]:
    """A replay of `launches` calls in one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            call()
    return graph.replay


def random(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, device=CARD) * scale).to(BF16)


def linear() -> dict:
    """Microseconds a launch of the library's GEMM and of the streamed linear with the table's cut, M = 64."""
    multiprocessors, rows = torch.cuda.get_device_properties(CARD).multi_processor_count, []
    for preset in (SMALL, LARGE):
        for outputs, width in tune.shapes(LDLMConfig.preset(preset)):
            chosen = cut_for(64, outputs, width, BF16, CARD, "cuda")
            timed = list(tune.tune_shape(64, outputs, width, CARD, [chosen]))
            rows.append(tune.entry(multiprocessors, 64, outputs, width, timed))
    return {"rows": rows}


def attention_group() -> dict:
    """Milliseconds of 50 launches in a graph, beside SDPA on the same tensors."""
    rows = []
    for heads, head_dim, causal in ((8, 256, False), (8, 640, False), (16, 128, True), (12, 64, False)):
        for batch, length in ((1, 64), (4, 64), (16, 64), (1, 256)):
            q, k, v = random(3, batch, length, heads, head_dim).unbind()
            contenders = {
                backend: captured(lambda b=backend, x=(q, k, v), c=causal: attention(*x, causal=c, backend=b), 50)
                for backend in ("cuda", "triton", "torch")
            }
            shape = {"batch": batch, "length": length, "heads": heads, "head_dim": head_dim, "causal": causal}
            rows.append(shape | in_turns(contenders))
    return {"rows": rows}


def lm_head_group() -> dict:
    """Milliseconds of the head with its argmax, beside F.linear and argmax."""
    rows = []
    for width in (2048, 5120):
        x, weight, bias = random(1, 64, width), random(248_320, width, scale=width**-0.5), torch.zeros(248_320, device=CARD)
        expected = (x[0].float() @ weight.float().T).topk(2).values
        narrow = bias.to(BF16)
        library = captured(lambda x=x, w=weight, b=narrow: F.linear(x, w, b).argmax(-1))
        gemm = captured(lambda x=x, w=weight: F.linear(x, w))
        packed = pack(weight.clone(), choose_lm_head(64, False))
        scalars = [torch.tensor(value, device=CARD) for value in (0.0, 0, 0)]
        arguments = (x, packed, bias, *scalars)
        tokens, _ = stream_lm_head(*arguments)
        logits = (x[0].float() * weight[tokens[0]].float()).sum(-1)
        assert (expected[:, 0] - logits).abs().max() < 1e-3 * expected.abs().max(), "a token is not the argmax"
        streamed = captured(lambda a=arguments: stream_lm_head(*a))
        logprobs = captured(lambda a=arguments: stream_lm_head(*a, True))
        contenders = {"streamed": streamed, "with log-probabilities": logprobs, "F.linear, argmax": library, "F.linear": gemm}
        rows.append({"width": width, "weight_bytes": weight.numel() * 2} | in_turns(contenders))
    return {"rows": rows}


def generation(preset: str, batch: int, steps: int = 10) -> dict:
    """Milliseconds of a generation by every contender, and what was checked before."""
    torch.set_default_dtype(BF16)
    with CARD:
        model = LDLM(LDLMConfig.preset(preset)).eval()
    torch.set_default_dtype(torch.float32)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(std=parameter.shape[1] ** -0.5)
    streamed = FusedSampler(model, num_steps=steps, batch_size=batch)
    with mock.patch("dllm_kernels.plan.cut_for", lambda *_: None):
        library = FusedSampler(model, num_steps=steps, batch_size=batch)
    checks = check(streamed, library, model, steps, batch)
    loop = eager_loop(model, batch, steps)
    contenders = {
        "FusedSampler": streamed._graph.replay,
        "FusedSampler, the library's GEMMs": library._graph.replay,
        "bf16 SDPA, CUDA graph": captured(loop),
    }
    result = {"preset": preset, "batch": batch, "steps": steps, "checks": checks}
    start = time.perf_counter()
    contenders["torch.compile, CUDA graph"] = captured(torch.compile(loop))
    result["compile_s"] = round(time.perf_counter() - start, 1)
    result["ms"] = in_turns(contenders)
    if batch == 1:
        del contenders, streamed, library, model
        torch.cuda.empty_cache()
        for name, dtype in (("float32", torch.float32), ("bfloat16", BF16)):
            published = random_model(LDLMConfig.preset(preset), dtype, CARD)
            call = {f"published, eager {name}": lambda m=published: published_generate(m, steps, 64, batch)}
            result["ms"] |= in_turns(call, rounds=7)
            del published, call
            torch.cuda.empty_cache()
    return result


def check(streamed: FusedSampler, library: FusedSampler, model: LDLM, steps: int, batch: int) -> dict:
    """Replays are equal bit for bit, with and without overlapping launches, and close to the library's GEMMs."""
    first, other = streamed(seed=3), library(seed=3)
    replays = all(torch.equal(streamed(seed=3).latents, first.latents) for _ in range(100))
    extension.load().set_overlapping(False)
    apart = FusedSampler(model, num_steps=steps, batch_size=batch)(seed=3)
    extension.load().set_overlapping(True)
    found = {
        "hundred_replays_identical": replays,
        "overlapping_changes_nothing": torch.equal(apart.latents, first.latents) and torch.equal(apart.tokens, first.tokens),
        "largest_difference": ((first.latents - other.latents).abs().max() / other.latents.abs().max()).item(),
    }
    assert found["hundred_replays_identical"] and found["overlapping_changes_nothing"], found
    assert found["largest_difference"] < 0.05, found
    return found


def eager_loop(model: LDLM, batch: int, steps: int) -> Callable[[], Tensor]:
    """A generation through model/, without anything that a graph cannot hold."""
    noise = random(batch, model.config.seq_len, model.config.latent_dim)
    times = [torch.full((batch,), 1 - step / steps, device=CARD, dtype=BF16) for step in range(steps)]

    def run() -> Tensor:
        z = noise
        for t in times:
            z = 0.9 * z + 0.1 * model.denoise(z, t)
        return model.logits(model.decode(z)).argmax(-1)

    return run


GROUPS: dict[str, Callable[[], dict]] = {
    "linear": linear,
    "attention": attention_group,
    "lm_head": lm_head_group,
    "generation-2048": lambda: generation(SMALL, 1),
    "generation-5120": lambda: generation(LARGE, 1),
    "generation-batch": lambda: generation(SMALL, 64),
}


@torch.no_grad()
def main(output: Path, names: list[str]) -> None:
    properties = torch.cuda.get_device_properties(CARD)
    result = {"date": date.today().isoformat(), "card": properties.name, "torch": torch.__version__, "cuda": torch.version.cuda}
    result["command"] = " ".join(sys.argv)
    for name in names or list(GROUPS):
        start = time.perf_counter()
        result[name] = GROUPS[name]()
        result[name]["took_s"] = round(time.perf_counter() - start, 1)
        output.write_text(json.dumps(result, indent=1) + "\n")
        print(name, json.dumps(result[name]), flush=True)


if __name__ == "__main__":
    unknown = [name for name in sys.argv[2:] if name not in GROUPS]
    if len(sys.argv) < 2 or unknown or not torch.cuda.is_available():
        sys.exit(f"usage: kernels.py OUTPUT.json [{' '.join(GROUPS)}], on a machine with a CUDA card")
    main(Path(sys.argv[1]), sys.argv[2:])
