"""The roofline of a generation (Williams et al., "Roofline", CACM 2009): the time under which no implementation can go.

    floor = max(bytes of weights / bandwidth, operations / arithmetic rate)

A weight is read once a use, whatever the batch: the denoiser's at every step, the decoders' and the lm_head's once.
Activations, biases and tables are left out: at 64 tokens they are under a hundredth of the weights.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.utils.device import device_name, measure_bandwidth, measure_product


@dataclass(frozen=True)
class Card:
    """What a card reaches.

    Attributes:
        name: for people.
        bandwidth: bytes a second that it reads.
        rates: floating-point operations a second of dense products, by the dtype of their operands.
        provenance: where the figures come from.
    """

    name: str
    bandwidth: float
    rates: Mapping[torch.dtype, float]
    provenance: str


CARDS = {
    "h200": Card(
        "NVIDIA H200",
        4.55e12,
        {torch.bfloat16: 720e12},
        "measured: weights streamed by bulk copies, and the lower end of an 8192^3 bf16 product's 720 to 780 TFLOP/s",
    ),
    "rtx5090": Card(
        "NVIDIA GeForce RTX 5090",
        1.674e12,
        {torch.bfloat16: 209.5e12},
        "published, not measured here: the most anyone reads of its 1,792 GB/s, and dense bf16 with float32 accumulation",
    ),
}


def this_card(device: torch.device, dtype: torch.dtype) -> Card:
    """`device` as it is measured now; a CPU computes 16-bit weights in float32, so that is the product it is measured by."""
    operands = torch.promote_types(dtype, torch.float32) if device.type == "cpu" else dtype
    bandwidth, rate = measure_bandwidth(device), measure_product(device, operands)
    computed = str(operands).removeprefix("torch.")
    return Card(device_name(device), bandwidth, {dtype: rate}, f"measured now: a large copy or sum, and a {computed} product")


@dataclass(frozen=True)
class Work:
    """What a part of the model asks of a card in one generation.

    Attributes:
        part: "denoiser", "latent_decoder", "token_decoder" or "lm_head".
        weights: elements of weight matrices read, each once a use.
        operations: floating-point operations: two a weight and row it multiplies, and attention's two products.
    """

    part: str
    weights: int
    operations: int


def work(
    config: LDLMConfig, parts: Mapping[str, nn.Module], num_steps: int, batch_size: int = 1, folded: bool = True
) -> list[Work]:
    """The work of one generation of B samples without a prompt.

    Args:
        config: the model's.
        parts: the modules that a generation runs, by name; only their shapes are read, so they may be on the meta device.
        num_steps: N.
        batch_size: B.
        folded: as a plan runs the model, in which everything that depends on no input is computed before (docs/design.md);
            False for the model as it is written.
    """
    rows = []
    for part, module in parts.items():
        uses = list(_uses(part, module, config, num_steps, batch_size, folded))
        operations = sum(2 * times * multiplied * weight for weight, times, multiplied in uses)
        attention = _attention(part, module, config, num_steps, batch_size, folded)
        rows.append(Work(part, sum(weight * times for weight, times, _ in uses), operations + attention))
    return rows


def _uses(part, module, config, num_steps, batch_size, folded) -> Iterator[tuple[int, int, int]]:
    """(elements, times read, rows multiplied) of every weight matrix."""
    for name, layer in [("", module)] if isinstance(module, nn.Linear) else module.named_modules():
        if not isinstance(layer, nn.Linear) or (folded and _is_folded(part, name)):
            continue
        times = num_steps if part == "denoiser" else 1
        if name == "project_in" and config.first_prediction == "skip":
            times -= 1
        yield layer.weight.numel(), times, batch_size * (1 if _reads_one_row(part, name) else config.seq_len)


def _attention(part, module, config, num_steps, batch_size, folded) -> int:
    total = 0
    for name, layer in module.named_modules():
        if name.endswith(("self_attention", "cross_attention")) and not (folded and _is_folded(part, name)):
            keys = 1 if part == "denoiser" and name.endswith("cross_attention") else config.seq_len
            total += 2 * 2 * batch_size * config.seq_len * keys * layer.out.in_features
    return total * (num_steps if part == "denoiser" else 1)


def _is_folded(part: str, name: str) -> bool:
    if part == "latent_decoder":
        return name.startswith(("layers.0.self_attention", "layers.0.cross_attention.query"))
    return part == "denoiser" and (_reads_one_row(part, name) or "cross_attention" in name)


def _reads_one_row(part: str, name: str) -> bool:
    """Whether a layer of the denoiser reads the time, the guidance scale or the null context, and not the latents."""
    if part != "denoiser":
        return False
    return name.startswith(("time_embedding", "guidance_embedding")) or name.endswith(
        ("modulation", "cross_attention.key_value")
    )


@dataclass(frozen=True)
class Floor:
    """Seconds under which a generation cannot go: by bandwidth, and by arithmetic where the card's rate is known."""

    bandwidth: float
    arithmetic: float | None

    @property
    def seconds(self) -> float:
        """The larger of the two."""
        return max(self.bandwidth, self.arithmetic or 0.0)


def floor(rows: list[Work], card: Card, dtype: torch.dtype) -> Floor:
    """The floor of `rows` on `card` with weights of `dtype`."""
    rate = card.rates.get(dtype)
    operations = sum(row.operations for row in rows)
    return Floor(sum(row.weights for row in rows) * dtype.itemsize / card.bandwidth, operations / rate if rate else None)
