"""Roles: how much a caller may do. One ordered scale, so that a check is one comparison.

Used by the configuration (who has which role), the router (stamps the caller's role at ingress, protocol 4.3) and
workers (each command names the role it requires).
"""

from enum import IntEnum


class Role(IntEnum):
    """What a caller may do; a higher role includes the lower ones."""

    NONE = 0
    """Not even connect."""
    OBSERVE = 1
    """Subscribe, ask for status and statistics."""
    OPERATE = 2
    """Publish, and call commands that change things as the node's policy allows."""
    ADMIN = 3
    """Everything."""

    @classmethod
    def parse(cls, text: str) -> "Role":
        """Return the role called `text` ("observe", "operate", "admin", "none"). Raises ValueError for others."""
        try:
            return cls[text.upper()]
        except KeyError:
            names = ", ".join(role.name.lower() for role in cls)
            raise ValueError(f"no role named {text!r}; the roles are {names}") from None
