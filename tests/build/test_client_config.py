"""~/.ssh/config: read with what it includes."""

import pytest

from tsbus.build.access import AccessError
from tsbus.build.ssh import client_config


@pytest.fixture
def home(tmp_path):
    """A home with a folder for SSH."""
    (tmp_path / ".ssh/more").mkdir(parents=True)
    return tmp_path


def write(home, text, name="config"):
    (home / ".ssh" / name).write_text(text)


def look(home, host="web1"):
    return client_config(home, home / "system")(host)


def test_without_any_file(home):
    """Where there is no configuration, a host is what it is called."""
    assert look(home) == {"hostname": "web1"}


def test_the_first_value_wins(home):
    """The user's configuration comes before the system's, and within a file the first that fits."""
    write(home, "Host web*\n  User me\n  Port 2222\nHost *\n  User other\n")
    (home / "system").write_text("User system\nProxyJump gate\n")
    found = look(home)
    assert (found["user"], found["port"], found["proxyjump"]) == ("me", "2222", "gate")
    assert look(home, "db")["user"] == "other"


def test_includes(home):
    """Included files stand where they are included; what follows belongs to the block it did before."""
    write(home, f"Include more/* {home}/absolute\nHost web1\n  Include inner\n  Port 2222\n")
    write(home, "Host db\n  User dba\n", "more/a")
    write(home, "User mine\n", "more/b")
    (home / "absolute").write_text("Host web2\n  User absolute\n")
    write(home, "IdentityFile ~/inner\n", "inner")
    assert look(home)["user"] == "mine"
    assert look(home)["port"] == "2222"
    assert look(home)["identityfile"][0].endswith("/inner")
    assert look(home, "db")["user"] == "dba"
    assert "port" not in look(home, "db")
    assert "identityfile" not in look(home, "db")


def test_files_that_include_each_other(home):
    """A circle of includes ends."""
    write(home, "Include config\nUser me\n")
    assert look(home)["user"] == "me"


@pytest.mark.parametrize("text", ["Host\n", "nonsense\n", "Match sometimes\n", "CanonicalizeHostname yes\n"])
def test_what_cannot_be_used(home, text):
    """A configuration that cannot be read is told when a host is looked up."""
    write(home, text)
    lookup = client_config(home, home / "system")
    with pytest.raises(AccessError, match="your SSH configuration cannot be used"):
        lookup("web1")
