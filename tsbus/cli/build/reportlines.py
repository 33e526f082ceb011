"""Report lines: a run as it goes, for those who have no terminal: a line or a JSON object for each report. Pure."""

from typing import Any

from tsbus.build.reports import Answered, Entered, Failed, Left, Noted, Opened, Report, Sent, Skipped, Stepped
from tsbus.build.steps import Step
from tsbus.build.trouble import Trouble
from tsbus.cli.containers.words import count
from tsbus.cli.terminal import duration, millis, safe


def line_of(report: Report) -> str:
    """Return a report as one line that begins with its server; empty for what changes nothing."""
    match report:
        case Opened(stage, names):
            return f"{stage}: {count(len(names), 'server')}" if names else ""
        case Stepped(name, step, changed, seconds):
            return f"{name}: {step.words} ({duration(seconds)})" if changed else ""
        case Noted(name, text):
            return f"{name}: {safe(text)}" if name else safe(text)
        case Left(name, stage, seconds):
            return f"{name}: {stage} done ({duration(seconds)})"
        case Failed(name, stage, trouble):
            return f"{name}: {stage} failed ({trouble.kind})"  # the plan or the summary tells why
        case Skipped(name, stage, why):
            return f"{name}: {stage} left out: {safe(why)}"
        case Answered(name, rtt_s):
            return f"{name}: answers in {millis(rtt_s * 1000)}"
        case Entered() | Sent():
            return ""


def object_of(report: Report) -> dict[str, Any]:
    """Return a report for --json; `report` says which it is."""
    told: dict[str, Any] = {"report": type(report).__name__.lower()}
    match report:
        case Opened(stage, names):
            return told | {"stage": stage, "nodes": list(names)}
        case Entered(name, stage, doing):
            return told | {"node": name, "stage": stage, "doing": doing}
        case Stepped(name, step, changed, seconds):
            return told | {"node": name, "step": step_object(step), "changed": changed, "seconds": round(seconds, 3)}
        case Sent(name, have, total):
            return told | {"node": name, "have": have, "total": total}
        case Noted(name, text):
            return told | {"node": name, "text": text}
        case Left(name, stage, seconds):
            return told | {"node": name, "stage": stage, "seconds": round(seconds, 3)}
        case Failed(name, stage, trouble, seconds):
            return told | {
                "node": name, "stage": stage, "trouble": trouble_object(trouble), "seconds": round(seconds, 3),
            }  # fmt: skip
        case Skipped(name, stage, why):
            return told | {"node": name, "stage": stage, "why": why}
        case Answered(name, rtt_s):
            return told | {"node": name, "rtt_ms": round(rtt_s * 1000, 3)}


def step_object(step: Step) -> dict[str, Any]:
    """Return a step for --json."""
    return {
        "kind": step.kind, "stage": step.stage, "words": step.words, "why": step.why, "reversible": step.reversible,
    }  # fmt: skip


def trouble_object(trouble: Trouble) -> dict[str, Any]:
    """Return a trouble for --json."""
    return {
        "kind": trouble.kind, "text": trouble.text, "mend": trouble.mend, "fatal": trouble.fatal,
        "details": trouble.details,
    }  # fmt: skip
