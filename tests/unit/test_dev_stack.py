"""A development stack serves this machine only."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxd.__main__ import BAD_SETTINGS
from sandboxd.dev.home import DevHome
from sandboxd.dev.stack import DevStack, StackOptions
from sandboxd.settings import SettingsError, load_settings


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Path]:
    """TLS, so that the settings themselves allow any address."""
    files = {
        f"{prefix}_{name}_file": tmp_path / f"{name}.pem"
        for prefix in ("tls", "gateway_tls")
        for name in ("certificate", "key")
    }
    for file in files.values():
        file.touch()
    return files


@pytest.mark.parametrize("address", ["0.0.0.0:50051", "[::]:50051", "192.168.7.7:50051", "example.org:50051"])
@pytest.mark.parametrize("name", ["grpc_listen", "web_listen", "gateway_listen", "gateway_web_listen"])
def test_an_address_that_others_reach_is_refused(
    name: str, address: str, pair: dict[str, Path], tmp_path: Path
) -> None:
    settings = load_settings(data_dir=tmp_path, **{name: address}, **pair)

    with pytest.raises(SettingsError, match=f"SANDBOXD_{name.upper()}: .* serves this one only"):
        DevStack(settings, StackOptions(home=DevHome(tmp_path)), say=print)


def test_the_command_says_so_and_starts_nothing(pair: dict[str, Path], tmp_path: Path) -> None:
    # A process of its own: the command sets up logging for good.
    variables = {f"SANDBOXD_{name.upper()}": str(file) for name, file in pair.items()}
    result = subprocess.run(
        [sys.executable, "-m", "sandboxd", "dev", "--data-dir", str(tmp_path / "data")],
        env={**os.environ, **variables, "SANDBOXD_GRPC_LISTEN": "0.0.0.0:0"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert result.returncode == BAD_SETTINGS
    assert "serves this one only" in result.stderr
    assert not (tmp_path / "data" / "postgres").exists()


def test_all_that_listens_is_on_loopback(tmp_path: Path) -> None:
    stack = DevStack(
        load_settings(data_dir=tmp_path), StackOptions(home=DevHome(tmp_path), fixed_ports=False), say=print
    )

    assert stack.address.startswith("127.0.0.1:")
