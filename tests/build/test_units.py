"""What starts a node at boot: that systemd and OpenRC can read it, and that it agrees with where everything is."""

import configparser
import subprocess

import pytest

from tsbus.build import places, units
from tsbus.build.installer import CONFIG, CURRENT, ETC, LOGS, RELEASES, ROOT, STATE, SUPERVISOR
from tsbus.dashboard.main import USERS_NAME
from tsbus.supervision import conf


def unit():
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read_string(units.SYSTEMD)
    return parser


def test_the_unit_does_not_need_docker():
    """Nothing of Docker's is required or waited for: the node is there before it, and goes on when it restarts."""
    about = dict(unit()["Unit"])
    assert about["Before"] == "docker.service"
    assert not [key for key, value in about.items() if "docker" in value and key != "Before"]


def test_the_unit_never_gives_up():
    """However it ends, systemd starts it again."""
    assert unit()["Service"]["Restart"] == "always"
    assert unit()["Unit"]["StartLimitIntervalSec"] == "0"


@pytest.mark.parametrize("text", units.TEXTS.values(), ids=units.TEXTS)
def test_units_start_supervisord_with_the_file_of_the_node(text):
    """Both start the one of the release in use, in the foreground, after the folders of the sockets are there."""
    assert f"{places.ROOT}/current/bin/supervisord" in text
    assert f"--nodaemon --configuration {places.SUPERVISOR}" in text
    for folder in (units.RUN, units.ROUTER_RUN):
        assert f"-m 0750 {folder}\n" in text


def test_the_script_of_openrc_is_one_for_a_shell():
    """A POSIX shell reads it, and its functions are those that OpenRC calls."""
    assert subprocess.run(["sh", "-n"], input=units.OPENRC, text=True, check=False).returncode == 0
    names = subprocess.run(["sh", "-c", f"{units.OPENRC}\ntype depend start_pre"], capture_output=True, text=True)
    assert names.stdout.count("function") == 2


def test_all_agree_where_things_are():
    """The plan, the installer on the node and supervisord's file speak of the same places and users."""
    assert [str(path) for path in (ROOT, ETC, CONFIG, SUPERVISOR)] == [
        places.ROOT, places.ETC, places.CONFIG, places.SUPERVISOR,
    ]  # fmt: skip
    assert {str(path) for path in (ROOT, RELEASES, ETC, STATE, LOGS)} < places.FOLDERS.keys()
    assert (conf.USER, conf.DOCKER_USER, conf.EXEC_USER) == places.USERS
    assert conf.DASHBOARD_USER == places.DASHBOARD_USER
    files = conf.SERVER_FILES
    board = files.config.parent / USERS_NAME
    assert {str(path) for path in (files.config, files.key, files.conf, board)} == places.FILES.keys()
    assert {str(files.conf_dir), str(files.log_dir)} < places.FOLDERS.keys()
    assert str(files.run_dir) == units.RUN
    assert conf.SERVER_PROGRAMS == CURRENT / "bin"
    assert units.ROUTER_RUN in conf.example()
