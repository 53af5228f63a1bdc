"""Timing the configs of a transformer layer's GEMMs in the order in which a plan runs them, with all that stands around them.

What suits a GEMM between its equals need not suit it between its neighbours: a config decides where blocks are placed, and so
where the next kernel finds room to begin (docs/kernels.md).
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_kernels.ops.attention.op import attention
from dllm_kernels.ops.extension import max_cluster
from dllm_kernels.ops.linear.config import MAX_TILE_N, GemmConfig
from dllm_kernels.ops.linear.op import linear
from dllm_kernels.ops.linear.packing import PackedWeight, whole_shape
from dllm_kernels.ops.linear.params import Activations, LinearParams
from dllm_kernels.ops.linear.reference import row_statistics
from dllm_kernels.ops.linear.skinny import empty_workspace, linear_skinny, workspace_elements

COLD_BYTES, MAX_LAUNCHES, _REPLAYS = 2 * 10**9, 48, 5
_WORTH = 0.998
Configs = dict[str, GemmConfig]
"""A config for each of a layer's GEMMs, by name."""


def layer_shapes(dim: int) -> dict[str, tuple[int, int]]:
    """(outputs, width) of the GEMMs of a self-attention and MLP layer, in their order."""
    return {"qkv": (3 * dim, dim), "out": (dim, dim), "up": (4 * dim, dim), "down": (dim, 4 * dim)}


def refine(configs: Configs, options: dict[str, list[GemmConfig]], time: Callable[[Configs], float]) -> tuple[Configs, float]:
    """Configs that are fastest together: one GEMM's is changed at a time, as long as that gains.

    Args:
        configs: to begin with.
        options: what each GEMM may have.
        time: microseconds of a layer with some configs.

    Returns:
        The configs and their microseconds.
    """
    configs, best = dict(configs), time(configs)
    while True:
        before = best
        for name, choices in options.items():
            found = [(time(configs | {name: config}), config) for config in choices if config != configs[name]]
            # The fastest of many is fast by chance too: only a second time counts.
            fastest = min(found, key=lambda pair: pair[0], default=(best, configs[name]))[1]
            again = time(configs | {name: fastest})
            if again < best:
                configs[name], best = fastest, again
        if best > before * _WORTH:
            return configs, best


@dataclass(frozen=True)
class _Gemm:
    weights: list[Tensor]
    bias: Tensor
    column_sums: Tensor


class LayerChain:
    """Many layers of one shape one after the other, whose weights are cold in L2 because there are more than it holds.

    Args:
        rows: of a call.
        dim: width d; the MLP has four times as many features.
        heads: of the attention.
        device: a CUDA card.
    """

    def __init__(self, rows: int, dim: int, heads: int, device: torch.device):
        self._rows, self._heads, self._device = rows, heads, device
        self._count = max(3, min(MAX_LAUNCHES // 4, COLD_BYTES // (24 * dim**2)))
        self._x = random_bf16(rows, dim, device).unsqueeze(0)
        self._gemms = {
            name: _Gemm(
                # With room for what pads the last block.
                [random_bf16(outputs + MAX_TILE_N, width, device) for _ in range(self._count)],
                torch.zeros(outputs, device=device),
                torch.zeros(outputs, device=device),
            )
            for name, (outputs, width) in layer_shapes(dim).items()
        }

    def streamed(self, configs: Configs) -> float:
        """Microseconds of a layer as a plan streams it."""
        packed = {
            name: [as_packed(w, len(gemm.bias), configs[name]) for w in gemm.weights] for name, gemm in self._gemms.items()
        }
        elements = max(workspace_elements(weights[0], self._rows, max_cluster(self._device)) for weights in packed.values())
        workspace = empty_workspace(elements, self._device)
        first = row_statistics(self._x, configs["down"].tile_n)

        def one(name: str, i: int, x: Tensor, read: Tensor | None = None, chunk: int = 0, **around):
            gemm = self._gemms[name]
            normalised = {} if read is None else {"column_sums": gemm.column_sums, "stats": read, "stats_chunk": chunk}
            y, _, left = linear_skinny(x, packed[name][i], gemm.bias, workspace, **normalised, **around)
            return y, left

        def run() -> None:
            x, left = self._x, first
            for i in range(self._count):
                qkv, _ = one("qkv", i, x, left, configs["down"].tile_n)
                x, left = one("out", i, self._attended(qkv, "cuda"), residual=x, with_stats=True)
                hidden, _ = one("up", i, x, left, configs["out"].tile_n, gelu=True)
                x, left = one("down", i, hidden, residual=x, with_stats=True)

        return graph_time(run, self._device) / self._count

    def library(self) -> float:
        """Microseconds of a layer as a plan runs it with the library's GEMMs."""
        params = {
            name: [
                LinearParams(w[: len(gemm.bias)], gemm.bias.bfloat16(), gemm.column_sums if name in ("qkv", "up") else None)
                for w in gemm.weights
            ]
            for name, gemm in self._gemms.items()
        }

        def run() -> None:
            x = self._x

            def one(x: Tensor, params: LinearParams, **around) -> Tensor:
                return linear(Activations(x), params, **around).x

            for i in range(self._count):
                c = {name: layers[i] for name, layers in params.items()}
                x = one(self._attended(one(x, c["qkv"]), "auto"), c["out"], residual=x)
                x = one(one(x, c["up"], gelu=True), c["down"], residual=x)

        return graph_time(run, self._device) / self._count

    def _attended(self, qkv: Tensor, backend: str) -> Tensor:
        q, k, v = qkv.unflatten(-1, (3, self._heads, -1)).unbind(dim=2)
        return attention(q, k, v, backend=backend).flatten(2)


def graph_time(run: Callable[[], None], device: torch.device) -> float:
    """Median microseconds of the replays of a graph of what `run` launches."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        run()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        run()
    times = []
    for _ in range(_REPLAYS + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000)
    return statistics.median(times[1:])


def random_bf16(rows: int, columns: int, device: torch.device) -> Tensor:
    """Normal values that a product over the columns keeps at their size."""
    return (torch.randn(rows, columns, device=device) * columns**-0.5).bfloat16()


def as_packed(weight: Tensor, outputs: int, config: GemmConfig) -> PackedWeight:
    """A weight of at least the rows that the config pads `outputs` to. The order of the values does not matter to the time, so
    they are left where they are."""
    rows, width = whole_shape(config, outputs, weight.shape[1])
    return PackedWeight(weight[:rows].view(rows // config.tile_n, width // 8, config.tile_n, 8), outputs, width, config)
