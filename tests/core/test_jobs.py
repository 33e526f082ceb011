"""What the executor's pure part decides: requests, policy, the job table, turns of handlers."""
# ruff: noqa: S604  (`shell` is a field of requests and rules here; nothing is run)

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsbus.config.model import DEFAULT_EXEC_RULES, ExecRule
from tsbus.core.roles import Role
from tsbus.executor.handlers import Turns
from tsbus.executor.jobs import (
    Allowed,
    Caller,
    Denied,
    Ending,
    ExecRequest,
    JobTable,
    RequestError,
    decide,
    fits,
    may_kill,
    parse_request,
)

ALICE = Caller("uid:1000", "n1", Role.OPERATE, frozenset({"alice", "1000"}), frozenset({"staff"}))
NOBODY: frozenset[str] = frozenset()
words = st.sampled_from(["ls", "-l", "/", "*", "a b", ""])
argvs = st.lists(words, min_size=1, max_size=5)
templates = st.lists(words, max_size=4).flatmap(lambda body: st.sampled_from([body, [*body, "**"]]))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (None, "JSON object"),
        ({}, "either 'argv' or 'shell'"),
        ({"argv": ["ls"], "shell": "ls"}, "either 'argv' or 'shell'"),
        ({"argv": "ls"}, "'argv' must be a list"),
        ({"argv": []}, "'argv' must be a list"),
        ({"argv": [""]}, "'argv' must be a list"),
        ({"argv": ["a\0b"]}, "without NUL"),
        ({"argv": ["\ud800"]}, "'argv' must be"),
        ({"argv": ["ls"], "env": {"A=B": "x"}}, "'env' must be"),
        ({"argv": ["ls"], "env": {"A": 1}}, "'env' must be"),
        ({"argv": ["ls"], "stdin": 1}, "'stdin' must be true or false"),
        ({"argv": ["ls"], "max_output": True}, "'max_output' must be a number"),
        ({"argv": ["ls"], "max_output": -1}, "'max_output' must be a number"),
        ({"argv": ["ls"], "timeout": 3}, "unknown key 'timeout'"),
    ],
)
def test_bad_request(body: Any, told: str) -> None:
    """A body that is no request is refused with a text that names what is wrong."""
    with pytest.raises(RequestError, match=told):
        parse_request(body)


def test_shell_request() -> None:
    """A shell line is run as the third argument of /bin/sh -c, and only when it was asked for by that name."""
    assert parse_request({"shell": "ls | wc"}).command == ("/bin/sh", "-c", "ls | wc")
    assert parse_request({"argv": ["ls | wc"]}).command == ("ls | wc",)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(st.sampled_from(["argv", "shell", "cwd", "env", "user", "stdin", "max_output", "x"]), x)
        ),
    )
)
def test_any_body(body: Any) -> None:
    """Whatever JSON a caller sends, the answer is a request or a RequestError."""
    try:
        assert parse_request(body).command
    except RequestError as error:
        assert str(error)


@given(argvs)
def test_template_of_itself(argv: list[str]) -> None:
    """Every argv fits the template equal to it, one of stars as long as it, and any beginning of it with `**`."""
    assert fits(argv, argv)
    assert fits(["*"] * len(argv), argv)
    assert all(fits([*argv[:size], "**"], argv) for size in range(len(argv) + 1))


@given(templates, argvs)
def test_template_means(template: list[str], argv: list[str]) -> None:
    """A template fits exactly the argvs that equal it word for word, but for its stars and its open end."""
    rest = template[-1:] == ["**"]
    fixed = template[:-1] if rest else template
    long_enough = len(argv) >= len(fixed) if rest else len(argv) == len(fixed)
    same = all(want in ("*", have) for want, have in zip(fixed, argv, strict=False))
    assert fits(template, argv) == (long_enough and same)


@given(templates, st.sampled_from([["sh", "-c", "x"], ["ls"]]))
def test_nothing_allowed(template: list[str], argv: list[str]) -> None:
    """Without a rule nothing is allowed, and a rule for others allows nothing either."""
    request = ExecRequest(argv=tuple(argv))
    assert isinstance(decide([], ALICE, request, NOBODY), Denied)
    others = [ExecRule(tuple(template), users=("bob", "@wheel", "admin", "1001"))]
    assert isinstance(decide(others, ALICE, request, NOBODY), Denied)


@pytest.mark.parametrize(
    ("users", "allowed"),
    [
        ((), True),
        (("alice",), True),
        (("1000",), True),
        (("@staff",), True),
        (("staff",), False),
        (("@alice",), False),
        (("observe",), True),
        (("operate",), True),
        (("admin",), False),
        (("bob", "alice"), True),
    ],
)
def test_users_of_rule(users: tuple[str, ...], allowed: bool) -> None:
    """A rule's users are names, uids, @groups, or roles that the caller has or exceeds."""
    found = decide([ExecRule(("ls",), users)], ALICE, ExecRequest(("ls",)), NOBODY)
    assert isinstance(found, Allowed) == allowed


def test_name_like_a_role() -> None:
    """A user who is called admin does not become one."""
    mallory = Caller("uid:1666", "n1", Role.OBSERVE, frozenset({"admin", "1666"}))
    assert isinstance(decide([ExecRule(("ls",), ("admin",))], mallory, ExecRequest(("ls",)), NOBODY), Denied)


@pytest.mark.parametrize(
    ("run_as", "wanted", "allowed"),
    [
        ((), NOBODY, True),
        ((), frozenset({"www", "33"}), False),
        (("www",), frozenset({"www", "33"}), True),
        (("33",), frozenset({"www", "33"}), True),
        (("*",), frozenset({"www", "33"}), True),
        (("bob",), frozenset({"www", "33"}), False),
    ],
)
def test_run_as(run_as: tuple[str, ...], wanted: frozenset[str], allowed: bool) -> None:
    """Another user than the executor's own takes a rule that names it, by name or uid, or any."""
    request = ExecRequest(("ls",), user="www" if wanted else "")
    assert isinstance(decide([ExecRule(("ls",), run_as=run_as)], ALICE, request, wanted), Allowed) == allowed


def test_shell_needs_its_flag() -> None:
    """A shell line is allowed by rules with shell = true only, and their template must fit it."""
    line = ExecRequest(shell="ls")
    assert isinstance(decide([ExecRule(("**",))], ALICE, line, NOBODY), Denied)
    assert isinstance(decide([ExecRule(("ls",), shell=True)], ALICE, line, NOBODY), Denied)
    assert isinstance(decide([ExecRule(("**",), shell=True)], ALICE, line, NOBODY), Allowed)


@pytest.mark.parametrize("more", [{"env": {"PATH": "/tmp/evil"}}, {"cwd": "/tmp/evil"}])
def test_rule_for_one_program(more: dict[str, Any]) -> None:
    """A rule that names a program does not let the caller change which file that name means."""
    request = ExecRequest(("git", "pull"), **more)
    found = decide([ExecRule(("git", "*"))], ALICE, request, NOBODY)
    assert isinstance(found, Denied)
    assert "'env'" in found.reason
    assert isinstance(decide([ExecRule(("git", "*")), ExecRule(("**",))], ALICE, request, NOBODY), Allowed)


def test_default_rules() -> None:
    """By default operate runs any program as the executor's user, admin also shells and as others, observe nothing."""
    www = frozenset({"www"})
    shell, plain, other = ExecRequest(shell="ls"), ExecRequest(("ls",)), ExecRequest(("ls",), user="www")
    expected = {Role.OBSERVE: [False] * 3, Role.OPERATE: [True, False, False], Role.ADMIN: [True] * 3}
    for role, wanted in expected.items():
        caller = Caller("operator:eve", "n1", role)
        found = [
            decide(DEFAULT_EXEC_RULES, caller, request, who)
            for request, who in ((plain, NOBODY), (shell, NOBODY), (other, www))
        ]
        assert [isinstance(each, Allowed) for each in found] == wanted


def test_denial_names_the_rule() -> None:
    """The refusal tells who was refused and which rule it would take."""
    found = decide([], ALICE, ExecRequest(("reboot", "-f"), user="root"), frozenset({"root", "0"}))
    assert isinstance(found, Denied)
    assert "uid:1000 (role operate)" in found.reason
    assert 'argv = ["reboot", "-f"], users = ["alice"], run_as = ["root"]' in found.reason


@given(st.lists(st.integers(0, 5)), st.integers(1, 4), st.integers(0, 3))
def test_job_table(steps: list[int], max_running: int, kept: int) -> None:
    """The table never holds more than its limits, numbers are never given twice, and no ended job is found."""
    table = JobTable(max_running, kept)
    seen: set[int] = set()
    for step in steps:
        if step and not table.full:
            job = table.new(ALICE, ExecRequest(("ls",)), 7, 1, 0)
            assert job.number not in seen
            seen.add(job.number)
            table.open(job)
        elif table.running:
            job = table.running[step % len(table.running)]
            assert table.close(job, Ending(exit=0)).ending == Ending(exit=0)
            assert table.find(job.number) is None
        assert len(table.running) <= max_running
        assert len(table.ended) <= kept
        assert all(table.find(job.number) == job for job in table.running)


def test_who_may_kill() -> None:
    """Only the job's own caller, from the same node, and admins may send signals to a job."""
    job = JobTable(1).new(ALICE, ExecRequest(("ls",)), 7, 1, 0)
    assert may_kill(ALICE, job)
    assert not may_kill(Caller("uid:1000", "n2", Role.OPERATE), job)
    assert not may_kill(Caller("uid:1001", "n1", Role.OPERATE), job)
    assert may_kill(Caller("uid:0", "n9", Role.ADMIN), job)


def test_record_is_bounded_and_keeps_secrets() -> None:
    """An audit record holds names of variables but not their values, and cuts what is too long to keep."""
    request = ExecRequest(("x" * 100_000, "tail"), env={"TOKEN": "s3cret"})
    record = str(JobTable(1).new(ALICE, request, 7, 1, 0).record("start", "n1", "now"))
    assert "TOKEN" in record
    assert "s3cret" not in record
    assert len(record) < 20_000
    assert "more characters" in record


@given(st.lists(st.booleans()), st.integers(1, 3), st.integers(0, 3))
def test_turns(steps: list[bool], max_parallel: int, max_queue: int) -> None:
    """Every event is started, waits or is dropped; those started come in order, and the limits hold."""
    turns: Turns[int] = Turns(max_parallel, max_queue)
    started: list[int] = []
    arrived = told = 0
    for is_arrival in steps:
        event = None
        if is_arrival:
            event = turns.arrived(arrived)
            arrived += 1
        elif turns.running:
            event = turns.ended()
            told += turns.take_dropped()
        started += [] if event is None else [event]
        assert turns.running <= max_parallel
        assert turns.waiting <= max_queue
        assert arrived == len(started) + turns.waiting + turns.dropped
    assert started == sorted(set(started))
    assert told + turns.take_dropped() == turns.dropped
