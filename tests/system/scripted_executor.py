"""A stand-in for the executor that plays a script instead of running programs, so that every outcome can be had."""

import asyncio
import json

from tsbus import CommandError, Outcome, RefusedError, Request, Worker

worker = Worker("exec")


@worker.command("run")
async def run(call: Request) -> None:
    """Play the argument vector: `out TEXT`, `err TEXT`, `exit CODE`, `cat`, `refuse`, `fail`, `hang`.

    A word like `hang@b1` is for the node b1 only.
    """
    words = iter(call.json()["argv"])
    code = 0
    for word in words:
        verb, _, node = word.partition("@")
        argument = next(words) if verb in ("out", "err", "exit") else ""
        if node not in ("", call.node):
            continue
        match verb:
            case "out" | "err":
                await call.send(argument.encode(), second=verb == "err")
            case "exit":
                code = int(argument)
            case "cat":
                async for chunk in call.input:
                    await call.send(chunk)
            case "refuse":
                raise RefusedError("the policy says no")
            case "fail":
                raise CommandError("no such program")
            case "hang":
                await asyncio.sleep(3600)
    facts = {"exit": code, "signal": None, "duration_ms": 1, "truncated": False}
    call.end(Outcome.FAILED if code else Outcome.OK, json.dumps(facts).encode())


@worker.command("kinds")
async def kinds(call: Request):
    """Answer with each kind of body, one after the other."""
    yield "text\n"
    yield {"json": [1, 2]}
    yield b"\xff\x00"


if __name__ == "__main__":
    worker.run()
