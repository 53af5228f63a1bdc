"""The evaluation itself: human text, the judge's samples and the model's, each measured in the same way.

Texts of every source are cut to the same number of the model's tokens and spelled by its tokenizer, so that none is favoured
by its length or, where that tokenizer has no capitals, by its capitals.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dllm_kernels.evaluation import measures
from dllm_kernels.evaluation.abilities import prompt_losses, prompt_shares, reconstructed
from dllm_kernels.evaluation.judge import Judge
from dllm_kernels.evaluation.ngram import NgramModel
from dllm_kernels.evaluation.results import HUMAN, Evaluation, Row
from dllm_kernels.evaluation.texts import tokenised, windows
from dllm_kernels.inference.sampler import FusedSampler
from dllm_kernels.inference.weights import StoredModel
from dllm_kernels.model.encoder import Encoder
from dllm_kernels.model.ldlm import LDLM
from dllm_kernels.model.tokenizer import TextTokenizer
from dllm_kernels.utils.device import elapsed
from dllm_kernels.utils.validation import user_input

Note = Callable[[str], None]
"""Told in a few words what is done next."""

EXAMPLES = 3
ORDER = 3
"""Of the n-gram model of held-out text."""
_LONGER = 1.25
"""The judge's samples in its own tokens over the length asked for: cut to it in the model's tokens, few are shorter."""


@dataclass(frozen=True)
class Task:
    """What is to be measured.

    Attributes:
        held_out: text that the model was not trained on, or a folder of token windows with a held-out part (texts.py).
        training: the text that it was trained on, or such a folder, or None.
        samples: texts a source.
        solvers, steps: of the model; every solver runs with every number of steps.
        grid: of the sampler (diffusion/solver.py), one that fits any number of steps.
        batch: samples generated together.
        prompt_len: tokens of a prompt in the prompt test.
        temperature, seed: of the samples.
        dtype, device: of the sampler.
    """

    held_out: Path
    training: Path | None
    samples: int
    solvers: Sequence[str]
    steps: Sequence[int]
    grid: str | tuple
    batch: int
    prompt_len: int
    temperature: float
    seed: int
    dtype: torch.dtype
    device: torch.device


def held_out_parts(task: Task, tokenizer: TextTokenizer, length: int) -> tuple[list[list[int]], list[list[int]]]:
    """The held-out text that is measured, and the rest, at least as much: windows of `length` tokens.

    Raises:
        ValueError: the text cannot be read, or is too short for the samples asked for.
    """
    human = windows(task.held_out, tokenizer, length, task.seed)
    if len(human) < 2 * task.samples:
        raise ValueError(
            f"{task.held_out} has {len(human)} windows of {length} tokens, and {task.samples} samples need {2 * task.samples}: "
            f"half to measure, half to compare with"
        )
    return human[: task.samples], human[task.samples :]


def evaluate(
    evaluation: Evaluation,
    task: Task,
    source: StoredModel,
    tokenizer: TextTokenizer,
    judges: Sequence[Judge],
    encoder: Encoder | None,
    parts: tuple[list[list[int]], list[list[int]]],
    keep: Callable[[], None],
    note: Note,
) -> None:
    """Fills `evaluation`, and calls `keep` whenever there is something new in it.

    Args:
        judges: each gives perplexities; the first also MAUVE's features, and samples of its own.
        encoder: the model's frozen encoder, or None, where reconstruction and prompts are not measured.
        parts: `held_out_parts`.

    Raises:
        BadInput: an option does not fit the model, too little memory, or a training text that cannot be read.
    """
    begin, length = time.monotonic(), source.config.seq_len
    judge, more = judges[0], judges[1:]
    compared, rest = parts
    note("judging the held-out text")
    features = judge([tokenizer.text(tokens) for tokens in rest[: task.samples]]).features
    ngrams = NgramModel(rest, ORDER, source.config.vocab_size)
    found: list[list[list[int]]] = []

    def measure(tokens: list[list[int]], **fields) -> None:
        found.append(tokens)
        row = _row(tokens, tokenizer, judge, features, **fields)
        texts = [tokenizer.text(words) for words in tokens]
        row.other_perplexities = {other.name: other(texts).perplexity for other in more}
        row.other_perplexities[ngrams.name] = ngrams.perplexity(tokens)
        evaluation.rows.append(row)
        keep()

    measure(compared, source=HUMAN)
    note(f"sampling from {judge.name}")
    own_length = math.ceil(_LONGER * length)
    texts: list[str] = []
    seconds = elapsed(lambda: texts.extend(judge.sample(task.samples, own_length, task.seed)), task.device)
    rate = task.samples * own_length / seconds
    measure([tokens[:length] for tokens in tokenizer.tokens(texts)], source=judge.name, tokens_per_s=rate)
    for solver in task.solvers:
        for steps in task.steps:
            note(f"{solver}, {steps} steps")
            tokens, rate = _generate(source, task, solver, steps)
            words = [tokenizer.words(row) for row in tokens]
            shown = [tokenizer.text(row) for row in words[:EXAMPLES]]
            measure(words, source=evaluation.model, solver=solver, steps=steps, tokens_per_s=rate, examples=shown)
    if task.training is None:
        evaluation.left_out.append("memorisation: no training text was given")
    else:
        note("looking for the samples in the training text")
        with user_input():
            _mark_memorised(evaluation.rows, found, task.training, tokenizer)
        keep()
    if encoder is not None:
        note("reconstructing, and telling prompts apart")
        _abilities(evaluation, task, source, tokenizer, encoder, compared)
    evaluation.took_s, evaluation.complete = time.monotonic() - begin, True
    keep()


def _generate(source: StoredModel, task: Task, solver: str, steps: int) -> tuple[list[list[int]], float]:
    """Samples 0 to `samples` - 1 of the seed, and tokens a second of the batches they were made in."""
    batch = min(task.batch, task.samples)
    with user_input():
        sampler = FusedSampler(source, steps, batch, solver=solver, grid=task.grid, dtype=task.dtype, device=task.device)
    call = {"seed": task.seed, "temperature": task.temperature}
    sampler(**call)
    starts = range(0, task.samples, batch)
    tokens: list[list[int]] = []

    def generate() -> None:
        for start in starts:
            tokens.extend(sampler(first_sample=start, **call).tokens.tolist())

    seconds = elapsed(generate, task.device)
    return tokens[: task.samples], len(starts) * batch * sampler.seq_len / seconds


def _row(tokens: list[list[int]], tokenizer: TextTokenizer, judge: Judge, reference: np.ndarray, **fields) -> Row:
    judged = judge([tokenizer.text(row) for row in tokens])
    return Row(
        samples=len(tokens),
        length=float(np.mean([len(row) for row in tokens])),
        entropy=measures.entropy(tokens),
        mean_entropy=measures.mean_entropy(tokens),
        **{f"distinct_{n}": measures.distinct(tokens, n) for n in (1, 2, 3)},
        perplexity=judged.perplexity,
        mauve=measures.mauve(judged.features, reference),
        **fields,
    )


def _mark_memorised(rows: list[Row], found: list[list[list[int]]], training: Path, tokenizer: TextTokenizer) -> None:
    # All sources at once: the training text is far larger than they are, and is read once.
    marks = iter(measures.memorised([row for tokens in found for row in tokens], tokenised(training, tokenizer, "training")))
    for row, tokens in zip(rows, found, strict=True):
        row.memorised = float(np.mean([next(marks) for _ in tokens]))


def _abilities(
    evaluation: Evaluation,
    task: Task,
    source: StoredModel,
    tokenizer: TextTokenizer,
    encoder: Encoder,
    compared: list[list[int]],
) -> None:
    model = LDLM.from_pretrained(source.folder).float().to(task.device)
    tokens = torch.tensor(compared)
    evaluation.reconstruction = {"accuracy": reconstructed(model, encoder, tokens), "tokens": tokens.numel()}
    if not (source.config.context and source.config.trained_with_prompts):
        evaluation.left_out.append("prompts: the model takes none")
        return
    length = task.prompt_len + source.config.seq_len
    pairs = windows(task.held_out, tokenizer, length, task.seed)[: task.samples]
    if len(pairs) < 2:
        evaluation.left_out.append(f"prompts: the held-out text has {len(pairs)} windows of {length} tokens")
        return
    prompts, continuations = torch.tensor(pairs).split((task.prompt_len, source.config.seq_len), dim=1)
    shares = prompt_shares(prompt_losses(model, encoder, prompts, continuations, seed=task.seed))
    evaluation.prompts = shares | {"pairs": len(pairs), "prompt_len": task.prompt_len}
