"""Conditions of rules: what they compare, and that any text and any body are taken without harm."""

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsbus.core.condition import Condition, ConditionError

BODY = {"level": "high", "load": 0.5, "up": True, "ports": [80, 443], "container": {"exit_code": 137, "name": "a b"}}


@pytest.mark.parametrize(
    "text",
    [
        "level == high", 'level == "high"', "level != low", "level contains ig", "load < 1", "load>=0.5", "up == true",
        "ports contains 443", "container.exit_code != 0", "container.exit_code > 136", "container.name == a b",
    ],
)  # fmt: skip
def test_a_condition_holds_where_the_body_says_so(text):
    """A field is found by its keys, and compared as its own kind."""
    assert Condition.parse(text).holds(BODY)


@pytest.mark.parametrize(
    "text",
    [
        "level == low", "load > 1", "level > 1", "up == 1", "up < 2", "missing == 1", "missing != 1", "level.deep == 1",
        "ports contains 8", "container.exit_code == 137.5", 'load == "0.5"',
    ],
)  # fmt: skip
def test_a_condition_does_not_hold_elsewhere(text):
    """Another value, another kind and a missing field fulfil nothing."""
    assert not Condition.parse(text).holds(BODY)


@pytest.mark.parametrize(
    "text", ["", "level", "level = high", "== 1", "level ==", "load > much", "a b == 1", "x" * 600]
)
def test_what_is_no_condition_says_how_one_is_written(text):
    """The error shows the form, or what cannot be compared."""
    with pytest.raises(ConditionError, match=r"write FIELD == VALUE|compares numbers"):
        Condition.parse(text)


@settings(max_examples=200)
@given(st.text(max_size=40), st.binary(max_size=60))
def test_no_text_and_no_body_does_harm(text, body):
    """Any text is a condition or an error, and any body either fulfils it or does not."""
    told: object = None
    with contextlib.suppress(msgspec.DecodeError):
        told = msgspec.json.decode(body)
    with contextlib.suppress(ConditionError):
        assert Condition.parse(text).holds(told) in (True, False)
    assert Condition.parse("a == 1").holds(told) == (isinstance(told, dict) and told.get("a") == 1)
