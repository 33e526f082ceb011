"""Logins: what console.toml says goes before ~/.ssh/config, and each host on the way is a login of its own."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsbus.build.access import (
    AccessError,
    Agent,
    FirstLine,
    Given,
    KeyFile,
    Local,
    Output,
    Password,
    Variable,
    login,
    logins,
)
from tsbus.config import Console, Secret, SshDefaults, SshEntry

LOCAL = Local("me", Path("/home/me"))
DEFAULT_KEYS = tuple(
    KeyFile(Path("/home/me/.ssh") / name, optional=True) for name in ("id_ed25519", "id_ecdsa", "id_rsa")
)


def console(*entries, **defaults):
    """A console's file in /c."""
    return Console(
        ssh={each.name: each for each in entries}, defaults=SshDefaults(**defaults), path=Path("/c/console.toml")
    )


def log_in(*entries, config=None, accept_new=False, **defaults):
    """The login of the first entry."""
    return login(console(*entries, **defaults), entries[0].name, lambda host: (config or {}).get(host, {}), LOCAL,
                 accept_new=accept_new)  # fmt: skip


def entry(name="a", host="h", **keys):
    return SshEntry(name=name, host=host, **keys)


def test_where_nothing_is_said_it_is_as_openssh_would():
    """The local user, port 22, the agent, then the usual keys, and known_hosts as it is."""
    found = log_in(entry())
    assert (found.place, found.sudo, found.connect_timeout_s, found.jumps) == ("me@h:22", "auto", 10.0, ())
    assert found.ways == (Agent(), *DEFAULT_KEYS)
    assert found.known_hosts == (Path("/home/me/.ssh/known_hosts"), Path("/etc/ssh/ssh_known_hosts"))
    assert found.host_keys == "strict"


CONFIG = {
    "h": {
        "hostname": "10.0.0.9",
        "user": "ops",
        "port": "2222",
        "identityfile": ["~/k1", "/k2"],
        "identitiesonly": "yes",
        "connecttimeout": "3",
        "userknownhostsfile": "~/kh /kh2",
        "hostkeyalias": "alias",
    }
}


def test_the_ssh_configuration_is_followed():
    """Host name, user, port, keys, time limit and known_hosts are those of ~/.ssh/config."""
    found = log_in(entry(), config=CONFIG)
    assert (found.place, found.connect_timeout_s, found.known_as) == ("ops@10.0.0.9:2222", 3.0, "alias")
    assert found.ways == (
        KeyFile(Path("/home/me/k1"), optional=True),
        KeyFile(Path("/k2"), optional=True),
    )
    assert found.known_hosts == (Path("/home/me/kh"), Path("/kh2"), Path("/etc/ssh/ssh_known_hosts"))


def test_console_toml_goes_before_the_ssh_configuration():
    """What an entry says is what holds, then what the defaults say."""
    found = log_in(
        entry(port=22, key="k", sudo="password"), config=CONFIG, username="root", connect_timeout_s=7.0,
        key_passphrase_env="PHRASE", password="p" and Secret("p"),
    )  # fmt: skip
    assert (found.place, found.connect_timeout_s, found.sudo) == ("root@10.0.0.9:22", 7.0, "password")
    assert found.ways == (KeyFile(Path("/c/k"), Variable("PHRASE")), Password(Given(Secret("p"))))


@pytest.mark.parametrize(
    ("keys", "source"),
    [
        ({"password": Secret("x")}, Given(Secret("x"))),
        ({"password_env": "X"}, Variable("X")),
        ({"password_file": "~/p"}, FirstLine(Path("/home/me/p"))),
        ({"password_command": ("pass", "show")}, Output(("pass", "show"))),
    ],
)
def test_a_password_has_its_source_and_may_be_for_sudo_alone(keys, source):
    """A password is tried first and named by where it is; the agent comes after it, because it may be sudo's only."""
    found = log_in(entry(**keys))
    assert found.password == source
    assert found.ways == (Password(source), Agent(), *DEFAULT_KEYS)


def test_no_secret_shows_in_a_login():
    """The text of a login holds no password."""
    assert "hunter2" not in repr(log_in(entry(password=Secret("hunter2"))))


def test_a_pinned_key_decides_over_everything():
    """A pinned host key is the only one, also with --accept-new; without one --accept-new takes unknown ones."""
    assert log_in(entry(host_key="SHA256:x"), accept_new=True).host_keys == "pinned"
    assert log_in(entry(), accept_new=True).host_keys == "accept-new"


def test_a_way_through_other_entries_is_a_chain():
    """The host next to the console comes first, each with its own user, port and keys."""
    found = log_in(
        entry(jump="b"), entry("b", "hb", username="ub", jump="c"), entry("c", "hc", port=99, key="/kc"), username="u"
    )
    assert [hop.place for hop in found.jumps] == ["u@hc:99", "ub@hb:22"]
    assert found.jumps[0].ways == (KeyFile(Path("/kc")),)
    assert found.jumps[1].jumps == found.jumps[:1]


def test_a_host_that_is_written_out_is_as_the_ssh_configuration_says():
    """A `user@host` gets no password of the defaults: it may be somebody else's machine."""
    config = {"door": {"hostname": "10.1.1.1", "port": "2200"}}
    found = log_in(entry(jump="ops@door"), config=config, password=Secret("x"))
    (hop,) = found.jumps
    assert (hop.place, hop.name, hop.password) == ("ops@10.1.1.1:2200", "ops@door", None)
    assert hop.ways == (Agent(), *DEFAULT_KEYS)
    assert log_in(entry(jump="ops@[fd00::1]:2")).jumps[0].place == "ops@[fd00::1]:2"


def test_proxyjump_of_the_ssh_configuration_is_followed():
    """A list is a chain, whose first host may have a way of its own; console.toml can say there is none."""
    config = {
        "h": {"proxyjump": "x@one:1,ssh://two"},
        "one": {"proxyjump": "zero"},
        "two": {"proxyjump": "unused"},
    }
    assert [hop.place for hop in log_in(entry(), config=config).jumps] == ["me@zero:22", "x@one:1", "me@two:22"]
    assert log_in(entry(jump="none"), config=config).jumps == ()
    assert log_in(entry(), config={"h": {"proxyjump": "none"}}).jumps == ()


@pytest.mark.parametrize(
    ("entries", "config", "message"),
    [
        ([entry()], {"h": {"proxycommand": "nc %h %p"}},
         'the ProxyCommand of "h" in your SSH configuration cannot be used; '
         "write ProxyJump there, or `jump` in console.toml"),
        ([entry()], {"h": {"proxyjump": "h"}},
         "a <- h <- h ... is reached through more than 8 hosts; is it a circle of jumps?"),
        ([entry(jump="a")], {}, "a <- a <- a ... is reached through more than 8 hosts; is it a circle of jumps?"),
        ([entry(jump="gone")], {}, 'console.toml has no entry "gone" to go through; add [ssh.gone]'),
        ([entry()], {"h": {"port": "ssh"}}, 'the Port of "h" in your SSH configuration is "ssh"; give 1 to 65535'),
        ([entry()], {"h": {"proxyjump": "a b"}}, '"a b" is no host to go through; write it like user@host:22'),
    ],
)  # fmt: skip
def test_a_login_that_cannot_be_used_is_told_with_its_mend(entries, config, message):
    """What is wrong with the files is one line with the next step."""
    with pytest.raises(AccessError) as caught:
        log_in(*entries, config=config)
    assert str(caught.value) == message


def test_one_wrong_login_does_not_keep_others():
    """Of many servers, those that can be logged in to are, and the others have their trouble."""
    found, troubles = logins(console(entry(), entry("b", "hb", jump="x")), ["a", "b", "c"], lambda _: {}, LOCAL)
    assert list(found) == ["a"]
    assert {name: (each.kind, each.fatal) for name, each in troubles.items()} == {
        "b": ("access", True),
        "c": ("access", True),
    }


options = st.dictionaries(
    st.sampled_from(["hostname", "user", "port", "proxyjump", "proxycommand", "identityfile", "connecttimeout"]),
    st.text(max_size=8) | st.lists(st.text(max_size=4), max_size=2),
)


@given(st.dictionaries(st.sampled_from(["h", "x", "y"]), options))
def test_any_ssh_configuration_is_a_login_or_a_trouble(config):
    """Whatever ~/.ssh/config says, nothing but AccessError is raised."""
    found, troubles = logins(console(entry()), ["a"], lambda host: config.get(host, {}), LOCAL)
    assert len(found) + len(troubles) == 1
