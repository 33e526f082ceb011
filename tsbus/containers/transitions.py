"""Transitions: what followers must be told so that the container they know becomes the one there is. Pure.

A run of a container is known by the time of its start, which the engine gives no second run: so what an inspection says
can be compared with what events said, in whatever order the two arrive. monitor.py decides when.
"""

from dataclasses import dataclass
from typing import Final, Literal, cast

from msgspec.structs import replace

from tsbus.containers.facts import EngineEvent, Summary
from tsbus.records import Action, Container, Endpoint, Health, Image, State

_ENDED: Final = ("exited", "removing", "dead")
_SIGKILL: Final = 9


@dataclass(frozen=True, slots=True)
class Step:
    """One transition of one container."""

    action: Action
    container: Container
    """After it."""
    time_ns: int
    """By the engine's clock; 0 where the engine does not tell."""
    was: str = ""
    signal: int = 0


def is_alive(container: Container) -> bool:
    """Tell whether it has processes."""
    return container.state in ("running", "paused")


def begun(container: Container, started_ns: int) -> Container:
    """Return `container` as it was when its run began at `started_ns`, whatever has become of it since."""
    return replace(
        container,
        state="running",
        health="starting" if container.health else "",
        draining=False,
        started_ns=started_ns,
        exit_code=None,
        oom=False,
    )


def ended(container: Container, exit_code: int | None, finished_ns: int, state: State = "exited") -> Container:
    """Return `container` after its end: its addresses are free for others."""
    return replace(
        _without_addresses(container),
        state=state,
        draining=False,
        exit_code=exit_code,
        finished_ns=finished_ns,
    )


def unstarted(container: Container) -> Container:
    """Return `container` as it was before its first start."""
    return replace(
        _without_addresses(container),
        state="created",
        health="starting" if container.health else "",
        draining=False,
        started_ns=0,
        finished_ns=0,
        exit_code=None,
        oom=False,
        restarts=0,
    )


def _without_addresses(container: Container) -> Container:
    ports = dict.fromkeys((one.protocol, one.port, one.network) for one in container.endpoints)
    return replace(
        container,
        pid=0,
        endpoints=tuple(Endpoint(protocol=protocol, port=port, network=network) for protocol, port, network in ports),
        networks=dict.fromkeys(container.networks, ""),
    )


def made_of(event: EngineEvent) -> Container:
    """Return what the event itself tells of a container that was gone before anybody could ask."""
    labels = {key: text for key, text in event.attributes.items() if key not in ("image", "name")}
    return Container(
        id=event.id,
        name=event.attributes.get("name", event.id[:12]),
        image=Image(given=event.attributes.get("image", "")),
        state="created",
        labels=labels,
        created_ns=event.time_ns,
    )


def step_of(event: EngineEvent, known: Container, *, stopped: bool) -> Step | None:
    """Return what an event changes that needs no inspection; None if it is known, or changes nothing.

    `stopped`: somebody wanted the present run to end.
    """
    time_ns, alive = event.time_ns, is_alive(known)
    match event.action:
        case "die" if alive:
            exit_code = _number(event.attributes.get("exitCode"))
            return Step("died", ended(known, exit_code, time_ns, state_after(known, exit_code, stopped)), time_ns)
        case "oom" if not known.oom:
            return Step("oom", replace(known, oom=True), time_ns)
        case "pause" if known.state == "running":
            return Step("paused", replace(known, state="paused"), time_ns)
        case "unpause" if known.state == "paused":
            return Step("unpaused", replace(known, state="running"), time_ns)
        case "health_status" if alive and event.detail != known.health:
            health = cast(Health, event.detail if event.detail in ("starting", "healthy", "unhealthy") else "")
            return Step(health_action(health) or "changed", replace(known, health=health), time_ns)
        case "kill" if alive and _signal(event) == known.stop_signal != _SIGKILL:
            return Step("draining", replace(known, draining=True), time_ns, signal=known.stop_signal)
        case "rename" if event.attributes.get("oldName", "").lstrip("/") == known.name:
            name = event.attributes.get("name", known.name)
            return Step("renamed", replace(known, name=name), time_ns, was=known.name)
        case "destroy":
            return Step("destroyed", known, time_ns)
    return None


def is_stop(event: EngineEvent, known: Container) -> bool:
    """Tell whether an event is a signal that is to end the present run."""
    return event.action == "kill" and is_alive(known) and _signal(event) in (known.stop_signal, _SIGKILL)


def _signal(event: EngineEvent) -> int:
    return _number(event.attributes.get("signal")) or _SIGKILL


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None


def state_after(container: Container, exit_code: int | None, stopped: bool) -> State:
    """Return the state that its restart policy leads to when it ends; `stopped`: somebody wanted it to."""
    policy, _, most = container.restart_policy.partition(":")
    if stopped or policy in ("", "no"):
        return "exited"
    if policy != "on-failure":
        return "restarting"
    return "restarting" if exit_code and (not most.isdigit() or container.restarts < int(most)) else "exited"


def refreshed(known: Container, seen: Container) -> Container:
    """Return `known` with what an inspection says beside state and name, which follow the events.

    Addresses only if it is still the same run.
    """
    if not (is_alive(known) and is_alive(seen) and known.started_ns == seen.started_ns):
        networks = {name: known.networks.get(name, "") for name in seen.networks}
        seen = replace(seen, endpoints=known.endpoints, networks=networks, pid=known.pid)
    return replace(
        seen,
        name=known.name,
        state=known.state,
        health=known.health,
        draining=known.draining,
        started_ns=known.started_ns,
        finished_ns=known.finished_ns,
        exit_code=known.exit_code,
        oom=known.oom,
        restarts=known.restarts,
    )


def differs(known: Container, listed: Summary) -> bool:
    """Tell whether a line of the engine's list contradicts what is known."""
    if known.name != listed.name or _group(known.state) != _group(listed.state):
        return True
    return is_alive(known) and (known.health != listed.health or known.networks != listed.networks)


def _group(state: str) -> str:
    return "exited" if state in _ENDED else state


def first_steps(seen: Container, *, whole_life: bool) -> list[Step]:
    """Return the transitions that introduce a container; without `whole_life` one that has ended is only shown."""
    if not (is_alive(seen) or (whole_life and seen.started_ns)):
        return [Step("created", seen, seen.created_ns)]
    known = unstarted(seen)
    return [Step("created", known, seen.created_ns), *steps_between(known, seen)]


def steps_between(known: Container, seen: Container, *, guessed: bool = False, settled: bool = False) -> list[Step]:
    """Return the transitions from what followers know to what an inspection saw; none if it saw nothing new.

    `guessed`: the start of the known run is the time of its event, so a start shortly before it is the same run.
    `settled`: nothing has been heard of the container for long.
    """
    steps: list[Step] = []
    same_run = seen.started_ns in (0, known.started_ns) or (guessed and seen.started_ns <= known.started_ns)
    if same_run and is_alive(seen) and not is_alive(known):
        if settled:
            same_run = False  # so an end was told that was none
        else:
            # The engine tells of an end before it notes it: what it says of the state is older than what we know.
            seen = replace(known, name=seen.name)
    if seen.name != known.name:
        steps.append(Step("renamed", replace(known, name=seen.name), 0, was=known.name))
        known = steps[-1].container
    if not same_run:
        if is_alive(known):
            # Of that run nothing is left to ask for but, while the next one lasts, the time of its end.
            finished_ns = seen.finished_ns if is_alive(seen) else seen.started_ns
            steps.append(Step("died", ended(known, None, finished_ns), finished_ns))
            known = steps[-1].container
        known = replace(begun(seen, seen.started_ns), finished_ns=known.finished_ns)
        steps.append(Step("started", known, seen.started_ns))
    if is_alive(known) and not is_alive(seen):
        steps.append(Step("died", seen, seen.finished_ns))
        return steps
    if is_alive(known):
        steps += _steps_of_a_run(known, seen)
    last = steps[-1].container if steps else known
    if not _looks_equal(last, seen):
        oom = known.oom if is_alive(seen) else seen.oom
        steps.append(Step("changed", replace(seen, draining=known.draining, oom=oom), 0))
    return steps


def _steps_of_a_run(known: Container, seen: Container) -> list[Step]:
    steps: list[Step] = []
    # Not `oom`: while a container runs, some engines still show that of the run before.
    now = replace(seen, state=known.state, health=known.health, oom=known.oom, draining=known.draining)
    if seen.health != known.health and (verdict := health_action(seen.health)):
        now = replace(now, health=seen.health)
        steps.append(Step(verdict, now, 0))
    if seen.state != known.state:
        now = replace(now, state=seen.state)
        steps.append(Step("paused" if seen.state == "paused" else "unpaused", now, 0))
    return steps


def health_action(health: Health) -> Literal["healthy", "unhealthy"] | None:
    """Return the transition that a new verdict of the health check is; None for one that is no verdict."""
    return health if health in ("healthy", "unhealthy") else None


def _looks_equal(known: Container, seen: Container) -> bool:
    """Tell whether followers would see no difference: times of events and of inspections differ by milliseconds."""
    alike = replace(
        seen, draining=known.draining, started_ns=known.started_ns, finished_ns=known.finished_ns, oom=known.oom
    )
    if not is_alive(known):
        alike = replace(
            alike,
            state=known.state if _group(known.state) == _group(seen.state) else seen.state,
            health=known.health,
            exit_code=known.exit_code,
            endpoints=known.endpoints,
            networks=known.networks,
        )
    return alike == known
