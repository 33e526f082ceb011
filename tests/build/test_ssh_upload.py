"""Uploads: whole or not at all, and never twice what is there already."""

import hashlib
import random
import threading

import pytest
from console_of_tests import LIMIT_S, TREE, cutter, trouble_of

from tsbus.build.ssh import ServerTrouble

SIZE = 3_000_000
PATH = "/run/upload/bundle.tar"


@pytest.fixture
def bundle(tmp_path):
    """A file and its digest."""
    path = tmp_path / "bundle"
    data = random.Random(7).randbytes(SIZE)
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


@pytest.fixture
def place(server):
    """Where the bundle goes; empty before and after."""
    server.run("rm -rf /run/upload")
    yield PATH
    server.run("rm -rf /run/upload")


def digest_there(server, path=PATH):
    return server.run(f"sha256sum {path} | cut -d ' ' -f 1")


def test_an_upload_arrives_whole_and_once(desk, server, bundle, place):
    """A file arrives with its mode, through sudo as well; the next time nothing is sent."""
    source, digest = bundle
    seen = []
    with desk.session(server, "tree", password=TREE) as session:
        assert session.upload(source, place, digest, mode=0o600, progress=lambda *now: seen.append(now))
        assert not session.upload(source, place, digest, mode=0o600)
    assert digest_there(server) == digest
    assert server.run(f"stat -c '%a %U' {place}; ls {place.rpartition('/')[0]}") == "600 root\nbundle.tar"
    assert seen[-1] == (SIZE, SIZE)
    assert [size for size, _ in seen] == sorted(size for size, _ in seen)


def test_an_upload_goes_on_where_it_was_cut(desk, server, bundle, place):
    """However often and whenever the connection is cut, it goes on from what is there, and arrives whole."""
    source, digest = bundle
    chance = random.Random(11)
    with cutter(server) as proxy:
        desk.know(server)
        tries, done = 0, False
        while not done:
            tries += 1
            assert tries < 30
            proxy.cut_after = proxy.sent + chance.randrange(10_000, SIZE // 2)
            with desk.session("127.0.0.1", port=proxy.port, known_as=server.ip) as session:
                try:
                    done = session.upload(source, place, digest)
                except ServerTrouble as error:
                    assert error.trouble.kind == "lost", error
    assert tries > 2
    assert digest_there(server) == digest
    # What had come was not sent again, but for what was under way.
    assert proxy.sent < SIZE * 2


def test_a_damaged_part_is_thrown_away(desk, server, bundle, place):
    """Where what lies there from before is not the beginning of the file, nothing wrong becomes the file."""
    source, digest = bundle
    server.run(f"mkdir -p {place.rpartition('/')[0]}; head -c 5000 /dev/zero > {place}.{digest}.part")
    with desk.session(server) as session:
        trouble = trouble_of(lambda: session.upload(source, place, digest))
        assert (trouble.kind, trouble.again) == ("lost", True)
        assert server.run(f"ls {place.rpartition('/')[0]}") == ""
        assert session.upload(source, place, digest)
    assert digest_there(server) == digest


def test_another_file_is_replaced(desk, server, bundle, place):
    """An older file stays until the new one is whole."""
    source, digest = bundle
    server.run(f"mkdir -p {place.rpartition('/')[0]}; echo old > {place}")
    with cutter(server) as proxy:
        desk.know(server)
        with desk.session("127.0.0.1", port=proxy.port, known_as=server.ip) as session:
            proxy.cut_after = proxy.sent + 100_000
            assert trouble_of(lambda: session.upload(source, place, digest)).kind == "lost"
    assert server.run(f"cat {place}") == "old"
    with desk.session(server) as session:
        assert session.upload(source, place, digest)
    assert digest_there(server) == digest


def test_no_room_for_an_upload(desk, lab, bundle):
    """On a full disk the upload is a trouble of the disk, and leaves nothing."""
    source, digest = bundle
    full = lab.target("plain", tmpfs={"/opt": "size=1m"})
    with desk.session(full) as session:
        trouble = trouble_of(lambda: session.upload(source, "/opt/x/bundle.tar", digest))
    left = full.run("ls /opt/x")
    full.remove()
    assert trouble.kind == "disk"
    assert left == ""


def test_uploads_take_turns(desk, server, bundle, place):
    """An upload waits for its turn, and gives it back, also when it fails."""
    source, digest = bundle
    limit = desk.shared.uploads
    turns = 0
    while limit.acquire(blocking=False):
        turns += 1
    ended = threading.Event()
    with desk.session(server) as session:

        def upload() -> None:
            session.upload(source, place, digest)
            ended.set()

        threading.Thread(target=upload, daemon=True).start()
        assert server.run(f"ls {place} 2>/dev/null || echo nothing") == "nothing"
        limit.release()
        assert ended.wait(LIMIT_S)
        assert limit.acquire(blocking=False)
        limit.release(turns)
        session.abort()
        assert trouble_of(lambda: session.upload(source, place, digest)).kind == "lost"
    taken = sum(limit.acquire(blocking=False) for _ in range(turns + 1))
    assert taken == turns


def test_a_file_that_is_empty(desk, server, tmp_path, place):
    """A file of no bytes is a file as well."""
    empty = tmp_path / "empty"
    empty.touch()
    with desk.session(server) as session:
        assert session.upload(empty, place, hashlib.sha256().hexdigest())
    assert server.run(f"wc -c < {place}") == "0"
