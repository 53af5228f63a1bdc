"""lm_head: tokens, noise and log-probabilities against their definitions, the custom op, what it refuses.

The `check_` functions hold for every backend; tests/triton/test_lm_head.py calls them too.
"""

import contextlib
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dllm_kernels.diffusion.noise import GUMBEL_NOISE, gumbels, uniforms, words
from dllm_kernels.ops.lm_head import library
from dllm_kernels.ops.lm_head.op import lm_head
from dllm_kernels.ops.lm_head.reference import reference
from tests.numerics import assert_contract, poisoned

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HUGE_SAMPLE = 2**33 + 5
INF, NAN = float("inf"), float("nan")


def scalar(value: int | float, device: torch.device = DEVICE) -> Tensor:
    return torch.tensor(value, dtype=torch.float32 if isinstance(value, float) else torch.int64, device=device)


def surrounded(values: Tensor, device: torch.device) -> Tensor:
    """`values` with NaN before and after them in memory."""
    memory = poisoned(values.numel() + 2 * 4096, dtype=values.dtype, device=device)
    memory[4096:-4096] = values.flatten().to(device)
    return memory[4096:-4096].view(values.shape)


@contextlib.contextmanager
def fresh_memory_is_poisoned():
    """In deterministic mode torch.empty fills what it allocates with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@dataclass
class Problem:
    """Random inputs with a mean, and logits of a deviation around 2, on the CPU."""

    batch: int
    length: int
    width: int
    vocab_size: int
    dtype: torch.dtype = torch.float32
    weight_dtype: torch.dtype | None = None
    temperature: float = 0.0
    seed: int = -7
    first_sample: int = HUGE_SAMPLE

    def __post_init__(self):
        torch.manual_seed(self.vocab_size + self.width)
        self.hidden = (torch.randn(self.batch, self.length, self.width) + 0.5).to(self.dtype)
        weight = 2 * torch.randn(self.vocab_size, self.width) / self.width**0.5 + 0.1
        self.weight = weight.to(self.weight_dtype or self.dtype)
        self.bias = torch.randn(self.vocab_size) + 1

    def run(self, device: torch.device, backend: str, logprobs: bool = True, batch_invariant: bool = False):
        tensors = (surrounded(t, device) for t in (self.hidden, self.weight, self.bias))
        scalars = (scalar(float(self.temperature), device), scalar(self.seed, device), scalar(self.first_sample, device))
        with fresh_memory_is_poisoned():
            tokens, logprob = lm_head(*tensors, *scalars, logprobs, batch_invariant, backend)
        return tokens.cpu(), logprob.cpu() if logprobs else logprob

    def logits(self) -> Tensor:
        return self.hidden.double() @ self.weight.double().T + self.bias.double()

    def noise(self) -> Tensor:
        """Standard Gumbel noise by its definition, a row at a time, in float64."""
        row = (self.vocab_size + 3) // 4 * 4
        rows = [
            words(self.seed, self.first_sample + sample, 0, GUMBEL_NOISE, 1, token * row + torch.arange(row))
            for sample in range(self.batch)
            for token in range(self.length)
        ]
        noise = gumbels(uniforms(torch.cat(rows)).double())
        return noise[:, : self.vocab_size].view(self.batch, self.length, self.vocab_size)

    def rounding(self) -> float:
        """By how much a float32 sum of a logit and its noise may be off."""
        magnitude = (self.hidden.double().abs() @ self.weight.double().abs().T).max() + self.bias.abs().max()
        return 8 * torch.finfo(torch.float32).eps * (magnitude.item() + 17 * self.temperature)


def float32_logits(problem: Problem, device: torch.device) -> torch.Tensor:
    """PyTorch's logits on the device: a card's matrix unit sums products of halves less exactly than a CPU does."""
    hidden, weight = problem.hidden.to(device), problem.weight.to(device)
    if device.type == "cuda" and hidden.dtype == weight.dtype != torch.float32:
        # Rows of logits that are not aligned go to another of the library's kernels, with sums of another kind.
        weight = torch.nn.functional.pad(weight, (0, 0, 0, -problem.vocab_size % 8))
        product = torch.mm(hidden.flatten(0, 1), weight.T, out_dtype=torch.float32)[:, : problem.vocab_size]
        product = product.view(*hidden.shape[:2], -1)
    else:
        product = hidden.float() @ weight.float().T
    return (product + problem.bias.to(device)).cpu()


def check_values(problem: Problem, device: torch.device, backend: str) -> None:
    """Tokens are the float64 argmax up to float32 rounding, log-probabilities theirs under the contract."""
    tokens, logprobs = problem.run(device, backend)
    assert (tokens.dtype, logprobs.dtype) == (torch.int64, torch.float32)
    assert tokens.shape == logprobs.shape == (problem.batch, problem.length)
    logits = problem.logits()
    values = logits + problem.temperature * problem.noise() if problem.temperature else logits
    rounding = problem.rounding()
    best, lead = values.max(-1), values.topk(min(2, problem.vocab_size), -1).values
    clear = lead[..., 0] - lead[..., -1] > rounding
    assert problem.vocab_size == 1 or clear.double().mean() > 0.9
    assert torch.equal(tokens[clear], best.indices[clear])
    assert (best.values - values.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) <= rounding).all()

    at = tokens.unsqueeze(-1)
    exact, baseline = logits.log_softmax(-1), float32_logits(problem, device).log_softmax(-1)
    # The contract compares with PyTorch's error, which says little where there are few rows.
    assert (logprobs - exact.gather(-1, at).squeeze(-1)).abs().max() <= rounding
    if tokens.numel() >= 60:
        assert_contract(logprobs.unsqueeze(-1), exact.gather(-1, at), baseline.gather(-1, at))

    tokens_alone, nothing = problem.run(device, backend, logprobs=False)
    assert nothing is None
    assert torch.equal(tokens_alone, tokens)


def check_special_values(device: torch.device, backend: str, dtype: torch.dtype) -> None:
    """Ties, infinities, NaN and huge logits, in several tiles and chunks of the vocabulary."""
    vocab_size = 300
    hidden = torch.zeros(1, 7, 8, dtype=dtype)
    hidden[0, :, :7] = torch.eye(7)
    weight = torch.zeros(vocab_size, 8, dtype=dtype)
    bias = torch.full((vocab_size,), 0.5)
    # Token t reads column t of the weight as its logits, plus a half.
    weight[[5, 64, 200, 299], 0] = 3
    weight[:, 1] = -INF
    weight[:, 2] = -INF
    weight[[200, 299], 2] = -2
    weight[[130, 200], 3] = INF
    weight[[140, 150], 4] = NAN
    weight[200, 4] = INF
    weight[:, 5] = torch.linspace(-60000, 50000, vocab_size).to(dtype)
    weight[299, 5] = 60000
    expected = [5, 0, 200, 130, 140, 299, 0]
    for temperature in (0.0, 1e-30):
        # 0 times an infinite weight is NaN, so every token has a call of its own.
        for t, token in enumerate(expected):
            column = weight[:, t : t + 1].contiguous()
            arguments = (hidden[:, t : t + 1, t : t + 1].contiguous(), column, bias)
            scalars = (scalar(temperature, device), scalar(3, device), scalar(4, device))
            got, logprob = lm_head(*(a.to(device) for a in arguments), *scalars, True, False, backend)
            assert got.item() == token, f"token {t} at temperature {temperature}"
            if t in (1, 3, 4):
                assert logprob.isnan().all(), f"token {t}"
            else:
                logits = (column[:, 0].double() + 0.5).log_softmax(0)
                torch.testing.assert_close(logprob.item(), logits[token].item(), rtol=3e-7, atol=3e-7)


def check_frequencies(device: torch.device, backend: str, batch: int) -> None:
    """Tokens follow softmax(logits / temperature): Pearson's chi-square, 10 degrees of freedom, level 1e-5."""
    vocab_size, length = 11, 64
    bias = torch.linspace(-1, 2, vocab_size)
    hidden, weight = torch.zeros(batch, length, 1), torch.ones(vocab_size, 1)
    for temperature in (0.6, 2.0):
        arguments = (t.to(device) for t in (hidden, weight, bias))
        scalars = (scalar(temperature, device), scalar(1234, device), scalar(0, device))
        tokens, _ = lm_head(*arguments, *scalars, backend=backend)
        observed = torch.bincount(tokens.flatten().cpu(), minlength=vocab_size).double()
        expected = (bias.double() / temperature).softmax(0) * batch * length
        assert ((observed - expected).square() / expected).sum() < 41.3
        # Neighbouring draws are independent: 100 degrees of freedom for their pairs.
        pairs = torch.bincount((tokens[:, :-1] * vocab_size + tokens[:, 1:]).flatten().cpu(), minlength=vocab_size**2).double()
        expected = torch.outer(expected, expected).flatten() / (batch * length) ** 2 * pairs.sum()
        frequent = expected > 5
        chi = ((pairs - expected).square() / expected)[frequent].sum()
        assert chi < frequent.sum() + 6 * (2 * frequent.sum()) ** 0.5


def check_scalars(device: torch.device, backend: str) -> None:
    """Samples are numbered by the seed, not by the batch; temperature and seed are read from their tensors."""
    problem = Problem(4, 5, 8, 131, temperature=1.0)
    tokens, logprobs = problem.run(device, backend)
    problem.first_sample -= 2
    problem.hidden = problem.hidden.roll(2, 0)
    shifted, shifted_logprobs = problem.run(device, backend)
    assert torch.equal(shifted[2:], tokens[:2])
    torch.testing.assert_close(shifted_logprobs[2:], logprobs[:2])
    seen = {tuple(shifted.flatten().tolist())}
    for change in ({"seed": problem.seed + 2**32}, {"seed": 8}, {"temperature": 0.5}, {"temperature": 0.0}):
        vars(problem).update(change)
        seen.add(tuple(problem.run(device, backend)[0].flatten().tolist()))
    assert len(seen) == 5


def check_batch_invariance(device: torch.device, backend: str, dtype: torch.dtype) -> None:
    """A sample alone gives the same bits as element 5 of 8."""
    batch = Problem(8, 3, 65, 1100, dtype, temperature=0.7)
    tokens, logprobs = batch.run(device, backend, batch_invariant=True)
    batch.hidden = batch.hidden[5:6].clone()
    batch.first_sample += 5
    alone, alone_logprobs = batch.run(device, backend, batch_invariant=True)
    assert torch.equal(alone[0], tokens[5])
    assert torch.equal(alone_logprobs[0], logprobs[5])


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (3, 21, 64, 2), (13, 5, 65, 63), (1, 63, 384, 65), (1, 64, 1, 509), (2, 65, 64, 4099)], ids=str
)
@pytest.mark.parametrize(
    "dtypes",
    [(torch.float32, None), (torch.bfloat16, None), (torch.float16, None), (torch.float32, torch.bfloat16)],
    ids=["float32", "bfloat16", "float16", "float32 x bfloat16"],
)
def test_values(shape, dtypes, temperature):
    check_values(Problem(*shape, *dtypes, temperature=temperature), DEVICE, "torch")


def test_float64_is_the_reference_and_the_reference_is_the_definition():
    problem = Problem(3, 5, 65, 1100, torch.float64, temperature=0.7)
    tensors = (t.to(DEVICE) for t in (problem.hidden, problem.weight, problem.bias))
    expected, logprob64 = reference(*tensors, scalar(0.7), scalar(problem.seed), scalar(HUGE_SAMPLE))
    values = problem.logits() + scalar(0.7, "cpu").double() * problem.noise()
    assert torch.equal(expected.cpu(), values.argmax(-1))
    by_hand = problem.logits().log_softmax(-1).gather(-1, values.argmax(-1, keepdim=True)).squeeze(-1)
    torch.testing.assert_close(logprob64.cpu(), by_hand, rtol=1e-12, atol=1e-12)
    tokens, logprobs = problem.run(DEVICE, "auto")
    assert torch.equal(tokens, expected.cpu())
    torch.testing.assert_close(logprobs, by_hand.float(), rtol=1e-7, atol=1e-7)


def small_chunks(monkeypatch) -> None:
    for name in ("_CPU_CHUNK", "_GPU_CHUNK"):
        monkeypatch.setattr(library, name, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_special_values(monkeypatch, dtype):
    small_chunks(monkeypatch)
    check_special_values(DEVICE, "torch", dtype)


def test_frequencies():
    check_frequencies(DEVICE, "torch", batch=64)


def test_scalars():
    check_scalars(DEVICE, "torch")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_invariance(dtype):
    check_batch_invariance(DEVICE, "torch", dtype)


def test_hidden_may_have_any_strides():
    problem = Problem(2, 3, 65, 67, temperature=1.0)
    hidden = problem.hidden.to(DEVICE)
    arguments = (problem.weight.to(DEVICE), problem.bias.to(DEVICE), scalar(1.0), scalar(1), scalar(2), True)
    for batch_invariant in (False, True):
        expected = lm_head(hidden, *arguments, batch_invariant, "torch")
        strided = lm_head(hidden.transpose(0, 2).contiguous().transpose(0, 2), *arguments, batch_invariant, "torch")
        assert torch.equal(strided[0], expected[0])
        torch.testing.assert_close(strided[1], expected[1])


def test_never_holds_all_logits(monkeypatch):
    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                self.size = max(self.size, tensor.numel() if isinstance(tensor, Tensor) and not tensor._is_view() else 0)
            return out

    small_chunks(monkeypatch)
    problem = Problem(4, 8, 2, 4099, temperature=1.0)
    arguments = [t.to(DEVICE) for t in (problem.hidden, problem.weight, problem.bias)]
    with Largest() as largest:
        library._torch(*arguments, scalar(1.0), scalar(1), scalar(0), True, False)
    assert 4 * 8 * 64 <= largest.size <= 4 * 4 * 8 * 64


def test_is_a_sound_custom_op():
    problem = Problem(2, 3, 8, 67, torch.bfloat16)
    arguments = (*(t.to(DEVICE) for t in (problem.hidden, problem.weight, problem.bias)), scalar(0.7), scalar(1), scalar(2))
    for flags in ((), (True,), (True, True, "torch")):
        torch.library.opcheck(torch.ops.dllm_kernels.lm_head.default, arguments + flags)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(*arguments):
        tokens, logprobs = lm_head(*arguments, logprobs=True, backend="torch")
        return tokens + 1, logprobs * 2

    tokens, logprobs = lm_head(*arguments, logprobs=True, backend="torch")
    compiled_tokens, compiled_logprobs = compiled(*arguments)
    assert torch.equal(compiled_tokens, tokens + 1)
    assert torch.equal(compiled_logprobs, logprobs * 2)


X, W, B = torch.zeros(2, 3, 8), torch.zeros(5, 8), torch.zeros(5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": X[0]}, r"hidden is torch.float32 \[3, 8\]; it must be a floating-point \[B, T, d\] and not empty"),
        ({"hidden": X[:0]}, r"hidden is torch.float32 \[0, 3, 8\]"),
        ({"hidden": X.long()}, r"hidden is torch.int64 \[2, 3, 8\]"),
        ({"weight": W[:, :7]}, r"weight has shape \[5, 7\]; it must be \[V, 8\] and not empty"),
        ({"weight": W[:0]}, r"weight has shape \[0, 8\]"),
        (
            {"weight": W.double()},
            "weight is torch.float64 under a torch.float32 hidden; it must be torch.float32 or torch.bfloat16",
        ),
        ({"hidden": X.half()}, "weight is torch.float32 under a torch.float16 hidden; it must be torch.float16$"),
        ({"weight": torch.zeros(8, 5).T}, r"weight has strides \(1, 5\); it must be contiguous"),
        ({"bias": B[:4]}, r"bias is torch.float32 \[4\]; it must be a contiguous \[5\], torch.float32 or torch.float32"),
        ({"bias": B.double()}, r"bias is torch.float64 \[5\]"),
        ({"temperature": torch.ones(1)}, r"temperature is torch.float32 \[1\]; it must be a float32 scalar tensor"),
        ({"temperature": torch.tensor(1)}, r"temperature is torch.int64 \[\]"),
        ({"seed": torch.tensor(1.0)}, r"seed is torch.float32 \[\]; it must be an int64 scalar tensor"),
        ({"weight": W.to("meta")}, "weight is on meta and hidden on cpu; they must share a device"),
        ({"temperature": torch.zeros((), device="meta")}, "temperature is on meta and hidden on cpu"),
        ({"hidden": X[:1, :1, :1].expand(1, 2**30, 1), "weight": W[:, :1].contiguous()}, "must be below 2\\^32"),
        ({"backend": "numpy"}, "unknown backend 'numpy'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_input_gets_one_sentence(change, message):
    zero = torch.tensor(0)
    good = {"hidden": X, "weight": W, "bias": B, "temperature": torch.tensor(0.0), "seed": zero, "first_sample": zero}
    with pytest.raises(ValueError, match=message):
        lm_head(**(good | change))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_around_it_changes_nothing(dtype):
    generator = torch.Generator().manual_seed(2)
    hidden, weight, bias = (torch.randn(shape, generator=generator) for shape in ((2, 5, 16), (30, 16), (30,)))
    call = (hidden, weight, bias, torch.tensor(0.5), torch.tensor(3), torch.tensor(1), True)
    expected = lm_head(*call)
    with torch.autocast("cpu", dtype):
        assert all(map(torch.equal, lm_head(*call), expected))
