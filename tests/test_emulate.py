"""csrc/emulate: each primitive means what PTX says, and faults planted in a pipeline that uses them all are found."""

import re

import pytest
import torch
from torch import Tensor

from tests import emulate
from tests.emulate import EmulationError, call_type, planted
from tests.numerics import poisoned

pytestmark = pytest.mark.skipif(emulate.COMPILER is None, reason="no g++: the CUDA kernels were not emulated")
PRIMITIVES = "csrc/emulate/toys/primitives.cu"
PIPELINE = "csrc/emulate/toys/pipeline.cu"
SEEDS = range(8)  # every pair of copies' and launches' extremes; csrc/emulate/machine.cpp, make_policy

ToyPrimitive = call_type("ToyPrimitive", "toy_primitive", PRIMITIVES)
ToyPipeline = call_type("ToyPipeline", "toy_pipeline", PIPELINE)


def primitive(which: int, output: Tensor, seed: int = 0, input: Tensor | None = None, **launch: int) -> Tensor:
    """What a kernel of primitives.cu leaves in `output`."""
    counter = torch.zeros(1, dtype=torch.int64)
    launch = dict(blocks=1, threads=32, shared_bytes=0, rows=0, columns=0, row=0, column=0) | launch
    call = ToyPrimitive(input=input, output=output, counter=counter, which=which, **launch)
    emulate.build(PRIMITIVES).run(call, seed=seed)
    return output


def box(row: int, column: int, seed: int = 0, which: int = 200, **launch: int) -> tuple[Tensor, Tensor]:
    """The matrix [7, 24] of which a box [4, 16] was copied, and the copy before and after the wait for it."""
    matrix = torch.arange(1, 7 * 24 + 1).view(7, 24).bfloat16()
    launch = dict(rows=7, columns=24, shared_bytes=256) | launch
    output = poisoned(2, 4, 16, dtype=torch.bfloat16)
    return matrix, primitive(which, output, seed, matrix.clone(), row=row, column=column, **launch)


def empty(*shape: int) -> Tensor:
    """Float32 where nothing is handed over."""
    return torch.full(shape, -1, dtype=torch.int32).view(torch.float32)


@pytest.mark.parametrize("name", ["async", "grid", "launch", "mma"])
def test_the_vocabulary_is_all_there(name):
    def functions(folder: str) -> set[str]:
        text = (emulate.CSRC / folder / f"dllm/{name}.cuh").read_text()
        return set(re.findall(r"^(?:__device__ __forceinline__|inline)? ?\w+\*? (\w+)\(", text, re.MULTILINE))

    # Neither is for kernels: shared_address() serves inline PTX, check() the CUDA runtime.
    assert functions("include") - {"check", "shared_address"} <= functions("emulate")


def test_mma_is_a_product_of_tiles():
    a, b, c = torch.randint(-8, 9, (16, 16)), torch.randint(-8, 9, (8, 16)), torch.randint(-8, 9, (16, 8)).float()
    tiles = torch.cat((a.flatten(), b.flatten())).bfloat16()
    expected = c + (a @ b.T).float()
    assert torch.equal(primitive(0, c, input=tiles), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_lanes_exchange_what_they_should(seed):
    lane = torch.arange(32)
    expected = [
        torch.full((32,), 5),
        lane // 8 * 8 + 3,
        lane ^ 16,
        torch.where(lane % 16 < 8, lane, lane - 8),  # a later group is out of reach, an earlier one is not
        torch.where(lane < 29, lane + 3, lane),
        torch.where(lane % 8 < 5, lane + 3, lane),
        lane ^ 1,
        torch.full((32,), sum(1 << i for i in range(0, 32, 3))),
        torch.where(lane % 2 == 1, sum(1 << i for i in range(9, 32, 2)), 0),
        torch.full((32,), 2),
        torch.full((32,), 2),
    ]
    got = primitive(1, torch.full((11, 32), -1, dtype=torch.int32), seed)
    assert torch.equal(got.long() & 0xFFFFFFFF, torch.stack(expected))


@pytest.mark.parametrize("seed", SEEDS)
def test_phases_of_a_barrier_alternate(seed):
    got = primitive(2, poisoned(5, 39, dtype=torch.float32), seed, threads=40, shared_bytes=32)
    assert torch.equal(got, torch.arange(5.0).unsqueeze(1).expand(5, 39))


def test_a_group_of_copies_has_landed_when_it_was_waited_for():
    values, late = torch.randn(64, 8) + 0.3, 0
    for seed in SEEDS:
        got = primitive(3, poisoned(64, 2, 12, dtype=torch.float32), seed, values, threads=64, shared_bytes=64 * 48)
        expected = torch.cat((values, torch.zeros(64, 4)), dim=1)
        assert torch.equal(got[:, 1], expected)
        assert torch.equal(got[:, 0, :4], values[:, :4])
        early = got[:, 0, 4:]
        assert torch.equal(early.nan_to_num(1e9), torch.where(early.isnan(), 1e9, expected[:, 4:]))
        late += early.isnan().sum().item()
    assert 0 < late < len(SEEDS) * 64 * 8


def test_a_bulk_copy_lands_between_issue_and_wait():
    before, after = set(), set()
    for seed in SEEDS:
        values = torch.arange(16.0)
        got = primitive(4, poisoned(2, 16, dtype=torch.float32), seed, values, threads=1, shared_bytes=80)
        assert torch.equal(got[1, :15], torch.arange(15.0))
        before.add(str(got[0, 0].item()))
        after.add(got[1, 15].item())
    assert before == {"nan", "0.0"} and after == {15.0, 99.0}


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 8), (3, 8), (5, 16), (-2, 4), (1, -8), (7, 0), (0, 24), (-4, -16)])
def test_a_tensor_copy_is_a_box_with_zeros_around_the_matrix(row, column):
    before, after = set(), set()
    for seed in SEEDS:
        matrix, got = box(row, column, seed)
        padded = torch.nn.functional.pad(matrix, (16, 16, 4, 4))
        expected = padded[row + 4 : row + 8, column + 16 : column + 32]
        last = expected == matrix[-1, -1]
        assert torch.equal(got[1].masked_fill(last, 0), expected.masked_fill(last, 0))
        before.add(got[0, 0, 0].isnan().item())
        after |= {value.item() for value in got[1][last]}
    assert before == {True, False}
    assert after == ({168.0, 99.0} if row in (3, 5) else set())


def test_threads_run_in_an_order_that_the_seed_decides():
    orders = [primitive(5, torch.zeros(16 * 64, dtype=torch.int64), seed, blocks=16, threads=64) for seed in (0, 1, 1)]
    assert all(torch.equal(order.sort().values, torch.arange(16 * 64)) for order in orders)
    assert torch.equal(orders[1], orders[2]) and not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], torch.arange(16 * 64))


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_hand_each_other_values(seed):
    places, values = empty(3, 16, 4), torch.arange(16.0)
    got = primitive(7, poisoned(3, 16, dtype=torch.float32), seed, places, blocks=16, threads=1)
    for row in got:
        values = values.roll(1) * 4 + 1
        assert torch.equal(row, values)
    assert torch.equal(places.view(torch.int32), torch.full((3, 16, 4), -1, dtype=torch.int32))


def test_fresh_shared_memory_is_nan():
    assert primitive(6, torch.zeros(32), shared_bytes=128).isnan().all()


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (100, r"deadlock: no thread can go on\n  primitive, block \(0, 0, 0\), thread 0 waits for a shuffle at \S+\.cu:\d+"),
        (101, "a shuffle reads lane 7, which takes no part"),
        (102, "threads of a block meet at different __syncthreads"),
        (103, "an mbarrier has more arrivals in a phase than it was made for"),
        (104, "this is no mbarrier"),
        (105, "this is no mbarrier: .* its memory was written over"),
        (106, "the size of a bulk copy is not a multiple of 16"),
        (107, "the target of a bulk copy is not aligned to 16"),
        (108, "the target of a bulk copy lies outside of the block's shared memory"),
        (109, "the address of a copy's source is not a multiple of 16"),
        (110, "a copy of 64 bytes reads what is not allocated from byte 48 on"),
        (111, "more bytes landed on an mbarrier than its phase expected"),
        (112, "deadlock: .*\n.* thread 0 waits for an mbarrier"),
        (113, "AddressSanitizer: heap-buffer-overflow"),
        (114, "AddressSanitizer: heap-buffer-overflow"),
        (115, "misaligned address"),
        (116, "shift exponent 32 is too large"),
        (117, "mma needs all 32 lanes"),
        (118, "this lane is not in the mask of its __syncwarp"),
        (120, "a value is handed over at a place that is not empty"),
        (121, "a place is cleared before its value is there"),
        (119, "primitive never called wait_for_predecessors()"),
    ],
)
def test_a_broken_rule_is_reported(which, message):
    output, input = torch.zeros(128) if which == 120 else empty(128), torch.zeros(256 if which == 117 else 16)
    threads, shared_bytes = 1 if 103 <= which <= 116 else 32, 96 if which == 107 else 80
    with pytest.raises(EmulationError, match=message):
        primitive(which, output, input=input, threads=threads, shared_bytes=shared_bytes)


@pytest.mark.parametrize(
    ("which", "launch", "message"),
    [
        (201, dict(shared_bytes=272), "the target of a tensor copy is not aligned to 128"),
        (202, {}, "more bytes landed on an mbarrier than its phase expected"),
        (203, {}, r"this is no map of tensor_map\(\)"),
        (200, dict(shared_bytes=240), "the target of a tensor copy lies outside of the block's shared memory"),
        (200, dict(rows=8), "a copy of 384 bytes reads what is not allocated from byte 336 on"),
        (200, dict(columns=12), "the driver made no tensor map of a matrix of 7 x 12 values"),
        (200, dict(rows=0), "the driver made no tensor map"),
    ],
)
def test_a_broken_rule_of_tensor_copies_is_reported(which, launch, message):
    with pytest.raises(EmulationError, match=message):
        for seed in SEEDS:
            box(0, 0, seed, which, **launch)


def test_a_launch_that_the_hardware_refuses():
    for launch in (dict(shared_bytes=99 * 1024 + 16), dict(blocks=0), dict(threads=1025)):
        with pytest.raises(EmulationError, match="primitive could not be launched"):
            primitive(6, torch.zeros(32), **launch)


def pipeline(runner: emulate.Emulator, seed: int) -> bool:
    """Whether two calls in a row of pipeline.cu, which share their buffers, give the right values."""
    rows, n, k, splits = 13, 64, 320, 3
    generator = torch.Generator().manual_seed(0)
    shared = dict(
        a=poisoned(rows, k, dtype=torch.bfloat16),
        partial=empty(splits, rows, n),
    )
    calls, results = [], []
    for _ in range(2):
        x = torch.randn(rows, k, generator=generator) + 0.5
        b = (torch.randn(n, k, generator=generator) + 0.2).bfloat16()
        tiles, c = b.view(n // 32, 32, k // 32, 32).transpose(1, 2).contiguous(), poisoned(rows, n, dtype=torch.float32)
        calls.append(ToyPipeline(x=x, b=tiles, c=c, rows=rows, n=n, k=k, splits=splits, **shared))
        normalized = x.double() * x.double().square().mean(dim=1, keepdim=True).rsqrt()
        results.append((c, normalized.bfloat16().double() @ b.double().T))
    runner.run(*calls, seed=seed)
    return all(torch.allclose(c.double(), expected, rtol=0, atol=1e-3) for c, expected in results)


@pytest.mark.parametrize("seed", range(16))
def test_a_pipeline_is_right_in_any_order(seed):
    assert pipeline(emulate.build(PIPELINE), seed)


FAULTS = {
    "no __syncthreads after copies": ("    __syncthreads();  // the copies of all threads\n", ""),
    "no __syncthreads between warps": ("    __syncthreads();  // the sums of all warps\n", ""),
    "no __syncthreads before staged values are read": ("    __syncthreads();  // all of staged\n", ""),
    "barriers used before they are made": ("    __syncthreads();  // the barriers are made\n", ""),
    "barriers not announced": ("        barriers_ready();\n", ""),
    "a group of copies not waited for": ("    copies_wait<0>();\n", ""),
    "the predecessor not waited for": ("wait_for_predecessors();  // for a\n", "\n"),
    "no wait before what a predecessor reads is written": (
        "wait_for_predecessors();  // the call",
        "if (blockIdx.x == 0) wait_for_predecessors();  //",
    ),
    "the filling of a slot not waited for": ("barrier_wait(&memory.full[i % kSlots], i / kSlots % 2);", ""),
    "the wrong parity of a full slot": ("full[i % kSlots], i / kSlots % 2)", "full[i % kSlots], (i / kSlots + 1) % 2)"),
    "the emptying of a slot not waited for": (
        "if (i >= kSlots) barrier_wait(&memory.empty[i % kSlots], (i / kSlots - 1) % 2);  // for b",
        "",
    ),
    "the wrong parity of an empty slot": ("(i / kSlots - 1) % 2);  // for b", "i / kSlots % 2);  // for b"),
    "slots never emptied": ("if (lane == 0) barrier_arrive(&memory.empty[i % kSlots]);", ""),
    "an arrival that does not wait for its copies": ("arrive_when_copied(", "barrier_arrive("),
    "fewer bytes expected than copied": (
        "full[i % kSlots], kTileBytes);\n                c",
        "full[i % kSlots], 2032);\n                c",
    ),
    "swapped fragments": ("pair(a + 8 * kAStride), pair(a + 8)", "pair(a + 8), pair(a + 8 * kAStride)"),
    "the next tile": ("all_tiles + first + i)", "all_tiles + first + i + 1)"),
    "a split too short": ("(split + 1) / p.splits - first", "(split + 1) / p.splits - first - (split == 1)"),
    "a value not waited for": ("take(place(s, i))", "peek(place(s, i))"),
    "a value looked at in part": ("while (!complete(peeked))", "while (__float_as_uint(peeked.x) == kEmpty)"),
    "a value taken and not cleared": ("    clear(place);\n", ""),
    "a value handed over that nobody takes": ("s < p.splits; ++s", "s < p.splits - 1; ++s"),
    "too little shared memory": ("160, sizeof(Memory)", "160, sizeof(Memory) - 8"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault):
    runner = emulate.build(PIPELINE, replaced=planted(PIPELINE, *FAULTS[fault]))
    found = 0
    for seed in SEEDS[:4]:
        try:
            found += not pipeline(runner, seed)
        except EmulationError:
            found += 1
    assert found > 0
