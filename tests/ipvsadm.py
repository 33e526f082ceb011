"""ipvsadm: other eyes on the kernel's table than ours."""

import subprocess


def run(*words: str) -> str:
    """What a program says; AssertionError with its errors when it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


def saved() -> list[str]:
    """The table as ipvsadm saves it: the words that would make it again."""
    return sorted(line.strip() for line in run("ipvsadm", "-Sn").splitlines())
