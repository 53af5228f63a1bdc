"""The CUDA lm_head in tiles on a CPU (tests/emulator), against float64."""

import pytest
import torch
from torch import Tensor

from dllm_kernels.ops.lm_head.persistent import LmHeadPersistent
from tests.emulator import emulate
from tests.numerics import poisoned
from tests.ops.lm_head.test_skinny_emulated import INF, NAN, check, check_special_values, outputs, problem

pytestmark = pytest.mark.skipif(emulate.COMPILER is None, reason="no g++: the CUDA kernels were not run")

KERNEL = "csrc/kernels/lm_head_persistent.cu"
ROW, MERGE = "csrc/include/dllm/row_result.cuh", "csrc/include/dllm/merge_results.cuh"
SEEDS = range(8)  # every pair of copies' and launches' extremes; tests/emulator/machine.cpp, make_policy


@pytest.fixture(scope="module")
def emulator() -> emulate.Emulator:
    return emulate.build(KERNEL, flags=emulate.CARDS["hopper"])


def call_of(p: dict, out: dict, blocks: int = 132) -> emulate.Call:
    sources = [p[name] for name in ("hidden", "weight", "bias", "temperature", "seed", "first_sample")]
    workspace = poisoned(len(p["hidden"]), (p["parts"] + 3) // 4 * 4, 5, dtype=torch.float32)
    call = LmHeadPersistent(*sources, len(p["weight"]), True, workspace, **out)
    return emulate.Call("lm_head_persistent", call, changed={"length": p["length"], "parts": p["parts"], "blocks": blocks})


def run(emulator: emulate.Emulator, p: dict, seed: int = 0, **more: int) -> dict[str, Tensor | None]:
    out = outputs(p)
    emulator.run(call_of(p, out, **more), seed=seed)
    return out


PROBLEMS = (
    # Rows that fill no tile, one, and several; vocabularies of one tile with padding, and of several tiles a part.
    dict(rows=1, vocab_size=4, width=256, parts=1),
    dict(rows=5, vocab_size=260, width=256, parts=2, temperature=0.7),
    dict(rows=63, vocab_size=1300, width=320, parts=1, temperature=0.7, length=9),
    dict(rows=130, vocab_size=1028, width=256, parts=2, length=65),
    dict(rows=300, vocab_size=772, width=448, parts=3, length=30, temperature=1.0),
    dict(rows=140, vocab_size=516, width=256, parts=1, length=35, temperature=0.3, logprobs=False),
    dict(rows=129, vocab_size=512, width=256, parts=2, length=43, logprobs=False),
)


@pytest.mark.parametrize("arguments", PROBLEMS, ids=str)
def test_values(emulator, arguments):
    p = problem(**arguments)
    check(p, run(emulator, p, seed=p["weight"].shape[0]))


@pytest.mark.parametrize("temperature", [0.0, 1e-30])
def test_special_values(emulator, temperature):
    check_special_values(lambda p: run(emulator, p), 256, temperature)


def test_padding_never_wins(emulator):
    """Where the row is not finite, the padding's products are NaN."""
    for temperature in (0.0, 1.0):
        p = problem(2, 268, 256, temperature, length=1)
        p["weight"] = -p["weight"].abs() - 1
        p["hidden"][0, 0] = INF
        out = run(emulator, p)
        assert out["tokens"][0] == 0 and out["logprobs"][0].isnan() and out["tokens"][1] < 268


def test_a_row_does_not_depend_on_its_place_its_neighbours_or_the_blocks(emulator):
    p = problem(130, 772, 256, 0.7, length=1, parts=3)
    together = run(emulator, p, seed=1, blocks=4)
    for row in (0, 63, 64, 129):
        alone = p | dict(hidden=p["hidden"][row : row + 1].clone(), first_sample=p["first_sample"] + row)
        single = run(emulator, alone, seed=2)
        assert torch.equal(single["tokens"], together["tokens"][row : row + 1])
        assert torch.equal(single["logprobs"], together["logprobs"][row : row + 1])


@pytest.mark.parametrize("seed", SEEDS)
def test_every_order_gives_the_same_bits(emulator, seed):
    p = problem(9, 1028, 320, 0.7, parts=2)
    expected, out = run(emulator, p, seed=100), outputs(p)
    # Two calls in a row may overlap; the second reads the same and writes elsewhere.
    again = outputs(p)
    emulator.run(call_of(p, out), call_of(p, again, blocks=1), seed=seed)
    for got in (out, again):
        assert torch.equal(got["tokens"], expected["tokens"]) and torch.equal(got["logprobs"], expected["logprobs"])


@pytest.mark.parametrize(
    ("vocab_size", "width", "parts", "message"),
    [
        (262, 256, 1, "takes vocabularies that are multiples of 4"),
        (260, 192, 1, "k that are multiples of 64, from 256 on"),
        (260, 288, 1, "k that are multiples of 64, from 256 on"),
        (260, 256, 0, "takes parts of at least 256 entries"),
        (260, 256, 3, "takes parts of at least 256 entries"),
    ],
)
def test_shapes_that_are_refused(emulator, vocab_size, width, parts, message):
    with pytest.raises(emulate.EmulationError, match=message):
        run(emulator, problem(2, vocab_size, width, parts=parts))


def test_a_card_without_warpgroups_refuses_it():
    with pytest.raises(emulate.EmulationError, match="lm_head_persistent runs on Hopper only"):
        run(emulate.build(KERNEL), problem(2, 260, 256))


WAITING = "«mbarrier_wait(shared->bias_full + taken % 2, taken / 2 % 2);»"
FAULTS = {
    # name: file, where, and what stands there instead
    "the bias not waited for": (KERNEL, WAITING, ""),
    "the wrong parity of a bias": (KERNEL, WAITING, "mbarrier_wait(shared->bias_full + taken % 2, taken / 2 % 2 ^ 1);"),
    "a parity of the bias that never changes": (KERNEL, WAITING, "mbarrier_wait(shared->bias_full + taken % 2, 0);"),
    "the bias of the other tile": (KERNEL, "begin_at(sums, shared->bias[«taken % 2»])", "taken % 2 ^ 1"),
    "the bias of the first tile": (KERNEL, "call.bias + «first», bytes", "0"),
    "a bias after the last": (KERNEL, "bytes = «min(kTileN, call.vocab_size - first) * 4»;", "kTileN * 4"),
    "one bias in both places": (KERNEL, "bulk_load(shared->bias[«place»],", "0"),
    "the bias of the next lane": (KERNEL, "bias + eight * 8 + «threadIdx.x % 4 * 2»)", "(threadIdx.x + 1) % 4 * 2"),
    "the first of two biases twice": (KERNEL, "sums[eight][3] = «two.y»;", "two.x"),
    "rows of the first tile": (KERNEL, "row = «number % high * kTileM»;", "0"),
    "the first part twice": (KERNEL, "part = «number / high»;", "number / high / 2"),
    "the last tile left out": (KERNEL, "end = «tiles * (part + 1) / call.parts»;", "(tiles - 1) * (part + 1) / call.parts"),
    "tiles of the first part": (KERNEL, "begin = «tiles * part / call.parts»;", "0"),
    "fewer units than there are": (KERNEL, "return «((call.m - 1) / kTileM + 1) * call.parts»;", "call.parts"),
    "inputs read before the predecessor is done": (KERNEL, "__syncthreads();\n        «pdl_wait();»", ""),
    "barriers used before they are made": (KERNEL, "«__syncthreads();»", ""),
    "barriers not announced": (KERNEL, "«fence_mbarrier_init();»", ""),
    "the rows of the first warpgroup": (KERNEL, "ring, «warp / 4 * 64», call.k", "0"),
    "the rows of another warp": (KERNEL, "row = «unit.row + warp * 16 + lane / 4»;", "unit.row + (warp ^ 1) * 16 + lane / 4"),
    "the second eight rows in the place of the first": (KERNEL, "static_cast<size_t>(«row + 8 * i») *", "row"),
    "rows that are not there written": (KERNEL, "lane % 4 == 0 && «row + 8 * i < call.m»)", "true"),
    "every part in the first's place": (KERNEL, "places(call.parts) + «unit.part»;", "0"),
    "one entry of padding": (KERNEL, "2 + i % 2 >= «real») sums", "real + 1"),
    "padding not hidden": (KERNEL, "if («call.vocab_size - first < kTileN») hide", "false"),
    "indices of the first tile": (KERNEL, "kept.keep_best(sums, «first»)", "0"),
    "indices of the first tile with noise": (KERNEL, "kept.keep_best_noisy(sums, «first»,", "0"),
    "a lane's entries side by side": (KERNEL, "{value, eight + «threadIdx.x % 4 * 2» + i % 2", "threadIdx.x % 4"),
    "the last of equals": (KERNEL, "either(«value > best.value», {value", "value >= best.value"),
    "nothing but -inf has no index": (KERNEL, "rows[1].best.index = «first + threadIdx.x % 4 * 2»;", "0xFFFFFFFFu"),
    "the logit with its noise": (KERNEL, "eight, «sums[j][i]»);", "sums[j][i] + temperature * gumbel(words[i])"),
    "the same four again": (KERNEL, "sums[j][i] = «sums[j + kTurn][i]»;", "sums[j][i]"),
    "the words of a call in another order": (KERNEL, "temperature * gumbel(words[«i»])", "i ^ 1"),
    "words not exchanged": (KERNEL, "words[i] = «odd() ? got : own.word[i]»;", "own.word[i]"),
    "words exchanged with another lane": (KERNEL, "odd() ? own.word[i] : own.word[i + 2], «1»);", "2"),
    "another call of Philox": (KERNEL, "first / 4 + «threadIdx.x % 4 / 2»;", "threadIdx.x % 4"),
    "the noise of the other row": (KERNEL, "return row + («odd() ? 8 : 0»);", "odd() ? 0 : 8"),
    "another sample": (KERNEL, "sample(*call.first_sample + «own(row) / call.length»)", "0u"),
    "another token": (KERNEL, "row_quad(«own(row) % call.length» *", "own(row)"),
    "a sum not rescaled": (KERNEL, "sum.total * «__expf(sum.largest - shift)» + total", "1.0f"),
    "the exponentials of the other row": (KERNEL, "__expf(four[«2 * row + 1»] - shift)", "3 - 2 * row"),
    "the lanes of a row not merged": (KERNEL, "distance = 1; distance <= «2»; distance", "1"),
    "the parts not merged": (MERGE, "«part < parts»; part += 32", "part < 1"),
    "the parts read before they are there": (MERGE, "«pdl_wait();»", ""),
    "nothing but -inf": (ROW, "return «largest == -INFINITY ? 0.0f : largest»;", "largest"),
    "NaN loses": (ROW, "«fminf(value, INFINITY)»", "value"),
}


@pytest.fixture(scope="module")
def faulty() -> emulate.Emulator:
    """A build with all of FAULTS, one of which a run switches on."""
    return emulate.build(KERNEL, replaced=emulate.with_faults(FAULTS), flags=emulate.CARDS["hopper"])


def small_problems() -> list[tuple[dict, list[int] | None]]:
    """Problems that between them show every fault, and for some the tokens."""
    exact = [problem(130, 1300, 256, 0.7, length=13, parts=2), problem(20, 1028, 256, length=5, parts=1)]
    padded = problem(1, 268, 256, length=1)
    padded["weight"] = -padded["weight"].abs() - 1
    padded["hidden"] = (padded["hidden"].abs() + 1) / 32
    ties, minus, none = (problem(2, size, 256, length=2) for size in (600, 300, 300))
    for p in (ties, minus, none):
        p["weight"] = torch.zeros_like(p["weight"])
        p["bias"] = torch.zeros_like(p["bias"]) if p is ties else torch.full_like(p["bias"], -INF)
    minus["bias"][290] = 0
    nan = problem(2, 300, 256, length=2, logprobs=False)
    nan["bias"][[7, 211]] = NAN
    return [*((p, None) for p in [*exact, padded]), (ties, [0, 0]), (minus, [290, 290]), (nan, [7, 7]), (none, [0, 0])]


def check_small_problems(emulator: emulate.Emulator, fault: int, seed: int) -> None:
    for p, tokens in small_problems():
        out = outputs(p)
        emulator.run(call_of(p, out, blocks=3), seed=seed, fault=fault)
        if tokens is None:
            check(p, out)
        else:
            assert out["tokens"].tolist() == tokens
            assert p["bias"].isinf().all() or out["logprobs"] is None or torch.isfinite(out["logprobs"]).all()


def test_the_small_problems_pass_without_a_fault(faulty):
    check_small_problems(faulty, fault=0, seed=0)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(faulty, fault):
    number = list(FAULTS).index(fault) + 1
    with pytest.raises((AssertionError, emulate.EmulationError)):
        for seed in SEEDS:
            check_small_problems(faulty, number, seed)
