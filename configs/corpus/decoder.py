"""SmolLM2's decode step: a static cache, one step for all rows at the same position, and on a card one CUDA graph.

The rows of a batch share a prefix (a request, which is no part of the text), whose keys and values are computed once. They
begin together behind it and differ only in how many of their first tokens are given, so that a step needs neither padding nor
a mask a row, and openings need no pass of their own.

Numerics on a card: bf16 weights and products, fp32 residual and softmax, fp16 for the last product, whose logits bf16 would
round to eighths. On a CPU everything is fp32. Norm weights are folded into the products behind them.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError:  # A CPU needs none.
    triton = None

CHUNK = 128
"""Logits of which one maximum is kept: the k largest logits lie in the k chunks of largest maximum."""
BLOCK, WARPS = 32, 1
"""Positions that attention reads at once, and the warps of a row and group."""


class Decoder:
    """The weights, ready to decode.

    Args:
        model: a LlamaForCausalLM of transformers.
        device: where it runs.
    """

    def __init__(self, model, device: torch.device):
        config, state = model.config, {name: value.detach().double() for name, value in model.state_dict().items()}
        self.device = device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.layers, self.width = config.num_hidden_layers, config.hidden_size
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = self.width // self.heads
        self.eps, self.vocabulary = config.rms_norm_eps, config.vocab_size
        parameters = getattr(config, "rope_parameters", None) or {}
        self.theta = parameters.get("rope_theta") or config.rope_theta

        def put(value: torch.Tensor, dtype: torch.dtype = self.dtype) -> torch.Tensor:
            return value.to(dtype).to(device).contiguous()

        self.embed = put(state["model.embed_tokens.weight"])
        self.qkv, self.out, self.up, self.down = [], [], [], []
        for i in range(self.layers):
            at = f"model.layers.{i}."
            norm, norm2 = state[at + "input_layernorm.weight"], state[at + "post_attention_layernorm.weight"]
            qkv = torch.cat([state[at + f"self_attn.{name}_proj.weight"] for name in "qkv"])
            up = torch.cat([state[at + f"mlp.{name}_proj.weight"] for name in ("gate", "up")])
            self.qkv.append(put(qkv * norm))
            self.out.append(put(state[at + "self_attn.o_proj.weight"]))
            self.up.append(put(up * norm2))
            self.down.append(put(state[at + "mlp.down_proj.weight"]))
        head = state.get("lm_head.weight", state["model.embed_tokens.weight"]) * state["model.norm.weight"]
        self.head = put(head, torch.float16 if device.type == "cuda" else self.dtype)

    def rope(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, [length, head_dim / 2]."""
        rate = self.theta ** (-torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim)
        angle = torch.arange(length, dtype=torch.float64)[:, None] * rate
        return angle.cos().float().to(self.device), angle.sin().float().to(self.device)

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)).to(self.dtype)

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        a, b = x.float().chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(self.dtype)

    def feed_forward(self, x: torch.Tensor, i: int) -> torch.Tensor:
        gate, up = F.linear(self.norm(x), self.up[i]).float().chunk(2, -1)
        return F.linear((F.silu(gate) * up).to(self.dtype), self.down[i]).float()

    def prefix(self, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of some first tokens, [layers, kv_heads, tokens, head_dim] each, in one causal pass."""
        cos, sin = self.rope(len(tokens))
        x = F.embedding(torch.tensor(tokens, device=self.device), self.embed).float()
        keys, values = [], []
        for i in range(self.layers):
            parts = F.linear(self.norm(x), self.qkv[i]).view(len(tokens), -1, self.head_dim).transpose(0, 1)
            q, k, v = parts.split([self.heads, self.kv_heads, self.kv_heads])
            q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
            keys.append(k)
            values.append(v)
            shared = [part.repeat_interleave(self.heads // self.kv_heads, 0)[None].float() for part in (k, v)]
            mixed = F.scaled_dot_product_attention(q[None].float(), *shared, is_causal=True)[0]
            x = x + F.linear(mixed.transpose(0, 1).reshape(len(tokens), -1).to(self.dtype), self.out[i]).float()
            x = x + self.feed_forward(x, i)
        return torch.stack(keys), torch.stack(values)


class Batch:
    """A batch's cache and buffers, and the loop over them.

    Args:
        decoder: the weights.
        rows: samples that are written together.
        length: tokens of a sample.
        prefix: tokens of the longest prefix.
        top_k: the most likely tokens, of which one is drawn.
        temperature: of the draw.
    """

    def __init__(self, decoder: Decoder, rows: int, length: int, prefix: int, top_k: int, temperature: float):
        d, device = decoder, decoder.device
        self.d, self.rows, self.length, self.top_k = decoder, rows, length, top_k
        shape = (d.layers, rows, d.kv_heads, length, d.head_dim)
        self.keys = torch.zeros(shape, dtype=d.dtype, device=device)
        self.values = torch.zeros(shape, dtype=d.dtype, device=device)
        self.prefix_keys = torch.zeros(d.layers, d.kv_heads, prefix, d.head_dim, dtype=d.dtype, device=device)
        self.prefix_values = torch.zeros_like(self.prefix_keys)
        self.cos, self.sin = d.rope(prefix + length)
        self.tokens = torch.zeros(length, rows, dtype=torch.int64, device=device)
        self.given = torch.zeros(rows, dtype=torch.int64, device=device)
        self.uniform = torch.zeros(length, rows, device=device)
        self.log_prob = torch.zeros(length, rows, device=device)
        self.at = torch.zeros(1, dtype=torch.int64, device=device)
        self.behind = torch.zeros(1, dtype=torch.int64, device=device)
        self.temperature = torch.tensor(temperature, device=device)
        self.graph, self.fused = None, device.type == "cuda"

    def put_prefix(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """What all rows stand behind."""
        length = keys.shape[2]
        self.prefix_keys[:, :, :length].copy_(keys)
        self.prefix_values[:, :, :length].copy_(values)
        self.behind.fill_(length)

    def write(self, tokens: torch.Tensor, given: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Fills the rows.

        Args:
            tokens: [length, rows], the given tokens first.
            given: [rows], how many tokens are given, one at least.
            uniform: [length, rows] in [0, 1): position t's draw is read from row t.

        Returns:
            The tokens, [length, rows], and each one's log-probability at temperature 1 (0 where it was given).
        """
        if self.fused and self.graph is None:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    self._step()
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._step()
        self.tokens.copy_(tokens)
        self.given.copy_(given)
        self.uniform.copy_(uniform)
        self.log_prob.zero_()
        self.at.zero_()
        for _ in range(self.length - 1):
            self.graph.replay() if self.graph else self._step()
        return self.tokens, self.log_prob

    def _step(self) -> None:
        token = self.tokens.index_select(0, self.at)[0]
        logits = self.logits(token)
        drawn, log_prob = self._draw(logits, self.uniform.index_select(0, self.at + 1)[0])
        after = self.at + 1
        old = self.tokens.index_select(0, after)[0]
        given = after < self.given
        self.tokens.index_copy_(0, after, torch.where(given, old, drawn)[None])
        self.log_prob.index_copy_(0, after, torch.where(given, 0.0, log_prob)[None])
        self.at.add_(1)

    def logits(self, token: torch.Tensor) -> torch.Tensor:
        """[rows, vocabulary] of what follows `token` at the position `self.at`; the cache gets the token's keys and values."""
        return (self._logits_triton if self.fused else self._logits_torch)(token)

    def _logits_torch(self, token: torch.Tensor) -> torch.Tensor:
        """The same in plain operations: what the kernels are checked against."""
        d, at, behind = self.d, int(self.at), int(self.behind)
        groups = d.heads // d.kv_heads
        rope = self.cos[behind + at], self.sin[behind + at]

        def cached(shared: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
            shared = shared[:, :behind].expand(self.rows, -1, -1, -1)
            return torch.cat([shared, own[:, :, : at + 1]], 2).float()

        x = F.embedding(token, d.embed).float()
        for i in range(d.layers):
            parts = F.linear(d.norm(x), d.qkv[i]).view(self.rows, -1, d.head_dim)
            q, k, v = parts.split([d.heads, d.kv_heads, d.kv_heads], 1)
            self.keys[i, :, :, at], self.values[i, :, :, at] = d.rotate(k, *rope), v
            q = d.rotate(q, *rope).view(self.rows, d.kv_heads, groups, d.head_dim)
            scores = q.float() @ cached(self.prefix_keys[i], self.keys[i]).transpose(-1, -2) / math.sqrt(d.head_dim)
            mixed = scores.softmax(-1) @ cached(self.prefix_values[i], self.values[i])
            x = x + F.linear(mixed.reshape(self.rows, -1).to(d.dtype), d.out[i]).float()
            x = x + d.feed_forward(x, i)
        return F.linear(d.norm(x).to(d.head.dtype), d.head)

    def _logits_triton(self, token: torch.Tensor) -> torch.Tensor:
        d, rows = self.d, self.rows
        x = F.embedding(token, d.embed).float()
        y = torch.empty(rows, d.width, dtype=d.dtype, device=d.device)
        mixed, acted = torch.empty_like(y), torch.empty(rows, d.up[0].shape[0] // 2, dtype=d.dtype, device=d.device)
        last = torch.empty(rows, d.width, dtype=d.head.dtype, device=d.device)
        wide, inner = triton.next_power_of_2(d.width), acted.shape[1]
        norm = dict(width=d.width, eps=d.eps, block=wide, num_warps=4)
        _add_norm[(rows,)](x, x, y, add=False, **norm)
        for i in range(d.layers):
            qkv = y @ d.qkv[i].T
            _attend[(rows, d.kv_heads)](
                qkv, self.keys[i], self.values[i], self.prefix_keys[i], self.prefix_values[i], mixed, self.cos, self.sin,
                self.at, self.behind, self.length, self.prefix_keys.shape[2], 1 / math.sqrt(d.head_dim),
                heads=d.heads, kv_heads=d.kv_heads, half=d.head_dim // 2, block=BLOCK, num_warps=WARPS,
            )  # fmt: skip
            _add_norm[(rows,)](x, mixed @ d.out[i].T, y, add=True, **norm)
            _swiglu[(rows,)](y @ d.up[i].T, acted, inner, block=triton.next_power_of_2(inner), num_warps=8)
            _add_norm[(rows,)](x, acted @ d.down[i].T, last if i == d.layers - 1 else y, add=True, **norm)
        return last @ d.head.T

    def _draw(self, logits: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One token a row among the top_k, by the uniform number, and its log-probability at temperature 1 among all."""
        rows, vocabulary = logits.shape
        if self.fused:
            chunks = vocabulary // CHUNK
            maxima = torch.empty(rows, chunks, dtype=logits.dtype, device=logits.device)
            total = torch.empty(rows, device=logits.device)
            _maxima[(rows,)](logits, maxima, total, vocabulary, chunk=CHUNK, per=32, num_warps=8)
            where = maxima.topk(self.top_k, sorted=False).indices
            near = torch.gather(logits.view(rows, chunks, CHUNK), 1, where[:, :, None].expand(-1, -1, CHUNK)).view(rows, -1)
            top, index = near.topk(self.top_k)
            token = torch.gather(where, 1, index // CHUNK) * CHUNK + index % CHUNK
            top = top.float()
        else:
            top, token = logits.float().topk(self.top_k)
            total = logits.float().logsumexp(-1)
        cumulated = (top / self.temperature).softmax(-1).cumsum(-1)
        drawn = (cumulated <= uniform[:, None] * cumulated[:, -1:]).sum(-1).clamp(max=self.top_k - 1)[:, None]
        return token.gather(1, drawn)[:, 0], top.gather(1, drawn)[:, 0] - total


def uniforms(seed: int, first: int, rows: int, length: int, device: torch.device) -> torch.Tensor:
    """[length, rows] numbers in [0, 1) that depend on the seed, the sample's number and the position alone (splitmix64)."""
    sample = torch.arange(first, first + rows, device=device)[None]
    x = (seed << 40) + sample * 512 + torch.arange(length, device=device)[:, None]

    def shifted(x: torch.Tensor, by: int) -> torch.Tensor:
        return (x >> by) & ((1 << (64 - by)) - 1)

    x = x * -7046029254386353131
    x = (x ^ shifted(x, 30)) * -4658895280553007687
    x = (x ^ shifted(x, 27)) * -7723592293110705685
    x = x ^ shifted(x, 31)
    return shifted(x, 40).double().mul(2.0**-24).float()


def load(gguf: Path):
    """The model in float32 and its tokenizer, of a GGUF file; transformers undoes llama.cpp's order of q's and k's rows."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    return model.eval(), tokenizer


if triton is not None:

    @triton.jit
    def _add_norm(x, more, y, width: tl.constexpr, eps: tl.constexpr, block: tl.constexpr, add: tl.constexpr):
        """x += more, in fp32; y = x / rms(x)."""
        row = tl.program_id(0).to(tl.int64)
        at = tl.arange(0, block)
        inside = at < width
        value = tl.load(x + row * width + at, inside, 0.0)
        if add:
            value += tl.load(more + row * width + at, inside, 0.0).to(tl.float32)
            tl.store(x + row * width + at, value, inside)
        scale = tl.rsqrt(tl.sum(value * value) / width + eps)
        tl.store(y + row * width + at, (value * scale).to(y.dtype.element_ty), inside)

    @triton.jit
    def _swiglu(both, y, inner, block: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        at = tl.arange(0, block)
        inside = at < inner
        gate = tl.load(both + row * 2 * inner + at, inside, 0.0).to(tl.float32)
        up = tl.load(both + row * 2 * inner + inner + at, inside, 0.0).to(tl.float32)
        tl.store(y + row * inner + at, (gate * tl.sigmoid(gate) * up).to(y.dtype.element_ty), inside)

    @triton.jit
    def _fold(most, total, o1, o2, r1, r2, k1, k2, w1, w2, inside, scale):
        """Some more positions into a softmax that is under way."""
        scores = (tl.dot(r1, tl.trans(k1)) + tl.dot(r2, tl.trans(k2))) * scale
        scores = tl.where(inside[None, :], scores, float("-inf"))
        new = tl.maximum(most, tl.max(scores, 1))
        p, fade = tl.exp(scores - new[:, None]), tl.exp(most - new)
        weight = p.to(k1.dtype)
        o1 = o1 * fade[:, None] + tl.dot(weight, w1)
        o2 = o2 * fade[:, None] + tl.dot(weight, w2)
        return new, total * fade + tl.sum(p, 1), o1, o2

    @triton.jit
    def _attend(
        qkv, keys, values, prefix_keys, prefix_values, y, cos, sin, at, behind, length, prefix, scale,
        heads: tl.constexpr, kv_heads: tl.constexpr, half: tl.constexpr, block: tl.constexpr,
    ):  # fmt: skip
        """One row's group of query heads: rotates q and k, puts k and v into the cache, attends to the prefix and the cache."""
        row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
        size: tl.constexpr = heads // kv_heads
        width: tl.constexpr = 2 * half
        now, shared = tl.load(at), tl.load(behind)
        i, lane, j = tl.arange(0, 16), tl.arange(0, half), tl.arange(0, block)
        c, s = tl.load(cos + (shared + now) * half + lane), tl.load(sin + (shared + now) * half + lane)
        start = qkv + row * (heads + 2 * kv_heads) * width
        kind = qkv.dtype.element_ty
        # The group's query heads in a tile of sixteen rows, in two halves of the head's width.
        q = start + (group * size + i)[:, None] * width + lane[None, :]
        ours = (i < size)[:, None]
        q1, q2 = tl.load(q, ours, 0.0).to(tl.float32), tl.load(q + half, ours, 0.0).to(tl.float32)
        r1, r2 = (q1 * c[None, :] - q2 * s[None, :]).to(kind), (q2 * c[None, :] + q1 * s[None, :]).to(kind)
        k = start + (heads + group) * width + lane
        k1, k2 = tl.load(k).to(tl.float32), tl.load(k + half).to(tl.float32)
        new1, new2 = (k1 * c - k2 * s).to(kind), (k2 * c + k1 * s).to(kind)
        v = start + (heads + kv_heads + group) * width + lane
        v1, v2 = tl.load(v), tl.load(v + half)
        # The softmax begins with the token itself, whose key and value are not read back from the cache.
        most = (
            tl.sum(r1.to(tl.float32) * new1[None, :].to(tl.float32) + r2.to(tl.float32) * new2[None, :].to(tl.float32), 1)
            * scale
        )
        total = tl.full([16], 1.0, tl.float32)
        o1 = tl.zeros([16, half], tl.float32) + v1[None, :].to(tl.float32)
        o2 = tl.zeros([16, half], tl.float32) + v2[None, :].to(tl.float32)
        for first in range(0, shared, block):
            inside = first + j < shared
            cached = (group * prefix + first + j)[:, None] * width + lane[None, :]
            old1 = tl.load(prefix_keys + cached, inside[:, None], 0.0)
            old2 = tl.load(prefix_keys + cached + half, inside[:, None], 0.0)
            w1 = tl.load(prefix_values + cached, inside[:, None], 0.0)
            w2 = tl.load(prefix_values + cached + half, inside[:, None], 0.0)
            most, total, o1, o2 = _fold(most, total, o1, o2, r1, r2, old1, old2, w1, w2, inside, scale)
        base = (row * kv_heads + group) * length * width
        for first in range(0, now, block):
            inside = first + j < now
            cached = base + (first + j)[:, None] * width + lane[None, :]
            old1, old2 = tl.load(keys + cached, inside[:, None], 0.0), tl.load(keys + cached + half, inside[:, None], 0.0)
            w1, w2 = tl.load(values + cached, inside[:, None], 0.0), tl.load(values + cached + half, inside[:, None], 0.0)
            most, total, o1, o2 = _fold(most, total, o1, o2, r1, r2, old1, old2, w1, w2, inside, scale)
        slot = base + now * width + lane
        tl.store(keys + slot, new1)
        tl.store(keys + slot + half, new2)
        tl.store(values + slot, v1)
        tl.store(values + slot + half, v2)
        o = y + row * heads * width + (group * size + i)[:, None] * width + lane[None, :]
        tl.store(o, (o1 / total[:, None]).to(kind), ours)
        tl.store(o + half, (o2 / total[:, None]).to(kind), ours)

    @triton.jit
    def _maxima(logits, maxima, total, vocabulary, chunk: tl.constexpr, per: tl.constexpr):
        """Each chunk's largest logit, and the logarithm of the row's sum of exponentials."""
        row = tl.program_id(0).to(tl.int64)
        i, j = tl.arange(0, per), tl.arange(0, chunk)
        largest, summed = -float("inf"), 0.0
        chunks = vocabulary // chunk
        for first in range(0, chunks, per):
            inside = first + i < chunks
            at = (first + i)[:, None] * chunk + j[None, :]
            value = tl.load(logits + row * vocabulary + at, inside[:, None], -float("inf"))
            most = tl.max(value, 1)
            tl.store(maxima + row * chunks + first + i, most, inside)
            value = value.to(tl.float32)
            new = tl.maximum(largest, tl.max(most.to(tl.float32), 0))
            summed = summed * tl.exp(largest - new) + tl.sum(tl.exp(value - new))
            largest = new
        tl.store(total + row, largest + tl.log(summed))
