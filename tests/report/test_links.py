"""Links and paths in the documents lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOLDERS = "csrc|dllm_kernels|tests|benchmarks|configs|docs"
PATH = re.compile(rf"(?<![\w/.-])((?:{FOLDERS})/[a-z0-9_./-]+\.(?:py|cu|cuh|h|cpp|json|md|yaml))\b")
"""A path in capitals, ops/NAME/op.py, is for the reader to fill in."""


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(page: Path, text: str) -> list[str]:
    """Links and paths of a page's text that lead nowhere. The log keeps the paths of its days."""
    found = []
    for link in LINK.findall(text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        content = text if target == page else target.read_text() if target.is_file() else ""
        if not target.exists() or (anchor and anchor not in anchors(content)):
            found.append(link)
    if page.parent.name != "log":
        found += [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths(page):
    assert broken(page, page.read_text()) == []


def test_what_leads_nowhere_is_found():
    page = ROOT / "docs" / "kernels.md"
    text = "# A title, of a page\n[a](#a-title-of-a-page) [b](#b) [c](log/README.md#log) [d](log/none.md) csrc/kernels/none.cu"
    assert broken(page, text) == ["#b", "log/none.md", "csrc/kernels/none.cu"]
