"""Conditions: a comparison of one field of an event's body with a value, as rules are written with. Pure; no code runs.

    container.exit_code != 0        level == "high"        load > 0.9        text contains timeout

On the left are the keys that lead to the field, with dots between them; a value without quotes that is no number, true,
false or null is text. What is missing, or cannot be compared, fulfils nothing, not even `!=`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Self

import msgspec

MAX_CHARACTERS: Final = 512

_FORM: Final = re.compile(r"\s*([\w-]+(?:\.[\w-]+)*)\s*(==|!=|<=|>=|<|>|\bcontains\b)\s*(\S.*?)\s*")
_ORDERS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": lambda one, two: one < two,
    "<=": lambda one, two: one <= two,
    ">": lambda one, two: one > two,
    ">=": lambda one, two: one >= two,
}


class ConditionError(ValueError):
    """The text is no condition; it says how one is written."""


@dataclass(frozen=True, slots=True)
class Condition:
    """See the module."""

    keys: tuple[str, ...]
    comparison: str
    value: Any

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a condition. Raises ConditionError."""
        found = _FORM.fullmatch(text) if len(text) <= MAX_CHARACTERS else None
        if found is None:
            raise ConditionError(
                f"{text[:80]!r} is no condition; write FIELD == VALUE, like container.exit_code != 0; "
                "instead of == also != < <= > >= or contains"
            )
        value = _value(found[3])
        if found[2] in _ORDERS and not _is_number(value):
            raise ConditionError(f"{text[:80]!r}: {found[2]} compares numbers, and {found[3][:80]!r} is none")
        return cls(tuple(found[1].split(".")), found[2], value)

    def holds(self, body: object) -> bool:
        """Tell whether it is so in a body."""
        for key in self.keys:
            if not isinstance(body, dict) or key not in body:
                return False
            body = body[key]
        if self.comparison in _ORDERS:
            return _is_number(body) and _ORDERS[self.comparison](body, self.value)
        if self.comparison == "contains":
            return (isinstance(body, str) and str(self.value) in body) or (
                isinstance(body, list) and self.value in body
            )
        return _is_same(body, self.value) == (self.comparison == "==")


def _value(text: str) -> Any:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
    return text if isinstance(value, dict | list) else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_same(one: object, two: object) -> bool:
    # To Python True is 1, to people it is not.
    return one == two and isinstance(one, bool) == isinstance(two, bool)
