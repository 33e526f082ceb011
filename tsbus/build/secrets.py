"""Secrets: reads passwords and passphrases from where they are, once each, and keeps them out of everything shown.

A secret is read when it is needed for the first time: whoever logs in with a key is never asked for a password. What
has been read is masked by `mask`, through which everything that servers say must go before it is kept or shown.
"""

import base64
import contextlib
import json
import os
import re
import subprocess
import threading
from typing import Final
from urllib.parse import quote

from tsbus.build.access import FirstLine, Given, Output, Source, Variable
from tsbus.config import Secret

COMMAND_S: Final = 60.0
"""How long a program may take that prints a secret: somebody may have to unlock it."""
LONGEST: Final = 1024
"""Characters of a secret."""
STARS: Final = "***"
_SHORT: Final = 4
"""A secret of fewer characters is masked where it stands alone: else nothing of the output would be left."""


class SecretUnavailable(Exception):
    """A secret could not be read; the text says where it should be, and nothing of what is there."""


class Secrets:
    """The secrets of one run. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reading: dict[Source, threading.Lock] = {}
        self._read: dict[Source, Secret | SecretUnavailable] = {}
        self._forms: set[str] = set()
        self._pattern: re.Pattern[str] | None = None

    def __repr__(self) -> str:
        return f"Secrets({len(self._read)} read)"

    def get(self, source: Source) -> Secret:
        """Return the secret at `source`. The first call reads it, and others wait; so a failure is final.

        Raises SecretUnavailable.
        """
        with self._lock:
            reading = self._reading.setdefault(source, threading.Lock())
        with reading:
            if source not in self._read:
                try:
                    secret = Secret(_checked(_read(source), source))
                except SecretUnavailable as error:
                    self._read[source] = error
                else:
                    self.hide(secret)
                    self._read[source] = secret
        found = self._read[source]
        if isinstance(found, SecretUnavailable):
            raise SecretUnavailable(str(found))
        return found

    def hide(self, secret: Secret) -> None:
        """Let `mask` hide this one, as it is and in the forms that programs give it."""
        text = secret.reveal()
        forms = {text, json.dumps(text)[1:-1], quote(text), quote(text, safe=""), text.replace("'", "'\\''")}
        with contextlib.suppress(UnicodeEncodeError):
            forms.add(base64.b64encode(text.encode()).decode())
        with self._lock:
            self._forms |= forms - {""}
            # The longest first: one may contain another.
            words = (_word(form) for form in sorted(self._forms, key=len, reverse=True))
            self._pattern = re.compile("|".join(words)) if self._forms else None

    def mask(self, text: str) -> str:
        """Return `text` with stars for every secret that has been read."""
        pattern = self._pattern
        return pattern.sub(STARS, text) if pattern else text


def _word(form: str) -> str:
    escaped = re.escape(form)
    return escaped if len(form) >= _SHORT else rf"(?<!\w){escaped}(?!\w)"


def _read(source: Source) -> str:
    match source:
        case Given(secret):
            return secret.reveal()
        case Variable(name):
            if name not in os.environ:
                raise SecretUnavailable(f"the variable {name} is not set")
            return os.environ[name]
        case FirstLine(path):
            try:
                with path.open(encoding="utf-8") as file:
                    return file.readline(LONGEST + 2).rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is no text"
                raise SecretUnavailable(f"{path} cannot be read: {reason}") from None
        case Output(argv):
            return _printed(argv)


def _printed(argv: tuple[str, ...]) -> str:
    """Return the first line that a program prints. Its other output is the user's to see: it may ask to be unlocked."""
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, timeout=COMMAND_S, check=False)
    except subprocess.TimeoutExpired:
        raise SecretUnavailable(f"{argv[0]} took longer than {COMMAND_S:g} s to print it") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its arguments have a NUL"
        raise SecretUnavailable(f"{argv[0]} cannot be run: {reason}") from None
    if done.returncode:
        raise SecretUnavailable(f"{argv[0]} ended with {done.returncode}")
    try:
        return done.stdout.partition(b"\n")[0].rstrip(b"\r").decode()
    except UnicodeDecodeError:
        raise SecretUnavailable(f"what {argv[0]} prints is no text") from None


def _checked(text: str, source: Source) -> str:
    if not text:
        raise SecretUnavailable(f"{_place(source)} is empty")
    if len(text) > LONGEST or "\0" in text or "\n" in text:
        raise SecretUnavailable(f"{_place(source)} is no password: too long, or of several lines")
    return text


def _place(source: Source) -> str:
    match source:
        case Given():
            return "the password in console.toml"
        case Variable(name):
            return f"the variable {name}"
        case FirstLine(path):
            return f"the first line of {path}"
        case Output(argv):
            return f"what {argv[0]} prints"
