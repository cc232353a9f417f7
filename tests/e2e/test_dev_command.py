import asyncio
import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from sandboxd.ctl.client import ApiError, Client, connect
from sandboxd.dev.identity import DevIssuer
from sandboxd.settings import load_settings
from tests.e2e.commands import Dev, a_dev, sandboxd, start
from tests.eventually import eventually

# One stack for the module, and one event loop with it: a start costs seconds.
pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="sandboxd-dev-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dev(home: Path) -> AsyncIterator[Dev]:
    async with a_dev(home / "data", home=home) as running:
        yield running


def notice(home: Path) -> dict[str, str]:
    facts: dict[str, str] = json.loads((home / "data" / "dev.json").read_text())
    return facts


def processes_of(home: Path) -> list[psutil.Process]:
    """Every process whose command line, directory or environment names the home."""
    found = []
    for process in psutil.process_iter():
        try:
            told = [*process.cmdline(), process.cwd(), process.environ().get("SANDBOXD_DATA_DIR", "")]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(home) in text for text in told):
            found.append(process)
    return found


async def test_the_stack_serves_grpcurl_and_our_own_client(dev: Dev, home: Path, grpcurl: Path) -> None:
    facts = notice(home)
    token = (home / "data" / facts["token_file"]).read_text().strip()

    async def ask(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            grpcurl, "-plaintext", "-H", f"authorization: Bearer {token}", *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert process.returncode == 0, out.decode()
        return out.decode()

    assert "sandboxd.v1.SandboxService" in await ask(facts["address"], "list")
    assert "SERVING" in await ask(facts["address"], "grpc.health.v1.Health/Check")
    created = json.loads(
        await ask("-d", '{"request_id": "request-1"}', facts["address"], "sandboxd.v1.SandboxService/Create")
    )
    assert created["sandbox"]["state"] == "SANDBOX_STATE_ACTIVE"
    async with connect(facts["address"], token=token) as client:
        assert [one.name async for one in client.sandboxes()] == [created["sandbox"]["name"]]
    assert "practice model" in dev.welcome
    assert "isolates nothing" in dev.welcome
    assert oct((home / "data" / "token").stat().st_mode & 0o777) == "0o600"


async def test_a_second_stack_on_the_same_directory_says_where_the_first_is(dev: Dev, home: Path) -> None:
    second = await sandboxd("dev", "--data-dir", str(home / "data"), home=home)

    assert second.code == 3
    assert str(home / "data") in second.err
    assert notice(home)["address"] in second.err
    assert "Traceback" not in second.err


async def test_a_service_that_is_killed_comes_back_at_its_address(dev: Dev, home: Path) -> None:
    facts = notice(home)
    token = (home / "data" / "token").read_text().strip()
    (served,) = [one for one in processes_of(home) if "serve" in one.cmdline()]

    served.send_signal(signal.SIGKILL)

    async with connect(facts["address"], token=token) as client:

        async def answers() -> bool:
            return await _answers(client)

        await eventually(answers, within=60, every=0.3)
    again = [one for one in processes_of(home) if "serve" in one.cmdline()]
    assert [one.pid for one in again] != [served.pid]


async def test_a_token_of_another_client_sees_nothing(dev: Dev, home: Path) -> None:
    minted = await sandboxd("token", "--data-dir", str(home / "data"), "--client", "other", home=home)

    async with connect(notice(home)["address"], token=minted.out.strip()) as client:
        assert [one async for one in client.sandboxes()] == []


async def test_settings_that_cannot_be_used_are_told_with_exit_code_2(tmp_path: Path) -> None:
    for command in ("dev", "demo", "serve", "gateway", "migrate"):
        outcome = await sandboxd(command, home=tmp_path, SANDBOXD_GRPC_LISTEN="nonsense", SANDBOXD_LOG_LEVEL="loud")

        assert outcome.code == 2, outcome.err
        assert re.search(r"SANDBOXD_GRPC_LISTEN: .*\n.*SANDBOXD_LOG_LEVEL: ", outcome.err)
        assert outcome.out == ""


async def test_a_service_without_a_database_gives_up_with_what_to_do(tmp_path: Path) -> None:
    outcome = await sandboxd("serve", home=tmp_path)

    assert outcome.code == 2
    assert "SANDBOXD_DATABASE_URL" in outcome.err


async def test_the_end_of_a_stack_leaves_no_process_behind(dev: Dev, home: Path) -> None:
    # The last test: a sandbox runs by now.
    assert [one for one in processes_of(home) if "sandboxd.agent" in one.cmdline()]

    said = await dev.stop()

    assert "stopped" in said
    assert dev.process.returncode == 0
    assert not (home / "data" / "dev.json").exists()
    await eventually(lambda: processes_of(home) == [], within=10)


async def _answers(client: Client) -> bool:
    try:
        _ = [one async for one in client.sandboxes()]
    except ApiError:
        return False
    return True


@pytest.mark.parametrize("role", ["serve", "gateway"])
async def test_a_role_that_waits_for_its_database_ends_at_the_first_signal(home: Path, role: str) -> None:
    variables = {
        "SANDBOXD_DATABASE_URL": f"postgresql://nobody@/nothing?host={home}",
        "SANDBOXD_DATA_DIR": str(home / "data"),
        "SANDBOXD_GRPC_LISTEN": "127.0.0.1:0",
        "SANDBOXD_WEB_LISTEN": "127.0.0.1:0",
        "SANDBOXD_NODE": "/bin/true",
        "SANDBOXD_GEMINI_CLI": "/bin/true",
        "SANDBOXD_GEMINI_URL": "http://127.0.0.1:9",
        "SANDBOXD_LOG_LEVEL": "info",
    }
    DevIssuer.open(load_settings(data_dir=home / "data"))
    process = await start(role, home=home, **variables)
    assert process.stderr is not None
    while b"role.settings" not in await asyncio.wait_for(process.stderr.readline(), timeout=60):
        pass

    process.send_signal(signal.SIGTERM)

    assert await asyncio.wait_for(process.wait(), timeout=10) == 0
