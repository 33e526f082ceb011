"""Docker on a real server: installed by the build, watched by the node, and left alone from then on."""

import json
from dataclasses import replace

from sites import Site

from tsbus.config import BuildSettings

TREESCALE = "/opt/treescale/current/bin/treescale"


def test_docker_is_installed_and_watched(lab, tmp_path):
    """A server without an engine gets the distribution's, which answers; its node watches it; and that is that."""
    target = lab.target()
    site = Site({"a": target}, tmp_path, lab.key)
    site.console = replace(site.console, build=BuildSettings(docker="distro"))
    try:
        outcome = site.build(docker=True).outcome
        assert (outcome.exit_code, set(outcome.ok)) == (0, {"a"})
        assert [step.words for step in site.steps("docker")] == ["install Docker from the distribution's packages"]
        version = target.run("docker version --format '{{.Server.Version}}'")
        told = json.loads(target.run(f"{TREESCALE} docker info --json").splitlines()[0])
        assert version in json.dumps(told)
        assert site.build(docker=True).outcome.changed == {}
    finally:
        target.remove()
