"""Runs in Salt's own environment: carries out commands for all minions and says how long each took."""

import json
import sys
import time

from salt.client import LocalClient  # type: ignore[import-not-found]


def main() -> None:
    answer_to, sys.stdout = sys.stdout, sys.stderr  # Salt prints what it pleases
    client = LocalClient(sys.argv[1])
    for line in sys.stdin:
        command = json.loads(line)
        start = time.monotonic()
        answers = client.cmd("*", command["function"], command["args"], timeout=30)
        answered = sum(answer is not False for answer in answers.values())
        print(json.dumps({"answered": answered, "seconds": time.monotonic() - start}), file=answer_to, flush=True)


if __name__ == "__main__":
    main()
