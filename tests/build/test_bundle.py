"""Bundles: of what pip fetches, a wheelhouse or the cache, always the same; or one error for all that is lacking."""

import configparser
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
from node_bundle import CACHE, HERE, WHEELS, made

import tsbus
from tsbus.build.bundle import BundleError, Bundler
from tsbus.build.steps import Platform

ROOT = Path(__file__).parents[2]
OTHER = Platform("aarch64", "musl", 13)


def test_a_bundle_is_named_by_its_digest_and_has_all_wheels():
    """Its file is whole, small, and tells what is in it, with digests that are right."""
    bundle = made()
    data = bundle.path.read_bytes()
    assert bundle.path.stem == bundle.digest == hashlib.sha256(data).hexdigest()
    assert len(data) == bundle.size < 6 << 20
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        about = json.loads(tar.extractfile("bundle.json").read())
        assert about["release"] == bundle.release
        assert about["platform"] == str(HERE)
        for each in about["wheels"]:
            assert hashlib.sha256(tar.extractfile(f"wheels/{each['file']}").read()).hexdigest() == each["sha256"]
        assert len(tar.getnames()) == len(about["wheels"]) + 1


def test_a_bundle_is_made_again_byte_for_byte(tmp_path):
    """Another cache and another time make the same bundle, without the network."""
    made()
    again = Bundler(tmp_path, wheelhouse=WHEELS, offline=True).make([HERE])[HERE]
    assert (again.digest, again.release) == (made().digest, made().release)
    assert again.release == f"{tsbus.__version__}-{again.release.rpartition('-')[2]}"


def test_the_packages_of_the_dashboard_come_on_top():
    """With them a bundle is of another name and still below 20 MB; without a network the wheels are kept as others."""
    board = HERE._replace(dashboard=True)
    found = Bundler(CACHE).make([HERE, board])
    assert Bundler(CACHE, offline=True).make([HERE, board]) == found
    plain, more = found[HERE], found[board]
    assert more.release == f"{plain.release}-dashboard"
    assert plain.size < more.size < 20 << 20
    names = [_files(each) for each in (plain, more)]
    assert names[0] < names[1]
    assert any(name.startswith("wheels/nicegui-") for name in names[1] - names[0])


def _files(bundle):
    with tarfile.open(bundle.path) as tar:
        return set(tar.getnames())


def test_without_a_network_all_that_is_missing_is_told_at_once(tmp_path):
    """The error names each file of each platform and what to do, and nothing is made."""
    made()
    wheelhouse = tmp_path / "wheelhouse"
    shutil.copytree(WHEELS, wheelhouse)
    zmq = next(wheelhouse.glob("pyzmq-*"))
    zmq.write_bytes(zmq.read_bytes()[:-1])
    with pytest.raises(BundleError) as caught:
        Bundler(tmp_path / "cache", wheelhouse, offline=True).make([HERE, OTHER])
    text = str(caught.value)
    assert f"{HERE}: {zmq.name}; for {OTHER}: " in text
    assert text.count("pyzmq-") == text.count("msgspec-") + 1 == 2
    assert str(wheelhouse) in text
    assert "--wheelhouse" in text
    assert "\n" not in text
    assert not (tmp_path / "cache" / "bundles").exists()


def test_what_pip_cannot_fetch_is_one_line(tmp_path, monkeypatch):
    """Where pip finds nothing, the error says which platform, what pip said, and the way without it."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(BundleError, match=r"^pip cannot fetch the wheels for cp313-musl-aarch64: .*--wheelhouse$"):
        Bundler(tmp_path).make([OTHER])


def test_pip_is_held_to_the_pinned_digests(tmp_path, monkeypatch):
    """A wheel of the right name and version that is another one is not taken."""
    made()
    folder = tmp_path / "links"
    shutil.copytree(WHEELS, folder)
    click = next(folder.glob("click-*"))
    click.write_bytes(click.read_bytes() + b"x")
    for variable, value in {"CONFIG_FILE": "/dev/null", "NO_INDEX": "1", "FIND_LINKS": str(folder)}.items():
        monkeypatch.setenv(f"PIP_{variable}", value)
    with pytest.raises(BundleError, match="pip cannot fetch"):
        Bundler(tmp_path / "cache").make([HERE])


def test_what_is_not_code_is_package_data():
    """What a bundle has is what pip installs: every file of the package that is no module is in setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packed = {
        path
        for package, patterns in setup.items("options.package_data")
        for pattern in patterns.split(",")
        for path in ROOT.joinpath(*package.split(".")).glob(pattern.strip())
    }
    files = {path for path in (ROOT / "tsbus").rglob("*") if path.is_file() and not path.name.startswith(".")}
    assert {path for path in files - packed if path.suffix not in (".py", ".pyc")} == set()
