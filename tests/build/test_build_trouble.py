"""Troubles: each failure that a build meets has a kind and a next step, whatever it holds."""

import errno
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsbus.build.trouble import LOCKED, WAITING, Failure, Kind, classify, clean

AT = "ops@10.0.0.1:22"
APT = """\
Reading package lists...
E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1988 (apt-get)
E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?
"""
CASES = {
    "name": (Failure("connect", AT, "gaierror", -2, "Name or service not known"), "name", False),
    "name server": (Failure("connect", AT, "gaierror", -3, "Temporary failure in name resolution"), "name", True),
    "refused": (Failure("connect", AT, "ConnectionRefusedError", errno.ECONNREFUSED), "refused", True),
    "refused by all": (Failure("connect", AT, "NoValidConnectionsError", errno.ECONNREFUSED), "refused", True),
    "no route": (Failure("connect", AT, "OSError", errno.EHOSTUNREACH, "No route to host"), "unreachable", True),
    "timeout": (Failure("connect", AT, "TimeoutError"), "timeout", True),
    "timeout by the kernel": (Failure("connect", AT, "OSError", errno.ETIMEDOUT), "timeout", True),
    "banner": (Failure("connect", AT, "SSHException", None, "Error reading SSH protocol banner"), "timeout", True),
    "unknown key": (Failure("connect", AT, "SSHException", None, "Server 'h' not found in known_hosts"),
                    "host-key-unknown", False),
    "changed key": (Failure("connect", AT, "BadHostKeyException", None, "got B"), "host-key-changed", False),
    "login": (Failure("connect", AT, "AuthenticationException", None, "failed."), "authentication", False),
    "passphrase": (Failure("connect", AT, "PasswordRequiredException", None, "private key file is encrypted"),
                   "authentication", False),
    "no method": (Failure("connect", AT, "SSHException", None, "No authentication methods available"),
                  "authentication", False),
    "sudo password": (Failure("probe", AT, status=1, output="sudo: a password is required\n"), "sudo", False),
    "sudo wrong": (Failure("probe", AT, status=1, output="Sorry, try again.\nsudo: 1 incorrect password attempt\n"),
                   "sudo", False),
    "sudoers": (Failure("probe", AT, status=1, output="ops is not in the sudoers file.\n"), "sudo", False),
    "disk": (Failure("bundle", AT, status=1, output="tar: x: Cannot write: No space left on device\n"), "disk", False),
    "disk of the upload": (Failure("bundle", AT, "OSError", errno.ENOSPC, "No space left on device"), "disk", False),
    "disk of apt": (Failure("docker", AT, status=100, output="E: You don't have enough free space in /var/cache/.\n"),
                    "disk", False),
    "lock": (Failure("docker", AT, status=LOCKED, output=APT), "package-lock", True),
    "lock of apt": (Failure("docker", AT, status=100, output=APT), "package-lock", True),
    "lock of zypper": (Failure("docker", AT, status=7, output="System management is locked by the application with pid "
                               "27841 (zypper).\n"), "package-lock", True),
    "lock of apk": (Failure("docker", AT, status=99, output="ERROR: Unable to lock database: try later\n"),
                    "package-lock", True),
    "after a wait": (Failure("docker", AT, status=100, output=f"{APT}{WAITING}\nE: Failed to fetch http://x\n"),
                     "download", True),
    "download": (Failure("docker", AT, status=6, output="curl: (6) Could not resolve host: download.example\n"),
                 "download", True),
    "clock": (Failure("docker", AT, status=100, output="E: Release file for http://x is not valid yet (invalid for "
                      "another 3h).\n"), "clock", False),
    "docker": (Failure("docker", AT, status=1, output="Cannot connect to the Docker daemon at unix:///x.\n"),
               "docker", False),
    "python": (Failure("install", AT, status=127, output="sh: 1: python3.11: not found\n"), "python", False),
    "lost": (Failure("bundle", AT, "ConnectionResetError", errno.ECONNRESET), "lost", True),
    "lost channel": (Failure("bundle", AT, "EOFError"), "lost", True),
    "silent": (Failure("install", AT, "TimeoutError"), "lost", True),
    "no status": (Failure("install", AT), "lost", True),
    "step": (Failure("install", AT, status=3, output="one\n\ntwo\n", command="unpack the release"), "step", False),
    "killed": (Failure("install", AT, status=137), "step", False),
    "bug": (Failure("install", AT, "KeyError", None, "'x'"), "step", False),
}  # fmt: skip


@pytest.mark.parametrize(("failure", "kind", "again"), CASES.values(), ids=CASES)
def test_a_failure_has_its_kind(failure, kind, again):
    """What libraries and programs say is known for what it is, and whether another try makes sense."""
    found = classify(failure)
    assert (found.kind, found.again, found.fatal) == (kind, again, True)
    assert found.mend


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("refused", "ops@10.0.0.1:22 refuses the connection; "
                    "is sshd running there? Check host and port in console.toml"),
        ("step", "unpack the release: ended with 3: two; the transcript has all that it said"),
        ("lock", "another program has held the package lock for too long: E: Could not get lock "
                 "/var/lib/dpkg/lock-frontend. It is held by process 1988 (apt-get); "
                 "wait until it is done (often the system's own upgrade), then build again"),
        ("bug", "install: KeyError: 'x'; the transcript has all that it said"),
        ("sudo password", "sudo refuses: sudo: a password is required; "
                          "check `sudo` and the password in console.toml, and the sudoers there"),
    ],
)  # fmt: skip
def test_a_failure_is_told_on_one_line(case, text):
    """The line says what, where and what to do."""
    assert str(classify(CASES[case][0])) == text


def test_the_last_lines_are_kept():
    """What the server said last stays with the trouble."""
    output = "\n".join(f"line {number}" for number in range(100))
    found = classify(Failure("install", AT, status=1, output=output))
    assert found.details.splitlines() == [f"line {number}" for number in range(80, 100)]


texts = st.text(max_size=50) | st.sampled_from(["{place}", "{", "\x1b[2J", "\r\n", APT])
failures = st.builds(
    Failure,
    stage=st.sampled_from(["connect", "probe", "bundle"]),
    place=texts,
    type=st.sampled_from(["", "gaierror", "OSError", "SSHException", "TimeoutError"]) | texts,
    errno=st.none() | st.integers(-200, 200),
    text=texts,
    status=st.none() | st.integers(-300, 300),
    output=texts,
    command=texts,
)


@given(failures)
def test_every_failure_is_a_trouble_that_can_be_printed(failure):
    """Whatever it holds, there is a kind and one line without control characters."""
    found = classify(failure)
    assert found.kind in get_args(Kind)
    assert str(found).isprintable()
    assert all(char == "\n" or char.isprintable() for char in found.details)


def test_endless_output_is_cut_from_its_beginning():
    """Of output the end counts, within bounds."""
    assert clean("a" * 10_000_000 + "end", 10) == "a" * 7 + "end"
