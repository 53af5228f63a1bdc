"""What an evaluation found, and its JSON file."""

import dataclasses
import json
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

SCHEMA = "dllm-kernels evaluation 1"
HUMAN = "held-out text"


@dataclass
class Row:
    """One source of text. What does not apply is None.

    Attributes:
        source: "held-out text", the judge's name, or the model's.
        solver, steps: of the model.
        samples, length: how many texts, and their mean length in the model's tokens, without special ones.
        perplexity: generative perplexity, exp of the judge's mean nats a token; None where all texts are empty.
        other_perplexities: the same by the name of each further judge, and of an n-gram model of held-out text.
        entropy: nats, of the distribution of all samples' tokens.
        mean_entropy: nats, of the distribution within one sample, the mean over samples.
        distinct_1, distinct_2, distinct_3: different n-grams over all n-grams.
        mauve: against another part of the held-out text, on the judge's last hidden states.
        memorised: share of samples with a run of more than 20 tokens from the training text; None without that text.
        tokens_per_s: tokens generated a second, in the generator's own tokens.
        examples: the first texts, of models only.
    """

    source: str
    samples: int
    length: float
    entropy: float
    mean_entropy: float
    distinct_1: float
    distinct_2: float
    distinct_3: float
    perplexity: float | None = None
    mauve: float | None = None
    memorised: float | None = None
    solver: str | None = None
    steps: int | None = None
    tokens_per_s: float | None = None
    examples: list[str] = field(default_factory=list)
    other_perplexities: dict[str, float | None] = field(default_factory=dict)


@dataclass
class Evaluation:
    """An evaluation's file.

    Attributes:
        model: its name.
        command: what was typed.
        machine: `Machine.describe`.
        judge: the first judge's name.
        settings: samples, seq_len, batch, dtype, temperature, seed, held_out, training, encoder.
        parameters: of the model.
        reconstruction: "accuracy", the share of held-out tokens that the autoencoder gives back, of how many "tokens"; or
            None, with what stood in the way in left_out.
        prompts: shares of held-out pairs (abilities.prompt_shares) and their number "pairs"; or None.
        left_out: what was not measured, and why, a sentence each.
        complete: whether all was measured.
    """

    model: str
    command: str
    machine: dict[str, Any]
    judge: str
    settings: dict[str, Any]
    parameters: int
    day: str = field(default_factory=lambda: date.today().isoformat())
    reconstruction: dict[str, Any] | None = None
    prompts: dict[str, Any] | None = None
    left_out: list[str] = field(default_factory=list)
    complete: bool = False
    took_s: float = 0.0
    rows: list[Row] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The model, and the grid where another than its own was asked for."""
        grid = self.settings.get("grid", "auto")
        return self.model if grid == "auto" else f"{self.model}, grid {grid}"

    def row(self, solver: str | None = None, steps: int | None = None, source: str | None = None) -> Row | None:
        """The row of a source (the model, where not given), or None."""
        source = self.model if source is None else source
        return next((r for r in self.rows if (r.source, r.solver, r.steps) == (source, solver, steps)), None)

    def fields(self) -> dict[str, Any]:
        """As JSON: with the schema, and without what is None in a row."""
        fields = {"schema": SCHEMA} | dataclasses.asdict(self)
        fields["rows"] = [{k: v for k, v in row.items() if v is not None} for row in fields["rows"]]
        return fields

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".partial")
        aside.write_text(json.dumps(self.fields(), indent=1) + "\n")
        aside.replace(path)


def read(path: Path) -> Evaluation:
    """The evaluation in a file.

    Raises:
        ValueError: the file is not JSON, or not an evaluation, or lacks fields; names the file.
        OSError: it cannot be read.
    """
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(fields, dict) or fields.pop("schema", None) != SCHEMA:
        raise ValueError(f"{path} is not an evaluation ({SCHEMA!r})")
    try:
        return Evaluation(**fields | {"rows": [Row(**row) for row in fields["rows"]]})
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} does not have the fields of {SCHEMA!r}: {error}") from error
