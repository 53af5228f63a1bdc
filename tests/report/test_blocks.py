"""The blocks of README.md and docs/tutorial.md that are marked to run do so in an empty folder, and print what stands there."""

import difflib
import re
from pathlib import Path

import pytest

from benchmarks.newcomer import EXACT, NEARLY, RECORDED, Block, Expected, blocks, environment, run

ROOT = Path(__file__).parents[2]
SHORT = "120"
"""Steps of the tutorial's training here; docs/tutorial.md names the variable and this number."""


def compare(block: Block, printed: str) -> None:
    """Fails where what a block printed is not what its document shows."""
    how, shown = block.expected.how, block.expected.text
    if how == EXACT:
        assert printed == shown
    elif how == NEARLY:
        same = difflib.SequenceMatcher(None, shown.split(), printed.split(), autojunk=False).ratio()
        assert same > 0.9, f"printed {printed}"
    else:
        assert how == RECORDED and printed.count("\n") == shown.count("\n"), f"printed {printed}"


def run_all(path: Path, folder: Path) -> dict[str, str]:
    """What each block of a document printed, by its code; blocks are compared as they run."""
    env, found = environment(folder) | {"STEPS": SHORT}, {}
    for block in blocks(path.read_text()):
        found[block.code] = run(block, folder, env)
        if block.expected:
            compare(block, found[block.code])
    return found


def test_the_readme(tmp_path):
    found = run_all(ROOT / "README.md", tmp_path)
    assert any("LDLMPipeline" in code for code in found) and any("dllm-kernels info" in code for code in found)


def test_the_tutorial(tmp_path):
    assert f"`export STEPS={SHORT}`" in (ROOT / "docs" / "tutorial.md").read_text()
    found = run_all(ROOT / "docs" / "tutorial.md", tmp_path)
    # A sixth is what a model gets that learned the words and not the rule.
    (judged,) = (printed for code, printed in found.items() if "are not in the text it learned" in code)
    right, new = map(int, re.match(r"(\d+) of 100 end at the right home, and (\d+) of these", judged).groups())
    assert right >= 40 and new >= 20
    (own,) = (printed for code, printed in found.items() if "generate my-model" in code)
    assert re.search(r"^sample 3: the \w+ \w+ \w+ the \w+ \w+ and runs to its \w+$", own, re.MULTILINE)


def test_code_that_is_not_marked_is_left_alone():
    document = "```bash\nrm everything\n```\n\n<!-- run -->\n```python\nprint(1)\n```\n\n<!-- prints -->\n```text\n1\n```\n"
    assert blocks(document) == [Block("python", "print(1)\n", Expected(EXACT, "1\n"))]


@pytest.mark.parametrize(
    ("how", "shown", "fits"),
    [
        (EXACT, "a b\n", True),
        (EXACT, "a c\n", False),
        (NEARLY, "a c\n", False),
        (RECORDED, "a c\n", True),
        (RECORDED, "a b\nc\n", False),
    ],
)
def test_output_is_compared(tmp_path, how, shown, fits):
    block = Block("bash", "echo a b", Expected(how, shown))
    printed = run(block, tmp_path, environment(tmp_path))
    if fits:
        compare(block, printed)
    else:
        with pytest.raises(AssertionError):
            compare(block, printed)


@pytest.mark.parametrize("code", ["false; true", "python -c 'import nothing'"])
def test_a_block_that_fails_is_shown(tmp_path, code):
    with pytest.raises(RuntimeError, match=re.escape(code)):
        run(Block("bash", code, None), tmp_path, environment(tmp_path))
