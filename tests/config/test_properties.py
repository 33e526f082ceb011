"""Properties of reading and writing that hold for every tree and every text."""

import contextlib
import json
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tsbus.config import (
    AllowRule,
    Balancer,
    BusSettings,
    ConfigError,
    DockerPolicy,
    ExecRule,
    ExecutorPolicy,
    Handler,
    Operator,
    Policy,
    Server,
    Tree,
    dump,
    load_console,
    loads,
)
from tsbus.config.forms import PROTOCOLS, SCHEDULERS
from tsbus.core.roles import Role

KEYS = [f"{number:05}" * 8 for number in range(1, 99)]
names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,9}", fullmatch=True)
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
printable = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=9)
users = names.map(lambda name: f"@{name}") | names
topics = st.lists(st.sampled_from(["a", "döner", "*", '"', "'"]), min_size=1, max_size=3).map(".".join)
ports = st.integers(1, 65535)
roles = st.sampled_from(Role)
images = st.from_regex(r"[a-z0-9/:.=]{1,9}", fullmatch=True)
programs = st.lists(words.filter(lambda word: word != "**"), max_size=3).map(lambda rest: ("run", *rest))

policies = st.builds(
    Policy,
    users=st.dictionaries(users, roles, max_size=3),
    allow=st.lists(st.builds(AllowRule, printable, st.lists(topics, max_size=2).map(tuple), roles), max_size=2).map(
        tuple
    ),
)
exec_rules = st.builds(
    ExecRule, programs, st.lists(users, max_size=2).map(tuple), st.lists(users, max_size=2).map(tuple), st.booleans()
)
executors = st.builds(
    ExecutorPolicy,
    allow=st.lists(exec_rules, max_size=2).map(tuple),
    audit_file=words,
    max_jobs=st.sampled_from([1, 64, 99]),
    kill_grace_s=st.floats(0, 86_400),
)
dockers = st.builds(
    DockerPolicy,
    enabled=st.booleans(),
    host=st.sampled_from(["", "unix:///run/d.sock", "tcp://[::1]:2375"]),
    host_mounts=st.lists(st.sampled_from(["/srv", "/srv/**", "/**", "/etc/x:ro"]), max_size=2).map(tuple),
    capabilities=st.sampled_from([(), ("ALL",), ("NET_ADMIN",)]),
)


def named(kind, **fields):
    """Dictionaries of structs by their name."""
    return st.dictionaries(names, st.builds(lambda **given: given, **fields), max_size=2).map(
        lambda found: {name: kind(name=name, **given) for name, given in found.items()}
    )


handlers = named(
    Handler, on=topics, run=programs, origin=printable, max_queue=st.integers(0, 100), user=st.just("") | users
)


vips = st.integers(1, 10**7).map(lambda n: f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")


@st.composite
def trees(draw):
    """Sound trees: each server but the first is a child of one before it."""
    order = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    childs = {name: [] for name in order}
    for place, name in enumerate(order[1:], 1):
        childs[draw(st.sampled_from(order[:place]))].append(name)
    servers = {}
    for place, name in enumerate(order):
        # The childs of the first server are all below it; that of the others says no more.
        members = st.dictionaries(
            st.sampled_from(order if not place else [name]) | names.map(lambda tag: f"@{tag}"), ports, max_size=2
        )
        found = draw(
            named(
                Balancer,
                alg=st.sampled_from(SCHEDULERS),
                address=vips.map(lambda ip: f"{ip}:80"),
                addresses=st.lists(vips.map(lambda ip: f"{ip}:81-90"), max_size=1).map(tuple),
                protocol=st.sampled_from(PROTOCOLS),
                weights=st.sampled_from(["fixed", "cpu"]),
                panic=st.floats(0, 1),
                health=st.booleans(),
                containers=st.dictionaries(images, ports, max_size=2),
                servers=members,
            )
        )
        # Two balancers of one server at one address are an error, and these names are keys of a balancer.
        one = {key: each for key, each in list(found.items())[:1] if key not in Balancer.__slots__}
        servers[name] = Server(
            name=name,
            ip=f"h{place}",
            service_port=draw(ports),
            tags=tuple(draw(st.lists(names, max_size=2))),
            childs=tuple(childs[name]),
            public_key=draw(st.sampled_from(["", KEYS[place]])),
            balancers=one,
            policy=draw(st.none() | policies),
            executor=draw(st.none() | executors),
            docker=draw(st.none() | dockers),
            handlers=draw(handlers),
        )
    people = draw(st.dictionaries(names, roles, max_size=2)).items()
    return Tree(
        servers=servers,
        current_node=draw(st.sampled_from(["", *order])),
        operators={name: Operator(name, key, role) for key, (name, role) in zip(reversed(KEYS), people, strict=False)},
        policy=draw(policies),
        executor=draw(executors),
        docker=draw(dockers),
        handlers=draw(handlers),
        bus=BusSettings(ping_ms=draw(st.sampled_from([10, 500])), steady_s=draw(st.floats(0, 86_400))),
    )


@settings(max_examples=60)
@given(trees(), st.sampled_from(["toml", "json"]))
def test_a_tree_survives_being_written_and_read(tree, form):
    """Loading what was dumped gives an equal tree of the same version, with the servers in the same order."""
    again = loads(dump(tree, form))
    assert again == tree
    assert again.version == tree.version
    assert list(again.servers) == list(tree.servers)


@settings(max_examples=30)
@given(trees())
def test_a_section_that_differs_from_nothing_survives(tree):
    """A server's own section equal to the tree's is still its own after writing and reading."""
    name = next(iter(tree.servers))
    own = replace(tree.servers[name], executor=tree.executor, policy=tree.policy, docker=tree.docker)
    changed = replace(tree, servers=tree.servers | {name: own})
    assert loads(dump(changed)) == changed


characters = st.sampled_from("[]{}=,.:\"'#\\\n\r\t ")
tokens = st.sampled_from(["[[", "]]", '"""', "'''", "\r\n", "\\u0000", "true", "nan", "-1", "1e999", "2020-01-01 1:2"])
keys = st.sampled_from(
    ["servers", "balancers", "containers", "a", "ip", "childs", "policy", "executor", "allow", "ssh"]
)
lines = st.sampled_from(
    ["[servers.a]\nip='a'\nservice_port=1\n", "[balancers]\naddress='10.0.0.1:1'\n", "[containers]\n"]
)
fragments = characters | tokens | keys | lines
texts = st.text() | st.lists(fragments, max_size=30).map("".join)


@settings(max_examples=400)
@given(texts, st.sampled_from(["", "{", "[servers.a]\nip='a'\nservice_port=1\n"]))
def test_any_text_is_loaded_or_refused(text, start):
    """Whatever a file holds, the loader raises nothing but ConfigError, and its problems have text and sane places."""
    try:
        loads(start + text)
    except ConfigError as error:
        lines = (start + text).replace("\r\n", "\n").split("\n")
        for problem in error.problems:
            assert problem.message
            assert 0 <= problem.line <= len(lines)
            assert not problem.line or 1 <= problem.column <= len(lines[problem.line - 1]) + 1


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200)
@given(
    st.dictionaries(st.sampled_from(["servers", "operators", "policy", "executor", "handlers", "bus"]), values),
    st.dictionaries(st.sampled_from(["ip", "service_port", "childs", "tags", "balancers", "executor", "name"]), values),
)
def test_any_shape_is_loaded_or_refused(sections, server):
    """Values of the wrong type anywhere raise nothing but ConfigError."""
    with contextlib.suppress(ConfigError):
        loads(json.dumps(sections | {"servers": {"a": server}}))
    with contextlib.suppress(ConfigError):
        loads(json.dumps(sections))


@settings(max_examples=100)
@given(content=st.binary(max_size=60) | texts.map(lambda text: text.encode(errors="surrogatepass")))
def test_any_bytes_are_a_console_file_or_refused(tmp_path_factory, content):
    """Whatever the console's file holds, loading it raises nothing but ConfigError."""
    path = tmp_path_factory.getbasetemp() / "any-console.toml"
    path.write_bytes(content)
    with contextlib.suppress(ConfigError):
        load_console(path)
