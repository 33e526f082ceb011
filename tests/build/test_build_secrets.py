"""Secrets: read once, from where they are, and seen nowhere."""

import base64
import json
import threading
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsbus.build.access import FirstLine, Given, Output, Variable
from tsbus.build.secrets import LONGEST, Secrets, SecretUnavailable
from tsbus.config import Secret

printable = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp")), min_size=4, max_size=60)


def read(text: str) -> Secrets:
    secrets = Secrets()
    secrets.get(Given(Secret(text)))
    return secrets


@given(printable, printable, printable)
def test_a_secret_is_masked_wherever_it_stands(secret, before, after):
    """A secret is hidden in whatever stands around it, and in the forms that programs print."""
    secrets = read(secret)
    encoded = base64.b64encode(secret.encode()).decode()
    for form in (secret, json.dumps(secret)[1:-1], quote(secret), quote(secret, safe=""), encoded):
        assert form not in secrets.mask(f"\x01{form}\x01")
    assert "***" in secrets.mask(before + secret + after)


def test_short_secrets_leave_the_rest_readable():
    """A secret of a few characters is hidden where it stands alone."""
    assert read("a").mask("a banana, a=a") == "*** banana, ***=***"


def test_nothing_is_masked_before_it_is_read():
    """What has not been read is not known."""
    assert Secrets().mask("anything") == "anything"


def test_a_secret_is_read_once(tmp_path):
    """However many ask, at the same time too, a program that prints a secret runs once."""
    counter = tmp_path / "runs"
    source = Output(("sh", "-c", f"echo x >> {counter}; echo the secret; echo more"))
    secrets = Secrets()
    found = []
    threads = [threading.Thread(target=lambda: found.append(secrets.get(source).reveal())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["the secret"] * 8
    assert counter.read_text() == "x\n"


def test_a_failure_is_final(tmp_path):
    """A secret that could not be read is not asked for again: somebody may have said no."""
    counter = tmp_path / "runs"
    source = Output(("sh", "-c", f"echo x >> {counter}; exit 3"))
    secrets = Secrets()
    for _ in range(3):
        with pytest.raises(SecretUnavailable, match="sh ended with 3"):
            secrets.get(source)
    assert counter.read_text() == "x\n"


@pytest.mark.parametrize(
    ("content", "secret"),
    [(b"tree\n", "tree"), (b"tree", "tree"), (b"tree\r\nmore", "tree"), (b" tree \n", " tree "), (b"\xc3\xa4\n", "ä")],
)
def test_first_lines(tmp_path, content, secret):
    """The secret is the first line of a file or a program's output, with its blanks and without its end."""
    file = tmp_path / "file"
    file.write_bytes(content)
    for source in (FirstLine(file), Output(("cat", str(file)))):
        assert Secrets().get(source).reveal() == secret


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\n", b"x" * (LONGEST + 1), b"a\0b"])
def test_what_is_no_secret(tmp_path, content):
    """Nothing, bytes that are no text, and lines that are too long are no secrets; what is there is not told."""
    file = tmp_path / "file"
    file.write_bytes(content)
    for source in (FirstLine(file), Output(("cat", str(file)))):
        with pytest.raises(SecretUnavailable) as caught:
            Secrets().get(source)
        assert "xxxx" not in repr(caught.value)


def test_places_that_are_not_there(tmp_path, monkeypatch):
    """A variable that is not set, a missing file, and a missing program are told by name."""
    monkeypatch.delenv("NOT_SET", raising=False)
    for source, text in (
        (Variable("NOT_SET"), "the variable NOT_SET is not set"),
        (FirstLine(tmp_path / "x"), "No such file"),
        (Output(("/no/such/program",)), "/no/such/program cannot be run: No such file"),
    ):
        with pytest.raises(SecretUnavailable, match=text):
            Secrets().get(source)


def test_secrets_are_not_shown():
    """Neither the collection nor its parts show what they hold."""
    secrets = read("canary")
    assert "canary" not in repr(secrets)
    assert "canary" not in repr(vars(secrets)["_read"])
