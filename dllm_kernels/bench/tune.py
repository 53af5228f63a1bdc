"""Timing the cuts of the streamed linear on a card, for the table kernels/stream.json.

A cut is timed as it runs in a plan: in a chain of launches in one CUDA graph, each consuming the last one's output, on
weights that are cold in L2. First each shape among its equals, with the library's GEMM beside it; then the fastest cuts of a
layer's shapes together (tune_layer.py), which also says whether a plan of that width streams at all.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date

import torch
from torch import Tensor

from dllm_kernels.bench.tune_layer import (
    COLD_BYTES,
    MAX_LAUNCHES,
    LayerChain,
    as_packed,
    graph_time,
    layer_shapes,
    random_bf16,
    refine,
)
from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.ops.extension import has_wgmma
from dllm_kernels.ops.linear import config as gemm_config
from dllm_kernels.ops.linear.config import SHARED_BYTES, GemmConfig, block_bytes, blocks, candidates
from dllm_kernels.ops.linear.packing import whole_shape
from dllm_kernels.ops.linear.skinny import LinearSkinny, empty_workspace, run, workspace_elements
from dllm_kernels.utils.device import multiprocessors, shared_memory

_OPTIONS, _RINGS = 48, 6
Launch = Callable[[Tensor, int, Tensor], None]
"""Takes an input [rows, width] and a weight's number, and writes the output [rows, outputs]."""
Timings = list[tuple[GemmConfig | None, float]]
"""Cuts, None for the library, and their microseconds."""


def shapes(config: LDLMConfig) -> list[tuple[int, int]]:
    """(outputs, width) of the layers that a model's plan may stream, each once."""
    d, h, z = config.dim, config.hidden_dim, config.latent_dim
    found = [(3 * d, d), (d, d), (4 * d, d), (d, 4 * d)]
    found += [(d, 2 * z)] * config.self_conditioning + [(z, d)] * config.ada_ln
    found += [(2 * d * config.denoiser_layers, h)] * config.context + [(2 * d * config.perceiver_layers, z)]
    found += [(h, d), (3 * h, h), (h, h), (4 * h, h), (h, 4 * h), (2 * h * config.token_decoder_layers, h)]
    return list(dict.fromkeys(found))


def tune_shape(
    rows: int, outputs: int, width: int, device: torch.device, cuts: list[GemmConfig]
) -> Iterator[tuple[GemmConfig | None, float]]:
    """(cut, median microseconds a launch) of each cut; first (None, ...), the library's GEMM."""
    count = max(8, min(MAX_LAUNCHES, COLD_BYTES // (2 * outputs * width)))
    most = max(whole_shape(cut, outputs, width)[0] for cut in cuts)
    weights = [random_bf16(most, width, device) for _ in range(count)]
    bias = torch.zeros(outputs, device=device)
    yield None, chain_time(rows, outputs, width, count, lambda x, i, y: torch.mm(x, weights[i][:outputs].T, out=y), device)
    for cut in cuts:
        packed = [as_packed(weight, outputs, cut) for weight in weights]
        workspace = empty_workspace(workspace_elements(packed[0], rows), device)

        def streamed(x: Tensor, i: int, y: Tensor, packed=packed, workspace=workspace, cut=cut) -> None:
            run(LinearSkinny(x, packed[i].data, bias, workspace, outputs, cut, output=y))

        yield cut, chain_time(rows, outputs, width, count, streamed, device)


def busy_cuts(
    rows: int, outputs: int, width: int, multiprocessors: int, shared_bytes: int = SHARED_BYTES, wgmma: bool = False
) -> Iterator[GemmConfig]:
    """The cuts without padding that give most SMs a block or more, with the deepest ring, one less, and half of it; or, by
    wgmma, those of at most a sixteenth of padding that give every other SM a block, with rings as deep as two and as
    three blocks of an SM allow, and one less."""
    least = 0.45 if wgmma else 0.7
    limits = (shared_bytes, shared_bytes * 2 // 3) if wgmma else (shared_bytes,)
    found = [config for limit in limits for config in candidates(rows, outputs, width, limit, wgmma)]
    for config in found:
        count = blocks(config, rows, outputs) * config.split_k
        padding = -outputs % config.tile_n
        fits = width % config.tile_k == 0 and padding <= (outputs // 16 if wgmma else 0)
        if fits and least * multiprocessors <= count <= 3.1 * multiprocessors:
            fewer = (
                {max(2, config.num_stages - 1)} if wgmma else {max(2, config.num_stages - 1), max(2, config.num_stages // 2)}
            )
            for stages in sorted({config.num_stages} | fewer):
                yield replace(config, num_stages=stages)


def chain_time(rows: int, outputs: int, width: int, count: int, one: Launch, device: torch.device) -> float:
    """Median microseconds of one of `count` launches in a graph, each on what the last one has written."""
    # The next input begins with this output; the rest of it, if any, is what the buffer held.
    buffers = [random_bf16(rows, max(outputs, width), device).flatten() for _ in range(2)]

    def run() -> None:
        for i in range(count):
            x, y = buffers[i % 2], buffers[1 - i % 2]
            one(x[: rows * width].view(rows, width), i, y[: rows * outputs].view(rows, outputs))

    return graph_time(run, device) / count


def entry(multiprocessors: int, rows: int, outputs: int, width: int, timed: Timings, chosen: GemmConfig | None = None) -> dict:
    """What the table holds of a shape: its fastest cut, or the one that was chosen for other reasons, with the cut's time,
    the fastest cut's and the library's, in microseconds."""
    library = next(time for cut, time in timed if cut is None)
    least = min(time for cut, time in timed if cut is not None)
    cut, own = min(((cut, time) for cut, time in timed if cut is not None and chosen in (None, cut)), key=lambda pair: pair[1])
    return {
        "multiprocessors": multiprocessors,
        "row_tiles": -(-rows // 64),
        "n": outputs,
        "k": width,
        **asdict(cut),
        "us": round(own, 2),
        "fastest_us": round(least, 2),
        "library_us": round(library, 2),
    }


def fastest(timed: Timings, count: int) -> list[GemmConfig]:
    """The cuts that took the least time, the fastest first, at most `_RINGS` that differ in their rings only."""
    found: list[GemmConfig] = []
    for cut, _ in sorted(timed, key=lambda pair: pair[1]):
        if cut is not None and sum(cut.tile == other.tile and cut.split_k == other.split_k for other in found) < _RINGS:
            found.append(cut)
    return found[:count]


@dataclass
class Tuned:
    """What a tuning found.

    Attributes:
        uneven: (outputs, width) that no cut fills the card with; the rule cuts them.
        layer: the entry of a whole layer, or None where one of its shapes is uneven.
        entries: an entry a shape.
    """

    uneven: list[tuple[int, int]]
    layer: dict | None
    entries: list[dict]


def tune(config: LDLMConfig, rows: int, device: torch.device, table: dict, note: Callable[[str], None]) -> Tuned:
    """Times the cuts of a model's shapes on a card, and puts what is fastest into `table`.

    Args:
        rows: of a call, batch times length.
        table: as the file holds it: "entries" and "layers".
        note: told what is timed next.
    """
    card, shared_bytes, wgmma = multiprocessors(device), block_bytes(shared_memory(device)), has_wgmma(device)
    source = {"card": torch.cuda.get_device_name(device), "date": date.today().isoformat(), "torch": torch.__version__}
    timings: dict[tuple[int, int], Timings] = {}
    found = Tuned([], None, [])
    for outputs, width in shapes(config):
        cuts = list(dict.fromkeys(busy_cuts(rows, outputs, width, card, shared_bytes, wgmma)))
        if not cuts:
            found.uneven.append((outputs, width))
            continue
        note(f"{outputs} x {width}")
        with torch.no_grad():
            timings[outputs, width] = list(tune_shape(rows, outputs, width, device, cuts))
    chosen: dict[tuple[int, int], GemmConfig] = {}
    layer = layer_shapes(config.dim)
    if all(shape in timings for shape in layer.values()):
        note("a layer")
        with torch.no_grad():
            chain = LayerChain(rows, config.dim, config.num_heads, device)
            options = {name: fastest(timings[shape], _OPTIONS) for name, shape in layer.items()}
            # From the fastest alone, and from what the table has: a change of one cut at a time does not find every way.
            starts = [{name: cuts[0] for name, cuts in options.items()}]
            known = {name: gemm_config.select_config(card, rows, *shape, shared_bytes, wgmma) for name, shape in layer.items()}
            starts += [known] * all(cut in dict(timings[layer[name]]) for name, cut in known.items())
            cuts, us = min((refine(start, options, chain.streamed) for start in starts), key=lambda found: found[1])
            library_us = chain.library()
        chosen = {shape: cuts[name] for name, shape in layer.items()}
        new = {"multiprocessors": card, "row_tiles": -(-rows // 64), "dim": config.dim}
        found.layer = new | {"us": round(us, 2), "library_us": round(library_us, 2)} | source
        merge(table["layers"], found.layer, tuple(new))
    for shape, timed in timings.items():
        found.entries.append(entry(card, rows, *shape, timed, chosen.get(shape)) | source)
        merge(table["entries"], found.entries[-1], ("multiprocessors", "row_tiles", "n", "k"))
    return found


def merge(entries: list[dict], new: dict, keys: tuple[str, ...]) -> None:
    """Puts an entry in the place of the one with the same `keys`, or at the end."""
    for index, old in enumerate(entries):
        if all(old[key] == new[key] for key in keys):
            entries[index] = new
            return
    entries.append(new)
