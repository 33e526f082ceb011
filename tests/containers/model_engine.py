"""An engine in memory: containers that live as Docker's do, with its order of events and its odd moments.

What followers should be told is written down as it happens: `told`.
"""

from dataclasses import dataclass, field

from msgspec.structs import replace

from tsbus.containers.facts import EngineEvent, Summary
from tsbus.records import Container, Endpoint, Image

MS = 1_000_000
START_NS = 1_700_000_000_000 * MS


@dataclass
class Life:
    """One container and what the engine has not noted yet."""

    seen: Container
    """As an inspection shows it."""
    end: Container | None = None
    """As it will show it: the engine tells of an end before it notes it."""
    stopped: bool = False
    draining: bool = False
    oom: bool = False
    told: list[tuple[str, object]] = field(default_factory=list)


class ModelEngine:
    """Makes containers live. Methods do nothing where Docker would refuse."""

    def __init__(self, keep: int) -> None:
        """`keep`: so many events are kept for a new stream."""
        self.lives: dict[str, Life] = {}
        self.told: dict[str, list[tuple[str, object]]] = {}
        """Of every container that ever was: what followers of an engine that is never lost sight of are told."""
        self.log: list[EngineEvent] = []
        self.kept: list[EngineEvent] = []
        self._keep = keep
        self.now_ns = START_NS
        self._made = 0

    # What happens -----------------------------------------------------------------------------------------------------

    def create(self, policy: str = "", checked: bool = False) -> None:
        """`docker create`."""
        self._made += 1
        id_ = f"{self._made:064x}"
        seen = Container(
            id=id_,
            name=f"c{self._made}",
            image=Image(given="nginx"),
            state="created",
            health="starting" if checked else "",
            networks={"bridge": ""},
            endpoints=(Endpoint(port=80, network="bridge"),),
            created_ns=self._pass(),
            restart_policy=policy,
        )
        self.lives[id_] = life = Life(seen)
        self.told[id_] = life.told
        self._emit(id_, "create", tell=("created", seen.name))

    def start(self, id_: str, quick: int | None = None) -> None:
        """`docker start`; with `quick` it ends with that code before the engine tells that it has started."""
        life = self._ready(id_)
        if life.seen.state in ("running", "paused"):
            return
        again = life.seen.state == "restarting"
        seen = replace(
            life.seen,
            state="running",
            health="starting" if life.seen.health else "",
            started_ns=self._pass(),
            exit_code=None,
            oom=False,
            pid=self._made + 1000,
            restarts=life.seen.restarts + 1 if again else 0,
            networks=dict.fromkeys(life.seen.networks, f"172.17.0.{self.now_ns // MS % 250}"),
            endpoints=(Endpoint(port=80, ip=f"172.17.0.{self.now_ns // MS % 250}", network="bridge"),),
        )
        life.seen, life.stopped, life.draining, life.oom = seen, False, False, False
        self._emit_network(id_, "connect")
        if quick is None:
            self._emit(id_, "start", tell=("started", None))
        else:
            finished_ns = self._pass()
            self._emit(id_, "start", tell=("started", None))
            self._end(life, quick, finished_ns)
            self._note_end(life)

    def finish(self, id_: str, exit_code: int) -> None:
        """The program ends by itself, or by a signal."""
        life = self._ready(id_)
        if life.seen.state in ("running", "paused"):
            self._end(life, exit_code, self._pass())

    def _end(self, life: Life, exit_code: int, finished_ns: int) -> None:
        seen = life.seen
        policy = seen.restart_policy
        restarts = not life.stopped and (policy == "always" or (policy == "on-failure" and exit_code != 0))
        life.end = replace(
            seen,
            state="restarting" if restarts else "exited",
            pid=0,
            exit_code=exit_code,
            oom=life.oom,
            finished_ns=finished_ns,
            networks=dict.fromkeys(seen.networks, ""),
            endpoints=(Endpoint(port=80, network="bridge"),),
        )
        self._emit(seen.id, "die", exitCode=str(exit_code), tell=("died", exit_code))
        self._emit_network(seen.id, "disconnect")

    def kill(self, id_: str, signal: int) -> None:
        """`docker kill`; the program may live on."""
        life = self._ready(id_)
        if life.seen.state not in ("running", "paused"):
            return
        life.stopped = life.stopped or signal in (9, life.seen.stop_signal)
        tell = None
        if signal == life.seen.stop_signal and not life.draining:
            life.draining, tell = True, ("draining", signal)
        self._emit(id_, "kill", signal=str(signal), tell=tell)

    def pause(self, id_: str) -> None:
        """`docker pause`, or `unpause` of one that is."""
        life = self._ready(id_)
        if life.seen.state == "running":
            life.seen = replace(life.seen, state="paused")
            self._emit(id_, "pause", tell=("paused", None))
        elif life.seen.state == "paused":
            life.seen = replace(life.seen, state="running")
            self._emit(id_, "unpause", tell=("unpaused", None))

    def judge(self, id_: str) -> None:
        """The health check changes its mind."""
        life = self._ready(id_)
        if life.seen.state == "running" and life.seen.health:
            verdict = "unhealthy" if life.seen.health == "healthy" else "healthy"
            life.seen = replace(life.seen, health=verdict)
            self._emit(id_, "health_status", detail=verdict, tell=(verdict, None))

    def run_out_of_memory(self, id_: str) -> None:
        """The kernel kills a process in it."""
        life = self._ready(id_)
        if life.seen.state == "running":
            tell = None if life.oom else ("oom", None)
            life.oom = True
            self._emit(id_, "oom", tell=tell)

    def rename(self, id_: str) -> None:
        """`docker rename`."""
        life = self._ready(id_)
        old, new = life.seen.name, f"r{self._pass() // MS}"
        life.seen = replace(life.seen, name=new)
        self._emit(id_, "rename", oldName=f"/{old}", tell=("renamed", new))

    def limit(self, id_: str) -> None:
        """`docker update`."""
        life = self._ready(id_)
        life.seen = replace(life.seen, memory_limit=self._pass())
        self._emit(id_, "update")

    def join(self, id_: str) -> None:
        """`docker network connect`."""
        life = self._ready(id_)
        if life.seen.state == "running" and len(life.seen.networks) < 3:
            life.seen = replace(life.seen, networks={**life.seen.networks, f"n{self._pass()}": "10.0.0.2"})
            self._emit_network(id_, "connect")

    def remove(self, id_: str) -> None:
        """`docker rm`, for one that has ended."""
        life = self._ready(id_)
        if life.seen.state not in ("running", "paused"):
            del self.lives[id_]
            self._emit_as(life.seen, "destroy", {})
            life.told.append(("destroyed", None))

    def probe(self, id_: str) -> None:
        """A health check or somebody's exec: events that mean nothing."""
        self._emit(id_, "exec_start", detail=" /bin/true")

    def settle(self) -> None:
        """Note all ends that were told."""
        for life in self.lives.values():
            self._note_end(life)

    def die(self) -> None:
        """`kill -9` of the engine: what ran is gone when it is back, and nobody was told."""
        self.settle()
        for life in self.lives.values():
            if life.seen.state in ("running", "paused", "restarting"):
                self._end(life, 137, self._pass())
                life.end = replace(life.end, state="exited")
                self._note_end(life)
        self.log.clear()
        self.kept.clear()

    # What it answers --------------------------------------------------------------------------------------------------

    def inspect(self, id_: str) -> Container | None:
        """What an inspection says at this moment."""
        life = self.lives.get(id_)
        return life.seen if life else None

    def list(self) -> list[Summary]:
        """What `docker ps -a` says at this moment."""
        return [
            Summary(
                seen.id,
                seen.name,
                seen.state,
                seen.health if seen.state in ("running", "paused") else "",
                seen.networks,
            )
            for seen in (life.seen for life in self.lives.values())
        ]

    def _ready(self, id_: str) -> Life:
        life = self.lives[id_]
        self._note_end(life)
        return life

    def _note_end(self, life: Life) -> None:
        if life.end is not None:
            life.seen, life.end, life.draining = life.end, None, False

    def _pass(self) -> int:
        self.now_ns += MS
        return self.now_ns

    def _emit(
        self, id_: str, action: str, detail: str = "", tell: tuple[str, object] | None = None, **more: str
    ) -> None:
        life = self.lives[id_]
        self._emit_as(life.seen, action, more, detail)
        if tell is not None:
            life.told.append(tell)

    def _emit_as(self, seen: Container, action: str, more: dict[str, str], detail: str = "") -> None:
        attributes = {"name": seen.name, "image": seen.image.given, **more}
        self._say(EngineEvent("container", action, detail, seen.id, attributes, self._pass()))

    def _emit_network(self, id_: str, action: str) -> None:
        attributes = {"name": "bridge", "type": "bridge", "container": id_}
        self._say(EngineEvent("network", action, "", "f" * 64, attributes, self._pass()))

    def _say(self, event: EngineEvent) -> None:
        self.log.append(event)
        self.kept = [*self.kept, event][-self._keep :] if self._keep else []
