"""The executor's start file."""

import subprocess
import sys
from pathlib import Path

import pytest

START = Path(__file__).parents[2] / "services" / "ts_executor.py"
NODE = '[servers.a]\nip = "127.0.0.1"\nservice_port = 4000\n'


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (NODE, "the configuration has no current_node; give --node NAME"),
        ('current_node = "a"\n[servers.a]\nip = 7\n', "treescale.toml:3"),
        (f'current_node = "a"\n{NODE}[handlers.x]\non = "a.b"\nfrom = "nobody"\nrun = ["true"]\n', "nobody"),
    ],
)
def test_bad_configuration(tmp_path: Path, config: str, told: str) -> None:
    """With a configuration that is not in order it ends with status 2 and says what is wrong."""
    file = tmp_path / "treescale.toml"
    file.write_text(config)
    ended = subprocess.run(
        [sys.executable, START, "--config", file], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr
