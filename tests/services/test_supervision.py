"""What the supervision package decides: supervisord's file, its events in our words, and when to try again."""

from pathlib import Path

import pytest

from tsbus.balancer import statefile
from tsbus.supervision import SupervisionError
from tsbus.supervision.conf import SERVICES, NodeFiles, example, render, render_worker
from tsbus.supervision.states import LAST_RETRY_S, Retries, bus_event, is_joined

FILES = NodeFiles.within(Path("/run/tree/a"))


def test_example_is_what_the_code_writes():
    """supervisord.conf.example is the generated text; `make supervisord.conf.example` writes it anew."""
    assert (Path(__file__).parents[2] / "supervisord.conf.example").read_text() == example()


@pytest.mark.parametrize("service", ["balancer", "dashboard"])
def test_only_nodes_that_need_a_program_have_it(service):
    """The balancer and the dashboard are in the file of a node whose commands have one, and nothing else differs."""
    commands = {service: ["true", service] for service in SERVICES}
    with_one = render("a", FILES, commands, password="p", max_files=9, as_root=False)
    del commands[service]
    without = render("a", FILES, commands, password="p", max_files=9, as_root=False)
    assert f"[program:{service}]\ncommand=true {service}\n" in with_one
    assert service not in without


def test_the_state_of_the_balancer_is_where_it_writes_it():
    """Who makes the files of a node and the balancer itself, which never import each other, name the same file."""
    assert FILES.balancer_state == FILES.run_dir / statefile.NAME


@pytest.mark.parametrize("folder", ["/run/a b", "/run/a;b", "/run/[a]", '/run/"a"', "/run/a\nb", "/run/100%"])
def test_paths_that_supervisord_would_read_differently_are_refused(folder):
    """A run directory with characters that mean something to supervisord is refused, with the way out."""
    with pytest.raises(SupervisionError, match="--run-dir"):
        NodeFiles.within(Path(folder))


def test_worker_command_is_kept_word_for_word():
    """Per cent signs and spaces in a worker's command reach it as they are."""
    text = render_worker("mine", FILES, ["date", "+%H %M"], Path("/srv"))
    assert "command=date '+%%H %%M'\n" in text


@pytest.mark.parametrize("name", ["router", "a b", "", "x]"])
def test_unfit_names_of_workers_are_refused(name):
    """A worker cannot take the name of a service, or one that is no name of a section."""
    with pytest.raises(SupervisionError, match="name of a worker"):
        render_worker(name, FILES, ["true"], Path("/"))


@pytest.mark.parametrize("argument", ["a\nb", "a ;b", "a #b"])
def test_commands_that_supervisord_would_cut_are_refused(argument):
    """A command in which supervisord would see a comment or a second line is refused instead of cut."""
    with pytest.raises(SupervisionError, match="script"):
        render_worker("mine", FILES, ["echo", argument], Path("/"))


PROGRAM = "processname:router groupname:router from_state:RUNNING"


@pytest.mark.parametrize(
    ("name", "payload", "topic", "pid", "expected"),
    [
        ("RUNNING", "pid:7", "process.started", 7, True),
        ("EXITED", "expected:0 pid:7", "process.exited", 7, False),
        ("EXITED", "expected:1 pid:7", "process.exited", 7, True),
        ("BACKOFF", "tries:1", "process.exited", None, False),
        ("STOPPED", "pid:7", "process.stopped", 7, True),
        ("FATAL", "", "process.fatal", None, False),
    ],
)
def test_states_become_events(name, payload, topic, pid, expected):
    """Each state that matters to others is an event with the program's name, pid, expectation and last state."""
    facts = {"name": "router", "pid": pid, "expected": expected, "from_state": "RUNNING"}
    assert bus_event(f"PROCESS_STATE_{name}", f"{PROGRAM} {payload}") == (topic, facts)


@pytest.mark.parametrize("name", ["STARTING", "STOPPING"])
def test_steps_on_the_way_are_no_events(name):
    """States that are over in a moment are not published."""
    assert bus_event(f"PROCESS_STATE_{name}", f"{PROGRAM} pid:7") is None


def test_retries_wait_longer_until_it_runs():
    """The time before a FATAL program is tried again doubles up to a limit, and begins anew once it has run."""
    retries = Retries()
    assert [retries.delay_s("a") for _ in range(4)] == [1, 2, 4, 8]
    assert retries.delay_s("b") == 1
    assert max(retries.delay_s("a") for _ in range(20)) == LAST_RETRY_S
    retries.runs("a")
    assert retries.delay_s("a") == 1


@pytest.mark.parametrize(
    ("parent", "state", "joined"), [("p", "up", True), ("p", "lost", False), ("", "lost", False), ("q", "lost", True)]
)
def test_joined_means_that_whoever_is_above_is_there(parent, state, joined):
    """A node has joined when its parent, configured or adopting, is up."""
    nodes = [
        {"name": "p", "home": "", "parent": "", "state": state},
        {"name": "q", "home": "", "parent": "", "state": "up"},
        {"name": "me", "home": "p", "parent": parent, "state": "up"},
    ]
    assert is_joined({"node": "me", "nodes": nodes}) is joined
    assert is_joined({"node": "p", "nodes": nodes})
