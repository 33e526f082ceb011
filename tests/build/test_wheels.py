"""Wheels: which of the pinned ones a server takes, that each takes one of each, and that our own is always the same."""

import io
import zipfile

import pytest

from tsbus.build import bundle, wheels
from tsbus.build.checks import MACHINES, MIN_LIBC
from tsbus.build.interpreter import MAX_MINOR, MIN_MINOR
from tsbus.build.steps import Platform
from tsbus.build.wheels import Pin, choose, pins

PLATFORMS = [
    Platform(machine, libc, minor)
    for machine in MACHINES
    for libc in MIN_LIBC
    for minor in range(MIN_MINOR, MAX_MINOR + 1)
]
FILES = (bundle.LOCK, bundle.DASHBOARD_LOCK)
PINNED = [pins(file.read_text()) for file in FILES]


@pytest.mark.parametrize(("pinned", "count"), [(PINNED[0], 2), (PINNED[1], 5)], ids=("node", "dashboard"))
@pytest.mark.parametrize("platform", PLATFORMS, ids=str)
def test_every_platform_has_one_wheel_of_every_package(platform, pinned, count):
    """All that a node may be are pinned, native wheels for its machine and its C library."""
    chosen = choose(pinned, platform)
    assert [pin.name for pin in chosen] == sorted({pin.name for pin in pinned})
    native = [pin.file for pin in chosen if not pin.file.endswith("-any.whl")]
    kind = {"glibc": "manylinux", "musl": "musllinux"}[platform.libc]
    assert len(native) == count
    assert all(platform.machine in file and kind in file for file in native)


def pin(file):
    return Pin("a", "1", "0" * 64, file)


@pytest.mark.parametrize(
    ("platform", "file"),
    [
        (Platform("x86_64", "glibc", 11), "a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"),
        (Platform("x86_64", "glibc", 13), "a-1-cp312-abi3-manylinux2014_x86_64.whl"),
        (Platform("aarch64", "glibc", 12), "a-1-py3-none-any.whl"),
        (Platform("x86_64", "musl", 12), "a-1-cp310-abi3-musllinux_1_2_x86_64.whl"),
        (Platform("x86_64", "musl", 14), "a-1-cp310-abi3-musllinux_1_2_x86_64.whl"),
    ],
    ids=str,
)
def test_the_best_wheel_is_taken(platform, file):
    """One for this Python is taken before one for older ones, a native one before a pure one."""
    files = [
        "a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "a-1-cp311-cp311t-manylinux_2_17_x86_64.whl",
        "a-1-cp310-abi3-manylinux2014_x86_64.whl",
        "a-1-cp312-abi3-manylinux2014_x86_64.whl",
        "a-1-cp313-cp313-manylinux_2_34_x86_64.whl",
        "a-1-cp312-cp312-win_amd64.whl",
        "a-1-cp310-abi3-musllinux_1_2_x86_64.whl",
        "a-1-py3-none-any.whl",
    ]
    for order in (files, files[::-1]):
        assert [each.file for each in choose(map(pin, order), platform)] == [file]


def test_a_package_without_a_wheel_for_a_platform_is_told():
    """What is pinned for others only is an error that names the package and the platform."""
    with pytest.raises(ValueError, match="a is not pinned for cp312-musl-x86_64"):
        choose([pin("a-1-cp312-cp312-manylinux2014_x86_64.whl")], Platform("x86_64", "musl", 12))


def test_lines_that_are_none_are_refused():
    """A line that could be read in another way, such as one without a digest, is refused."""
    for line in ("a==1", "a==1 --hash=sha256:00  # a.whl", "-r other.txt", f"a>=1 --hash=sha256:{'0' * 64}  # a.whl"):
        with pytest.raises(ValueError, match="not a line"):
            pins(line)


def test_pins_are_read_as_they_are_written():
    """The files are their own lines again, and no package is in both."""
    for file, pinned in zip(FILES, PINNED, strict=True):
        lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
        assert [pin.line for pin in pinned] == lines
    assert not {pin.name for pin in PINNED[0]} & {pin.name for pin in PINNED[1]}


def test_our_own_wheel_is_always_the_same():
    """The same files in another order are the same bytes, and a record has the digest of each."""
    files = {"own/b.py": b"b", "own/a.py": b"a"}
    wheel = wheels.build("own", "1", files, {"x": "own.a:f"}, {"s": b"#!python\n"})
    assert wheel == wheels.build("own", "1", dict(sorted(files.items())), {"x": "own.a:f"}, {"s": b"#!python\n"})
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        assert archive.read("own-1.dist-info/entry_points.txt") == b"[console_scripts]\nx = own.a:f\n"
        record = archive.read("own-1.dist-info/RECORD").decode()
        assert set(archive.namelist()) == {line.split(",")[0] for line in record.splitlines()}
        assert archive.read("own-1.data/scripts/s") == b"#!python\n"
