"""What every test gets: nothing global, no outside address, no key of the person who runs it."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from sandboxd.dev.node import ToolchainError
from tests.backup_trees import BACKUP_PASSWORD
from tests.installation import cluster_installation, own_installation, pod_images  # noqa: F401  fixtures
from tests.kube import _a_share_of_the_nodes, cluster, instance, whole_nodes  # noqa: F401  fixtures
from tests.postgres import database, postgres_server, postgres_url  # noqa: F401  fixtures
from tools.grpcurl import ensure_grpcurl
from tools.restic import ensure_restic, found_restic

HERE = Path(__file__).parent
KEPT = ("SANDBOXD_CACHE_DIR",)
ORDER = ("unit", "chart", "contract", "integration", "cluster", "e2e")
"""What is quick and finds most comes first, what wants most of the machine last; other directories before these."""


def pytest_configure() -> None:
    """Let programs that the tests start be interrupted, also where we run in the background of a shell.

    A shell without job control starts background commands with SIGINT ignored, and children inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a cluster, wherever it stands, and put the directories into their order."""
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("cluster")
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    inside = item.path.relative_to(HERE).parts
    return ORDER.index(inside[0]) if inside[0] in ORDER else -1


@pytest.fixture(autouse=True)
def _no_settings_of_the_person_who_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if (name.startswith("SANDBOXD_") and name not in KEPT) or name in ("GEMINI_API_KEY", "GOOGLE_API_KEY"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def grpcurl() -> Path:
    """Return grpcurl, for tests that use the service as a stranger would."""
    try:
        return ensure_grpcurl()
    except ToolchainError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def restic() -> Path:
    """Return restic, which keeps backups; building it takes longer than a test may, so CI does that before."""
    if "CI" in os.environ:
        return ensure_restic()
    found = found_restic()
    if found is None:
        pytest.skip("needs restic 0.17 or newer: .venv/bin/python -m tools.restic builds it")
    return found


@pytest.fixture(scope="session")
def empty_backups(restic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty repository of backups, to be copied: making one takes seconds."""
    directory = tmp_path_factory.mktemp("backups")
    (directory / "password").write_text(BACKUP_PASSWORD)
    places = [f"--repo={directory / 'kept'}", f"--password-file={directory / 'password'}"]
    subprocess.run([restic, "init", "--no-cache", *places], check=True, capture_output=True, timeout=60)
    return directory / "kept"
