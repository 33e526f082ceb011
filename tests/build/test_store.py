"""What the console remembers: whole files or none, for nobody else to read, and bounded."""

import json
import stat

import pytest

from tsbus.build.store import MAX_BYTES, RUNS, Remembered, Store, StoreError
from tsbus.config import Console

KEYS = {"a": "k" * 40, "b": "l" * 40}
STATES = {
    "a": Remembered("verify", release="1.0", config="d" * 64, time_s=12.5),
    "b": Remembered("bundle", "disk", "it is full", time_s=13.0),
    "c": Remembered("key", text="too many others have failed"),
}


@pytest.fixture
def store(tmp_path):
    return Store.beside(Console(path=tmp_path / "console.toml"))


def test_what_was_written_is_read(store):
    """At first there is nothing; then there is what was written last."""
    assert (store.keys(), store.states()) == ({}, {})
    store.save_keys({"a": "old"})
    store.save_keys(KEYS)
    store.save_states(STATES)
    assert Store(store.folder).keys() == KEYS
    assert Store(store.folder).states() == STATES
    assert store.failed() == ("b", "c")
    assert sorted(each.name for each in store.folder.iterdir()) == ["keys.json", "state.json"]


def test_nobody_else_may_read_it(store):
    """The folder and all in it is the user's alone, whatever its rights were before."""
    store.folder.mkdir(0o755)
    store.save_keys(KEYS)
    store.transcripts(str).add("a", "hello")
    modes = {stat.S_IMODE(each.lstat().st_mode) for each in (store.folder, *store.folder.rglob("*"))}
    assert modes == {0o700, 0o600}


DAMAGED = ["", "{", "[]", "[" * 99_999, '{"format": 2}', '{"format": 1, "keys": 3, "servers": {"a": 3}}']


@pytest.mark.parametrize("text", [*DAMAGED, '{"format": 1, "keys": {"a": 3}, "servers": {"a": {"what": 1}}}'])
def test_a_damaged_file(store, text):
    """It is named, with what can be done: nobody needs state.json, and nothing stands for keys.json."""
    store.folder.mkdir()
    for file in ("keys.json", "state.json"):
        (store.folder / file).write_text(text)
    with pytest.raises(StoreError, match=r"keys\.json is damaged; put a copy back"):
        store.keys()
    with pytest.raises(StoreError, match=r"state\.json is damaged; remove it"):
        store.states()


def test_what_cannot_be_written(store):
    """It is named, with the reason."""
    store.folder.touch()
    with pytest.raises(StoreError, match=r"keys\.json cannot be written: File exists"):
        store.save_keys(KEYS)
    with pytest.raises(StoreError, match="cannot be written: File exists"):
        store.transcripts(str)


def test_transcripts(store):
    """A line each, masked where it is written, in a file for each server."""
    transcripts = store.transcripts(lambda text: text.replace("canary", "***"))
    for name in "ab":
        transcripts.add(name, f"{name} says canary \ud800")
    assert transcripts.path("a").read_text().endswith(" a says *** ?\n")
    assert sorted(each.name for each in transcripts.folder.iterdir()) == ["a.log", "b.log"]


def test_a_transcript_is_bounded(store):
    """Whoever says too much is cut off, once."""
    transcripts = store.transcripts(str)
    for _ in range(9):
        transcripts.add("a", "x" * (MAX_BYTES // 4))
    transcripts.add("b", "short")
    assert transcripts.path("a").stat().st_size < MAX_BYTES + 100
    assert transcripts.path("a").read_text().count("the rest is left out") == 1
    assert "short" in transcripts.path("b").read_text()


def test_old_runs_go(store):
    """The last runs are kept, each in a folder of its own, and whatever else somebody has put there."""
    mine = store.folder / "logs" / "mine"
    mine.mkdir(parents=True)
    folders = [store.transcripts(str).folder for _ in range(RUNS + 3)]
    assert len(set(folders)) == len(folders)
    there = [each for each in (store.folder / "logs").iterdir() if each != mine]
    assert len(there) == RUNS
    assert folders[-1] in there
    assert mine.exists()


def test_looks_push_out_no_run_that_changed_servers(store):
    """However often somebody only looks, the transcripts of the last runs that changed something stay."""
    changing = []
    for _ in range(RUNS + 2):
        transcripts = store.transcripts(str)
        transcripts.mark()
        changing.append(transcripts.folder)
    for _ in range(RUNS + 2):
        store.transcripts(str)
    assert [each.exists() for each in changing] == [False] * 3 + [True] * (RUNS - 1)


def test_the_files_are_plain_json(store):
    """A person can read them."""
    store.save_states(STATES)
    told = json.loads((store.folder / "state.json").read_text())["servers"]["b"]
    assert (told["stage"], told["kind"], told["text"]) == ("bundle", "disk", "it is full")
