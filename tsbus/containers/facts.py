"""Facts: what the engine says (its JSON), as typed values and as records of the bus. Pure."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """One event of the engine's stream."""

    kind: str
    """`container`, `image`, `network` ..."""
    action: str
    """`start`, `die`, `health_status` ...: what stands before a colon."""
    detail: str
    """What stands behind it: `unhealthy`; mostly empty."""
    id: str
    """Of the container, image or network."""
    attributes: dict[str, str]
    time_ns: int
    """By the engine's clock, Unix nanoseconds."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One line of the engine's list of containers: less than an inspection says, and cheap."""

    id: str
    name: str
    state: str
    health: str
    """As `Container.health`; the engine tells it in the text of the status only."""
    networks: dict[str, str] = field(default_factory=dict)
    """Network name -> the container's address in it."""
