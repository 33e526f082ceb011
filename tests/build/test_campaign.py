"""The whole run of a build, on real servers: bare ones become a tree that answers, however often it is cut off."""

import contextlib
import json
import random
import shlex
import shutil
import subprocess
import threading
from collections import Counter
from dataclasses import replace

import pytest
from console_of_tests import Cutter, wait
from sites import Site, hold_packages, let_packages_go

from tsbus.build.lock import PLACE
from tsbus.build.reports import Answered, Entered, Failed, Left, Noted, Opened, Sent, Stepped
from tsbus.build.trouble import WAITING
from tsbus.config import Secret

PASSWORD = "canary-password-6fd1"
PASSPHRASE = "canary-passphrase-8c2e"
CANARIES = (PASSWORD, PASSPHRASE)
PROCESSES = "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep 'canar[y]-pas'"
MADE = "ls -d /opt/treescale /etc/treescale /var/lib/treescale 2>/dev/null"


@pytest.fixture(scope="module")
def site(lab, tmp_path_factory):
    """Three servers: a; below it c, which has no room; below that b, without Python and without systemd.

    The console logs in to a with a password, which sudo wants as well, to b with a key that has a passphrase.
    """
    targets = {"a": lab.target(), "b": lab.target("plain"), "c": lab.target(tmpfs={"/opt": "size=90m"})}
    folder = tmp_path_factory.mktemp("console")
    site = Site(targets, folder, lab.key, {"a": ["c"], "c": ["b"]})
    targets["a"].run(f"echo tree:{PASSWORD} | chpasswd")
    site.entry("a", username="tree", key="", password=Secret(PASSWORD))
    key = folder / "key"
    shutil.copy(lab.key, key)
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", PASSPHRASE, "-f", key], check=True)
    site.entry("b", key=str(key), key_passphrase_env="KEY_PASSPHRASE")
    yield site
    for target in targets.values():
        target.remove()


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """The passphrase is where console.toml says."""
    monkeypatch.setenv("KEY_PASSPHRASE", PASSPHRASE)


def test_bare_servers_become_a_tree_that_answers(site):
    """A run that another console keeps away does nothing; one that is cut off and interrupted is gone on with; a server
    without room holds up no other, and joins when it has room; and then there is nothing left to do."""
    _is_kept_away(site)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    with _behind_proxies(site) as proxies:
        _is_interrupted(site, proxies, random.Random(seed))
        _goes_on_without_c(site, proxies, random.Random(seed))

    site.targets["c"].run("umount /opt")
    outcome = site.build().outcome
    assert (outcome.exit_code, set(outcome.ok), set(outcome.answered)) == (0, set("abc"), set("abc"))
    assert set(outcome.changed) == set("abc"), "the others get to know its key"
    configured = [each.name for each in site.said if isinstance(each, Entered) and each.stage == "configure"]
    assert list(dict.fromkeys(configured)) == ["a", "c", "b"]
    assert {step.data["how"] for step in site.steps("activate")} == {"reload", "start"}

    _passes_events(site)
    _has_nothing_left_to_do(site)
    _keeps_secrets(site)


def _is_kept_away(site):
    root = site.targets["a"]
    who = {"user": "alice", "host": "desk", "pid": 7, "what": "build", "since_s": 1e9}
    root.run(f"mkdir {PLACE}; echo {shlex.quote(json.dumps(who) + ' token')} > {PLACE}/who")
    outcome = site.build().outcome
    assert (outcome.exit_code, outcome.changed) == (6, {})
    assert outcome.locked.startswith("alice@desk (pid 7), build, since 2001-09-")
    assert "".join(site.each(MADE)) == ""
    root.run(f"rm -r {PLACE}")


@contextlib.contextmanager
def _behind_proxies(site):
    """Log in through proxies that cut connections."""
    entries = dict(site.console.ssh)
    proxies = {name: Cutter(target.ip) for name, target in site.targets.items()}
    for name, proxy in proxies.items():
        site.entry(name, host="127.0.0.1", port=proxy.port)
    try:
        yield proxies
    finally:
        for proxy in proxies.values():
            proxy.close()
        site.console.ssh.update(entries)


def _is_interrupted(site, proxies, chance):
    """a is cut off while it gets the bundle; the packages of b are locked at first, and then somebody stops the run."""
    b = site.targets["b"]
    hold_packages(b)
    cut_at, stop_at = chance.randrange(1, 14), chance.randrange(6, 14)
    campaign = site.campaign()
    site.said = list(campaign.look())
    assert "package-lock" in [trouble.kind for trouble in campaign.plans["b"].troubles]
    sent = Counter()
    run = campaign.apply()
    for report in run:
        site.said.append(report)
        if isinstance(report, Noted) and report.text == WAITING:
            let_packages_go(b)
        if isinstance(report, Left):
            assert not "".join(site.each(PROCESSES))
        sent += Counter([report.name] if isinstance(report, Sent) else [])
        if sent["a"] == cut_at:
            proxies["a"].cut()
            cut_at = -1
        if sent["b"] == stop_at:
            break
    run.close()
    site.everything += site.said
    noted = {(each.name, each.text.rpartition(";")[2][:12]) for each in site.said if isinstance(each, Noted)}
    assert noted >= {("b", WAITING[:12]), ("a", " it is tried")}
    wait("no thread works", lambda: not [t for t in threading.enumerate() if t.name.startswith("build-")])
    wait("the lock is free", lambda: site.targets["a"].run(f"test -e {PLACE} || echo free", check=False) == "free")
    assert set(campaign.store.states()) == set("abc")


def _goes_on_without_c(site, proxies, chance):
    """What had come of the bundle need not come again; one more cut comes when something already runs."""
    cut, stage = chance.choice("ab"), chance.choice(["configure", "activate"])
    campaign = site.campaign()
    site.said = list(campaign.look())
    for report in campaign.apply():
        site.said.append(report)
        if isinstance(report, Entered) and (report.name, report.stage) == (cut, stage):
            proxies[cut].cut()
            cut = ""
    site.everything += site.said
    assert all({each.name: each.have for each in reversed(site.said) if isinstance(each, Sent)}.values())
    outcome = campaign.outcome
    assert outcome.failed["c"].kind == "disk"
    assert (outcome.exit_code, outcome.skipped, outcome.root_failed) == (3, {}, False)
    assert "a" in outcome.ok
    assert outcome.waiting == {"b": "c"} or "b" in outcome.answered
    with site.campaign() as mere_look:
        list(mere_look.look())
    assert campaign.store.failed() == ("c",)
    assert site.targets["c"].run(MADE, check=False) == ""


def _passes_events(site):
    listening = "/opt/treescale/current/bin/ts-sub news --count 1 --timeout 60 > /tmp/news 2>&1; echo over >> /tmp/news"
    site.targets["b"].run(f"({listening}) & true")
    root = site.targets["a"]

    def heard():
        root.run("/opt/treescale/current/bin/ts-pub news hello")
        return "over" in site.targets["b"].run("cat /tmp/news")

    wait("b hears of it", heard)
    assert "hello" in site.targets["b"].run("cat /tmp/news; rm /tmp/news")


def _has_nothing_left_to_do(site):
    digests = "sha256sum /etc/treescale/* /var/lib/treescale/* 2>/dev/null; pgrep -f bin/ts-route[r]"
    before = list(site.each(digests))
    outcome = site.build().outcome
    assert (outcome.exit_code, outcome.changed, set(outcome.answered)) == (0, {}, set(site.targets))
    assert not [each for each in site.said if isinstance(each, Stepped | Failed | Sent)]
    assert [each.stage for each in site.said if isinstance(each, Opened)] == ["probe", "verify"]
    outcome = site.build(names=("b",)).outcome
    assert (outcome.exit_code, outcome.changed, set(outcome.answered)) == (0, {}, {"b"})
    assert list(site.each(digests)) == before


def _keeps_secrets(site):
    """No secret is in anything that the runs wrote or said, here or on the servers."""
    for path in site.folder.rglob("*"):
        if path.is_file():
            assert not [canary for canary in CANARIES if canary.encode() in path.read_bytes()], path
    where = "/etc /opt /run /root /home /var /tmp"
    assert not "".join(site.each(f"grep -rlsF canary-pas {where}"))
    assert any(isinstance(each, Answered) for each in site.said)
    assert not any(canary in repr(each) for canary in CANARIES for each in site.everything)


@contextlib.contextmanager
def _faked(target, program, script):
    """A server on which a program lies."""
    target.run(f"printf '%s\\n' '#!/bin/sh' {shlex.quote(script)} > /usr/local/bin/{program}; "
               f"chmod 755 /usr/local/bin/{program}")  # fmt: skip
    try:
        yield
    finally:
        target.run(f"rm /usr/local/bin/{program}")


def test_servers_that_cannot_be_built(lab, server, neighbour, tmp_path):
    """Each has its trouble after one look, the lock is left alone, and nothing is done to any of them."""
    targets = {"late": server, "weak": server, "arm": neighbour, "other": server, "unknown": server}
    site = Site(targets, tmp_path, lab.key)
    site.entry("weak", username="plain")
    site.entry("other", host_key=neighbour.host_key)
    del site.console.ssh["unknown"]
    site.tree.servers["late"] = replace(site.tree.servers["late"], ip="198.18.99.9")
    with _faked(server, "date", '/bin/date -d "5 hours" "$@"'), _faked(neighbour, "uname", "echo armv7l"):
        campaign = site.build()
    kinds = {name: [each.kind for each in plan.troubles if each.fatal] for name, plan in campaign.plans.items()}
    assert kinds == {"late": ["address", "clock"], "weak": ["sudo"], "arm": ["platform"],
                     "other": ["host-key-changed"], "unknown": ["access"]}  # fmt: skip
    outcome = campaign.outcome
    assert (set(outcome.failed), outcome.exit_code, outcome.root_failed) == (set(kinds), 3, True)
    assert server.run(f"ls -d {PLACE} {MADE.split(maxsplit=1)[1]}", check=False) == ""
    assert {name: each.kind for name, each in campaign.store.states().items()} == {
        name: found[0] for name, found in kinds.items()
    }


def test_no_server_can_be_reached(lab, server, tmp_path):
    """That has an exit code of its own, and so there is nothing to plan."""
    site = Site({"a": server, "b": server}, tmp_path, lab.key)
    site.console.ssh.clear()
    campaign = site.build()
    assert campaign.outcome.exit_code == 4
    assert not [plan for plan in campaign.plans.values() if plan.steps]
