"""Evaluations as docs/quality.md and its plots. Every number comes from an evaluation's file."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dllm_kernels.bench.tables import markdown, number
from dllm_kernels.evaluation.results import HUMAN, Evaluation

DOCUMENT = "quality.md"
MANY, FEW, BEST = ("ddim", 25), ("dpmpp_2m", 10), ("ddpm", 50)
"""Solvers and steps: the first two tell whether the second-order solver needs fewer, models stand side by side at two."""

_COLUMNS = {
    "perplexity": lambda row: number(row.perplexity),
    "entropy": lambda row: number(row.entropy),
    "entropy of a sample": lambda row: number(row.mean_entropy),
    "distinct-1": lambda row: number(row.distinct_1),
    "distinct-2": lambda row: number(row.distinct_2),
    "distinct-3": lambda row: number(row.distinct_3),
    "MAUVE": lambda row: number(row.mauve),
    "memorised": lambda row: _percent(row.memorised),
    "length": lambda row: number(row.length),
    "tok/s": lambda row: number(row.tokens_per_s),
}


def documents(evaluations: Iterable[Evaluation]) -> dict[str, str]:
    """By path under docs/: the document, and the data of each plot. Of several evaluations of a model on a grid the newest
    counts; the most thorough come first."""
    newest = {evaluation.title: evaluation for evaluation in sorted(evaluations, key=lambda evaluation: evaluation.day)}
    evaluations = sorted(newest.values(), key=lambda evaluation: (-len(evaluation.rows), evaluation.title))
    drawn = plots(evaluations)
    texts = {DOCUMENT: document(evaluations, drawn)}
    texts |= {f"plots/{name}.json": json.dumps(plot, indent=1) + "\n" for name, plot in drawn.items()}
    return texts


def document(evaluations: list[Evaluation], drawn: dict[str, dict[str, Any]]) -> str:
    """docs/quality.md."""
    parts = [
        "# Quality",
        "Written by `dllm-kernels report-quality` from files that `dllm-kernels evaluate` made.",
        "Perplexity is generative perplexity: exp of the mean negative log-likelihood a token under the judge, a causal "
        "language model that reads each text on its own. A text that repeats itself has a low one, so entropy stands beside "
        "it: in nats, of the distribution of all samples' tokens together, and of the tokens of one sample, the mean over "
        "samples. distinct-n is the share of different n-grams. MAUVE is the authors' library's, on the judge's last hidden "
        "state of each text, against a part of the held-out text that is in no other row. Memorised is the share of samples "
        "with more than 20 tokens in a row from the training text. All texts are cut to the same number of the model's tokens "
        "and spelled by its tokenizer; entropies, distinct-n and memorisation count these tokens. The judge's own samples are "
        "drawn at temperature 1. tok/s counts a generator's own tokens.",
    ]
    if len(evaluations) > 1:
        parts += ["## Side by side", *(_side_by_side(evaluations, *point) for point in (FEW, BEST))]
    for evaluation in evaluations:
        parts += _section(evaluation)
        parts += [f"![{plot['title']}](plots/{name}.svg)" for name, plot in drawn.items() if name == _plot_name(evaluation)]
    return "\n\n".join(parts) + "\n"


def _section(evaluation: Evaluation) -> list[str]:
    machine, settings = evaluation.machine, evaluation.settings
    state = "" if evaluation.complete else " **Incomplete.**"
    rows = [
        [row.source, row.solver or "-", str(row.steps or "-"), *(c(row) for c in _COLUMNS.values())] for row in evaluation.rows
    ]
    text = [
        f"## {evaluation.title}",
        f"`{evaluation.command}`, {number(evaluation.took_s)} s on {machine['name']}, torch {machine['torch']}, "
        f"{evaluation.day}, commit {machine['commit']}. {evaluation.parameters / 1e6:,.1f} million parameters, "
        f"{settings['seq_len']} tokens, "
        f"{settings['samples']} samples a row, grid {settings['grid']}, {settings['dtype']}, batch {settings['batch']}, "
        f"temperature {settings['temperature']:g}, seed {settings['seed']}; judge: {evaluation.judge}.{state}",
        markdown(["text", "solver", "steps", *_COLUMNS], rows),
        *_verdicts(evaluation),
        *(f"Left out: {reason}." for reason in evaluation.left_out),
    ]
    for row in evaluation.rows:
        if row.examples and (row.solver, row.steps) == FEW:
            text.append(f"The first samples of {row.solver} at {row.steps} steps, not picked:")
            text += ["> " + " ".join(example.split()) for example in row.examples]
    return text


def _verdicts(evaluation: Evaluation) -> list[str]:
    """What the table says, in sentences."""
    said = []
    if evaluation.reconstruction is not None:
        found = evaluation.reconstruction
        said.append(f"The autoencoder gives back {_percent(found['accuracy'], 2)} of {found['tokens']:,} held-out tokens.")
    if evaluation.prompts is not None:
        found = evaluation.prompts
        said.append(
            f"Prompts of {found['prompt_len']} tokens, {found['pairs']} held-out pairs, by the denoising loss: a prompt's own "
            f"continuation is more likely than another's in {_percent(found['continuations'])} of them, in "
            f"{_percent(found['lift'])} after the loss without a prompt is taken off each, and more likely after its own "
            f"prompt than after another's in {_percent(found['prompts'])}."
        )
    human = evaluation.row(source=HUMAN)
    few, many = evaluation.row(*FEW), evaluation.row(*MANY)
    if few is not None and few.perplexity and human is not None and human.perplexity:
        said.append(
            f"At {FEW[1]} steps of {FEW[0]} perplexity is {number(few.perplexity / human.perplexity)} times held-out text's "
            f"and entropy {number(few.entropy / human.entropy)} times."
        )
    if few is not None and many is not None and few.perplexity and many.perplexity:
        worse = {
            "perplexity": few.perplexity > many.perplexity,
            "entropy": few.entropy < many.entropy,
            "MAUVE": few.mauve < many.mauve,
        }
        told = " and ".join(name for name, is_worse in worse.items() if is_worse)
        said.append(
            f"{FEW[1]} steps of {FEW[0]} beside {MANY[1]} of {MANY[0]}: perplexity {number(few.perplexity)} and "
            f"{number(many.perplexity)}, entropy {number(few.entropy)} and {number(many.entropy)}, MAUVE {number(few.mauve)} "
            f"and {number(many.mauve)}; {f'not as good in {told}' if told else 'at least as good in all three'}."
        )
    return said


def _side_by_side(evaluations: list[Evaluation], solver: str, steps: int) -> str:
    """The models at a solver and steps, each beside the held-out text of its own evaluation."""
    header = [
        "model",
        "reconstruction",
        "perplexity",
        "held-out text's",
        "entropy",
        "held-out text's",
        "MAUVE",
        "memorised",
        "prompts",
    ]
    lines = []
    for evaluation in evaluations:
        row, human = evaluation.row(solver, steps), evaluation.row(source=HUMAN)
        told = [
            evaluation.title,
            _percent(evaluation.reconstruction and evaluation.reconstruction["accuracy"], 2),
            *(number(getattr(of, name, None)) for name in ("perplexity", "entropy") for of in (row, human)),
            number(getattr(row, "mauve", None)),
            _percent(getattr(row, "memorised", None)),
            _percent(evaluation.prompts and evaluation.prompts["continuations"]),
        ]
        lines.append(told)
    return f"At {steps} steps of {solver}.\n\n{markdown(header, lines)}"


def plots(evaluations: Iterable[Evaluation]) -> dict[str, dict[str, Any]]:
    """By file name, each plot's title and data: perplexity and entropy by solver and steps, and of what stands beside them."""
    found = {}
    for evaluation in evaluations:
        series: dict[str, list] = {}
        for row in evaluation.rows:
            if row.steps is not None and row.perplexity is not None:
                series.setdefault(row.solver, []).append([row.steps, row.perplexity, row.entropy])
        if series:
            found[_plot_name(evaluation)] = {
                "title": f"{evaluation.title}, judged by {evaluation.judge}",
                "series": series,
                "beside": {row.source: [row.perplexity, row.entropy] for row in evaluation.rows if row.steps is None},
            }
    return found


def draw(plot: dict[str, Any], path: Path) -> None:
    """Writes a plot's SVG, the same bytes for the same data and matplotlib.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": "dllm-kernels", "svg.fonttype": "none", "font.size": 8}):
        figure, both = plt.subplots(1, 2, figsize=(7.0, 3.4), layout="constrained")
        for axes, column, name in zip(both, (1, 2), ("generative perplexity", "entropy, nats"), strict=True):
            for solver, points in plot["series"].items():
                axes.plot([p[0] for p in points], [p[column] for p in points], marker="o", markersize=3, label=solver)
            for (source, values), style in zip(plot["beside"].items(), ("-", "--"), strict=False):
                axes.axhline(values[column - 1], color="black", linewidth=0.8, linestyle=style, label=source)
            axes.set(xscale="log", xlabel="steps", ylabel=name)
        both[0].set_yscale("log")
        both[0].legend(fontsize=6)
        figure.suptitle(plot["title"])
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


def _plot_name(evaluation: Evaluation) -> str:
    return f"quality-{re.sub(r'[^a-z0-9]+', '-', evaluation.title.lower()).strip('-')}"


def _percent(share: float | None, decimals: int = 1) -> str:
    return "-" if share is None else f"{share:.{decimals}%}"
