"""known_hosts: read as OpenSSH reads it, and written so that OpenSSH reads it."""

import base64
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsbus.build.access import Login
from tsbus.build.known_hosts import HostKey, Known, Line, is_of, is_pinned, judge, name_of, parse


def key(text: str, kind: str = "ssh-ed25519") -> HostKey:
    return HostKey(kind, len(kind).to_bytes(4) + kind.encode() + len(text).to_bytes(4) + text.encode())


ONE, TWO = key("1" * 32), key("2" * 32)


def login(host: str, port: int = 22, **options: object) -> Login:
    return Login("n", host, port, "root", (), **options)


@pytest.mark.parametrize(
    ("hosts", "name", "meant"),
    [
        ("web1", "web1", True),
        ("WEB1", "web1", True),
        ("web1,10.0.0.1", "10.0.0.1", True),
        ("web1", "web11", False),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "example.com", False),
        ("web?", "web1", True),
        ("*.example.com,!bad.example.com", "bad.example.com", False),
        ("!bad.example.com,*.example.com", "good.example.com", True),
        ("[web1]:2222", "[web1]:2222", True),
        ("[*]:2222", "[web1]:2222", True),
        ("web1", "[web1]:2222", False),
        ("[w]eb1", "web1", False),
        ("|1|not base64|x", "web1", False),
        ("|1|", "web1", False),
    ],
)
def test_which_hosts_a_line_means(hosts, name, meant):
    """Names, lists, patterns, negations, ports and broken hashes mean what they do to OpenSSH."""
    assert is_of(hosts, name) is meant


def test_hashed_names(tmp_path):
    """Lines that ssh-keygen has hashed are found."""
    file = tmp_path / "known_hosts"
    file.write_text(f"web1 {ONE}\n[web1]:2222 {TWO}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", file], check=True, capture_output=True)
    assert "web1" not in file.read_text()
    for port, right, wrong in ((22, ONE, TWO), (2222, TWO, ONE)):
        known = Known()
        assert known.check(login("Web1", port, known_hosts=(file,)), right) == "right"
        assert known.check(login("web1", port, known_hosts=(file,)), wrong) == "changed"
        assert known.check(login("web2", port, known_hosts=(file,)), right) == "unknown"


@given(st.text())
def test_any_text_is_read(text):
    """Whatever a file holds, reading it ends well."""
    for line in parse(text):
        is_of(line.hosts, "web1")


def test_what_is_passed_over():
    """Comments, authorities, and lines that make no sense are no entries; comments at the end of one do not matter."""
    text = f"# web1 {ONE}\n\n@cert-authority * {ONE}\nweb1 ssh-ed25519\nweb1 ssh-ed25519 ???\nweb1 {ONE} a comment\n"
    assert parse(text) == [Line("web1", ONE)]


def test_revoked_keys():
    """A key that is revoked is refused, even where another line trusts it; it makes no other key a changed one."""
    revoked = parse(f"@revoked * {ONE}\n")
    assert judge([*revoked, Line("web1", ONE)], ONE) == "revoked"
    assert judge(revoked, TWO) == "unknown"


def test_a_key_of_another_kind_is_a_changed_one():
    """A host that is known by one kind of key is not trusted with another kind; with several each is right."""
    other = key("x", "ssh-rsa")
    assert judge([Line("web1", ONE)], other) == "changed"
    assert judge([Line("web1", ONE), Line("web1", other)], other) == "right"


def test_fingerprints_and_pins(tmp_path):
    """Fingerprints are those of ssh-keygen; a pin is a key, with a comment perhaps, or a fingerprint."""
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    kind, blob, _ = path.with_suffix(".pub").read_text().split(None, 2)
    real = HostKey(kind, base64.b64decode(blob))
    shown = subprocess.run(["ssh-keygen", "-lf", path], capture_output=True, text=True, check=True).stdout.split()[1]
    assert real.fingerprint == shown
    for pin in (shown, f"{shown}=", str(real), f"{real} root@web1"):
        assert is_pinned(pin, real)
        assert not is_pinned(pin, ONE)
    for pin in ("SHA256:", "ssh-ed25519", "ssh-ed25519 ???"):
        assert not is_pinned(pin, real)


def test_names_of_hosts():
    """A host is known with its port unless that is 22, or by its alias alone."""
    assert name_of(login("Web1")) == "web1"
    assert name_of(login("web1", 2222)) == "[web1]:2222"
    assert name_of(login("web1", 2222, known_as="Alias")) == "alias"


def test_recording_is_read_by_openssh(tmp_path):
    """What is recorded, also after a line without an end and into a new folder, ssh-keygen finds."""
    old, new = tmp_path / "old", tmp_path / "a/b/new"
    old.write_text(f"web0 {TWO}")
    for file in (old, new):
        known = Known()
        for host, port in (("web1", 22), ("web2", 2222)):
            assert known.record(login(host, port, known_hosts=(file,)), ONE) == "right"
            name = host if port == 22 else f"[{host}]:{port}"
            found = subprocess.run(["ssh-keygen", "-F", name, "-f", file], capture_output=True, text=True, check=True)
            assert str(ONE) in found.stdout
    assert old.read_text().startswith(f"web0 {TWO}\nweb1 ")


def test_who_was_first_wins(tmp_path):
    """A key is recorded only for a host that has none by then, whoever has written it meanwhile."""
    file = tmp_path / "known_hosts"
    mine, theirs = Known(), Known()
    there = login("web1", known_hosts=(file,))
    assert mine.check(there, ONE) == "unknown"
    assert theirs.record(there, TWO) == "right"
    assert mine.record(there, ONE) == "changed"
    assert mine.record(there, TWO) == "right"
    assert file.read_text().count("\n") == 1


def test_a_file_that_cannot_be_read(tmp_path):
    """A file that is not there knows nobody; one that is there and cannot be read is an error, not nobody."""
    assert Known().keys(login("web1", known_hosts=(tmp_path / "none",))) == []
    with pytest.raises(OSError, match="directory"):
        Known().keys(login("web1", known_hosts=(tmp_path,)))


def test_many_hosts_are_looked_up_quickly(tmp_path):
    """A file is read once while it does not change, however many hosts are asked for."""
    file = tmp_path / "known_hosts"
    file.write_text("".join(f"web{number} {ONE}\n" for number in range(1000)))
    known = Known()
    assert known.check(login("web999", known_hosts=(file,)), ONE) == "right"
    status = file.stat()
    file.write_bytes(b"#" * status.st_size)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert known.check(login("web5", known_hosts=(Path(file),)), ONE) == "right"
    file.write_text("")
    assert known.check(login("web5", known_hosts=(file,)), ONE) == "unknown"
