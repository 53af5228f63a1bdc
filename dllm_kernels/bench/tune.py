"""Timing the configs of the skinny linear on a card, for the table ops/linear/table.json.

A config is timed as it runs in a plan: in a chain of launches in one CUDA graph, each consuming the last one's output, on
weights that are cold in L2. First each shape among its equals, with the library's GEMM beside it; then the fastest configs of
a layer's shapes together (tune_layer.py), which also says whether a plan of that width takes the kernel at all.
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
from dllm_kernels.ops.card import Card
from dllm_kernels.ops.extension import max_cluster
from dllm_kernels.ops.linear import config as gemm_config
from dllm_kernels.ops.linear.config import ENTRY_KEYS, LAYER_KEYS, GemmConfig, blocks, candidates
from dllm_kernels.ops.linear.packing import whole_shape
from dllm_kernels.ops.linear.skinny import LinearSkinny, empty_workspace, run, workspace_elements

_OPTIONS, _RINGS = 48, 6
Launch = Callable[[Tensor, int, Tensor], None]
"""Takes an input [M, K] and a weight's number, and writes the output [M, N]."""
Timings = list[tuple[GemmConfig | None, float]]
"""Configs, None for the library, and their microseconds."""


def shapes(config: LDLMConfig) -> list[tuple[int, int]]:
    """(N, K) of the layers that a model's plan may stream, each once."""
    d, h, z = config.dim, config.hidden_dim, config.latent_dim
    found = [(3 * d, d), (d, d), (4 * d, d), (d, 4 * d)]
    found += [(d, 2 * z)] * config.self_conditioning + [(z, d)] * config.ada_ln
    found += [(2 * d * config.denoiser_layers, h)] * config.context + [(2 * d * config.perceiver_layers, z)]
    found += [(h, d), (3 * h, h), (h, h), (4 * h, h), (h, 4 * h), (2 * h * config.token_decoder_layers, h)]
    return list(dict.fromkeys(found))


def tune_shape(
    m: int, n: int, k: int, device: torch.device, configs: list[GemmConfig]
) -> Iterator[tuple[GemmConfig | None, float]]:
    """(config, median microseconds a launch) of each config; first (None, ...), the library's GEMM."""
    count = max(8, min(MAX_LAUNCHES, COLD_BYTES // (2 * n * k)))
    most = max(whole_shape(config, n, k)[0] for config in configs)
    weights = [random_bf16(most, k, device) for _ in range(count)]
    bias = torch.zeros(n, device=device)
    yield None, chain_time(m, n, k, count, lambda x, i, y: torch.mm(x, weights[i][:n].T, out=y), device)
    for config in configs:
        packed = [as_packed(weight, n, config) for weight in weights]
        workspace = empty_workspace(workspace_elements(packed[0], m, max_cluster(device)), device)

        clusters = config.split_k <= max_cluster(device)

        def streamed(x, i, y, packed=packed, workspace=workspace, config=config, clusters=clusters) -> None:
            run(LinearSkinny(x, packed[i].data, bias, workspace, n, config, output=y, clusters=clusters))

        yield config, chain_time(m, n, k, count, streamed, device)


def busy_configs(m: int, n: int, k: int, card: Card) -> Iterator[GemmConfig]:
    """The configs of at most a sixteenth of padding that give every other SM a block, with rings as deep as few and more blocks
    of an SM allow, and one less."""
    # On Hopper two blocks of an SM and three; elsewhere one and two.
    limits = (card.block_bytes, card.block_bytes * 2 // 3 if card.wgmma else card.half_bytes)
    for config in (config for limit in limits for config in candidates(m, n, k, card, limit)):
        count = blocks(config, m, n) * config.split_k
        fits = k % config.tile_k == 0 and -n % config.tile_n <= n // 16
        if fits and 0.45 * card.multiprocessors <= count <= 3.1 * card.multiprocessors:
            for stages in sorted({config.num_stages, max(2, config.num_stages - 1)}):
                yield replace(config, num_stages=stages)


def chain_time(m: int, n: int, k: int, count: int, one: Launch, device: torch.device) -> float:
    """Median microseconds of one of `count` launches in a graph, each on what the last one has written."""
    # The next input begins with this output; the rest of it, if any, is what the buffer held.
    buffers = [random_bf16(m, max(n, k), device).flatten() for _ in range(2)]

    def run() -> None:
        for i in range(count):
            x, y = buffers[i % 2], buffers[1 - i % 2]
            one(x[: m * k].view(m, k), i, y[: m * n].view(m, n))

    return graph_time(run, device) / count


def entry(card: Card, m: int, n: int, k: int, timed: Timings, chosen: GemmConfig | None = None) -> dict:
    """What the table holds of a shape: its fastest config, or the one that was chosen for other reasons, with its time, the
    fastest config's and the library's, in microseconds."""
    library = next(time for config, time in timed if config is None)
    least = min(time for config, time in timed if config is not None)
    config, own = min(
        ((config, time) for config, time in timed if config is not None and chosen in (None, config)), key=lambda pair: pair[1]
    )
    return {
        "multiprocessors": card.multiprocessors,
        "wgmma": card.wgmma,
        "row_tiles": -(-m // 64),
        "n": n,
        "k": k,
        **asdict(config),
        "us": round(own, 2),
        "fastest_us": round(least, 2),
        "library_us": round(library, 2),
    }


def fastest(timed: Timings, count: int) -> list[GemmConfig]:
    """The configs that took the least time, the fastest first, at most `_RINGS` that differ in their rings only."""
    found: list[GemmConfig] = []
    for config, _ in sorted(timed, key=lambda pair: pair[1]):
        same = [other for other in found if config and config.tile == other.tile and config.split_k == other.split_k]
        if config is not None and len(same) < _RINGS:
            found.append(config)
    return found[:count]


@dataclass
class Tuned:
    """What a tuning found.

    Attributes:
        uneven: (N, K) that no config fills the card with; a rule chooses instead.
        layer: the entry of a whole layer, or None where one of its shapes is uneven.
        entries: an entry a shape.
    """

    uneven: list[tuple[int, int]]
    layer: dict | None
    entries: list[dict]


def tune(model: LDLMConfig, m: int, device: torch.device, table: dict, note: Callable[[str], None]) -> Tuned:
    """Times the configs of a model's shapes on a card, and puts what is fastest into `table`.

    Args:
        m: rows of a call, batch times length.
        table: as the file holds it: "entries" and "layers".
        note: told what is timed next.
    """
    card = Card.of(device)
    source = {"card": torch.cuda.get_device_name(device), "date": date.today().isoformat(), "torch": torch.__version__}
    timings: dict[tuple[int, int], Timings] = {}
    found = Tuned([], None, [])
    for n, k in shapes(model):
        configs = list(dict.fromkeys(busy_configs(m, n, k, card)))
        if not configs:
            found.uneven.append((n, k))
            continue
        note(f"{n} x {k}")
        with torch.no_grad():
            timings[n, k] = list(tune_shape(m, n, k, device, configs))
    chosen: dict[tuple[int, int], GemmConfig] = {}
    layer = layer_shapes(model.dim)
    if all(shape in timings for shape in layer.values()):
        note("a layer")
        with torch.no_grad():
            chain = LayerChain(m, model.dim, model.num_heads, device)
            options = {name: fastest(timings[shape], _OPTIONS) for name, shape in layer.items()}
            # From the fastest alone, and from what the table has: a change of one config at a time does not find every way.
            starts = [{name: configs[0] for name, configs in options.items()}]
            known = {name: gemm_config.select_config(m, *shape, card) for name, shape in layer.items()}
            starts += [known] * all(config in dict(timings[layer[name]]) for name, config in known.items())
            best, us = min((refine(start, options, chain.streamed) for start in starts), key=lambda found: found[1])
            library_us = chain.library()
        chosen = {shape: best[name] for name, shape in layer.items()}
        new = dict(zip(LAYER_KEYS, (card.multiprocessors, card.wgmma, -(-m // 64), model.dim), strict=True))
        found.layer = new | {"us": round(us, 2), "library_us": round(library_us, 2)} | source
        merge(table["layers"], found.layer, LAYER_KEYS)
    for shape, timed in timings.items():
        found.entries.append(entry(card, m, *shape, timed, chosen.get(shape)) | source)
        merge(table["entries"], found.entries[-1], ENTRY_KEYS)
    return found


def merge(entries: list[dict], new: dict, keys: tuple[str, ...]) -> None:
    """Puts an entry in the place of the one with the same `keys`, or at the end."""
    for index, old in enumerate(entries):
        if all(old[key] == new[key] for key in keys):
            entries[index] = new
            return
    entries.append(new)
