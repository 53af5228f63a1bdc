"""The command `bench`."""

import subprocess
import sys

import pytest
import torch

from dllm_kernels.bench import generation, peers
from dllm_kernels.bench.peers import EAGER_BF16, OURS, PUBLISHED_BF16
from dllm_kernels.bench.results import check_place
from dllm_kernels.bench.results import read as read_result
from dllm_kernels.bench.timing import Sample
from tests.cli.command import message, read, run

pytestmark = pytest.mark.filterwarnings("ignore")
TINY = ("bench", "--preset", "tiny", "--steps", 2, "--rounds", 3, "--device", "cpu")


@pytest.fixture
def seconds(monkeypatch):
    """What a call of ours takes; the others take twice as long as it does before the test changes it."""
    told = {"ours": 1.0}
    timed = lambda call: told["ours"] if isinstance(call, peers.Sampled) else 2.0  # noqa: E731
    monkeypatch.setattr(generation, "stopwatch", lambda device: timed)
    # Whatever else this machine does.
    monkeypatch.setattr("dllm_kernels.utils.machine.Machine.sample", lambda self: Sample())
    return told


class TestBench:
    def test_json(self, seconds):
        found = read(*TINY)
        rows = {row["contender"]: row for row in found["rows"]}
        assert set(rows) == {OURS, PUBLISHED_BF16, EAGER_BF16} and found["baseline"] == EAGER_BF16
        assert rows[OURS]["ms"] == 1000 and rows[OURS]["ratio"] == 2 and rows[OURS]["tokens_per_s"] == 64
        assert found["machine"]["torch"] == torch.__version__ and found["reached"]["bytes_per_s"] > 0

    def test_table(self, seconds):
        text = " ".join(run(*TINY).stdout.split())
        assert all(name in text for name in ("FusedSampler", "published", "SDPA,", "tok/s", "1,000 - 1,000", "2,000"))
        assert "tiny, random weights, bf16, 2 steps, batch 1, 64 tokens" in text

    def test_compare(self, seconds, tmp_path):
        run(*TINY, "--output", tmp_path / "a.json")
        assert read_result(tmp_path / "a.json").complete
        seconds["ours"] = 0.5
        text = " ".join(run(*TINY, "--compare", tmp_path / "a.json").stdout.split())
        assert "since" in text and "faster" in text and "within" in text

    @pytest.mark.parametrize(("now", "code"), [(1.04, 0), (1.06, 1)])
    def test_against(self, seconds, tmp_path, now, code):
        run(*TINY, "--output", tmp_path / "a.json")
        seconds["ours"] = now
        result = run(*TINY, "--against", tmp_path / "a.json", code=code)
        assert ("the ratio fell by 5.7%" in result.stderr) is bool(code)

    def test_a_failed_check_fails(self, seconds, monkeypatch):
        monkeypatch.setattr(generation, "_keeps_contract", lambda row, *_: _refused(row))
        result = run(*TINY, code=1)
        assert "it is wrong" in result.stderr

    def test_bad_files(self, tmp_path):
        (tmp_path / "a.json").write_text("{}")
        for option in ("--compare", "--against"):
            assert message(*TINY, option, tmp_path / "a.json").startswith(f"{tmp_path / 'a.json'} is not a result of the")
        assert "No such file" in message(*TINY, "--against", tmp_path / "b.json")

    @pytest.mark.parametrize(
        ("place", "expected"),
        [("file/b.json", "File exists"), ("", "is a folder; a result is a file")],
        ids=["under a file", ""],
    )
    def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(self, tmp_path, monkeypatch, place, expected):
        (tmp_path / "file").write_text("")
        monkeypatch.setattr("dllm_kernels.cli.bench.Weights.of", lambda *_: pytest.fail("measured"))
        assert expected in message(*TINY, "--output", tmp_path / place)

    def test_an_earlier_result_stays_until_the_new_one_is_written(self, tmp_path):
        (tmp_path / "b.json").write_text("{}")
        check_place(tmp_path / "b.json")
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("b.json", "{}")]

    def test_nothing_of_it_is_imported_without_need(self):
        program = "import sys, dllm_kernels.cli.main; print({'matplotlib', 'torchao', 'benchmarks'} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout == "set()\n"


def _refused(row):
    if row.contender == OURS:
        row.reason = "it is wrong"
    return row.contender != OURS
