"""Files of results, how they are taken up again, comparisons and the guard."""

import dataclasses
import json

import pytest

from dllm_kernels.bench import groups as bench_groups
from dllm_kernels.bench.compare import guard, verdict
from dllm_kernels.bench.groups import Group, locate
from dllm_kernels.bench.peers import GRAPH, OURS
from dllm_kernels.bench.results import Result, Row, file_name, read, resumed

MACHINE = {"name": "NVIDIA H200 (SXM)", "device": "cuda", "torch": "2.11", "driver": "580", "commit": "abc", "threads": 8}
CASE = {"preset": "tiny", "steps": 10, "batch": 1, "seq_len": 64, "prompt": 0}


def result(ratio=1.5, baseline=GRAPH, machine=None, **fields):
    row = Row(CASE, OURS, ms=2.0, p20_ms=1.9, p80_ms=2.1, ratio=ratio, **fields)
    rows = [row, Row(CASE, GRAPH, ms=3.0, p20_ms=2.9, p80_ms=3.1, ratio=1.0)]
    return Result("table-tiny", "pytest", MACHINE | (machine or {}), {}, "2026-01-02", baseline, rows=rows)


class TestFiles:
    def test_round_trip(self, tmp_path):
        written = result(phases_ms={"noise": 0.5}, max_error=0.01)
        written.write(tmp_path / "new" / "a.json")
        assert read(tmp_path / "new" / "a.json") == written
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]
        assert "watts" not in json.loads((tmp_path / "new" / "a.json").read_text())["rows"][0]

    def test_name(self):
        assert file_name(result()) == "2026-01-02-nvidia-h200-sxm-table-tiny.json"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{", "is not JSON: "),
            ("[]", "is not a result of the benchmark harness"),
            ('{"bench": {}}', "is not a result of the benchmark harness"),
            ('{"schema": "dllm-kernels bench 1", "rows": []}', "does not have the fields of"),
            ('{"schema": "dllm-kernels bench 1", "rows": [{"speed": 1}]}', "does not have the fields of"),
        ],
    )
    def test_what_is_no_result_is_named(self, tmp_path, text, said):
        path = tmp_path / "a.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=f"^{path} {said}"):
            read(path)


class TestResume:
    def test_the_same_commit_and_machine(self, tmp_path):
        result().write(tmp_path / "a.json")
        new = dataclasses.replace(result(), rows=[])
        assert resumed(tmp_path / "a.json", new) == result()
        assert resumed(tmp_path / "b.json", new) is new

    @pytest.mark.parametrize(
        "changed", [{"commit": "def"}, {"driver": "581"}, {"threads": 4}, {"torch": "2.12"}, {"name": "NVIDIA H100"}]
    )
    def test_anything_else_begins_anew(self, tmp_path, changed):
        result().write(tmp_path / "a.json")
        new = result(machine=changed)
        assert resumed(tmp_path / "a.json", new) is new

    @pytest.mark.parametrize("commit", [None, "abc-dirty"])
    def test_code_that_is_not_committed_begins_anew(self, tmp_path, commit):
        result(machine={"commit": commit}).write(tmp_path / "a.json")
        new = result(machine={"commit": commit})
        assert resumed(tmp_path / "a.json", new) is new

    def test_a_group_goes_on_where_it_was_left(self, tmp_path, monkeypatch):
        cases = tuple(bench_groups.Case("tiny", steps) for steps in (1, 2, 4))
        group = Group("table-tiny", "tiny", cases, (OURS,))
        measured = []

        def measure(case, *_):
            measured.append(case.steps)
            if case.steps == 2 and measured.count(2) == 1:
                raise KeyboardInterrupt
            return [Row(case.fields(), OURS, ms=1.0)]

        monkeypatch.setattr(bench_groups, "measure", measure)
        monkeypatch.setattr(bench_groups.Weights, "of", lambda *_: None)
        card = bench_groups.Machine.__new__(bench_groups.Machine)
        card.device, card.nvml, card.unsupported_reason = bench_groups.torch.device("cpu"), None, None
        monkeypatch.setattr(card, "describe", lambda: MACHINE, raising=False)
        monkeypatch.setattr(bench_groups, "reaches", lambda device: Reached())
        found, path = locate(group, card, tmp_path, "first", rerun=False)
        with pytest.raises(KeyboardInterrupt):
            bench_groups.run(group, card, found, path)
        assert not read(path).complete and [row.case["steps"] for row in read(path).rows] == [1]
        found, again = locate(group, card, tmp_path, "second", rerun=False)
        assert again == path and found.command == "first"
        bench_groups.run(group, card, found, path)
        assert measured == [1, 2, 2, 4] and read(path).complete
        assert [row.case["steps"] for row in read(path).rows] == [1, 2, 4]
        assert locate(group, card, tmp_path, "third", rerun=False)[0].complete
        assert locate(group, card, tmp_path, "third", rerun=True)[0].rows == []


class Reached:
    """A card's rates."""

    bandwidth, rates = 1e12, {bench_groups.torch.bfloat16: 1e14}


class TestCompare:
    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            ((9.9, 10.0, 10.1), (8.9, 9.0, 9.1), "faster by 11.1%"),
            ((9.9, 10.0, 10.1), (10.8, 11.0, 11.2), "slower by 9.1%"),
            ((9.0, 10.0, 11.0), (8.5, 9.5, 10.5), "within noise"),
        ],
    )
    def test_verdict(self, old, new, said):
        rows = [Row(CASE, OURS, ms=ms, p20_ms=p20, p80_ms=p80) for p20, ms, p80 in (old, new)]
        assert verdict(*rows) == said
        rows[1].unstable = "throttled"
        assert verdict(*rows) == "no verdict: not steady"

    @pytest.mark.parametrize(("now", "fails"), [(1.5 * 0.96, False), (1.5 * 0.94, True), (2.0, False)])
    def test_the_guard(self, now, fails):
        found = guard(result(1.5), result(now))
        assert bool(found) is fails
        assert not fails or "the ratio fell by 6.0%, from 1.500 to 1.410" in found[0]

    def test_the_guard_fails_without_a_ratio(self):
        (line,) = guard(result(1.5), result(None, unstable="throttled"))
        assert "no ratio now, throttled; 1.500 before" in line

    def test_the_guard_compares_like_with_like(self):
        with pytest.raises(ValueError, match=r"is of NVIDIA H100, and this machine is NVIDIA H200 \(SXM\)"):
            guard(result(machine={"name": "NVIDIA H100"}), result())
        with pytest.raises(ValueError, match="the earlier ratios are to 'other'"):
            guard(result(baseline="other"), result())
        with pytest.raises(ValueError, match="no ratio for what was measured"):
            guard(result(None), result())
