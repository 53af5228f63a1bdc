"""The linear layer of a plan: LayerNorm, adaLN's scale, bias, GELU, gate and residual around one GEMM.

    y = act(norm(x (1 + scale)) W^T gate + bias) + residual,    norm(u) W^T = rstd (u W^T - mean column_sums)

where mean and rstd are the row statistics of x and `column_sums` holds the sums of W (1 + scale) along K: LayerNorm moved
behind the GEMM, exact for any W, so that a kernel may normalise in its epilogue (inference/fold.py makes W, bias and
column_sums).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    column_sums: Tensor | None = None,
    scale: Tensor | None = None,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    gate: Tensor | None = None,
    gelu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """The formula above in x's dtype; every variant of the op is held against it in float64.

    Args:
        x: [..., K].
        weight: [N, K].
        bias: [N].
        column_sums: [N], where the input is normalised.
        scale: [K].
        mean, variance: [..., 1], of the rows before their scale, where x has been scaled already; else they are x's own.
        gate: [N].
        gelu: exact GELU after the bias.
        residual: [..., N], or what broadcasts to it.

    Returns:
        [..., N] in x's dtype.
    """

    def like_x(tensor: Tensor) -> Tensor:
        return tensor.to(x.dtype)

    if column_sums is not None and mean is None:
        variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    y = (x if scale is None else x * (1 + like_x(scale))) @ like_x(weight).T
    if column_sums is not None:
        y = torch.rsqrt(variance + EPS) * (y - mean * like_x(column_sums))
    y = y if gate is None else y * like_x(gate)
    y = y + like_x(bias)
    y = F.gelu(y) if gelu else y
    return y if residual is None else y + like_x(residual)


def row_statistics(x: Tensor, chunk: int | None = None) -> Tensor:
    """(mean, sum of squared deviations) of each row of x [..., K] in chunks of `chunk` columns (all of them for None):
    [rows, chunks, 2], float32 (float64 for float64), the last chunk maybe shorter."""
    parts = x.flatten(0, -2).to(torch.promote_types(x.dtype, torch.float32)).split(chunk or x.shape[-1], dim=-1)
    pairs = [(part.shape[-1], *torch.var_mean(part, dim=-1, correction=0)) for part in parts]
    return torch.stack([torch.stack((mean, variance * columns), dim=-1) for columns, variance, mean in pairs], dim=1)


def merged_statistics(stats: Tensor, chunk: int, k: int) -> tuple[Tensor, Tensor]:
    """Mean and variance [rows, 1] of rows of K columns from what `row_statistics` gave."""
    counts = torch.full((stats.shape[1],), chunk, device=stats.device)
    counts[-1] = k - chunk * (len(counts) - 1)
    means, squares = stats.unbind(-1)
    mean = (means * counts).sum(-1, keepdim=True) / k
    return mean, (squares + counts * (means - mean).square()).sum(-1, keepdim=True) / k
