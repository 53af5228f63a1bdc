"""tests/emulator: each primitive means what PTX says, and faults planted in a pipeline that uses them all are found."""

import functools
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.emulator import emulate
from tests.emulator.emulate import Call, EmulationError, planted
from tests.numerics import poisoned

pytestmark = pytest.mark.skipif(emulate.COMPILER is None, reason="no g++: the CUDA kernels were not emulated")
PRIMITIVES = "tests/emulator/toys/primitives.cu"
HOPPER = "tests/emulator/toys/hopper.cu"
PIPELINE = "tests/emulator/toys/pipeline.cu"
SEEDS = range(8)  # every pair of copies' and launches' extremes; tests/emulator/machine.cpp, make_policy


def toy(kernel: str, name: str, path: str, **values) -> Call:
    """A call of a toy, whose struct is in its own source."""
    return Call(kernel, SimpleNamespace(**values), name, path)


ToyPrimitive = functools.partial(toy, "toy_primitive", "ToyPrimitive", PRIMITIVES)
ToyHopper = functools.partial(toy, "toy_hopper", "ToyHopper", HOPPER)
ToyPipeline = functools.partial(toy, "toy_pipeline", "ToyPipeline", PIPELINE)


def primitive(which: int, output: Tensor, seed: int = 0, input: Tensor | None = None, **launch: int) -> Tensor:
    """What a kernel of primitives.cu leaves in `output`."""
    counter = torch.zeros(1, dtype=torch.int64)
    launch = dict(blocks=1, threads=32, shared_bytes=0, rows=0, columns=0, row=0, column=0) | launch
    call = ToyPrimitive(input=input, output=output, counter=counter, which=which, **launch)
    emulate.build(PRIMITIVES).run(call, seed=seed)
    return output


def box(row: int, column: int, seed: int = 0, which: int = 200, **launch: int) -> tuple[Tensor, Tensor]:
    """The matrix [11, 40] of which a box [8, 32] was copied, and the copy before and after the wait for it."""
    matrix = torch.arange(1, 11 * 40 + 1).view(11, 40).bfloat16()
    launch = dict(rows=11, columns=40, shared_bytes=1024) | launch
    output = poisoned(2, 8, 32, dtype=torch.bfloat16)
    return matrix, primitive(which, output, seed, matrix.clone(), row=row, column=column, **launch)


def empty(*shape: int) -> Tensor:
    """Float32 where nothing is handed over."""
    return torch.full(shape, -1, dtype=torch.int32).view(torch.float32)


@pytest.mark.parametrize("name", ["async", "grid", "launch", "mma"])
def test_the_vocabulary_is_all_there(name):
    def functions(folder: Path) -> set[str]:
        text = (folder / f"dllm/{name}.cuh").read_text()
        return set(re.findall(r"^(?:__device__ __forceinline__|inline)? ?\w+\*? (\w+)\(", text, re.MULTILINE))

    # None is for kernels: shared_address() serves inline PTX, the others the CUDA runtime.
    assert functions(emulate.CSRC / "include") - {"check", "device_attribute", "shared_address"} <= functions(emulate.EMULATOR)


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
def test_a_warp_loads_four_tiles(seed):
    tiles = torch.arange(4 * 8 * 8, dtype=torch.int16).view(4, 8, 4, 2)
    got = primitive(8, torch.full((32, 4, 2), -1, dtype=torch.int16), seed, tiles, shared_bytes=512)
    assert torch.equal(got, tiles.permute(1, 2, 0, 3).reshape(32, 4, 2))


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


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 8), (3, 8), (5, 16), (-2, 4), (1, -8), (11, 0), (0, 40), (-8, -32)])
def test_a_tensor_copy_is_a_box_with_zeros_around_the_matrix(row, column):
    before, after = set(), set()
    r, piece = torch.arange(8).unsqueeze(1), torch.arange(4)
    for seed in SEEDS:
        matrix, got = box(row, column, seed)
        padded = torch.nn.functional.pad(matrix, (32, 32, 8, 8))
        expected = padded[row + 8 : row + 16, column + 32 : column + 64]
        landed = got[1].view(8, 4, 8)[r, piece ^ r // 2 % 4].view(8, 32)
        if row in (3, 5):
            last = 10 - row, 39 - column
            after.add(landed[last].item())
            landed[last] = matrix[-1, -1]
        assert torch.equal(landed, expected)
        before.add(got[0, 0, 0].isnan().item())
    assert before == {True, False}
    assert after == ({440.0, 99.0} if row in (3, 5) else set())


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
        (122, "a row of ldmatrix_x4 is not aligned to 16"),
        (123, "a row of ldmatrix_x4 lies outside of the block's shared memory"),
        (124, "ldmatrix_x4 needs all 32 lanes"),
        (119, "primitive never called pdl_wait()"),
    ],
)
def test_a_broken_rule_is_reported(which, message):
    output, input = torch.zeros(128) if which == 120 else empty(128), torch.zeros(256 if which >= 117 else 16)
    threads, shared_bytes = 1 if 103 <= which <= 116 else 32, {107: 96, 122: 512, 123: 512, 124: 512}.get(which, 80)
    with pytest.raises(EmulationError, match=message):
        primitive(which, output, input=input, threads=threads, shared_bytes=shared_bytes)


@pytest.mark.parametrize(
    ("which", "launch", "message"),
    [
        (201, {}, "the target of a tensor copy is not aligned to 512"),
        (202, {}, "more bytes landed on an mbarrier than its phase expected"),
        (203, {}, r"this is no map of tensor_map\(\)"),
        (200, dict(shared_bytes=1008), "the target of a tensor copy lies outside of the block's shared memory"),
        (200, dict(rows=12), "a copy of 960 bytes reads what is not allocated from byte 880 on"),
        (200, dict(columns=12), "the driver made no tensor map of a matrix of 11 x 12 values"),
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
    for launch in (dict(blocks=4, cluster=3), dict(blocks=18, cluster=9), dict(cluster=0)):
        with pytest.raises(EmulationError, match="cluster could not be launched"):
            hopper(200, torch.zeros(32), **launch)


def hopper(which: int, output: Tensor, seed: int = 0, **call) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices x [64, 16] and y [64, 32], and what a kernel of hopper.cu leaves in `output`."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(-8, 9, (64, columns), generator=generator).float() for columns in (16, 32))
    packed = x.view(64, 2, 8).transpose(0, 1).contiguous().bfloat16()
    call = dict(blocks=1, cluster=1, threads=128, counter=None) | call
    emulate.build(HOPPER).run(ToyHopper(x=packed, y=y.bfloat16(), output=output, which=which, **call), seed=seed)
    return x, y, output


@pytest.mark.parametrize("which", [0, 1])
def test_a_product_of_a_warpgroup_completes_between_issue_and_wait(which):
    changed = set()
    for seed in SEEDS:
        x, y, got = hopper(which, poisoned(2, 64, 32 if which else 64, dtype=torch.float32), seed)
        late = torch.cat((torch.tensor([99.0]), x.flatten()[1:])).view(64, 16)
        products = [1 + (y[:, 16:] @ a[:32].T if which else a @ y[:, :16].T) for a in (x, late)]
        assert got[0].isnan().all()
        # Each warp reads in its own time.
        warps = list(zip(got[1].split(16), *(product.split(16) for product in products), strict=True))
        assert all(torch.equal(c, early) or torch.equal(c, late) for c, early, late in warps)
        changed |= {torch.equal(c, late) for c, early, late in warps if not torch.equal(early, late)}
    assert changed == {True, False}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_wait_is_for_what_was_committed(seed):
    x, y, (both, before, after) = hopper(2, poisoned(3, 64, 64, dtype=torch.float32), seed)
    first, second = x @ y[:, :16].T, x @ y[:, 16:].T
    assert torch.equal(both, first + second) and before.isnan().all() and torch.equal(after, first)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_wait_leaves_as_many_groups_as_it_says(seed):
    x, y, (first, before, after) = hopper(3, poisoned(3, 64, 64, dtype=torch.float32), seed)
    assert torch.equal(first, x @ y[:, :16].T) and before.isnan().all() and torch.equal(after, x @ y[:, 16:].T)


@pytest.mark.parametrize("cluster", [1, 2, 4])
def test_blocks_of_a_cluster_read_each_other(cluster):
    blocks, threads, early = 8, 40, 0
    for seed in SEEDS:
        counter = torch.zeros(2 * blocks * threads + blocks, dtype=torch.int32)
        call = dict(blocks=blocks, cluster=cluster, threads=threads, counter=counter)
        _, _, got = hopper(200, poisoned(blocks, cluster, dtype=torch.float32), seed, **call)
        of_cluster = torch.arange(1.0, blocks + 1).view(-1, 1, cluster)
        assert torch.equal(got, of_cluster.expand(-1, cluster, -1).reshape(blocks, cluster))
        arrived, waited = counter[: 2 * blocks * threads].chunk(2)
        assert waited.eq(cluster * threads).all()
        early += arrived.lt(cluster * threads).sum().item()
    assert early > 0


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (100, r"wgmma\(\) without wgmma_fence\(\)"),
        (101, "a thread ends while products of its warpgroup were not waited for"),
        (102, "a thread ends while products of its warpgroup were not waited for"),
        (103, r"c is written between wgmma\(\) and the wait for it"),
        (104, "warps of a warpgroup are in different places"),
        (105, "some warps of a warpgroup never came to wgmma_fence"),
        (106, "warps of a warpgroup have different operands"),
        (107, "lanes of a warp have different operands"),
        (108, "a warpgroup has four warps"),
        (109, "an operand is not aligned to 128"),
        (110, "the step of an operand is not a multiple of 128"),
        (111, "eight rows of a box is not aligned to 512"),
        (112, "an operand lies outside of the block's shared memory"),
        (113, r"this is no operand of wgmma_descriptor\(\) or wgmma_descriptor_swizzled\(\)"),
        (114, "wgmma_fence needs all 32 lanes"),
        (115, r"wgmma\(\) without wgmma_fence\(\)"),
        (210, r"the memory of a peer is read before cluster_arrive\(\) of all"),
        (211, r"the memory of a peer is read before cluster_arrive\(\) of all"),
        (212, "the memory of a peer that has ended is read"),
        (213, "a thread arrives at its cluster's barrier again"),
        (214, r"cluster_wait\(\) without cluster_arrive\(\)"),
        (215, r"a thread ends between cluster_arrive\(\) and cluster_wait\(\)"),
        (216, "the cluster has no block 2"),
        (217, "what a peer is read for lies outside of the block's shared memory"),
        (218, r"deadlock: .*\n(.*\n)*.* waits for its cluster"),
    ],
)
def test_a_broken_rule_of_hopper_is_reported(which, message):
    with pytest.raises(EmulationError, match=message):
        for seed in SEEDS:
            hopper(which, torch.zeros(4), seed, blocks=2, cluster=2, threads=96 if which == 108 else 128)


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
    "barriers not announced": ("        fence_mbarrier_init();\n", ""),
    "a group of copies not waited for": ("    cp_async_wait<0>();\n", ""),
    "the predecessor not waited for": ("pdl_wait();  // for a\n", "\n"),
    "no wait before what a predecessor reads is written": (
        "pdl_wait();  // the call",
        "if (blockIdx.x == 0) pdl_wait();  //",
    ),
    "the filling of a slot not waited for": ("mbarrier_wait(&memory.full[i % kSlots], i / kSlots % 2);", ""),
    "the wrong parity of a full slot": ("full[i % kSlots], i / kSlots % 2)", "full[i % kSlots], (i / kSlots + 1) % 2)"),
    "the emptying of a slot not waited for": (
        "if (i >= kSlots) mbarrier_wait(&memory.empty[i % kSlots], (i / kSlots - 1) % 2);  // for b",
        "",
    ),
    "the wrong parity of an empty slot": ("(i / kSlots - 1) % 2);  // for b", "i / kSlots % 2);  // for b"),
    "slots never emptied": ("if (lane == 0) mbarrier_arrive(&memory.empty[i % kSlots]);", ""),
    "an arrival that does not wait for its copies": ("cp_async_arrive(", "mbarrier_arrive("),
    "fewer bytes expected than copied": (
        "full[i % kSlots], kTileBytes);\n                c",
        "full[i % kSlots], 2032);\n                c",
    ),
    "swapped fragments": ("pair(a + 8 * kAStride), pair(a + 8)", "pair(a + 8), pair(a + 8 * kAStride)"),
    "the next tile": ("all_tiles + first + i)", "all_tiles + first + i + 1)"),
    "a split too short": ("(split + 1) / p.splits - first", "(split + 1) / p.splits - first - (split == 1)"),
    "a value not waited for": ("take(place(s, i))", "lamport_load(place(s, i))"),
    "a value looked at in part": ("while (!lamport_ready(peeked))", "while (__float_as_uint(peeked.x) == kLamportEmpty)"),
    "a value taken and not cleared": ("    lamport_reset(place);\n", ""),
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
