"""The dialogue with a shell: in whichever shell, nothing runs before all of it is there."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsbus.build.ssh.dialogue import Opening, command, script

MARK = "ts-0123"
SHELLS = (("sh", "-c"), ("bash", "-c"), ("busybox", "sh", "-c"))


def run(shell, data, rights="root"):
    done = subprocess.run([*shell, command(MARK, rights)], input=data, capture_output=True, check=False)
    return done.returncode, done.stdout.decode()


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
@pytest.mark.parametrize("rights", ["root", "root-freely"])
def test_a_script_runs_with_what_follows_as_its_input(shell, rights):
    """The script runs once it is there, line by line as it is, and the rest of the input is its own."""
    text = "read a; printf '%s\\n' \"$a\" 'b\\n  c'; cat <<'.'\n\tx  y\\\n.\nhead -c 2; exit 3"
    status, said = run(shell, script(MARK, text) + b"first\nrest of it")
    assert (status, said) == (3, f"{MARK} ready\nfirst\nb\\n  c\n\tx  y\\\nre")


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_half_a_script_is_none(shell):
    """However much of a script arrives, nothing of it runs unless all does."""
    whole = script(MARK, "echo ran; echo again")
    for size in range(len(whole)):
        status, said = run(shell, whole[:size])
        assert (status, said) == (1, f"{MARK} ready\n"), size


def test_the_status_of_the_last_command():
    """A script without an exit ends with the status of its last command."""
    assert run(SHELLS[0], script(MARK, "true; false"))[0] == 1
    assert run(SHELLS[0], script(MARK, "false; true"))[0] == 0


@given(st.binary(), st.binary(), st.lists(st.integers(1, 30)))
def test_the_opening_is_found_in_whatever_pieces(before, after, sizes):
    """The shell is ready when its line has come whole, and what follows is the script's."""
    data = before + f"{MARK} ready\n".encode() + after
    opening, rest = Opening(MARK), b""
    while data:
        size = sizes.pop() if sizes else len(data)
        piece, data = data[:size], data[size:]
        found = opening.feed(piece, b"")
        if found is not None:
            rest = found + data
            break
    assert rest.endswith(after)


def test_sudo_asks():
    """Each time sudo asks is counted, in whatever pieces it does, and people do not see the mark."""
    opening = Opening(MARK)
    for piece in (b"We trust you\n", MARK.encode(), b" pass"):
        opening.feed(b"", piece)
        assert opening.asked == 0
    opening.feed(b"noise", b"word")
    assert opening.asked == 1
    opening.feed(b"", b"Sorry, try again.\n" + MARK.encode() + b" password")
    assert opening.asked == 2
    assert MARK not in opening.said
    assert "Sorry, try again." in opening.said


def test_the_command_suits_any_login_shell():
    """The command is words in single quotes that sh, csh and fish take in the same way, and holds no secret."""
    for rights in ("root", "root-freely"):
        words = command(MARK, rights).split("'")
        assert len(words) == 5
        assert not any(char in word for word in words for char in "!\n")
        assert not any("\\\\" in word or word.endswith("\\") for word in words)
