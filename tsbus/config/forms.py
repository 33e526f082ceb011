"""Forms: what a single value of the configuration may look like.

Each form is a function that takes a value of the right type and returns None, or a complaint: what is wrong and what
to do about it. model.py attaches forms to field types with `Annotated`; reader.py applies them.
"""

import base64
import difflib
import ipaddress
import json
import os.path
import re
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any

from tsbus.config.address import parse_address, unusable
from tsbus.core.condition import Condition, ConditionError
from tsbus.core.topic import TopicError, check_pattern

Complaint = tuple[str, str]
"""(message, hint)."""
Form = Callable[[Any], Complaint | None]

SCHEDULERS = ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh", "twos")
"""The schedulers of the kernel's IPVS."""
UNWEIGHTED = ("rr", "lc", "dh")
"""Those that know no weights."""
NFTABLES_SCHEDULERS = ("rr", "wrr", "sh")
"""What can be had without IPVS."""
PROTOCOLS = ("tcp", "udp", "sctp")

MAX_NAME_BYTES = 64
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_USER = re.compile(r"@?[^\s@:][^\s:]{0,63}")
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def quote(text: str) -> str:
    """Return `text` in double quotes, cut to a readable length, safe to print on a terminal."""
    shown = text if len(text) <= 80 else text[:77] + "..."
    return json.dumps(shown, ensure_ascii=not shown.isprintable())


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return the hint that names the choice most like `word`, or lists the choices when there are few, or ''."""
    names = list(choices)
    matches = difflib.get_close_matches(word[:MAX_NAME_BYTES], names, n=1)
    if matches:
        return f"did you mean {quote(matches[0])}?"
    return f"known here: {', '.join(names)}" if 0 < len(names) <= 20 else ""


def between(low: float, high: float) -> Form:
    """Return the form of a number from `low` to `high`, both included."""

    def form(value: float) -> Complaint | None:
        # Written so that NaN fails too.
        return None if low <= value <= high else ("is out of range", f"give a value from {low} to {high}")

    return form


def one_of(choices: tuple[str, ...]) -> Form:
    """Return the form of a word that is one of `choices`."""

    def form(value: str) -> Complaint | None:
        return None if value in choices else (f"{quote(value)} is not known", nearest(value, choices))

    return form


def name(value: str) -> Complaint | None:
    """Names of nodes and of tables: no character of the target grammar, so that every name can be a target."""
    if _NAME.fullmatch(value) and len(value) <= MAX_NAME_BYTES:
        return None
    hint = f"use letters, digits, - _ . (at most {MAX_NAME_BYTES}), beginning with a letter, a digit or _"
    return f"{quote(value)} cannot be a name", hint


def tag(value: str) -> Complaint | None:
    """Tags have the form of names; the @ is written only where they are used as targets."""
    if value.startswith("@"):
        return f"{quote(value)} cannot be a tag", f"write it without the @: {quote(value[1:])}"
    return name(value)


def host(value: str) -> Complaint | None:
    """An IPv4 or IPv6 address or a host name, something that others can dial."""
    try:
        unspecified = ipaddress.ip_address(value).is_unspecified
    except ValueError:
        labels = value.removesuffix(".").split(".")
        # A last label of digits only is a mistyped IPv4 address, never a host name (RFC 1123 2.1).
        named = len(value) <= 253 and all(map(_HOST_LABEL.fullmatch, labels)) and not labels[-1].isdigit()
        return None if named else (f"{quote(value)} is no IP address or host name", 'write it like "10.0.0.1"')
    return (f"{value} cannot be dialled", "give the address others reach this node at") if unspecified else None


def listen(value: str) -> Complaint | None:
    """A host of this machine to listen at; 0.0.0.0 or :: for all its addresses."""
    return None if value in ("0.0.0.0", "::") else host(value)  # noqa: S104  (words, nothing is bound)


def is_loopback(value: str) -> bool:
    """Tell whether only this machine reaches what listens at a host."""
    try:
        return ipaddress.ip_address(value).is_loopback
    except ValueError:
        return value == "localhost"


def address(value: str) -> Complaint | None:
    """The address of a balancer: IP and port, or a range of ports."""
    try:
        parsed = parse_address(value)
    except ValueError:
        hint = 'write IP:PORT or IP:FIRST-LAST, like "10.0.0.1:443" or "[fd00::1]:8000-8010"'
        return f"{quote(value)} is no address", hint
    reason = unusable(parsed.ip)
    return (f"{parsed.ip} {reason}", "give an address that clients reach this node at") if reason else None


def server_address(value: str) -> Complaint | None:
    """The address of one real server; empty for none."""
    complaint = address(value) if value else None
    if complaint is None and value and parse_address(value).first != parse_address(value).last:
        return f"{quote(value)} is more than one port", 'write IP:PORT, like "10.0.0.9:80"'
    return complaint


def image(value: str) -> Complaint | None:
    """A Docker image name, as `docker run` takes it."""
    if re.fullmatch(r"[^\s\"']{1,512}", value) and value.isprintable():
        return None
    return f"{quote(value)} is no image name", 'write it as for docker run, like "nginx:1.27"'


def engine(value: str) -> Complaint | None:
    """Where a Docker engine listens: unix://PATH or tcp://HOST:PORT; empty for what the environment says."""
    kind, _, place = value.partition("://")
    if kind == "unix" and place.startswith("/") and words(place) is None:
        return None
    hostname, _, port = place.rpartition(":")
    hostname = hostname[1:-1] if hostname.startswith("[") and hostname.endswith("]") else hostname
    if kind == "tcp" and host(hostname) is None and re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) <= 65535:
        return None
    hint = 'write it like "unix:///var/run/docker.sock" or "tcp://10.0.0.1:2376"'
    return (f"{quote(value)} is no address of an engine", hint) if value else None


def label(value: str) -> Complaint | None:
    """A label of containers and its value; empty for none."""
    if not value or (re.fullmatch(r"[^\s=]{1,256}=\S{1,256}", value) and value.isprintable()):
        return None
    return f"{quote(value)} is no label with a value", 'write it like "treescale.node=web1"'


def host_path(value: str) -> Complaint | None:
    """A path of the host that containers may have: itself, with /** all below it too."""
    path = value.removesuffix("/**") or "/"
    if path == os.path.normpath(path) and path.startswith("/") and not path.startswith("//") and "*" not in path:
        return words(value)
    return f"{quote(value)} is no path that can be allowed", 'write it in full, like "/srv/data" or "/srv/**"'


def mount(value: str) -> Complaint | None:
    """A path of the host as `host_path`; with :ro at the end for reading only."""
    return host_path(value.removesuffix(":ro"))


def capability(value: str) -> Complaint | None:
    """A capability of the kernel without CAP_, or ALL."""
    if re.fullmatch(r"(?!CAP_)[A-Z][A-Z_]{2,40}", value):
        return None
    return f"{quote(value)} is no capability", 'write it like "NET_ADMIN", or "ALL"'


def node_or_tag(value: str) -> Complaint | None:
    """A node's name, or @ and a tag."""
    return name(value.removeprefix("@"))


def topic(value: str) -> Complaint | None:
    """A topic pattern: tokens between dots, * for one token, > at the end for all the rest."""
    try:
        check_pattern(value)
    except TopicError as error:
        return str(error), ""
    return None


def condition(value: str) -> Complaint | None:
    """A comparison of a field of an event's body; empty for any event."""
    try:
        if value:
            Condition.parse(value)
    except ConditionError as error:
        message, _, hint = str(error).partition("; ")
        return message, hint
    return None


CONTAINER_KEYS = ("image", "label", "state", "health", "node", "name")


def container_filter(value: str) -> Complaint | None:
    """A filter of containers: KEY=VALUE."""
    key, _, wanted = value.partition("=")
    if key in CONTAINER_KEYS and wanted and value.isprintable():
        return None
    return f"{quote(value)} is no filter", f"write KEY=VALUE, where KEY is one of {', '.join(CONTAINER_KEYS)}"


def webhook(value: str) -> Complaint | None:
    """Where HTTP requests go: http:// or https://, without a name and password."""
    try:
        parts = urllib.parse.urlsplit(value)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return "this is no address of a webhook", 'write it like "https://hooks.example.net/alerts"'
    if parts.username is not None:
        return "a name and password stand in the address", "give them with header and secret_env or secret_file"
    if fits and words(value) is None and value.isprintable() and " " not in value:
        return None
    # Not quoted: the address of a webhook is mostly its secret.
    return "this is no address of a webhook", 'write it like "https://hooks.example.net/alerts"'


def header(value: str) -> Complaint | None:
    """The name of an HTTP header; empty for none."""
    if not value or re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,63}", value):
        return None
    return f"{quote(value)} is no name of a header", 'write it like "Authorization"'


def target(value: str) -> Complaint | None:
    """A target expression. Only its outside is checked here: the names in it may be of nodes still to come."""
    if value.strip() and value.isprintable() and len(value) <= 4096:
        return None
    return f"{quote(value)} is no target", 'write nodes, tags or *, like "node[1-3],@web"'


def user(value: str) -> Complaint | None:
    """A user name, a uid, or @ and a group."""
    if _USER.fullmatch(value) and value.isprintable():
        return None
    return f"{quote(value)} is no user or group", 'write a user name, a uid, or "@group"'


def public_key(value: str) -> Complaint | None:
    """A CURVE public key: 32 bytes as 40 characters of Z85 (ZeroMQ RFC 32); empty where there is none yet."""
    digits = [_Z85.find(char) for char in value]
    groups = [digits[i : i + 5] for i in range(0, len(digits), 5)]
    fits = all(sum(digit * 85 ** (4 - i) for i, digit in enumerate(group)) < 2**32 for group in groups)
    if not value or (len(value) == 40 and -1 not in digits and fits):
        return None
    return "this is no public key", "a key is 40 characters of Z85 (32 bytes); copy the line after public-key ="


def required_key(value: str) -> Complaint | None:
    """A public key that must be there."""
    return public_key(value) if value else ("the public key is empty", "an operator is known by the key; give it here")


def argv(value: tuple[str, ...]) -> Complaint | None:
    """A program and its arguments."""
    if value and value[0]:
        return None
    return "no program is named", 'write the program and its arguments, like ["systemctl", "restart", "nginx"]'


def argv_template(value: tuple[str, ...]) -> Complaint | None:
    """A program and its arguments, where * is any one argument and a last ** is any rest."""
    if "**" in value[:-1]:
        return "** stands before the last place", "** is the rest of the arguments; use * for one of them"
    return argv(value)


def variable(value: str) -> Complaint | None:
    """The name of an environment variable; empty for none."""
    if not value or re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        return None
    return f"{quote(value)} is no name of a variable", 'write the name alone, like "SSH_PASSWORD"'


def share(value: str) -> Complaint | None:
    """A number, or a share in percent; empty for none."""
    if not value or re.fullmatch(r"[0-9]{1,6}|(?:[0-9]|[1-9][0-9]|100)%", value):
        return None
    return f"{quote(value)} is neither a number nor a share", 'write it like 5 or "10%"'


def version(value: str) -> Complaint | None:
    """A version or the beginning of one, in numbers; empty for any."""
    if not value or re.fullmatch(r"[0-9]{1,4}(?:\.[0-9]{1,4}){0,2}", value):
        return None
    return f"{quote(value)} is no version", 'write it like "28.2.2", or "28" for the newest of these'


def split_jump(value: str) -> tuple[str, str, int | None]:
    """Return (user, host, port) of USER@HOST:PORT; "" and None for what it does not say. Raises ValueError.

    An IPv6 address with a port is in brackets.
    """
    user, _, place = value.rpartition("@")
    found = re.fullmatch(r"\[([^][]+)\](?::([0-9]{1,5}))?", place) or re.fullmatch(r"([^:]+)(?::([0-9]{1,5}))?", place)
    hostname, digits = (found[1], found[2]) if found else (place, None)
    port = int(digits) if digits else None
    if host(hostname) is not None or (port is not None and not 0 < port <= 65535):
        raise ValueError(value)
    return user, hostname, port


def jump(value: str) -> Complaint | None:
    """A way through another host: the name of an entry, USER@HOST:PORT, or none."""
    user, at, _ = value.rpartition("@")
    if not at:
        return name(value) if value else None
    try:
        split_jump(value)
    except ValueError:
        user = ""
    if _USER.fullmatch(user) and user.isprintable():
        return None
    hint = 'write the name of an entry, "user@host" or "user@host:22", or "none"'
    return f"{quote(value)} is no way through another host", hint


HOST_KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")


def host_key(value: str) -> Complaint | None:
    """The public key of an SSH server as in known_hosts, or the SHA256 fingerprint of one; empty for any."""
    if not value or re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}=?", value):
        return None
    kind, _, rest = value.partition(" ")
    try:
        blob = base64.b64decode(rest.partition(" ")[0], validate=True)
    except ValueError:
        blob = b""
    # The key begins with its own type, so one that was cut or pasted together is found out.
    if kind in HOST_KEY_TYPES and blob.startswith(len(kind).to_bytes(4, "big") + kind.encode()):
        return None
    hint = 'copy what `ssh-keyscan HOST` prints after the host, or "SHA256:..." of `ssh-keygen -lf FILE`'
    return "this is no host key", hint


def words(value: str) -> Complaint | None:
    """Any text that a program argument or a path can hold."""
    if "\0" not in value and not any("\ud800" <= char <= "\udfff" for char in value):
        return None
    return "this text holds a character that no program can be given", "take out NUL and unpaired surrogates"
