"""The later life of a built tree, on real servers: a node comes, releases come and go, a node leaves, and all leave."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import pytest
import sites
from node_bundle import CACHE
from sites import PORT, SNAPSHOT, Site

from tsbus.build import units
from tsbus.build.bundle import Bundler
from tsbus.build.campaign import Campaign
from tsbus.build.membership import Add, Remove, with_parents
from tsbus.build.reports import Entered, Noted
from tsbus.build.rotation import Revoke, Rotate
from tsbus.build.survey import Survey
from tsbus.build.uninstall import Uninstall
from tsbus.build.upgrade import Rollback, Upgrade
from tsbus.config import Server, Tree
from tsbus.supervision.conf import render_servers

TREESCALE = "/opt/treescale/current/bin/treescale"
ROUTERS = "pgrep -f bin/ts-route[r]"


class Changed(Bundler):
    """Makes bundles of a release that writes other files to be started, or one whose router does not start either."""

    broken = False

    @cached_property
    def _parts(self) -> Any:
        name, version, files, commands, scripts = super()._parts
        if self.broken:
            files = files | {"tsbus/loop.py": files["tsbus/loop.py"] + b"\n\ndef main():\n    raise SystemExit(9)\n"}
        changes = {
            "tsbus/build/units.py": ("Description=TreeScale node", f"Description={self.word}"),
            "tsbus/supervision/conf.py": (", written by TreeScale:", f", {self.word}:"),
        }
        new = {path: files[path].replace(old.encode(), new.encode()) for path, (old, new) in changes.items()}
        return name, version, files | new, commands, scripts

    @property
    def word(self) -> str:
        """What is in both files."""
        return "broken" if self.broken else "newer"

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """Be a console of this release, which writes these files as well."""

        def render(tree: Tree) -> dict[str, str]:
            texts = render_servers(tree)
            return {name: text.replace("written by TreeScale", self.word) for name, text in texts.items()}

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sites, "render_servers", render)
            patch.setattr(units, "TEXTS", {"systemd": units.SYSTEMD.replace("TreeScale node", self.word)})
            yield


@pytest.fixture(scope="module")
def site(lab, tmp_path_factory):
    """Two servers, a above b, and c, which is in no tree yet; each with a note of its files."""
    targets = {name: lab.target() for name in "abc"}
    site = Site(targets, tmp_path_factory.mktemp("console"), lab.key, {"a": ["b"]})
    before = dict(zip(targets, site.each(SNAPSHOT), strict=True))
    del site.tree.servers["c"]
    yield site, before
    for target in targets.values():
        target.remove()


def test_a_tree_changes_and_goes(site):
    """Each verb does its part and no more; the tree answers after each, and in the end the servers are as they were."""
    site, before = site
    first = site.bundler
    assert site.build().outcome.exit_code == 0
    _a_node_comes(site)
    _who_is_left_out_is_told(site)
    _keys_are_exchanged(site)
    _a_key_is_revoked(site)
    _a_release_comes(site)
    _a_broken_one_is_taken_back(site)
    site.bundler = first
    _the_release_before_comes_back(site)
    _a_node_leaves(site, before["c"])
    outcome = site.build(Uninstall).outcome
    assert (outcome.exit_code, set(outcome.changed)) == (0, {"a", "b"})
    assert _entered(site, "clean") == ["b", "a"]
    for name, found in zip("abc", site.each(SNAPSHOT), strict=True):
        assert found.splitlines() == before[name].splitlines()
    assert site.build(Uninstall).outcome.changed == {}


def _entered(site, stage):
    """Return who entered a stage, in this order."""
    return list(dict.fromkeys(each.name for each in site.said if isinstance(each, Entered) and each.stage == stage))


def _survey(site):
    survey = site.campaign(Survey)
    site.said = list(survey.look())
    survey.close()
    return survey.standings


def _status(site):
    return json.loads(site.targets["a"].run(f"{TREESCALE} status --json"))


def _written(site):
    """What each server has in its unit and in supervisord.conf that tells who wrote them."""
    unit = "sed -n s/^Description=//p /etc/systemd/system/treescale.service"
    return set(site.each(f"{unit}; sed -n 's/.*, \\(.*\\): programs of.*/\\1/p' /etc/treescale/supervisord.conf"))


def _a_node_comes(site):
    """Over SSH only it and its parent are touched, and the other child's link stays."""
    router = site.targets["b"].run(ROUTERS)
    handles = {node["name"]: node["incarnation"] for node in _status(site)["nodes"]}
    site.tree.servers["c"] = Server("c", site.targets["c"].ip, PORT)
    site.tree.servers["a"].childs.append("c")
    assert {name: each.answers for name, each in _survey(site).items()} == {"a": True, "b": True, "c": False}
    touched = with_parents(site.tree, {"c"})
    assert touched == ("a", "c")
    outcome = site.build(Add, names=touched).outcome
    assert (outcome.exit_code, set(outcome.answered)) == (0, {"a", "c"})
    assert not (site.campaign().transcripts.folder.parent / "b.log").exists()
    assert any("b took the tree over the bus" in each.text for each in site.said if isinstance(each, Noted))
    assert site.targets["b"].run(ROUTERS) == router
    now = {node["name"]: node["incarnation"] for node in _status(site)["nodes"]}
    assert {name: now[name] for name in handles} == handles
    assert {name: each.drift for name, each in _survey(site).items()} == {"a": (), "b": (), "c": ()}
    assert site.build().outcome.changed == {}


def _who_is_left_out_is_told(site):
    """Whose copy of the tree is an older one, and who of them is next to a server of the run, until they have it."""

    def noted(**options):
        assert site.build(**options).outcome.exit_code == 0
        return [each.text for each in site.said if isinstance(each, Noted)]

    assert noted(names=("b",)) == []
    site.tree.servers["c"] = replace(site.tree.servers["c"], tags=["late"])
    text = "a,c was left out, and has not all keys and settings of this tree: build there as well"
    assert noted(names=("b",)) == [f"{text}, a before others: it is next to a server of this run"]
    assert noted() == noted(names=("b",)) == []


def _keys_are_exchanged(site):
    """Of a leaf and of the root; then the old ones are nobody's, and a build has nothing to do."""
    old = site.campaign().keys
    outcome = site.build(Rotate, names=("a", "b")).outcome
    assert not outcome.failed and set(outcome.answered) == {"a", "b"}
    new = site.campaign().keys
    assert {name for name in old if new[name] != old[name]} == {"a", "b"}
    assert not any(
        key in text for key in (old["a"], old["b"]) for text in site.each("cat /etc/treescale/treescale.toml")
    )
    assert site.targets["b"].run("ls /etc/treescale/node.key*") == "/etc/treescale/node.key"
    assert site.build().outcome.changed == {}


def _a_key_is_revoked(site):
    """Its node is cut off, no build takes it in again, and with a new key it is back."""
    outcome = site.build(Revoke, names=("c",)).outcome
    assert outcome.exit_code == 0, outcome.failed
    assert {node["name"]: node["state"] for node in _status(site)["nodes"]} == {"a": "up", "b": "up", "c": "lost"}
    assert site.build().outcome.failed["c"].text == "its key is revoked"
    outcome = site.build(Rotate, names=("c",)).outcome
    assert not outcome.failed and set(outcome.answered) == {"c"}
    assert site.build().outcome.changed == {}


def _a_release_comes(site):
    """The leaves go first, one of them alone, and the root last."""
    assert _written(site) == {"TreeScale node\nwritten by TreeScale"}
    site.bundler = Changed(CACHE)
    with site.bundler.here():
        outcome = site.build(Upgrade).outcome
    assert not outcome.failed and set(outcome.changed) == set(outcome.answered) == set("abc")
    assert _entered(site, "activate") == ["b", "c", "a"]
    assert {each.release for each in _survey(site).values()} == {site.bundler.release.name}
    assert _written(site) == {"newer\nnewer"}


def _a_broken_one_is_taken_back(site):
    """It ends with the first leaf, which is back at what it had, files too, and nobody else has been touched."""
    good = site.bundler.release.name
    site.bundler = Changed(CACHE)
    site.bundler.broken = True
    with site.bundler.here():
        campaign = site.build(Upgrade)
    assert set(campaign.outcome.failed) == {"b"} and set(campaign.outcome.skipped) == {"a", "c"}
    assert "it is back to" in campaign.outcome.failed["b"].text
    assert {(each.answers, each.release) for each in _survey(site).values()} == {(True, good)}
    assert _written(site) == {"newer\nnewer"}


def _the_release_before_comes_back(site):
    """With the files that it writes itself, so its console finds nothing to do; that none is before it is told."""
    outcome = site.build(Rollback).outcome
    assert (outcome.exit_code, set(outcome.changed)) == (0, set("abc"))
    assert {(each.release, each.drift) for each in _survey(site).values()} == {(site.bundler.release.name, ())}
    assert _written(site) == {"TreeScale node\nwritten by TreeScale"}
    assert site.build().outcome.changed == {}
    outcome = site.build(Rollback).outcome
    assert "no release before" in outcome.failed["a"].text and outcome.changed == {}


def _a_node_leaves(site, before):
    """The others get the tree without it over the bus, and it is as it was."""
    site.tree.servers["a"].childs.remove("c")
    del site.tree.servers["c"]
    look = site.campaign()
    assert any("`treescale build remove c` cleans it" in each.text for each in look.look() if isinstance(each, Noted))
    look.close()
    outcome = site.build(Remove, names=("c",)).outcome
    assert (outcome.exit_code, set(outcome.changed)) == (0, {"c"})
    assert [node["name"] for node in _status(site)["nodes"]] == ["a", "b"]
    assert site.targets["c"].run(SNAPSHOT).splitlines() == before.splitlines()
    assert site.build(Campaign).outcome.changed == {}
