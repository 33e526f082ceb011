"""What the reader makes of files: short headers, places, both formats, sections of one server, the console's file."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from tsbus.config import (
    AllowRule,
    Balancer,
    ConfigError,
    Console,
    ExecRule,
    Handler,
    Secret,
    SshEntry,
    Tree,
    check,
    load,
    load_console,
    loads,
)
from tsbus.config.document import parse
from tsbus.config.plain import tree_to_plain
from tsbus.core.roles import Role

HERE = Path(__file__).parent
CONF = HERE.parent.parent / "conf"


def private_copy(path, folder):
    """Copy a file of the checkout, which others may read, to where they may not."""
    copy = folder / path.name
    copy.write_bytes(path.read_bytes())
    copy.chmod(0o600)
    return copy


def make_key(folder):
    """Make the private key that the samples name."""
    (folder / "ssh_key.pem").touch(0o600)


def test_the_first_tree_file_loads_as_its_author_meant_it():
    """The seed's file gives node1 the balancer whose short headers stand below it; the unknown node3 is a warning."""
    tree, problems = check(HERE / "seed/treescale.toml")
    assert isinstance(tree, Tree)
    assert list(tree.servers) == ["node1", "node2"]
    assert tree.servers["node1"].childs == ("node2", "node3")
    assert tree.servers["node2"].ip == "192.168.107.107"
    containers = {"ubuntu/php:dev": 80, "ubuntu/php:test": 5556}
    expected = Balancer("default", "192.168.107.106:443", alg="rr", containers=containers)
    assert tree.servers["node1"].balancers == {"default": expected}
    assert [(problem.severity, problem.line, problem.column) for problem in problems] == [
        ("warning", 10, 22),
        ("info", 11, 5),
    ]
    assert problems[0].message == 'no server named "node3"'


def test_the_first_console_file_loads(tmp_path):
    """The seed's console file, port in quotes, gives both ways to log in and names the tree beside it."""
    path = private_copy(HERE / "seed/console.toml", tmp_path)
    private_copy(HERE / "seed/treescale.toml", tmp_path)
    make_key(tmp_path)
    console, problems = check(path)
    assert console == Console(
        "treescale.toml",
        {
            "node1": SshEntry(name="node1", host="192.168.107.106", port=22, key="ssh_key.pem"),
            "node2": SshEntry(
                name="node2", host="192.168.107.107", port=22, username="treescale", password=Secret("tree")
            ),
        },
    )
    assert console.tree_path == tmp_path / "treescale.toml"
    assert problems == []


def test_the_sample_files_have_no_problem(tmp_path):
    """The documented samples load even strictly, and the check of both together finds nothing."""
    assert list(load(CONF / "treescale.toml", strict=True).servers) == ["node1", "node2", "node3"]
    private_copy(CONF / "treescale.toml", tmp_path)
    make_key(tmp_path)
    _, problems = check(private_copy(CONF / "console.toml", tmp_path))
    assert problems == []


def test_the_optional_parts_of_the_sample_are_right_too():
    """Every line of the sample that is commented out is a line that loads."""
    lines = (CONF / "treescale.toml").read_text().splitlines()
    live = []
    for line in lines:
        code = line.strip().removeprefix("# ")
        try:
            tomllib.loads(code.replace("[[", "[").replace("]]", "]"))
        except ValueError:
            code = ""
        live.append(code)
    text = "\n".join(live)
    for section in (
        "[operators.alice]",
        "[[policy.allow]]",
        "[[executor.allow]]",
        "audit_file",
        "user =",
        "public_key",
    ):
        assert section in text
    tree = loads(text)
    assert tree.operators["alice"].role is Role.ADMIN
    assert tree.executor.allow[0] == ExecRule(("systemctl", "restart", "*"), ("operate", "@deploy"))
    assert tree.policy.allow == (AllowRule("@edge", ("docker.list", "balancer.>"), Role.OBSERVE),)


def test_short_headers_belong_to_the_last_server_above_them():
    """Several servers may each have short headers, whatever stands around them."""
    tree = loads('''
        [servers."a"] # [balancers]
        ip = "a"
        service_port = 1
        childs = ["b",  # [balancers.no]
        "c"]
        [ balancers . "w.x" ]
        address = "10.0.0.1:80"
        [containers]
        nginx = 80
        [balancers.y]
        address = "10.0.0.1:81"
        [balancers.y.containers]
        redis = 81
        [bus]
        ping_ms = 100
        [handlers.h]
        on = "x"
        run = ["sh", "-c", """
        [servers.z]
        " """", '[balancers]']
        [servers.b]
        ip = "b"
        service_port = 1
        [balancers]
        address = "10.0.0.2:80"
        [balancers.servers]
        b = 1
        [balancers.server_weights]
        b = 2
        [containers]
        mongo = 82
        [servers.c]
        ip = "c"
        service_port = 1
        [servers.b.balancers.e]
        address = "10.0.0.2:81"
        [containers]
        mysql = 83
        ''')
    found = {name: {key: each.containers for key, each in one.balancers.items()} for name, one in tree.servers.items()}
    assert found == {
        "a": {"w.x": {"nginx": 80}, "y": {"redis": 81}},
        "b": {"default": {"mongo": 82}, "e": {"mysql": 83}},
        "c": {},
    }
    assert tree.servers["b"].balancers["default"].servers == {"b": 1}
    assert tree.servers["b"].balancers["default"].server_weights == {"b": 2}
    assert tree.bus.ping_ms == 100
    assert tree.handlers["h"].run[3] == "[balancers]"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_places_are_those_in_the_file(newline):
    """Every key and element is found at its line and column, in tables, arrays, inline tables and dotted keys."""
    lines = [
        "\ufeff# comment",
        'servers."a".ip = 5',
        "[servers]",
        "b = { tags = [ '',",
        "   [1], ], policy = {users = {x = 1}} }",
        "[[policy.allow]]",
        "[[policy.allow]]",
        "  role = ''",
    ]
    document = parse(newline.join(lines), "t.toml")
    places = {
        ("servers", "a", "ip"): (2, 13),
        ("servers", "b"): (4, 1),
        ("servers", "b", "tags", 0): (4, 16),
        ("servers", "b", "tags", 1): (5, 4),
        ("servers", "b", "policy", "users", "x"): (5, 31),
        ("policy", "allow", 0): (6, 1),
        ("policy", "allow", 1, "role"): (8, 3),
        ("policy", "allow", 1, "from"): (7, 1),
    }
    for path, place in places.items():
        document.note("error", path, "here")
        assert (document.problems[-1].line, document.problems[-1].column) == place, path


def test_json_of_the_same_shape_gives_the_same_tree():
    """The explicit form of the seed's file, as JSON, loads to the tree that the TOML loads to."""
    tree = load(HERE / "seed/treescale.toml")
    assert loads(json.dumps(tree_to_plain(tree))) == tree


def test_balancers_may_stand_in_the_table_itself_and_in_tables_below():
    """Keys directly in [balancers] make the balancer called default, tables in it others, one called like a key too."""
    balancers = {"address": "10.0.0.1:1", "servers": {"a": 5}, "web": {"address": "10.0.0.1:2", "alg": "sh"}}
    balancers["health"] = {"address": "10.0.0.1:3"}
    tree = loads(json.dumps({"servers": {"a": {"ip": "a", "service_port": 1, "balancers": balancers}}}))
    assert tree.servers["a"].balancers == {
        "default": Balancer("default", "10.0.0.1:1", servers={"a": 5}),
        "web": Balancer("web", "10.0.0.1:2", "sh"),
        "health": Balancer("health", "10.0.0.1:3"),
    }


def test_sections_of_one_server_change_those_of_the_tree_key_by_key():
    """A server's own sections keep what they do not name, and its handlers are added to the tree's."""
    tree = loads("""
        [servers.a]
        ip = "a"
        service_port = 1
        childs = ["b"]
        [servers.b]
        ip = "b"
        service_port = 1
        [servers.b.executor]
        max_jobs = 3
        [servers.b.docker]
        privileged = true
        [servers.b.policy]
        users = {ann = "observe"}
        [servers.b.handlers]
        one = {on = "x", run = ["b"]}
        three = {on = "x", run = ["c"]}
        [executor]
        kill_grace_s = 7
        allow = [{argv = ["uptime"]}]
        [docker]
        capabilities = ["ALL"]
        [[policy.allow]]
        from = "a"
        commands = [">"]
        [handlers]
        one = {on = "x", run = ["a"], from = "a/"}
        two = {on = "x", run = ["a"]}
        """)
    assert tree.executor_for("a") == tree.executor
    assert tree.executor_for("b") == replace(tree.executor, max_jobs=3)
    assert tree.executor_for("b").allow == (ExecRule(("uptime",)),)
    assert tree.docker_for("a").capabilities == tree.docker_for("b").capabilities == ("ALL",)
    assert (tree.docker_for("a").privileged, tree.docker_for("b").privileged) == (False, True)
    assert tree.policy_for("a").users == {"root": Role.ADMIN, "@treescale": Role.OPERATE}
    assert tree.policy_for("b").users == {"ann": Role.OBSERVE}
    assert tree.policy_for("b").allow == tree.policy.allow == (AllowRule("a", (">",), Role.OPERATE),)
    assert tree.handlers_for("a")["one"] == Handler("one", "x", ("a",), origin="a/")
    assert {name: handler.run for name, handler in tree.handlers_for("b").items()} == {
        "one": ("b",),
        "two": ("a",),
        "three": ("c",),
    }


def test_the_version_is_shared_and_follows_every_change():
    """Copies of one configuration on all nodes have one version; any other change gives another."""
    tree = load(CONF / "treescale.toml")
    assert tree.with_current("node2").version == tree.version
    assert tree.with_current("node2").current_node == "node2"
    assert load(CONF / "treescale.toml", current_node="node3") == tree.with_current("node3")
    assert replace(tree, bus=replace(tree.bus, ping_ms=501)).version != tree.version
    with pytest.raises(KeyError):
        tree.with_current("node9")
    with pytest.raises(ConfigError, match='current_node: no server named "node9"'):
        load(CONF / "treescale.toml", current_node="node9")


def test_the_topology_is_that_of_the_servers():
    """The pure core's tree is made of the configured childs and tags; an unknown child is left out."""
    topology = load(HERE / "seed/treescale.toml").topology()
    assert (topology.root, topology.children("node1")) == ("node1", ("node2",))
    assert topology.tagged("test_node") == {"node1", "node2"}


def test_a_password_that_others_can_read_is_a_warning(tmp_path):
    """A console file with a password and open permissions is reported at the password, and still loads."""
    path = private_copy(HERE / "seed/console.toml", tmp_path)
    private_copy(HERE / "seed/treescale.toml", tmp_path)
    make_key(tmp_path)
    path.chmod(0o644)
    console, (problem,) = check(path)
    assert console is not None
    hint = f"run chmod 600 {path}, or use a key"
    assert str(problem) == (
        f"{path}:14:5: warning: ssh.node2.password: others on this machine can read this password; {hint}"
    )


def test_a_password_shows_in_no_text():
    """The repr and str of an entry hide its password; only reveal() gives it."""
    entry = SshEntry(name="a", host="a", password=Secret("hunter2"))
    assert "hunter2" not in f"{entry} {entry!r} {entry.password} {entry.password!r}"
    assert entry.password.reveal() == "hunter2"


def test_the_console_and_its_tree_are_compared(tmp_path):
    """An entry without a server is told, a server without an entry is a warning."""
    (tmp_path / "treescale.toml").write_text("servers.node1 = {ip = 'a', service_port = 1}")
    path = tmp_path / "console.toml"
    path.write_text("[ssh.nod1]\nhost = 'a'")
    _, problems = check(path)
    assert [str(problem).removeprefix(str(path)) for problem in problems] == [
        ':1:2: warning: ssh: no entry for server "node1"; add [ssh.node1] to build on it',
        ':1:6: info: ssh.nod1: a spare: no server has this name; did you mean "node1"?',
    ]


def test_a_console_that_names_no_tree_is_a_warning(tmp_path):
    """When `tree` names no readable tree, the check says so at that key."""
    path = tmp_path / "console.toml"
    path.write_text("tree = 'console.toml'")
    _, (problem,) = check(path)
    assert str(problem).startswith(f"{path}:1:1: warning: tree: {path} is no tree that can be read; ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[ssh.a]", ":1:6: error: ssh.a.host: is missing; add host = ..."),
        ("[ssh.a]\nhost = 'a'\nport = '22x'", ":3:1: error: ssh.a.port: must be a whole number"),
        ("[ssh.a]\nhost = 'a'\nport = '0'", ":3:1: error: ssh.a.port: is out of range; give a value from 1 to 65535"),
        ("[ssh.a]\nhost = 'a'\npasword = 'a'", ':3:1: error: ssh.a.pasword: no such key; did you mean "password"?'),
        (
            "[ssh.a]\nhost = 'a b'",
            ':2:1: error: ssh.a.host: "a b" is no IP address or host name; write it like "10.0.0.1"',
        ),
        ("ssh = 5", ":1:1: error: ssh: must be a table"),
        ("[ssh", ":1:5: error: not TOML: Expected ']' at the end of a table declaration"),
    ],
)
def test_the_console_file_is_checked_like_the_tree(tmp_path, text, message):
    """Faults of the console's file are reported with place and hint."""
    path = tmp_path / "console.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_console(path)
    assert str(caught.value) == f"{path}{message}"
