"""A client process: opens one client class of a contestant and obeys the harness.

Run as `python -m bench.client MODULE KIND ENDPOINT CONNECTIONS`. Commands come as JSON lines on stdin, answers leave
as JSON lines on stdout; the process lives until it is killed, so that the harness can read its counters at the end.
Times are of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any


def say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def obey(client: Any, command: dict[str, Any]) -> None:
    start = time.monotonic()
    match command:
        case {"send": count, "size": size}:
            client.send(count, b"x" * size)
            say(start=start, end=time.monotonic())
        case {"stream_s": seconds, "size": size}:
            body, sent = b"x" * size, 0
            while time.monotonic() < start + seconds:
                client.send(500, body)
                sent += 500
            say(sent=sent, seconds=time.monotonic() - start)
        case {"receive": each, "size": size, "silence_s": silence_s}:
            received = client.receive(each, size, silence_s)
            say(received=received, end=time.monotonic())
        case {"ask_s": seconds, "size": size}:
            say(latencies=client.ask(seconds, b"x" * size))


def main() -> None:
    module, kind, endpoint, connections = sys.argv[1:]
    opened = getattr(importlib.import_module(module), kind)
    client = opened(endpoint, int(connections)) if kind in ("Publisher", "Subscriber") else opened(endpoint)
    say(ready=True)
    if kind == "Answerer":
        client.serve()
    for line in sys.stdin:
        try:
            obey(client, json.loads(line))
        except Exception as error:  # the harness decides: no responders yet is normal, later it is a failure
            say(error=repr(error))


if __name__ == "__main__":
    main()
