"""Jobs: what is done on one server in one exchange, over its session.

`probe` looks at it. `carry_out` lets the installer there do a task: some steps of its plan, or other orders.
`treescale` runs that program of the node's own release, for what goes over the bus. Whatever goes wrong is a
ServerTrouble; all that the server says goes to `log`, its transcript.
"""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final

from tsbus.build import orders
from tsbus.build.bundle import Bundle
from tsbus.build.facts import Facts, parse
from tsbus.build.orders import Parcel
from tsbus.build.places import ROOT
from tsbus.build.plan import HostPlan
from tsbus.build.reports import Answered, Entered, Noted, Report, Sent, Stepped
from tsbus.build.runner import DEADLINE_S
from tsbus.build.ssh import Outcome, Session, Shared
from tsbus.build.steps import Stage, Step
from tsbus.build.trouble import WAITING, Failure
from tsbus.core.target import fold

PROBE: Final = Path(__file__).with_name("probe.sh").read_text()
PROGRAM: Final = f"{ROOT}/current/bin/treescale"
SENT_EVERY: Final = 256 << 10
"""Bytes of an upload after which it is told again."""
REPLY_S: Final = 60.0
"""What a node may take, beyond the time that it is given, to start its program and to end it."""

Log = Callable[[str], None]
Tell = Callable[[Report], None]


# Looking.


@dataclass(frozen=True, slots=True)
class Seen:
    """What a probe has found."""

    facts: Facts
    offset_s: float
    """How far the server's clock is ahead of ours."""


def probe(session: Session, log: Log) -> Seen:
    """Look at the server, which changes nothing there. Raises ServerTrouble, Cancelled."""
    arrived: list[float] = []

    def tell(line: str) -> None:
        if line.startswith("time="):
            arrived.append(time.time())
        log(line)

    facts = parse(session.run(PROBE, stage="probe", what="look at it", tell=tell).out.encode())
    return Seen(facts, facts.time_s - arrived[0] if arrived and facts.time_s is not None else 0.0)


# Changing.


@dataclass(frozen=True, slots=True)
class Task:
    """What the installer of one server does in one exchange."""

    release: str
    python: str
    """The interpreter that runs it."""
    steps: tuple[Step, ...]
    """What people are told of each order."""
    orders: tuple[Mapping[str, Any], ...]
    """One for each step."""
    bundle: Bundle | None = None

    @property
    def parcel(self) -> Parcel | None:
        """What the installer must know of the bundle."""
        return _parcel(self.bundle)

    @classmethod
    def of(
        cls,
        plan: HostPlan,
        stages: Collection[Stage],
        release: str,
        texts: Mapping[str, str],
        bundle: Bundle | None = None,
    ) -> "Task":
        """Return the steps of `plan` that are in these stages, as a task; `texts` and `bundle` as for orders.order."""
        steps = tuple(step for step in plan.steps if step.stage in stages)
        needed = bundle if any(step.kind == "release" for step in steps) else None
        made = tuple(orders.order(step, texts, _parcel(needed)) for step in steps)
        return cls(release, plan.python, steps, made, needed)


def carry_out(session: Session, shared: Shared, task: Task, tell: Tell, log: Log) -> dict[str, Any]:
    """Do a task; returns what the installer has told at the end of its orders, as `public_key` and `programs`.

    It may be begun anew after it was cut off. Raises ServerTrouble, Cancelled.
    """
    left = list(zip(task.steps, task.orders, strict=True))
    while left and left[0][0].kind == "python":  # the installer needs it
        step, _ = left.pop(0)
        tell(Entered(session.login.name, step.stage, step.words))
        log(f"== {step}")
        begun = time.monotonic()
        said = _said_by_script(session, tell, log)
        session.run(step.script, stage=step.stage, what=step.words, tell=said, timeout_s=DEADLINE_S)
        tell(Stepped(session.login.name, step, True, time.monotonic() - begun))
    return _Installation(session, shared, task, left, tell, log).run() if left else {}


@dataclass
class _Installation:
    """One exchange with the installer: sends what it wants, and passes on what it says."""

    session: Session
    shared: Shared
    task: Task
    todo: Sequence[tuple[Step, Mapping[str, Any]]]
    tell: Tell
    log: Log
    told: dict[str, Any] = field(default_factory=dict)
    failed: orders.Report | None = None

    def __post_init__(self) -> None:
        self.said = _said_by_script(self.session, self.tell, self.log)

    def run(self) -> dict[str, Any]:
        script = orders.script(self.task.python, self.task.parcel)
        # What is read is not masked: a password may be one of the words that are looked for.
        outcome = self.session.run(
            script, stage=self.todo[0][0].stage, what="the installer", stdin=self._wanted, hear=self._hear,
            tell=self._keep, timeout_s=DEADLINE_S, check=False,
        )  # fmt: skip
        if self.failed:
            failure = self.failed.failure(self._step(self.failed), self.session.login.place)
            raise self.session.trouble(failure)
        if outcome.status:
            raise self.session.trouble(
                Failure("installer", self.session.login.place, status=outcome.status, output=outcome.shown,
                        command="the installer")
            )  # fmt: skip
        return self.told

    def _step(self, report: orders.Report) -> Step | None:
        return self.todo[report.order][0] if 0 <= report.order < len(self.todo) else None

    def _wanted(self, line: str) -> BinaryIO:
        """Return what an installer wants that has said this first."""
        first = orders.parse(line)
        if first is None or first.state != "ready":
            return BytesIO()
        document = orders.document(self.task.release, [order for _, order in self.todo], self.task.parcel)
        if self.task.bundle is None or first.have >= self.task.bundle.size:
            return BytesIO(document)
        return _Upload(document, self.task.bundle, first.have, self.session.login.name, self.shared, self.tell)

    def _hear(self, line: str) -> None:
        report = orders.parse(line)
        if report is None:
            return
        name, step = self.session.login.name, self._step(report)
        if report.state == "failed":
            self.failed = report
            self.log(f"failed after {report.seconds:.1f} s: {report.told.get('error')}")
            for said in str(report.told.get("output", "")).splitlines():
                self.log(said)
        elif report.state == "output":
            for said in str(report.told.get("text", "")).splitlines():
                self.said(said)
        elif step and report.state == "begin":
            self.tell(Entered(name, step.stage, step.words))
            self.log(f"== {step}")
        elif step and report.state in ("ok", "changed"):
            self.told |= report.told
            self.tell(Stepped(name, step, report.state == "changed", report.seconds))
            self.log(f"{report.state} after {report.seconds:.1f} s")

    def _keep(self, line: str) -> None:
        """Write down what is none of the installer's own words."""
        if orders.parse(line) is None:
            self.log(line)


def _said_by_script(session: Session, tell: Tell, log: Log) -> Callable[[str], None]:
    """Return what takes the lines of a script: those who watch are told once what it waits for."""
    told: set[str] = set()

    def said(line: str) -> None:
        log(line)
        if line == WAITING and not told:
            told.add(line)
            tell(Noted(session.login.name, line))

    return said


def _parcel(bundle: Bundle | None) -> Parcel | None:
    return Parcel(bundle.digest, bundle.size) if bundle else None


class _Upload(BytesIO):
    """The document and then what is missing of a bundle; it has one of the places for uploads until it is closed."""

    def __init__(self, document: bytes, bundle: Bundle, have: int, name: str, shared: Shared, tell: Tell) -> None:
        super().__init__(document)
        self._name, self._total, self._uploads, self._tell = name, bundle.size, shared.uploads, tell
        shared.acquire(self._uploads)
        self._file = bundle.path.open("rb")
        self._file.seek(have)
        self._told = have
        tell(Sent(name, have, bundle.size))

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size) or self._file.read(-1 if size is None else size)
        have = self._file.tell()
        if have - self._told >= SENT_EVERY or (have == self._total and have > self._told):
            self._told = have
            self._tell(Sent(self._name, have, self._total))
        return data

    def close(self) -> None:
        if not self._file.closed:
            self._file.close()
            self._uploads.release()
        super().close()


# The bus.


def treescale(
    session: Session,
    words: Sequence[str],
    log: Log,
    *,
    stdin: bytes | None = None,
    hear: Callable[[str], None] | None = None,
    limit_s: float = REPLY_S,
    check: bool = True,
) -> Outcome:
    """Run `treescale WORDS` on the node, as root, who may do everything there; `hear` gets its output by lines.

    Raises ServerTrouble, for an exit status other than 0 only with `check`; Cancelled.
    """
    log(f"== treescale {' '.join(words)}"[:1000])
    return session.run(
        [PROGRAM, *words], stage="verify", what=f"treescale {words[0]}", stdin=stdin, tell=log, hear=hear,
        timeout_s=limit_s, check=check,
    )  # fmt: skip


def ask(session: Session, names: Collection[str], wait_s: float, tell: Tell, log: Log) -> dict[str, str]:
    """Send a message from this node to these and back, again for `wait_s` to those that do not answer.

    Who answers is told; returns why the others do not. Raises ServerTrouble when this node cannot ask; Cancelled.
    """
    silent = dict.fromkeys(names, "nothing was heard")

    def hear(line: str) -> None:
        try:
            said = json.loads(line)
            name = said["node"]
        except (ValueError, KeyError, TypeError):
            return
        if name in silent and said.get("outcome") == "ok":
            del silent[name]
            tell(Answered(name, float(said["rtt_ms"]) / 1000))
        elif name in silent:
            silent[name] = f"{said.get('outcome')}: {said.get('reason')}"

    words = ["ping", fold(names), "--wait", f"{wait_s:g}", "--json"]
    outcome = treescale(session, words, log, hear=hear, limit_s=wait_s + REPLY_S, check=False)
    if len(silent) == len(names) and outcome.status not in (0, 1, 3, 4):
        raise session.trouble(
            Failure("verify", session.login.place, status=outcome.status, output=outcome.shown, command="ask the tree")
        )
    return silent
