"""What a run on a card reached, what failed, and what it did not reach."""

from collections import Counter
from dataclasses import asdict, dataclass, field

from tests.card.steps import FOUND, Outcome, read_record


@dataclass
class Reached:
    """How a step ended.

    Attributes:
        name: of the step.
        seconds: that it took.
        budget_seconds: after which it was ended.
        exit_code: of its command; None where it was ended or never begun.
        passed: the tests that passed, by id.
        failed: of every test or file that failed, the reason, by id.
        skipped: how many tests said that this card does not run them, by their reason.
        not_reached: of every test or file that never ran, the reason, by id.
        findings: lines in which compute-sanitizer says what it found.
    """

    name: str
    seconds: float = 0.0
    budget_seconds: float = 0.0
    exit_code: int | None = None
    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    not_reached: dict[str, str] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    def line(self) -> str:
        """The step in one line."""
        counts = f"{len(self.passed)} passed, {len(self.failed)} failed, {sum(self.skipped.values())} skipped"
        found = f", {len(self.findings)} findings" if self.findings else ""
        time = f"{self.seconds:.0f} of {self.budget_seconds:.0f} s"
        return f"{self.name}: {counts}, {len(self.not_reached)} not reached{found}; {time}"


def reached(outcome: Outcome, expected: list[str] | None = None) -> Reached:
    """Reads what a step left.

    Args:
        outcome: of the step.
        expected: ids that it was given; those that it never mentions were not reached, whatever ended it.
    """
    step = outcome.step
    result = Reached(step.name, outcome.seconds, step.seconds, outcome.exit_code)
    collected, skipped, ended = list(expected or []), {}, set()
    for line in read_record(step.record):
        if "collected" in line:
            collected += line["collected"]
        elif "module" in line:
            # A file that cannot be imported has not run; that it says why makes it no success.
            (result.failed if line["outcome"] == "failed" else result.not_reached)[line["module"]] = line["reason"]
        else:
            ended.add(line["test"])
            if line["outcome"] == "failed":
                result.failed.setdefault(line["test"], line["reason"])
            elif line["outcome"] == "skipped":
                skipped[line["test"]] = line["reason"]
            elif line["test"] not in skipped:
                result.passed.append(line["test"])
    result.passed = [test for test in dict.fromkeys(result.passed) if test not in result.failed]
    result.skipped = dict(Counter(skipped.values()))
    why = "the time was over" if outcome.exit_code is None else f"the command ended with exit code {outcome.exit_code}"
    result.not_reached |= {test: why for test in dict.fromkeys(collected) if test not in ended}
    log = step.log.read_text(errors="replace").splitlines()
    if outcome.exit_code == FOUND:
        result.findings = [line for line in log if line.startswith("=========") and "SUMMARY" in line]
        result.findings = result.findings or [f"exit code {FOUND}, see the log"]
    # pytest's 0 is a success and 1 are failed tests, which are named above; all else is a failure of its own.
    if outcome.exit_code not in (None, 0, 1, FOUND) and not result.failed:
        result.failed[step.name] = f"exit code {outcome.exit_code}: {log[-1] if log else 'nothing was printed'}"
    if outcome.exit_code is None and not result.not_reached:
        result.not_reached[step.name] = why
    return result


def left_out(name: str, reason: str) -> Reached:
    """A step that was never begun."""
    return Reached(name, not_reached={name: reason})


def exit_code(steps: list[Reached]) -> int:
    """1 where something failed or was found, 3 where only something was not reached, otherwise 0."""
    if any(step.failed or step.findings for step in steps):
        return 1
    return 3 if any(step.not_reached for step in steps) else 0


def summary(machine: dict, steps: list[Reached]) -> dict:
    """What is written as JSON."""
    return {"machine": machine, "exit_code": exit_code(steps), "steps": [asdict(step) for step in steps]}


def text(steps: list[Reached]) -> str:
    """What is printed: a line a step, the failed by name, and what was not reached with its reason."""
    lines = [step.line() for step in steps]
    for step in steps:
        lines += [f"FAILED {step.name} {test}: {reason}" for test, reason in step.failed.items()]
        lines += [f"FOUND {step.name} {finding}" for finding in step.findings]
        lines += [f"skipped {step.name} {count}: {reason}" for reason, count in step.skipped.items()]
        for reason, count in Counter(step.not_reached.values()).items():
            names = [test for test, why in step.not_reached.items() if why == reason]
            lines.append(f"NOT REACHED {step.name} {count}: {reason}: {names[0]}{' and others' if count > 1 else ''}")
    return "\n".join(lines)
