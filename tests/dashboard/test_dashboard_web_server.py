"""The server of the dashboard as strangers, people and programs meet it: a real process on a real tree."""

import json
import re
import socket
import subprocess
from collections.abc import Iterator

import pytest
import schemathesis
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks as openapi_checks
from served import GONE, HOST, LIMIT_S, PORT, URL, Served, ask, sign_in, stream

from tsbus.cli.main import cli
from tsbus.dashboard.history import NODE_FIGURES
from tsbus.dashboard.web.stream import MAX_STREAMS

CHECKS = [
    schemathesis.checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served() as served:
        yield served


# Who is let in.


def test_nobody_sees_anything_without_signing_in(served):
    """A browser is sent to the form, a program is told what to do, and both learn nothing."""
    page = ask("/node/b?x=1", Accept="text/html")
    assert (page.status, page.headers["location"]) == (303, "/sign-in?next=/node/b%3Fx%3D1")
    for path in ("/api/v1/status", "/api/v1/nodes/b", "/api/openapi.json", "/", "/nothing-there"):
        answer = ask(path)
        assert answer.refusal(401) == "nobody is signed in"
        assert answer.headers["www-authenticate"] == "Bearer"
    for token in ("wrong", "ts_" + "A" * 43, "\xff"):
        ask("/api/v1/status", token=token).refusal(401)
    ask("/api/v1/status", Cookie=f"treescale-{PORT}=guess").refusal(401)


def test_a_browser_signs_in_and_out(served):
    """The right password gives a cookie that scripts cannot read, leads where one wanted to go, and ends on request."""
    wrong, cookie = sign_in(password="battery staple")
    assert (wrong.status, cookie) == (401, "")
    assert b"Wrong name or password" in wrong.body
    assert wrong.body == sign_in(name="nobody")[0].body
    answer, cookie = sign_in()
    assert (answer.status, answer.headers["location"]) == (303, "/events?q=x")
    flags = {flag.strip().lower() for flag in answer.headers["set-cookie"].split(";")[1:]}
    assert flags >= {"httponly", "samesite=lax", "path=/"}
    me = ask("/api/v1/me", Cookie=cookie).json()
    assert (me["name"], me["role"]) == ("alice", "operate")
    assert ask("/", Cookie=cookie).status == 200
    ask("/sign-out", "POST", form={"csrf": "guess"}, Cookie=cookie).refusal(403)
    left = ask("/sign-out", "POST", form={"csrf": me["csrf"]}, Cookie=cookie)
    assert (left.status, left.headers["location"]) == (303, "/sign-in")
    ask("/api/v1/me", Cookie=cookie).refusal(401)


@pytest.mark.parametrize("wanted", ["https://evil.example/", "//evil.example/", "/\\evil.example", "javascript:1", ""])
def test_signing_in_leads_nowhere_else(served, wanted):
    """An address that was prepared by somebody else does not lead to his site."""
    answer = ask("/sign-in", "POST", form={"name": "alice", "password": "correct horse", "next": wanted})
    assert answer.headers["location"] == "/"


def test_the_form_shows_nothing_that_was_put_into_its_address(served):
    """What somebody else puts into the address of the form becomes no markup."""
    page = ask("/sign-in?next=/%22%3E%3Cscript%3Ealert(1)%3C/script%3E").body.decode()
    assert "<script" not in page
    assert 'value="/&quot;&gt;&lt;script&gt;' in page


def test_a_change_needs_the_secret_of_the_session(served):
    """A signed-in browser changes something only with its X-CSRF-Token, and never for another site."""
    _, cookie = sign_in()
    csrf = ask("/api/v1/me", Cookie=cookie).json()["csrf"]
    event = {"topic": "shop.opened", "body": 1}
    assert "x-csrf-token" in ask("/api/v1/publish", "POST", body=event, Cookie=cookie).refusal(403)
    ask("/api/v1/publish", "POST", body=event, Cookie=cookie, X_CSRF_Token=csrf[:-1] + "!").refusal(403)
    for foreign in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}):
        refused = ask("/api/v1/publish", "POST", body=event, Cookie=cookie, X_CSRF_Token=csrf, **foreign)
        assert refused.refusal(403) == "a page of another site sent this"
    ours = ask("/api/v1/publish", "POST", body=event, Cookie=cookie, X_CSRF_Token=csrf, Origin=URL)
    assert ours.status == 200
    assert sign_in(Origin="http://evil.example")[0].status == 403


def test_a_session_that_ends_in_the_middle_of_an_action(served):
    """Who was signed out between the question and his answer is told to sign in, and nothing is done."""
    _, cookie = sign_in()
    csrf = ask("/api/v1/me", Cookie=cookie).json()["csrf"]
    ask("/sign-out", "POST", form={"csrf": csrf}, Cookie=cookie)
    before = len(served.audit())
    body = {"target": "c", "command": "exec.run", "body": {"argv": ["touch", "/never"]}}
    answer = ask("/api/v1/request", "POST", body=body, Cookie=cookie, X_CSRF_Token=csrf)
    assert answer.refusal(401)
    assert "sign" in answer.json()["mend"].lower()
    assert len(served.audit()) == before
    assert b"Your session has ended" in ask("/sign-in", Cookie=cookie).body
    assert b"Your session has ended" not in ask("/sign-in").body


def test_who_may_only_see_changes_nothing(served):
    """The role view reads all, and is refused every change, by session as by token."""
    _, cookie = sign_in("victor")
    csrf = ask("/api/v1/me", Cookie=cookie).json()["csrf"]
    for path, body in (("publish", {"topic": "shop.x"}), ("request", {"target": "*", "command": "greeter.hello"})):
        assert "may see" in served.post(f"/api/v1/{path}", body, who="view").refusal(403)
        assert "victor" in ask(f"/api/v1/{path}", "POST", body=body, Cookie=cookie, X_CSRF_Token=csrf).refusal(403)
    assert served.get("/api/v1/nodes").status == 200


def test_a_token_that_is_removed_counts_no_more(served):
    """Whoever takes a token away has taken it away: also of a stream that is open."""
    assert served.get("/api/v1/status", "gone").status == 200
    with stream("/api/v1/events", served.tokens["gone"]) as open_one:
        served.users.write(served.users.read().without_token("gone"))
        served.get("/api/v1/status", "gone").refusal(401)
        assert served.post("/api/v1/publish", {"topic": "worker.shown"}).status == 200
        with pytest.raises(AssertionError, match="the stream ended"):
            for _ in range(3):
                open_one.next()


def test_a_web_socket_is_opened_by_our_own_page_alone(served):
    """Without a session, or from a page of another site, the pages' web socket stays closed."""
    _, cookie = sign_in()

    def shake(**headers: str) -> int:
        more = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13",
                "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
        return ask("/_nicegui_ws/socket.io/?EIO=4&transport=websocket", **more, **headers).status

    assert shake(Origin=URL) == 403
    assert shake(Cookie=cookie, Origin="http://evil.example") == 403
    assert shake(Cookie=cookie, Origin=URL) == 101
    ask("/_nicegui_ws/socket.io/?EIO=4&transport=polling", Cookie=cookie).refusal(404)


@pytest.mark.parametrize("host", ["evil.example", f"evil.example:{PORT}", "", f"{HOST}.evil.example"])
def test_a_name_that_nobody_gave_us_is_refused(served, host):
    """A site whose name was made to mean this machine gets nothing (DNS rebinding)."""
    assert "not known by that name" in served.get("/api/v1/status", Host=host).refusal(400)
    assert ask("/sign-in", Host=f"localhost:{PORT}").status == 200


def test_too_many_requests_wait(served):
    """Who asks more often than is good is told when to come back, and others are answered."""
    seen = {}
    for _ in range(600):
        answer = served.get("/api/v1/me", "flood")
        seen[answer.status] = answer
        if answer.status == 429:
            break
    assert "too often" in seen[429].refusal(429)
    assert int(seen[429].headers["retry-after"]) >= 1
    assert served.get("/api/v1/me").status == 200


# What browsers are told.


def test_every_answer_is_strict(served):
    """Nobody frames it, sniffs at it or keeps it; a page runs its own scripts only, by a nonce of each answer."""
    _, cookie = sign_in()
    small = ask("/", Cookie=cookie, Accept_Encoding="gzip")
    assert small.headers.get("content-encoding") == "gzip", small
    pages = [ask("/", Cookie=cookie) for _ in range(2)]
    for answer in (*pages, ask("/sign-in"), served.get("/api/v1/status"), ask("/static/treescale.css"), ask("/x")):
        told = answer.headers
        assert (told["x-content-type-options"], told["x-frame-options"]) == ("nosniff", "DENY")
        assert "frame-ancestors 'none'" in told["content-security-policy"]
        assert "access-control-allow-origin" not in told
    assert {answer.headers["cache-control"] for answer in pages} == {"no-store"}
    nonces = set()
    for answer in pages:
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert "unsafe-inline" not in policy["script-src"]
        (nonce,) = re.findall("'nonce-([^']+)'", policy["script-src"])
        nonces.add(nonce)
        scripts = re.findall(r"<script[^>]*>", answer.body.decode())
        assert scripts and all(f'nonce="{nonce}"' in script for script in scripts)
    assert len(nonces) == 2
    assert "script-src" not in ask("/sign-in").headers["content-security-policy"]


# The API.


def test_the_model_by_curl(served):
    """Status, nodes, containers and balancers are there for any program that speaks HTTP."""
    told = {}
    for path in ("status", "nodes", "containers?filter=state=running&filter=node=b", "balancers", "nodes/b"):
        argv = ["curl", "-sS", "--fail", "-H", f"Authorization: Bearer {served.tokens['view']}", f"{URL}/api/v1/{path}"]
        told[path.partition("?")[0]] = json.loads(subprocess.check_output(argv))
    assert told["status"]["here"] == "a"
    assert told["status"]["bus"]["connected"] is True
    assert (told["status"]["totals"]["nodes"], told["status"]["totals"]["up"]) == (3, 3)
    assert [node["name"] for node in told["nodes"]["nodes"]] == ["a", "b", "c"]
    assert (told["nodes/b"]["state"], told["nodes/b"]["parent"]) == ("up", "a")
    assert told["containers"]["containers"] == told["balancers"]["balancers"] == []


def test_figures_of_hours_ago_are_there_after_a_start(served):
    """With a history file more than an hour can be had, also of what is not there any more; what cannot is refused."""
    for minutes, step_s in ((1440, 60), (7 * 1440, 900)):
        series = served.get(f"/api/v1/nodes/b/history?container={GONE}&minutes={minutes}").json()
        points = series["figures"]["cpu"]
        assert (series["step_ms"], len(points)) == (step_s * 1000, minutes * 60 // step_s)
        assert [point for point in points if point is not None] == [1.5]
    assert set(served.get("/api/v1/nodes/a/history").json()["figures"]) == set(NODE_FIGURES)
    assert served.get("/api/v1/nodes/nobody/history").refusal(404)
    assert served.get(f"/api/v1/nodes/b/history?container={GONE}").refusal(404)
    assert "10080 minutes are kept" in served.get("/api/v1/nodes/b/history?minutes=10081").refusal(400)


def test_an_event_is_published_by_curl(served):
    """What is posted arrives on the nodes of the target, as JSON or as text, by the dashboard's identity."""
    for body, target in (({"id": 7}, "*"), ("a text", "c"), (None, "c")):
        answer = served.post("/api/v1/publish", {"topic": "shop.order", "body": body, "target": target})
        assert answer.status == 200
        assert answer.json()["nodes"] == (["a", "b", "c"] if target == "*" else ["c"])
    orders = served.wait("the events", lambda: [one for one in served.heard if one.topic == "shop.order"][2:])
    assert orders[0].body == b""
    values = [one.value() for one in served.heard if one.topic == "shop.order"]
    assert values == [{"id": 7}, "a text", None]


def test_a_command_is_called_for_a_person(served):
    """All answers come with an account of every node, and the nodes learn for whom the dashboard asks."""
    asked = {"target": "*", "command": "greeter.hello", "body": {"x": [1]}, "timeout_s": 20}
    told = served.post("/api/v1/request", asked).json()
    bodies = {answer["node"]: answer.get("body") for answer in told["answers"] if answer["outcome"] == "ok"}
    assert bodies == {node: {"node": node, "person": "token:operate", "got": {"x": [1]}} for node in ("b", "c")}
    assert (told["summary"]["ok"], told["summary"]["no_such_service"]) == (["b", "c"], ["a"])
    raw = served.post("/api/v1/request", {"target": "b", "command": "greeter.bytes", "body": 3}).json()["answers"]
    assert raw[0]["base64"] == "////"
    served.post("/api/v1/request", {"target": "nix", "command": "greeter.hello"}).refusal(404)
    long = {"target": "b", "command": "greeter.bytes", "body": 9 << 20}
    assert "more than" in served.post("/api/v1/request", long).refusal(413)


def test_the_audit_log_has_the_person_and_the_dashboard(served):
    """A program that is run through the dashboard is written down for the person who asked, and with who called."""
    asked = {"target": "c", "command": "exec.run", "body": {"argv": ["echo", "hi"]}}
    told = served.post("/api/v1/request", asked).json()
    assert told["answers"][0]["body"] == "hi\n"
    line = next(line for line in served.audit() if line["argv"] == ["echo", "hi"])
    assert (line["person"], line["who"], line["origin"]) == ("token:operate", "uid:0", "a")


def test_the_audit_list_is_there_for_programs_and_people(served):
    """What was run through the dashboard is in the list of `treescale audit`, by the person, and in that of the API."""
    body = {"target": "c", "command": "exec.run", "body": {"argv": ["sh", "-c", "exit 3 # listed"]}}
    served.post("/api/v1/request", body)
    wish = {"person": "token:operate", "command": "# listed"}
    told = served.post("/api/v1/request", {"target": "*", "command": "exec.audit", "body": wish}).json()
    head, entries = (answer["body"] for answer in told["answers"] if answer["node"] == "c" and answer.get("body"))
    assert head == {"entries": 1, "whole": True, "problems": []}
    assert (entries[0]["outcome"], entries[0]["why"]) == ("failed", "exit 3")
    argv = ["audit", "c", "--person", "token:operate", "--command", "# listed", "--since", "10m"]
    shown = [CliRunner().invoke(cli, ["--bus", served.tree.bus("a"), *argv, *more]) for more in ((), ("--json",))]
    assert [result.exit_code for result in shown] == [0, 0], shown
    _, line = shown[0].stdout.splitlines()
    for part in (" c ", "token:operate (uid:", "@a)", "exec.run", "sh -c 'exit 3 # listed'", "failed: exit 3"):
        assert part in line
    entry, summary = map(json.loads, shown[1].stdout.splitlines())
    assert (entry["node"], entry["person"], entry["why"]) == ("c", "token:operate", "exit 3")
    assert (summary["summary"]["ok"], summary["more"]) == (["c"], [])
    nothing = CliRunner().invoke(cli, ["--bus", served.tree.bus("a"), "audit", "*", "--person", "nobody"])
    assert nothing.stdout == "nothing that fits was written down\n"
    assert "no such service 2: a (no worker on a serves exec.audit)" in nothing.stderr
    assert CliRunner().invoke(cli, ["audit", "--since", "soon"]).exit_code == 2


def test_a_command_ends_with_its_caller(served):
    """A program that was run for somebody who hung up is ended."""
    body = json.dumps({"target": "c", "command": "exec.run", "body": {"argv": ["sleep", "1234"]}, "timeout_s": 300})
    bearer = f"Authorization: Bearer {served.tokens['operate']}"
    caller = subprocess.Popen(["curl", "-s", "-H", bearer, "-d", body, f"{URL}/api/v1/request"])

    def ended() -> list[str]:
        return [line.get("reason", "") for line in served.audit() if "1234" in line["argv"]]

    served.wait("the program runs", ended)
    caller.kill()
    caller.wait()
    assert served.wait("its end", lambda: ended()[1:]) == ["cancelled"]


# Streams.


def _order(served: Served, number: int) -> None:
    assert served.post("/api/v1/publish", {"topic": "shop.number", "body": number}).status == 200


def test_a_stream_goes_on_where_it_broke_off(served):
    """Any topic can be read with curl; who comes back with the last id gets what he has missed, once and in order."""
    path, token = "/api/v1/events?topic=shop.number&topic=node.*", served.tokens["view"]
    with stream(path, token) as first:
        _order(served, 1)
        _order(served, 2)
        event = first.next()
        assert (event["topic"], event["node"], event["body"], event["who"]) == ("shop.number", "a", 1, "uid:0")
        assert first.next()["body"] == 2
        last = first.last_id
    for number in (3, 4, 5):
        _order(served, number)
    with stream(path, token, last) as second:
        _order(served, 6)
        assert [second.next()["body"] for _ in range(4)] == [3, 4, 5, 6]
    with stream(path, token, "0badf00d.tap.3") as stranger:
        assert stranger.next("gap") == {"lost": None}
        _order(served, 7)
        assert stranger.next()["body"] == 7


def test_a_slow_reader_is_told_what_he_lost(served):
    """Who does not read holds nobody up and costs no memory: he finds a gap with the number of what is gone."""
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect((HOST, PORT))
        reader.sendall(
            f"GET /api/v1/events?topic=shop.bulk HTTP/1.1\r\nHost: {HOST}:{PORT}\r\n"
            f"Authorization: Bearer {served.tokens['view']}\r\n\r\n".encode()
        )
        told = reader.recv(4096)
        while b"id: " not in told:
            told += reader.recv(4096)
        bulk = "x" * 900_000
        for _ in range(40):
            assert served.post("/api/v1/publish", {"topic": "shop.bulk", "body": bulk}).status == 200
        assert served.post("/api/v1/publish", {"topic": "shop.bulk", "body": "end"}).status == 200
        reader.settimeout(LIMIT_S)
        tail = b""
        while b'"body":"end"' not in tail[-500:]:
            data = reader.recv(1 << 20)
            told += data[:200] if b"event: gap" not in data else data[data.index(b"event: gap") :][:200]
            tail = (tail + data)[-1000:]
    lost = re.search(rb'event: gap\r?\n(?:\r\n[0-9a-f]+\r\n)?data: \{"lost":(\d+)\}', told)
    assert lost and 1 <= int(lost[1]) <= 40


def test_streams_are_bounded(served):
    """There are so many places for streams, and who leaves one makes room."""
    bearer = f"Authorization: Bearer {served.tokens['view']}"

    def opened() -> socket.socket:
        one = socket.create_connection((HOST, PORT), LIMIT_S)
        one.sendall(f"GET /api/v1/events HTTP/1.1\r\nHost: {HOST}\r\n{bearer}\r\n\r\n".encode())
        return one

    def has_room() -> bool:
        with opened() as one:
            return b" 200 " in one.recv(200)

    sockets: list[socket.socket] = []

    def full() -> bool:
        for one in sockets:
            one.close()
        sockets[:] = [opened() for _ in range(MAX_STREAMS)]
        return all(b" 200 " in one.recv(200) for one in sockets)

    served.wait("those of the tests before have gone, and all have a place", full)
    assert "open already" in served.get("/api/v1/events").refusal(429)
    for one in sockets:
        one.close()
    served.wait("room again", has_room)


# Bad input.


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"{", b"\xff\xfe", b'{"topic": 1}', b'{"topic": ""}', b'{"topic": "a b"}',
        b'{"topic": "a.*"}',
        b'{"topic": "a", "more": 1}', b'{"topic": "a", "target": 7}', b'{"topic": "\\ud800"}', b"[" * 100_000,
        b'{"topic": "a", "body": ' + b"[" * 100_000, b'{"topic": "' + b"a" * 300 + b'"}',
        b'{"topic": "a", "body": NaN}',
    ],
    ids=range(16),
)  # fmt: skip
def test_a_hostile_body_is_refused_in_words(served, body):
    """Whatever is sent in place of an event, one line says what is wrong with it."""
    assert "\n" not in served.post("/api/v1/publish", body).refusal(400)


def test_what_is_not_there_is_told_in_the_same_form(served):
    """The framework's own errors have the form of all others."""
    served.get("/api/v1/nothing").refusal(404)
    served.get("/api/v1/nodes/nobody").refusal(404)
    served.post("/api/v1/status", {}).refusal(405)
    served.get("/api/v1/publish").refusal(405)
    served.get("/api/v1/containers?filter=x").refusal(400)
    served.get("/api/v1/containers?" + "filter=name=a&" * 40).refusal(400)
    served.get("/api/v1/events?topic=a..b").refusal(400)
    served.post("/api/v1/publish", {"topic": "a", "target": "@nix"}).refusal(404)
    served.post("/api/v1/request", {"target": "*", "command": "x.y", "timeout_s": 301}).refusal(400)


def test_a_body_is_bounded(served):
    """A body that says it is too long is not read, and one that does not say it is read only so far."""
    served.post("/api/v1/publish", b"x", Content_Length=str((1 << 20) + 1)).refusal(413)
    form = {"name": "alice", "password": "x" * (16 << 10)}
    ask("/sign-in", "POST", form=form).refusal(413)
    argv = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Transfer-Encoding: chunked",
            "-H", f"Authorization: Bearer {served.tokens['operate']}", "-T", "-", "-X", "POST"]  # fmt: skip
    sent = subprocess.run([*argv, f"{URL}/api/v1/publish"], input=b"x" * (2 << 20), stdout=subprocess.PIPE, check=False)
    assert sent.stdout == b"413"


FUZZED = (
    "me",
    "status",
    "nodes",
    "nodes/{name}",
    "nodes/{name}/history",
    "containers",
    "balancers",
    "publish",
    "request",
)


@pytest.mark.parametrize("path", FUZZED)
def test_the_api_is_what_its_document_says(served, path):
    """Whatever a fuzzer makes of the OpenAPI document, right or wrong, the answer has the form that it tells."""
    bearer = {"Authorization": f"Bearer {served.tokens['fuzz']}"}
    document = schemathesis.openapi.from_url(f"{URL}/api/openapi.json", headers=bearer)
    assert {each.removeprefix("/v1/") for each in document} == {*FUZZED, "events"}
    (operation,) = [one.ok() for one in document.include(path=f"/v1/{path}").get_all_operations()]
    statuses = []

    @settings(max_examples=10, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)
    @given(st.one_of(operation.as_strategy(), operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)))
    def answers(case):
        response = case.call_and_validate(headers=bearer, checks=CHECKS, timeout=LIMIT_S)
        statuses.append(response.status_code)

    answers()
    assert set(statuses) - {429, 503}, statuses


# Metrics, and a bus that is away.


def test_metrics_are_for_programs_of_this_machine(served):
    """Prometheus needs no token on the same machine, and reads what the model knows."""
    answer = ask("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert b"treescale_connected 1.0" in answer.body


def test_a_router_that_comes_back(served):
    """While the router is away that is said, with since when; what was known stays, and all goes on by itself."""
    with stream("/api/v1/events", served.tokens["view"]) as open_one:
        served.tree.kill("a")
        since = served.wait("it shows", lambda: not _bus(served)["connected"] and _bus(served)["since_ms"])
        refused = served.post("/api/v1/publish", {"topic": "shop.late"})
        assert "router of this node is away" in refused.refusal(503)
        assert refused.json()["since_ms"] == since
        served.post("/api/v1/request", {"target": "*", "command": "greeter.hello"}).refusal(503)
        assert len(served.get("/api/v1/nodes").json()["nodes"]) == 3
        served.tree.start("a")
        served.wait("the bus is there", lambda: _bus(served)["connected"])
        served.wait("it answers", lambda: served.post("/api/v1/publish", {"topic": "worker.back"}).status == 200)
        assert open_one.next("gap") == {"lost": None}
        assert open_one.next()["topic"]


def _bus(served: Served) -> dict:
    return served.get("/api/v1/status").json()["bus"]
