"""A pytest plugin that writes what was collected and how each test ended, a line of JSON each, as it happens.

So a run that is ended from outside still says which tests it reached. With pytest-xdist only the controller writes.
"""

import json
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--card-record", type=Path, required=True, help="the file to write")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Record(config.getoption("--card-record")))


class _Record:
    def __init__(self, path: Path):
        self.path = path
        self.seen: set[str] = set()

    def write(self, **line) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def collected(self, ids: list[str]) -> None:
        new = [one for one in ids if one not in self.seen]
        self.seen.update(new)
        if new:
            self.write(collected=new)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.collected([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node, ids: list[str]) -> None:
        self.collected(ids)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self.write(module=report.nodeid, outcome=report.outcome, reason=_reason(report))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A test that passed is done with its teardown; one that did not run has no call.
        if report.failed or report.skipped or report.when == "teardown":
            outcome = "skipped" if hasattr(report, "wasxfail") else report.outcome
            self.write(test=report.nodeid, outcome=outcome, seconds=report.duration, reason=_reason(report))


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """One line: why a test was skipped, or the last line of what went wrong."""
    if report.skipped and isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    lines = str(report.longrepr or "").strip().splitlines()
    errors = [line[1:].strip() for line in lines if line.startswith("E ")]
    return (errors or lines[-1:] or [""])[0]
