"""The CUDA kernels of the lm_head on a CPU (tests/emulator), against float64."""

import dataclasses

import pytest
import torch
from torch import Tensor

from dllm_kernels.ops.linear.packing import pack
from dllm_kernels.ops.lm_head.library import LmHeadChunked
from dllm_kernels.ops.lm_head.reference import reference
from dllm_kernels.ops.lm_head.skinny import FEW_ROWS, MANY_ROWS, LmHeadSkinny
from tests.emulator import emulate
from tests.numerics import assert_contract, poisoned

pytestmark = pytest.mark.skipif(emulate.COMPILER is None, reason="no g++: the CUDA kernels were not run")

KERNEL, CHUNK_KERNEL = "csrc/kernels/lm_head_skinny.cu", "csrc/kernels/lm_head_chunked.cu"
INF, NAN = float("inf"), float("nan")
HUGE_SAMPLE = 2**33 + 5


@pytest.fixture(scope="module")
def emulator() -> emulate.Emulator:
    return emulate.build(KERNEL, CHUNK_KERNEL)


def problem(rows: int, vocab_size: int, width: int, temperature: float = 0.0, length: int | None = None, **more) -> dict:
    """Inputs by name; logits have a deviation around 2. `more`: parts, config, chunk, logprobs."""
    generator = torch.Generator().manual_seed(vocab_size + width)
    hidden = (torch.randn(rows, width, generator=generator) + 0.5).bfloat16()
    weight = (2 * torch.randn(vocab_size, width, generator=generator) / width**0.5 + 0.1).bfloat16()
    scalars = dict(temperature=torch.tensor(temperature), seed=torch.tensor(-7), first_sample=torch.tensor(HUGE_SAMPLE))
    p = dict(hidden=hidden, weight=weight, bias=torch.randn(vocab_size, generator=generator) + 1, length=length or rows)
    return p | scalars | dict(config=FEW_ROWS, parts=2, chunk=0, logprobs=True) | more


def outputs(p: dict) -> dict[str, Tensor | None]:
    rows = len(p["hidden"])
    logprobs = poisoned(rows, dtype=torch.float32) if p["logprobs"] else None
    return dict(tokens=poisoned(rows, dtype=torch.int64), logprobs=logprobs)


def calls(p: dict, out: dict) -> list[emulate.Call]:
    """What the op launches: the kernel for few rows, or where there is a chunk, those that take logits in."""
    rows, vocab_size = len(p["hidden"]), len(p["weight"])
    sources = [p[name] for name in ("bias", "temperature", "seed", "first_sample")]
    if not p["chunk"]:
        weight = pack(p["weight"].clone(), p["config"]).data
        parts = min(p["parts"], len(weight))
        workspace = poisoned(rows, (parts + 3) // 4 * 4, 5, dtype=torch.float32)
        call = LmHeadSkinny(p["config"], p["hidden"], weight, *sources, vocab_size, True, workspace, **out)
        return [emulate.Call("lm_head_skinny", call, changed={"length": p["length"], "parts": parts})]
    state, made = poisoned(rows, 5, dtype=torch.float32), []
    for begin in range(0, vocab_size, p["chunk"]):
        end = min(begin + p["chunk"], vocab_size)
        logits = poisoned(rows, (end - begin + 3) // 4 * 4, dtype=torch.float32)
        logits[:, : end - begin] = p["hidden"].float() @ p["weight"][begin:end].float().T
        shape = dict(m=rows, length=p["length"], vocab_size=vocab_size, pitch=logits.shape[1], begin=begin, end=end)
        made.append(emulate.Call("lm_head_chunked", LmHeadChunked(logits, *sources, state, **out, **shape)))
    return made


def run(emulator: emulate.Emulator, p: dict, seed: int = 0) -> dict[str, Tensor | None]:
    out = outputs(p)
    emulator.run(*calls(p, out), seed=seed)
    return out


def check(p: dict, out: dict) -> None:
    """Tokens are the float64 argmax up to float32 rounding, log-probabilities theirs under the contract."""
    hidden, weight, bias = (p[name] for name in ("hidden", "weight", "bias"))
    batched = hidden.view(-1, p["length"], hidden.shape[1])
    scalars = (p["temperature"], p["seed"], p["first_sample"])
    best, _ = reference(batched, weight, bias, *scalars)
    logits = hidden.double() @ weight.double().T + bias.double()
    tokens, best = out["tokens"], best.flatten()
    differing = tokens != best
    assert differing.double().mean() < 0.1
    if differing.any():
        # What is only nearly the best: the float64 values, noise and all, must be as good as equal.
        assert p["temperature"] == 0
        values = logits.gather(1, torch.stack((tokens, best), 1))
        assert (values[:, 1] - values[:, 0]).max() < 1e-4
    if out["logprobs"] is not None:
        at = tokens.unsqueeze(1)
        baseline = torch.nn.functional.linear(hidden.float(), weight.float(), bias).log_softmax(-1)
        assert_contract(out["logprobs"].unsqueeze(1), logits.log_softmax(-1).gather(1, at), baseline.gather(1, at))


STREAMED = (
    # Rows that fill no block, one, and two; vocabularies of one entry, padded tiles, several tiles a part.
    dict(rows=1, vocab_size=1, width=8),
    dict(rows=5, vocab_size=8, width=40, temperature=0.7),
    dict(rows=63, vocab_size=300, width=64, temperature=0.7, length=9),
    dict(rows=64, vocab_size=1009, width=72, parts=3, length=32),
    dict(rows=65, vocab_size=515, width=24, parts=1, length=13, temperature=1.0, config=MANY_ROWS),
    dict(rows=130, vocab_size=260, width=40, parts=2, length=65, config=MANY_ROWS),
    dict(rows=70, vocab_size=257, width=40, parts=2, length=35, temperature=0.3, logprobs=False),
    dict(rows=3, vocab_size=1500, width=136, parts=2, config=dataclasses.replace(FEW_ROWS, num_stages=2), temperature=0.0),
)
CHUNKED = (
    dict(rows=1, vocab_size=1, width=8, chunk=4),
    dict(rows=5, vocab_size=1009, width=8, chunk=256, temperature=0.7),
    dict(rows=6, vocab_size=2100, width=16, chunk=2048, length=2, temperature=1.0),
    dict(rows=6, vocab_size=1500, width=16, chunk=1500, length=3),
    dict(rows=3, vocab_size=70, width=16, chunk=32, logprobs=False),
)


@pytest.mark.parametrize("arguments", STREAMED + CHUNKED, ids=str)
def test_values(emulator, arguments):
    p = problem(**arguments)
    check(p, run(emulator, p, seed=p["weight"].shape[0]))


def special_values() -> tuple[dict, list[int]]:
    """Ties, infinities, NaN and huge logits of one row each, in several tiles, lanes and chunks; the tokens expected."""
    vocab_size = 600
    weight = torch.zeros(vocab_size, 8)
    weight[[5, 64, 200, 599], 0] = 3
    weight[:, 1] = -INF
    weight[:, 2] = -INF
    weight[[200, 299], 2] = -2
    weight[[130, 200], 3] = INF
    weight[[140, 150], 4] = NAN
    weight[200, 4] = INF
    weight[:, 5] = torch.linspace(-60000, 50000, vocab_size)
    weight[599, 5] = 60000
    weight[[9, 10, 17], 6] = 4
    return weight.bfloat16(), [5, 0, 200, 130, 140, 599, 9]


@pytest.mark.parametrize("arguments", STREAMED[3:6], ids=str)
def test_values_by_warpgroups(arguments):
    p = problem(**arguments)
    check(p, run(emulate.build(KERNEL, flags=emulate.CARDS["hopper"]), p, seed=p["weight"].shape[0]))


def check_special_values(run, width: int, temperature: float, **more: int) -> None:
    """`run(problem)` on each column of `special_values`: 0 times an infinite weight is NaN, so they have a call each."""
    weight, expected = special_values()
    for column, token in enumerate(expected):
        own = weight[:, column : column + 1]
        p = problem(2, len(weight), width, temperature, **more)
        hidden = torch.tensor([1.0] + [0.0] * (width - 1)).expand(2, width).bfloat16().contiguous()
        weights = torch.cat((own, torch.zeros(len(weight), width - 1)), 1).bfloat16()
        out = run(p | dict(hidden=hidden, weight=weights, bias=torch.full((len(weight),), 0.5)))
        assert out["tokens"].tolist() == [token] * 2, column
        if column in (1, 3, 4):
            assert out["logprobs"].isnan().all(), column
        else:
            logits = (own[:, 0].double() + 0.5).log_softmax(0)
            torch.testing.assert_close(out["logprobs"].double(), logits[[token] * 2], rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("temperature", [0.0, 1e-30])
@pytest.mark.parametrize("chunk", [0, 64])
def test_special_values(emulator, chunk, temperature):
    check_special_values(lambda p: run(emulator, p), 8, temperature, chunk=chunk)


def test_padding_never_wins(emulator):
    """Where the row is not finite, the padding's products are NaN."""
    for temperature in (0.0, 1.0):
        p = problem(2, 265, 8, temperature, length=1)
        p["weight"] = -p["weight"].abs() - 1
        p["hidden"][0, 0] = INF
        out = run(emulator, p)
        assert out["tokens"][0] == 0 and out["logprobs"][0].isnan() and out["tokens"][1] < 265


def test_a_row_does_not_depend_on_its_place_or_its_neighbours(emulator):
    p = problem(130, 700, 40, 0.7, length=1)
    together = run(emulator, p, seed=1)
    for row in (0, 63, 64, 129):
        alone = p | dict(hidden=p["hidden"][row : row + 1].clone(), first_sample=p["first_sample"] + row)
        single = run(emulator, alone, seed=2)
        assert torch.equal(single["tokens"], together["tokens"][row : row + 1])
        assert torch.equal(single["logprobs"], together["logprobs"][row : row + 1])


@pytest.mark.parametrize("seed", range(8))
def test_every_order_gives_the_same_bits(emulator, seed):
    p = problem(9, 800, 104, 0.7, parts=2, config=dataclasses.replace(FEW_ROWS, num_stages=3))
    expected, out = run(emulator, p, seed=100), outputs(p)
    # Two calls in a row may overlap; the second reads the same and writes elsewhere.
    again = outputs(p)
    emulator.run(*calls(p, out), *calls(p, again), seed=seed)
    for got in (out, again):
        assert torch.equal(got["tokens"], expected["tokens"]) and torch.equal(got["logprobs"], expected["logprobs"])


STREAM = "csrc/include/dllm/skinny_gemm.cuh"
ROW, MERGE = "csrc/include/dllm/row_result.cuh", "csrc/include/dllm/merge_results.cuh"
FAULTS = {
    # name: file, where, and what stands there instead
    "the parts not merged": (MERGE, "«part < parts»; part += 32", "part < 1"),
    "the parts read before they are there": (MERGE, "«pdl_wait();»", ""),
    "the parts merged before they are there": (MERGE, "«cp_async_wait<0>();»", ""),
    "the parts copied by others not awaited": (MERGE, "cp_async_wait<0>();\n    «__syncwarp();»", ""),
    "the warps not merged": (KERNEL, "«n < Tile::kWarpsN»; ++n", "n < 1"),
    "the warps merged before they are done": (KERNEL, "    «__syncthreads();»", ""),
    "the lanes not merged": (
        KERNEL,
        "combine(either(upper, x[i + kHalf], x[i]), «given», 2",
        "either(upper, x[i + kHalf], x[i])",
    ),
    "one entry of padding": (
        KERNEL,
        "const bool real = «warp_first + k * kEntryStep + group < vocab_size»;",
        "warp_first + k * kEntryStep + group <= vocab_size",
    ),
    "padding in a whole warp": (KERNEL, "if («warp_first + kWarpEntries > vocab_size»)", "false"),
    "a wrong index of the second eight": (KERNEL, "{value, first + k * «kEntryStep», at", "7"),
    "the bias of the next eight": (KERNEL, "__shfl_sync(kWholeWarp, bias, «k» * kEntryStep", "(k + 1) % kEntries"),
    "the last of equals": (KERNEL, "either(«value > best.value», {value", "value >= best.value"),
    "the logit of another entry": (KERNEL, "k * kEntryStep, at<Tile>(sums, i, «k»)}", "0"),
    "a sum not rescaled": (KERNEL, "sum.total * «__expf(sum.largest - shift[j])»", "1.0f"),
    "the maximum of another row": (KERNEL, "shift[i % 2], «i / 2 * 4» +", "0"),
    "the words of a call in another order": (KERNEL, "temperature * gumbel(words.word[«k»])", "k ^ 1"),
    "the words not exchanged": (KERNEL, "«transpose(words);»", ""),
    "another call of Philox": (KERNEL, "«group % 4 * 2» + group / 4;", "group % 4"),
    "another sample": (KERNEL, "first_sample + «sample», kGumbelNoise", "0u"),
    "another token": (KERNEL, "(seed, «token * row_quads» + quad", "(row + j) * row_quads"),
    "rows that are not there written": (KERNEL, "threadIdx.x < Tile::kM && «row < call.m»", "true"),
    "the last tile left out": (KERNEL, "end = «tiles * (part + 1) / call.parts»;", "(tiles - 1) * (part + 1) / call.parts"),
    "rows of the first block": (KERNEL, "first_row = «blockIdx.x * Tile::kM»;", "0u"),
    "input after the last": (STREAM, "1 ? stage : «stage % source_.stages»", "stage"),
    "NaN loses": (ROW, "«fminf(value, INFINITY)»", "value"),
    "the highest of equal indices": (ROW, "«a.index < b.index»", "a.index > b.index"),
    "nothing but -inf": (ROW, "return «largest == -INFINITY ? 0.0f : largest»;", "largest"),
    "a part not rescaled": (ROW, "a.total * «__expf(a.largest - shift)»", "1.0f"),
    "the chunk before forgotten": (CHUNK_KERNEL, "«call.begin == 0» ?", "true"),
    "the gap between rows read": (CHUNK_KERNEL, "«column + i < width» ?", "true"),
    "the bias of the first chunk": (CHUNK_KERNEL, "min(«index» + i, call.vocab_size - 1)", "column"),
    "the noise of the first chunk": (CHUNK_KERNEL, "row_quad + «index» / kQuad", "column"),
    "the warps of a row not awaited": (CHUNK_KERNEL, "    «__syncthreads();»", ""),
    "logits read before they are there": (CHUNK_KERNEL, "«pdl_wait();»", ""),
}


@pytest.fixture(scope="module")
def faulty() -> emulate.Emulator:
    """A build with all of FAULTS, one of which a run switches on."""
    return emulate.build(KERNEL, CHUNK_KERNEL, replaced=emulate.with_faults(FAULTS))


def small_problems() -> list[tuple[dict, list[int] | None]]:
    """Problems that between them show every fault, and for some the tokens."""
    streamed = [
        problem(65, 1009, 72, 0.7, length=5, parts=3),
        problem(70, 515, 24, 0.0, length=35, parts=2, config=MANY_ROWS),
    ]
    chunked = [problem(6, 2101, 16, 0.7, length=2, chunk=1024), problem(2, 301, 16, chunk=300)]
    padded = problem(1, 265, 8, length=1)
    padded["weight"] = -padded["weight"].abs() - 1
    padded["hidden"] = padded["hidden"].abs() + 1
    ties, minus = problem(2, 600, 8, length=2), problem(2, 300, 8, length=2)
    ties["weight"], minus["weight"] = torch.zeros(600, 8).bfloat16(), torch.zeros(300, 8).bfloat16()
    ties["bias"], minus["bias"] = torch.zeros(600), torch.full((300,), -INF)
    minus["bias"][290] = 0
    nan = problem(2, 300, 8, length=2, logprobs=False)
    nan["bias"][[7, 211]] = NAN
    exact = [(p, None) for p in [*streamed, *chunked, padded]]
    return [*exact, (ties, [0, 0]), (ties | dict(chunk=128), [0, 0]), (minus, [290, 290]), (nan, [7, 7])]


def check_small_problems(emulator: emulate.Emulator, fault: int, seed: int) -> None:
    for p, tokens in small_problems():
        out = outputs(p)
        emulator.run(*calls(p, out), seed=seed, fault=fault)
        if tokens is None:
            check(p, out)
        else:
            assert out["tokens"].tolist() == tokens
            assert out["logprobs"] is None or torch.isfinite(out["logprobs"]).all()


def test_the_small_problems_pass_without_a_fault(faulty):
    check_small_problems(faulty, fault=0, seed=0)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(faulty, fault):
    number = list(FAULTS).index(fault) + 1
    with pytest.raises((AssertionError, emulate.EmulationError)):
        for seed in range(8):
            check_small_problems(faulty, number, seed)
