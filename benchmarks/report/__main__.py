"""`python -m benchmarks.report [benchmarks] [kernels] [quality] [scale] [training]`: writes the named pages, or all."""

import argparse

try:
    from benchmarks.report import benchmarks, kernels, quality, scale, training
except ModuleNotFoundError as error:
    missing = error.name.partition(".")[0]
    raise SystemExit(f"python -m benchmarks.report needs {missing}: pip install -e '.[bench]'") from error
from benchmarks.report.pages import ROOT

PAGES = {
    "benchmarks": benchmarks.files,
    "kernels": kernels.files,
    "quality": quality.files,
    "scale": scale.files,
    "training": training.files,
}


def main() -> None:
    """Writes the pages that the command line names, and says which files those are."""
    parser = argparse.ArgumentParser("python -m benchmarks.report", description="Write docs/ from benchmarks/results.")
    parser.add_argument("page", nargs="*", help=f"{', '.join(PAGES)}; all, where none is named")
    names = parser.parse_args().page or list(PAGES)
    unknown = sorted(set(names) - set(PAGES))
    if unknown:
        parser.error(f"unknown page {unknown[0]!r}; known pages: {', '.join(PAGES)}")
    for name in names:
        for path, text in PAGES[name]().items():
            (ROOT / path).write_text(text)
            print(path)


if __name__ == "__main__":
    main()
