"""Times: lengths of time and moments as Docker's users write them. Pure."""

import re
from datetime import datetime

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_LENGTH = re.compile(f"(?:{_PART.pattern})+")


def length(text: str) -> float:
    """Return the seconds of `500ms`, `30s`, `1m30s`, `2d` or a plain number of seconds. Raises ValueError."""
    if _LENGTH.fullmatch(text):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    raise ValueError(text)


def moment(text: str, now_s: float) -> float:
    """Return the Unix seconds of `10m` (so long ago), Unix seconds, or a date and time (ISO 8601; local without zone).

    Raises ValueError.
    """
    if _LENGTH.fullmatch(text):
        return now_s - length(text)
    try:
        return length(text)
    except ValueError:
        return datetime.fromisoformat(text).timestamp()
