"""docs/quality.md: the committed evaluations. Every number comes from an evaluation's file."""

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.report.drawing import files as plot_files
from benchmarks.report.pages import committed, picture, table
from benchmarks.report.quality_plots import BEST, FEW, MODELS, draw, plot_name, plots
from dllm_kernels.bench.wording import number
from dllm_kernels.evaluation.results import HUMAN, SCHEMA, Evaluation, Row, read

MANY = ("ddim", 25)
"""Solver and steps that FEW stands beside, to tell whether the second-order solver needs fewer."""

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


def files() -> dict[str, str]:
    """By path: the page and its plots."""
    evaluations = chosen(committed(SCHEMA, read))
    drawn = plots(evaluations)
    texts = {"docs/quality.md": document(evaluations, drawn)}
    for name, plot in drawn.items():
        texts |= plot_files(name, plot, draw)
    return texts


def chosen(evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """Of several evaluations of a model on a grid the newest; the most thorough first."""
    newest = {evaluation.title: evaluation for evaluation in sorted(evaluations, key=lambda evaluation: evaluation.day)}
    return sorted(newest.values(), key=lambda evaluation: (-len(evaluation.rows), evaluation.title))


_MEANINGS = (
    (
        "perplexity",
        "generative perplexity: exp of the mean negative log-likelihood of a token, by the judge. The judge is a causal "
        "language model that reads each text on its own",
    ),
    (
        "entropy",
        "in nats, of the distribution of all samples' tokens together. Text that repeats itself has low perplexity, and low "
        "entropy too",
    ),
    ("entropy of a sample", "the same within one sample, the mean over samples"),
    ("distinct-n", "the share of n-grams that differ"),
    (
        "MAUVE",
        "of its authors' library, on the judge's last hidden state of each text, against held-out text that is in no other row",
    ),
    ("memorised", "the share of samples with more than 20 tokens in a row from the training text"),
    ("reconstruction", "the share of held-out tokens that the autoencoder gives back"),
    ("prompts", "the share of held-out pairs whose own continuation is more likely than another's, by the denoising loss"),
    ("tok/s", "a generator's own tokens a second"),
)

_OTHERS = [
    (
        "perplexity, by another judge",
        "the same by that model. 3-gram is a model of the held-out text that is in no row, smoothed as by Witten and Bell: it "
        "counts the model's own tokens and wrote none of the texts",
    )
]


def document(evaluations: list[Evaluation], drawn: dict[str, dict[str, Any]]) -> str:
    """docs/quality.md."""
    parts = [
        "# Quality",
        "`python -m benchmarks.report` writes this page from files that `dllm-kernels evaluate` made.",
        "## What the columns say",
        table(("column", "meaning"), [*_MEANINGS, *(_OTHERS if any(map(_other_judges, evaluations)) else [])]),
        "All texts are cut to the same number of the model's tokens and spelled by its tokenizer. Entropies, distinct-n and "
        "memorisation count these tokens. The judge's own samples are drawn at temperature 1.",
    ]
    if len(evaluations) > 1:
        parts += ["## Side by side", *(picture(MODELS, drawn[name]["title"]) for name in drawn if name == MODELS)]
        parts += [_side_by_side(evaluations, *point) for point in (FEW, BEST)]
    for evaluation in evaluations:
        parts += _section(evaluation)
        parts += [picture(name, plot["title"]) for name, plot in drawn.items() if name == plot_name(evaluation)]
    return "\n\n".join(parts) + "\n"


def _section(evaluation: Evaluation) -> list[str]:
    machine, settings = evaluation.machine, evaluation.settings
    state = "" if evaluation.complete else " **Incomplete.**"
    columns = _columns(evaluation)
    rows = [
        [row.source, row.solver or "-", str(row.steps or "-"), *(c(row) for c in columns.values())] for row in evaluation.rows
    ]
    text = [
        f"## {evaluation.title}",
        f"`{evaluation.command}`, {number(evaluation.took_s)} s on {machine['name']}, torch {machine['torch']}, "
        f"{evaluation.day}, commit {machine['commit']}. {evaluation.parameters / 1e6:,.1f} million parameters, "
        f"{settings['seq_len']} tokens, "
        f"{settings['samples']} samples a row, grid {settings['grid']}, {settings['dtype']}, batch {settings['batch']}, "
        f"temperature {settings['temperature']:g}, seed {settings['seed']}; judge: {evaluation.judge}.{state}",
        table(["text", "solver", "steps", *columns], rows),
        *_verdicts(evaluation),
        *(f"Left out: {reason}." for reason in evaluation.left_out),
    ]
    for row in evaluation.rows:
        if row.examples and (row.solver, row.steps) == FEW:
            text.append(f"The first samples of {row.solver} at {row.steps} steps, not picked:")
            text += ["> " + " ".join(example.split()) for example in row.examples]
    return text


def _columns(evaluation: Evaluation) -> dict[str, Callable[[Row], str]]:
    """The columns, with one for each further judge beside the first one's."""
    judged = {
        f"perplexity, {name}": lambda row, name=name: number(row.other_perplexities.get(name))
        for name in _other_judges(evaluation)
    }
    return {"perplexity": _COLUMNS["perplexity"]} | judged | _COLUMNS


def _other_judges(evaluation: Evaluation) -> list[str]:
    return list(dict.fromkeys(name for row in evaluation.rows for name in row.other_perplexities))


def _verdicts(evaluation: Evaluation) -> list[str]:
    """What the table says, in sentences."""
    said = []
    if evaluation.reconstruction is not None:
        found = evaluation.reconstruction
        said.append(f"The autoencoder gives back {_percent(found['accuracy'], 2)} of {found['tokens']:,} held-out tokens.")
    if evaluation.prompts is not None:
        found = evaluation.prompts
        said.append(
            f"The prompt test compares {found['pairs']} held-out pairs by the denoising loss, after prompts of "
            f"{found['prompt_len']} tokens. A prompt's own continuation is more likely than another's in "
            f"{_percent(found['continuations'])} of the pairs. With each text's loss without a prompt taken off, that is "
            f"{_percent(found['lift'])}. A continuation is more likely after its own prompt than after another's in "
            f"{_percent(found['prompts'])}."
        )
    human = evaluation.row(source=HUMAN)
    few, many = evaluation.row(*FEW), evaluation.row(*MANY)
    if few is not None and few.perplexity and human is not None and human.perplexity:
        said.append(
            f"At {FEW[1]} steps of {FEW[0]} perplexity is {number(few.perplexity / human.perplexity)} times that of held-out "
            f"text, and entropy {number(few.entropy / human.entropy)} times."
        )
    if few is not None and many is not None and few.perplexity and many.perplexity:
        worse = {
            "perplexity": few.perplexity > many.perplexity,
            "entropy": few.entropy < many.entropy,
            "MAUVE": few.mauve < many.mauve,
        }
        told = " and ".join(name for name, is_worse in worse.items() if is_worse)
        said.append(
            f"{FEW[1]} steps of {FEW[0]} against {MANY[1]} of {MANY[0]}: perplexity {number(few.perplexity)} against "
            f"{number(many.perplexity)}, entropy {number(few.entropy)} against {number(many.entropy)}, MAUVE "
            f"{number(few.mauve)} against {number(many.mauve)}. "
            f"{f'They are not as good in {told}.' if told else 'They are at least as good in all three.'}"
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
    return f"At {steps} steps of {solver}.\n\n{table(header, lines)}"


def _percent(share: float | None, decimals: int = 1) -> str:
    return "-" if share is None else f"{share:.{decimals}%}"
