"""Logs: one line an event, its name and its fields, on stderr; the supervisor keeps the files.

People at a terminal get text, machines get JSON. Nothing in tsbus.core logs: it returns facts, and the edge logs them.
"""

import json
import logging
import sys
import time
from typing import Any

MAX_TEXT = 2000
"""Characters of a field that are logged: the text may be another's, and a megabyte long."""

_LOGGER = logging.getLogger("tsbus")


class Log:
    """Logger of one component; every call takes an event name and fields: `log.info("link.up", node="a")`."""

    def __init__(self, component: str) -> None:
        self._component = component

    def debug(self, event: str, **fields: Any) -> None:
        """Log what only a developer wants."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Log what an operator wants to find."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Log what an operator should look at."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Log what does not work."""
        self._log(logging.ERROR, event, fields)

    def _log(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if _LOGGER.isEnabledFor(level):
            fields = {name: value[:MAX_TEXT] if isinstance(value, str) else value for name, value in fields.items()}
            _LOGGER.log(level, event, extra={"component": self._component, "fields": fields})


class _Formatter(logging.Formatter):
    def __init__(self, *, text: bool) -> None:
        super().__init__()
        self._text = text

    def format(self, record: logging.LogRecord) -> str:
        component = getattr(record, "component", record.name)
        fields = dict(getattr(record, "fields", {}))
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if self._text:
            shown = " ".join(f"{name}={value}" for name, value in fields.items())
            clock = time.strftime("%H:%M:%S", time.localtime(record.created))
            return f"{clock}.{int(record.msecs):03d} {record.levelname.lower():7} {component}: {record.getMessage()} {shown}".rstrip()  # noqa: E501
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "component": component,
            "event": record.getMessage(),
            **fields,
        }
        return json.dumps(line, default=str)


def setup(level: str = "info") -> None:
    """Send logs to stderr, once for a process; `level`: debug, info, warning or error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(text=sys.stderr.isatty()))
    _LOGGER.handlers[:] = [handler]
    _LOGGER.propagate = False
    _LOGGER.setLevel(level.upper())


def adopt(package: str) -> None:
    """Let an outside package that logs by itself do so as we do, from warnings on."""
    logger = logging.getLogger(package)
    logger.handlers[:] = _LOGGER.handlers
    logger.propagate = False
    logger.setLevel(logging.WARNING)
