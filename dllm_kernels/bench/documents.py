"""What `dllm-kernels report` writes as text, and CI compares byte for byte."""

import json
from collections.abc import Iterable

from dllm_kernels.bench.plots import plots
from dllm_kernels.bench.results import Result
from dllm_kernels.bench.tables import document


def documents(results: Iterable[Result]) -> dict[str, str]:
    """By path under docs/: the tables, and the data of each plot."""
    results = list(results)
    drawn = plots(results)
    texts = {"benchmarks.md": document(results, drawn)}
    texts |= {f"plots/{name}.json": json.dumps(plot, indent=1) + "\n" for name, plot in drawn.items()}
    return texts
