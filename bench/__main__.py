"""The command line: picks a scenario, interleaves its contestants, prints a table, writes JSON.

`python -m bench throughput --rounds 3 --json out.json`; `--only nats,zmq.proxy` limits the contestants.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import platform
import signal
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.harness import BenchError
from bench.scenarios import SCENARIOS, Figures, Scenario

CONTESTANTS = {
    "ours": "bench.ours:Ours",
    "ours-crowd": "bench.ours_crowd:OursCrowd",
    "ours-forest": "bench.ours_crowd:OursForest",
    "ours-stopped": "bench.ours_promises:OursStopped",
    "ours-commands": "bench.ours_promises:OursCommands",
    "ours-container-events": "bench.ours_container_news:OursContainerEvents",
    "ours-container-list": "bench.ours_container_news:OursContainerList",
    "ours-ssh": "bench.ssh:OursSsh",
    "ours-slow": "bench.ssh:OursSlow",
    "openssh": "bench.ssh:OpenSsh",
    "ours-build": "bench.provision:OursBuild",
    "pyinfra": "bench.provision:Pyinfra",
    "ansible": "bench.provision:Ansible",
    "nftables": "bench.balancer:Nftables",
    "ipvs-uml": "bench.balancer:IpvsInGuest",
    "nftables drain": "bench.balancer:NftablesDrain",
    "nftables stop": "bench.balancer:NftablesPlain",
    "nftables kill": "bench.balancer:NftablesKill",
    "ipvs-uml drain": "bench.balancer:IpvsDrain",
    "ipvs-uml stop": "bench.balancer:IpvsPlain",
    "ipvs-uml kill": "bench.balancer:IpvsKill",
    "swarm-uml stop": "bench.balancer:SwarmPlain",
    "swarm-uml scale": "bench.balancer:SwarmScale",
    "ours-dashboard": "bench.dashboard:OursDashboard",
    "ours-dashboard-pages": "bench.dashboard_pages:OursDashboardPages",
    "nobody": "bench.watchers:Nobody",
    "ours-statistics": "bench.watchers:OursStatistics",
    "ours-monitor": "bench.watchers:OursMonitor",
    "ours-unwatched": "bench.watchers:OursUnwatched",
    "docker-stats": "bench.watchers:DockerStats",
    "docker-py": "bench.watchers:DockerPy",
    "glances": "bench.watchers:Glances",
    "zmq.proxy": "bench.peers.zmqproxy:ZmqProxy",
    "zmq.proxy-1frame": "bench.peers.zmqproxy_1frame:ZmqProxy1Frame",
    "nats": "bench.peers.nats:Nats",
    "redis": "bench.peers.redis:Redis",
    "mosquitto": "bench.peers.mosquitto:Mosquitto",
    "salt": "bench.peers.salt:Salt",
    "serf": "bench.peers.serf:Serf",
}


def load(name: str) -> Any:
    module, _, kind = CONTESTANTS[name].partition(":")
    return getattr(importlib.import_module(module), kind)()


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), "unknown")
    return {
        "cores": os.cpu_count(),
        "model": model,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],  # what others did to this machine before we began
    }


def run(scenario: Scenario, names: Sequence[str], rounds: int) -> dict[str, list[Figures]]:
    """Measure A B C A B C, so that a change in the machine's load meets all contestants alike."""
    results: dict[str, list[Figures]] = {name: [] for name in names}
    for number in range(rounds if scenario.restarts else 1):
        for name in names:
            print(f"  round {number + 1}: {name}", file=sys.stderr)
            try:
                results[name].append(scenario.measure(load(name)))
            except (BenchError, ImportError, FileNotFoundError) as error:
                print(f"{name} has no figure in round {number + 1} (bench/setup run?): {error}", file=sys.stderr)
    return {name: figures for name, figures in results.items() if figures}


def medians(results: dict[str, list[Figures]]) -> dict[str, Figures]:
    return {
        name: {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}
        for name, rounds in results.items()
    }


def number_text(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.2f}"


def table(middle: dict[str, Figures], compare: Sequence[str], baseline: str) -> str:
    """One line per contestant; each compared figure is followed by its ratio to the baseline's."""
    keys = list(dict.fromkeys(key for figures in middle.values() for key in figures))
    header, rows = [""], [[name] for name in middle]
    for key in keys:
        header.append(key)
        compared = key in compare and key in middle.get(baseline, {})
        if compared:
            header.append(f"/ {baseline}")
        for row, figures in zip(rows, middle.values(), strict=True):
            row.append(number_text(figures[key]) if key in figures else "-")
            if compared:
                row.append(f"{figures[key] / middle[baseline][key]:.2f}" if key in figures else "-")
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (header, *rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("name", choices=[*SCENARIOS, "all"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=lambda text: text.split(","), help="contestants, by comma")
    parser.add_argument("--baseline", default="nats", help="whose figures the ratios are taken to (default nats)")
    parser.add_argument("--json", type=Path, help="write every round's figures to this file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the fleet is closed

    report: dict[str, Any] = {"machine": machine(), "scenarios": []}
    print(" · ".join(f"{key} {value}" for key, value in report["machine"].items()))
    wanted = list(SCENARIOS) if options.name == "all" else [options.name]
    for scenario in itertools.chain.from_iterable(SCENARIOS[name] for name in wanted):
        names = [name for name in scenario.contestants if not options.only or name in options.only]
        results = run(scenario, names, options.rounds)
        middle = medians(results)
        versions = {name: load(name).version() for name in middle}
        baseline = options.baseline if options.baseline in middle else next(reversed(middle), "")
        print(f"\n{scenario.title} (median of {options.rounds})\n{table(middle, scenario.compare, baseline)}")
        print("".join(f"  {name}: {text}\n" for name, text in versions.items()), end="")
        report["scenarios"].append(
            {"title": scenario.title, "versions": versions, "medians": middle, "rounds": results}
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
