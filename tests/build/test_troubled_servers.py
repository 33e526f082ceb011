"""Eight servers, seven of which have one trouble each: every one is told on its own line, and holds up no other."""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from console_of_tests import Cutter
from sites import Site, hold_packages, let_packages_go
from targets import PASSWORD, Lab

from tsbus.build import distros
from tsbus.build.course import Outcome
from tsbus.build.reports import Failed, Noted
from tsbus.cli.build.summary import summary_lines
from tsbus.config import Secret

GOOD = "root"
TROUBLES = {
    "changed": ("host-key-changed", "has another host key than before", "ssh-keygen -R"),
    "full": ("disk", "150 MB are needed in /opt, and ", "make room there"),
    "locked": ("package-lock", "another program has held the package lock for too long", "wait until it is done"),
    "old": ("python", "has no Python for a node: there is none", "install Python 3.11 or newer"),
    "wrong": ("authentication", "does not let us in: ", "check username, key, passphrase and password"),
    "plain": ("sudo", "plain is not in the sudoers file", "the sudoers there"),
    "cut": ("lost", "was lost (", "build again: it goes on from what is done"),
}
"""Server -> its kind of trouble, what is said of it, what is to be done."""
TOUCHED = "ls -d /opt/treescale /etc/treescale /var/lib/treescale 2>/dev/null"
ACTIVE = (
    "ls -d /opt/treescale/current /etc/treescale/treescale.toml /etc/systemd/system/treescale.service 2>/dev/null; "
    "pgrep -f 'bin/ts-route[r]'"
)
MADE_OLD = "cp /etc/os-release /run/was; sed -i 's/^VERSION_ID=.*/VERSION_ID=\"11\"/' /etc/os-release"
MOST_BYTES = 200_000
"""To a server at a time, before it is cut off; a bundle has millions, and there are three tries."""


class Troubled:
    """The servers, a console that builds them, and their troubles."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        kinds = {"locked": "bare", "old": "bare"}
        names = (GOOD, *TROUBLES)
        full = names.index("full")
        targets = lab.targets(*(kinds.get(name, "python") for name in names if name != "full"))
        targets.insert(full, lab.target(tmpfs={"/opt": "size=90m"}))
        self.targets = dict(zip(names, targets, strict=True))
        self.site = Site(self.targets, folder, lab.key, {GOOD: list(TROUBLES)})
        self.known_hosts = folder / ".ssh/known_hosts"
        self.known_hosts.parent.mkdir()
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")
        self._chance = random.Random(seed)
        self._proxy = Cutter(self.targets["cut"].ip)
        hold_packages(self.targets["locked"])
        self.targets["old"].run(MADE_OLD)
        self._know("changed", self.targets[GOOD].host_key)
        self.site.entry("changed", host_key="")
        self.site.entry("wrong", username="tree", key="", password=Secret("another-password"))
        self.site.entry("plain", username="plain", password=Secret(PASSWORD))
        self.site.entry("cut", host="127.0.0.1", port=self._proxy.port)

    def build(self) -> Outcome:
        """Build all of them; `cut` is cut off at a random moment of each try."""
        campaign = self.site.campaign()
        self.site.said = []
        self._cut_soon()
        for run in (campaign.look, campaign.apply):
            for report in run():
                self.site.said.append(report)
                if isinstance(report, Noted) and report.name == "cut" and "tried again" in report.text:
                    self._cut_soon()
        return campaign.outcome

    def make_room(self) -> None:
        """End that of the full disk."""
        self.targets["full"].run("umount /opt; true")

    def mend_all(self) -> None:
        """End all troubles."""
        self.make_room()
        self._know("changed", self.targets["changed"].host_key)
        let_packages_go(self.targets["locked"])
        self.targets["old"].run("mv /run/was /etc/os-release")
        self.site.entry("wrong", password=Secret(PASSWORD))
        self.site.entry("plain", username="free", password=Secret())
        self._proxy.close()
        self.site.entry("cut", host=self.targets["cut"].ip, port=22)

    def active(self) -> dict[str, str]:
        """Return what each has of a node in use; only those that have something."""
        return {name: found for name, each in self.targets.items() if (found := each.run(ACTIVE, check=False))}

    def end(self) -> None:
        """Remove them."""
        self._proxy.close()
        Lab.remove(self.targets.values())

    def _know(self, name: str, key: str) -> None:
        self.known_hosts.write_text(f"{self.targets[name].ip} {key}\n")

    def _cut_soon(self) -> None:
        # As likely in a login as in an upload, which has a thousand times its bytes.
        self._proxy.cut_after = self._proxy.sent + int(MOST_BYTES ** self._chance.random())


@pytest.fixture(scope="module")
def troubled(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Troubled]:
    """The servers, on a console that has nothing else to log in with, and no patience with package locks."""
    folder = tmp_path_factory.mktemp("console")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        patch.setattr(distros, "LOCK_S", 1)
        troubled = Troubled(lab, folder)
        yield troubled
        troubled.end()


@pytest.fixture(scope="module")
def outcome(troubled: Troubled) -> Outcome:
    """How the first run has ended."""
    return troubled.build()


def test_each_trouble_is_told_once_with_its_mend(troubled: Troubled, outcome: Outcome) -> None:
    """Each server fails once, by its kind, and has one line in the summary, with the next step below."""
    assert {name: trouble.kind for name, trouble in outcome.failed.items()} == _kinds()
    assert Counter(each.name for each in troubled.site.said if isinstance(each, Failed)) == Counter(TROUBLES.keys())
    lines = list(summary_lines(outcome, 1.0, "logs", None))
    print(*lines, sep="\n")
    for name, (kind, said, mend) in TROUBLES.items():
        at = lines.index(f"  {outcome.failed[name].text}")
        assert lines[at - 1] == click.style(f"failed, {kind}: {name}", fg="red")
        assert said in lines[at]
        following = next(line for line in lines[at:] if line.startswith("  next: "))
        assert mend in following
    assert any(line.endswith(": 1 changed, 7 failed") for line in lines)
    assert "another-password" not in "".join(map(repr, troubled.site.said))


def test_the_good_one_goes_on(outcome: Outcome) -> None:
    """The server without a trouble becomes a node that answers, and the exit code says that others have failed."""
    assert (outcome.ok, set(outcome.answered), outcome.exit_code) == ((GOOD,), {GOOD}, 3)
    assert not outcome.waiting and not outcome.skipped


def test_nothing_is_half_activated(troubled: Troubled, outcome: Outcome) -> None:
    """No troubled server has anything of a node in use, and only the one that was cut off has any of its files."""
    assert set(troubled.active()) == {GOOD}
    touched = {name for name, each in troubled.targets.items() if each.run(TOUCHED, check=False)}
    assert {GOOD} <= touched <= {GOOD, "cut"}


def test_who_is_mended_joins(troubled: Troubled, outcome: Outcome) -> None:
    """The next run brings up the one that has room now, and the others fail as before."""
    troubled.make_room()
    found = troubled.build()
    assert {name: trouble.kind for name, trouble in found.failed.items()} == _kinds("full")
    assert (set(found.ok), set(found.answered), found.exit_code) == ({GOOD, "full"}, {GOOD, "full"}, 3)
    assert set(troubled.active()) == {GOOD, "full"}


def test_without_troubles_all_answer(troubled: Troubled, outcome: Outcome) -> None:
    """When the last of them is mended, one run makes a whole tree of what is there."""
    troubled.mend_all()
    found = troubled.site.build().outcome
    assert (found.exit_code, set(found.answered)) == (0, set(troubled.targets)), found.failed
    assert set(troubled.active()) == set(troubled.targets)


def _kinds(*without: str) -> dict[str, str]:
    return {name: kind for name, (kind, *_) in TROUBLES.items() if name not in without}
