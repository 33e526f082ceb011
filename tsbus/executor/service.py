"""The executor's worker: commands of the bus become jobs (jobs.py), programs (process.py) and lines of the audit log.

An ordinary worker, made of the public API only. services/ts_executor.py starts it; docs/executor.md is for users.
"""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec

from tsbus import CommandError, Outcome, RefusedError, Request, Role, Worker
from tsbus.audit import AuditError, AuditLog, Entry, Trail, Wish, time_now
from tsbus.config import ExecutorPolicy, Tree
from tsbus.core.body import to_body
from tsbus.executor.handlers import EventHandler, source_of
from tsbus.executor.jobs import (
    Caller,
    Denied,
    Ending,
    ExecRequest,
    Job,
    JobTable,
    RequestError,
    decide,
    may_kill,
    parse_request,
)
from tsbus.executor.process import Account, Process, Program, StartError, find_account, own_account
from tsbus.executor.trail import find_logs, read
from tsbus.identity import names_of
from tsbus.log import Log

AUDIT_NAME = "exec-audit.log"
_PIECE = 50
"""Entries that are sent together."""
_log = Log("exec")


def make_worker(tree: Tree, audit_dir: Path, address: str | None = None, user: str = "") -> Worker:
    """Return the executor of `tree.current_node`.

    `audit_dir` is where the audit log goes unless the configuration names a file; `user` is as whom programs run
    where neither caller nor configuration says, "" for the executor's own user. Raises TargetError where a
    handler's `from` names what the tree does not have.
    """
    worker = Worker("exec", address)
    policy = tree.executor_for(tree.current_node)
    executor = Executor(policy, AuditLog(Path(policy.audit_file or audit_dir / AUDIT_NAME)), user)
    worker.command("run", role="operate")(executor.run)
    worker.command("jobs", role="observe")(executor.jobs)
    docker_log = tree.docker_for(tree.current_node).audit_file
    auditor = Auditor([executor.audit_file, *([Path(docker_log)] if docker_log else [])], audit_dir)
    worker.command("audit", role="operate")(auditor.audit)
    worker.command("kill", role="operate")(executor.kill)
    worker.stop(executor.stop)

    handlers: list[EventHandler] = []
    topology = tree.topology()
    for handler in tree.handlers_for(tree.current_node).values():
        nodes, scope = source_of(handler, topology, tree.current_node)
        runner = EventHandler(handler, nodes, executor.account, worker.publish, policy.kill_grace_s)
        handlers.append(runner)
        worker.on(handler.on, scope=scope)(runner.arrived)
        worker.stop(runner.stop)

    @worker.command("stats", role="observe")
    def stats(_: Request) -> dict[str, Any]:
        told = {runner.handler.name: runner.stats() for runner in handlers}
        return {**worker.stats(), **executor.stats(), "handlers": told, "trouble": executor.trouble()}

    return worker


class Executor:
    """Runs programs for callers, as far as `policy` allows, and writes all of it into `audit`."""

    def __init__(self, policy: ExecutorPolicy, audit: AuditLog, user: str = "") -> None:
        """`user`: as whom programs run where neither caller nor policy says, "" for the executor's own user."""
        self._policy = policy
        self._user = policy.user or user
        self._audit = audit
        self._own = own_account()
        self._table = JobTable(policy.max_jobs)
        self._processes: dict[int, Process] = {}
        self._endings: set[asyncio.Task[None]] = set()
        self._counters: Counter[str] = Counter()

    async def run(self, call: Request) -> Any:
        """`exec.run`: run a program; its output is the stream of the answer, how it ended the last reply."""
        try:
            request = parse_request(call.json())
        except RequestError as error:
            raise CommandError(str(error)) from None
        job = self._table.new(_caller(call), request, call.handle, call.call, time.time_ns() // 1_000_000)
        account = self._admit(job, call.node)
        process = self._start(job, account, call.node)
        ending = await self._follow(job, process, call)
        if ending.ok:
            return asdict(ending)
        call.end(Outcome.FAILED, *to_body(asdict(ending)))
        return None

    @property
    def audit_file(self) -> Path:
        """Where it writes down what it does."""
        return self._audit.path

    def jobs(self, _: Request) -> dict[str, Any]:
        """`exec.jobs`: what runs, and the last that ended."""
        return {
            "running": [job.summary() for job in self._table.running],
            "finished": [job.summary() for job in self._table.ended],
        }

    def kill(self, call: Request) -> dict[str, Any]:
        """`exec.kill`: send a signal to a job's process group."""
        body = call.json()
        number, name = (body.get("job"), body.get("signal", "TERM")) if isinstance(body, dict) else (None, None)
        signal_number = getattr(signal, f"SIG{str(name).removeprefix('SIG')}", None)
        if type(number) is not int or not isinstance(signal_number, signal.Signals):
            raise CommandError('the body must be like {"job": 7, "signal": "TERM"}')
        job = self._table.find(number)
        if job is None:
            raise CommandError(f"no job {number} runs here; exec.jobs lists those that do")
        if not may_kill(_caller(call), job):
            raise RefusedError(
                f"job {number} belongs to {job.caller.who} at {job.caller.origin}; this takes role admin"
            )
        self._processes[number].signal(signal_number)
        return {"job": number}

    def stats(self) -> dict[str, int]:
        """Return the counters of jobs."""
        return {"jobs": len(self._table.running), **self._counters}

    def trouble(self) -> str:
        """Return why every program would be refused now, "" when it would not."""
        return self._audit.trouble()

    def account(self, user: str) -> Account:
        """Return the account with that name or uid, the default one for "". Raises StartError."""
        name = user or self._user
        return find_account(name) if name else self._own

    async def stop(self) -> None:
        """Wait until all that is being ended has ended. The worker has cancelled every call before."""
        await asyncio.gather(*self._endings)

    def _admit(self, job: Job, node: str) -> Account:
        """Return as whom the job is to run. Raises RefusedError, or CommandError for an unknown user."""
        request, unknown = job.request, ""
        try:
            account = self.account(request.user)
            run_as = frozenset() if self._is_default(account) else account.names
        except StartError as error:
            # The policy speaks first: who may not become others does not learn who exists.
            account, run_as, unknown = self._own, frozenset(filter(None, {request.user})), str(error)
        decision = decide(self._policy.allow, job.caller, request, run_as)
        if isinstance(decision, Denied):
            self._refuse(job, node, decision.reason)
        if self._table.full:
            self._refuse(job, node, f"{self._policy.max_jobs} programs run here already (max_jobs); try again later")
        if unknown:
            raise CommandError(unknown)
        return account

    def _is_default(self, account: Account) -> bool:
        try:
            return account.uid == self.account("").uid
        except StartError:
            return False

    def _refuse(self, job: Job, node: str, reason: str) -> None:
        self._counters["refused"] += 1
        self._try_to_record(job.record("refused", node, time_now(), reason=reason))
        raise RefusedError(reason)

    def _start(self, job: Job, account: Account, node: str) -> Process:
        """Write the job down, then start it: nothing is run without a trace."""
        try:
            self._audit.write(job.record("start", node, time_now(), run_as=account.name))
        except AuditError as error:
            self._counters["audit_errors"] += 1
            _log.error("audit.failed", error=str(error))
            raise RefusedError(str(error)) from error
        self._table.open(job)
        try:
            process = Process(_program(job, account, node))
        except StartError as error:
            self._close(job, node, Ending(reason=str(error)))
            raise CommandError(str(error)) from error
        self._processes[job.number] = process
        return process

    async def _follow(self, job: Job, process: Process, call: Request) -> Ending:
        """Pass input and output on until the program has ended, and close the job however this goes."""
        limit = self._policy.max_output_bytes
        if job.request.max_output is not None:
            limit = min(limit, job.request.max_output)
        feeding = asyncio.create_task(_feed(process, call)) if job.request.stdin else None
        written = 0
        try:
            while (chunk := await process.read()) is not None:
                data, second = chunk
                await call.send(data[: limit - written], second=second)
                written += len(data)
                if written > limit:
                    ending = replace(await process.stop(self._policy.kill_grace_s), truncated=True,
                                     reason=f"ended because it wrote more than {limit} bytes")  # fmt: skip
                    break
            else:
                ending = await process.wait()
        except BaseException:
            reason = "cancelled" if call.over else "out of time" if call.budget_s <= 0 else "the executor stopped"
            # In a task of its own: the answer does not wait for a program that takes its time to end.
            self._later(self._put_down(job, process, call.node, written, reason))
            raise
        finally:
            if feeding:
                feeding.cancel()
        ending = replace(ending, output_bytes=written)
        self._close(job, call.node, ending)
        return ending

    def _later(self, ending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(ending)
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def _put_down(self, job: Job, process: Process, node: str, written: int, reason: str) -> None:
        ending = await process.stop(self._policy.kill_grace_s)
        self._close(job, node, replace(ending, output_bytes=written, reason=reason))

    def _close(self, job: Job, node: str, ending: Ending) -> None:
        self._processes.pop(job.number, None)
        self._table.close(job, ending)
        self._counters["ended_ok" if ending.ok else "ended_badly"] += 1
        self._try_to_record(job.record("end", node, time_now(), **asdict(ending)))

    def _try_to_record(self, record: dict[str, Any]) -> None:
        """Write a line about what cannot be undone any more, so that a failure is only logged and counted."""
        try:
            self._audit.write(record)
        except AuditError as error:
            self._counters["audit_errors"] += 1
            _log.error("audit.failed", error=str(error), record=record)


class Auditor:
    """Reads the audit logs of the node for callers."""

    def __init__(self, files: list[Path], folder: Path) -> None:
        """`files` are logs that the configuration names, `folder` is where the others are."""
        self._files, self._folder = files, folder
        self._turn = asyncio.Semaphore(1)

    async def audit(self, call: Request) -> AsyncIterator[Trail | list[Entry]]:
        """`exec.audit`: what was done on this node and by whom, the newest first."""
        try:
            wish = msgspec.convert(call.json() if call.body else {}, Wish)
        except msgspec.ValidationError as error:
            raise CommandError(f'{error}; the body is like {{"last": 100, "person": "alice"}}') from None
        async with self._turn:  # each may read much
            logs = await asyncio.to_thread(find_logs, self._files, self._folder)
            entries, whole, problems = await asyncio.to_thread(read, logs, wish)
        yield Trail(entries=len(entries), whole=whole, problems=tuple(problems))
        for place in range(0, len(entries), _PIECE):
            yield entries[place : place + _PIECE]


async def _feed(process: Process, call: Request) -> None:
    """Pass the caller's input on until it ends or the program reads no more."""
    async for chunk in call.input:
        if not await process.write(chunk):
            # What is left stays with the caller: it costs nothing there, and ends with the call.
            return
    process.close_input()


def _caller(call: Request) -> Caller:
    """Return what this node knows about the caller: its own user database says which names and groups a uid has."""
    kind, _, name = call.who.partition(":")
    names, groups = frozenset({name}) - {""}, frozenset[str]()
    if kind == "uid":
        try:
            account = find_account(name)
            names, groups = account.names, names_of(account.uid, account.gid)[1]
        except StartError:
            pass
    return Caller(call.who, call.origin, Role(call.role), names, groups, call.person)


def _program(job: Job, account: Account, node: str) -> Program:
    request: ExecRequest = job.request
    told = {
        "TREESCALE_NODE": node,
        "TREESCALE_JOB": str(job.number),
        "TREESCALE_CALL": str(job.call),
        "TREESCALE_CALLER": f"{job.caller.who}@{job.caller.origin}",
    }
    return Program(request.command, account, request.cwd, {**request.env, **told}, stdin=request.stdin)
