"""Interpreter: which Python of a server the node runs on, or how it gets one. Pure."""

from typing import Final

from tsbus.build import distros
from tsbus.build.facts import Facts, Python
from tsbus.build.steps import Step
from tsbus.build.trouble import PYTHON_MEND, Trouble

MIN_MINOR: Final = 11
MAX_MINOR: Final = 14
"""Of Python 3: for newer ones there are no wheels yet."""


def choose(facts: Facts) -> Python | None:
    """Return the interpreter for the node; None where none is fit.

    That of the current release, so that nothing changes without need; otherwise one of the distribution, which is
    kept up to date, before others, and the newest of these.
    """
    current = next((each.python for each in facts.releases if each.name == facts.current), "")
    fit = (each for each in facts.pythons if not unfit(each))
    return max(
        fit, key=lambda each: (each.path == current, each.path.startswith("/usr/bin/"), each.version), default=None
    )


def install(facts: Facts) -> tuple[Step, Python] | Trouble:
    """Return how the server gets a fit interpreter, and that one; or that it gets none."""
    why = "; ".join(unfit(each) for each in facts.pythons) or "there is none"
    package, family = distros.python(facts), distros.family_of(facts)
    # One that is there, whole, and unfit all the same would not be better for being installed.
    if (
        package is None
        or family is None
        or any(each.path == package.path and not each.missing for each in facts.pythons)
    ):
        first = distros.PYTHON_SINCE.get(facts.os_id, "") if package is None else ""
        mend = f"its packages have none: upgrade it to {first} or newer, or {PYTHON_MEND}" if first else PYTHON_MEND
        return Trouble("python", f"{facts.os_name or 'it'} has no Python for a node: {why}", mend)
    step = Step(
        "python",
        f"install Python 3.{package.minor} of the distribution",
        why,
        {"package": package.package},
        distros.packages(family, (package.package,)),
        reversible=False,
    )
    return step, Python(package.path, (3, package.minor, 0))


def unfit(python: Python) -> str:
    """Return why a node cannot use an interpreter, "" if it can."""
    major, minor, _ = python.version
    if major != 3 or not MIN_MINOR <= minor <= MAX_MINOR:
        return f"{python.path} is {python.shown}, and 3.{MIN_MINOR} to 3.{MAX_MINOR} can be used"
    if python.implementation != "cpython" or python.abi:
        return f"{python.path} is a {python.implementation} {python.abi}".rstrip()
    if python.bits != 64:
        return f"{python.path} is for {python.bits} bits"
    if python.missing:
        return f"{python.path} lacks {', '.join(python.missing)}"
    return ""
