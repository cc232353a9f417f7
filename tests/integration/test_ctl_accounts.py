"""`sandboxctl clients`, `freelancers` and `keys` against the real service's edge."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from sandboxd.ctl.app import app
from sandboxd.model.ids import ClientId
from tests.integration.api_world import World, a_world

KEY = "AIza-the-key-of-these-tests"


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    # The service runs in this process: its log must not be in what the commands print.
    with capture_logs():
        async with a_world(tmp_path) as made:
            token = made.issuer.token(role="platform", client=None)
            monkeypatch.setenv("SANDBOXCTL_ADDRESS", f"127.0.0.1:{made.port}")
            monkeypatch.setenv("SANDBOXCTL_TOKEN", token)
            monkeypatch.setenv("SANDBOXD_DATA_DIR", str(tmp_path))
            yield made


async def ctl(*words: str, stdin: str | None = None) -> Result:
    return await asyncio.to_thread(lambda: CliRunner().invoke(app, words, input=stdin))


async def objects(*words: str) -> list[dict[str, object]]:
    ran = await ctl(*words, "-o", "json")
    assert ran.exit_code == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


async def test_a_client_from_its_creation_to_its_end(world: World, tmp_path: Path) -> None:
    made = await ctl("clients", "create", "acme", "--name", "Acme", "--max-sandboxes", "3", "--each-turns", "1")
    changed = await ctl(
        *("clients", "update", "acme", "--max-storage", "100", "--max-sandboxes", "none"),
        *("--tier", "basic", "--text", "none"),
    )
    shown = await ctl("clients", "show", "acme")
    listed = await objects("clients", "ls")
    suspended = await ctl("clients", "suspend", "acme", "--reason", "bill of May")
    back = await ctl("clients", "reinstate", "acme")
    unasked = await ctl("clients", "rm", "acme")
    proof = tmp_path / "proof.json"
    gone = await ctl("clients", "rm", "acme", "--yes", "--proof", str(proof))
    left = [await objects("clients", "ls"), await objects("clients", "ls", "--all")]
    erasures = await objects("clients", "erasures", "acme")

    assert [ran.exit_code for ran in (made, changed, shown, suspended, back, gone)] == [0] * 6
    assert "clients/acme is ACTIVE" in made.stdout
    assert "100 GB, basic" in shown.stdout
    assert "1 turns at once" in shown.stdout
    policy = listed[0]["policy"]
    assert isinstance(policy, dict)
    assert policy["quotas"] == {"tiers": ["TIER_BASIC"], "storage_bytes": 100 * 10**9}
    assert policy["text"] == "TEXT_POLICY_NONE"
    assert "is SUSPENDED" in suspended.stdout
    assert (unasked.exit_code, "--yes" in unasked.stderr) == (2, True)
    assert "complete" in gone.stdout
    assert json.loads(proof.read_bytes())["account"] == "clients/acme"
    assert (tmp_path / "proof.json.sig").stat().st_size > 0
    assert [len(rows) for rows in left] == [0, 1]
    assert erasures[0]["account"] == "clients/acme"


async def test_what_a_client_wants_of_backups_is_said_word_by_word_and_taken_back(world: World) -> None:
    await ctl("clients", "create", "acme")
    made = await objects("clients", "backups", "acme", "--every", "12h", "--keep-daily", "0", "--immutable-for", "30d")
    shown = await ctl("clients", "show", "acme")
    changed = await objects(
        *("clients", "backups", "acme", "--every", "never", "--keep-daily", "default", "--immutable-for", "no")
    )
    wrong = [
        await ctl("clients", "backups", "acme", *words)
        for words in ((), ("--keep-last", "many"), ("--keep-last", "10001"), ("--immutable-for", "-1d"))
    ]
    refused = await ctl("clients", "backups", "acme", "--immutable-for", "3651d")

    policies = [json.loads(json.dumps(ran[0]["policy"])) for ran in (made, changed)]
    assert [(one["backup_every"], one["backup_retention"]) for one in policies] == [
        ("43200s", {"keep_daily": 0, "immutable_for": "2592000s"}),
        ("0s", {"immutable_for": "0s"}),
    ]
    wishes = "made every 12 h 0 min of use, the newest of 0 days, immutable for 30 d 0 h"
    assert wishes in " ".join(shown.stdout.split())
    assert [ran.exit_code for ran in wrong] == [2] * 4
    assert (refused.exit_code, "immutable_for" in refused.stderr) == (2, True)


async def test_a_freelancer_from_its_creation_to_its_end(world: World) -> None:
    await ctl("clients", "create", "acme")
    made = await ctl("freelancers", "create", "acme", "ada", "--name", "Ada", "--max-sandboxes", "2")
    own = await objects("freelancers", "show", "acme", "ada")
    each = await ctl("freelancers", "update", "acme", "ada", "--as-each")
    listed = await ctl("freelancers", "ls", "acme", "--quiet")
    suspended = await ctl("freelancers", "suspend", "acme", "ada")
    gone = await ctl("freelancers", "rm", "acme", "ada", "--yes")
    absent = await ctl("freelancers", "show", "acme", "eve")
    nothing = await ctl("freelancers", "update", "acme", "ada")

    assert [ran.exit_code for ran in (made, each, listed, suspended, gone)] == [0] * 5
    assert own[0]["quotas"] == {"sandboxes": 2, "tiers": []}
    assert listed.stdout == "ada\n"
    assert (absent.exit_code, nothing.exit_code) == (3, 2)


async def test_a_key_comes_from_a_file_or_stdin_and_is_shown_nowhere(world: World, tmp_path: Path) -> None:
    await ctl("clients", "create", "acme")
    file = tmp_path / "key.txt"
    file.write_text(f"{KEY}\n")
    ran = [
        await ctl("keys", "set", "acme", "--from-file", str(file)),
        await ctl("keys", "rotate", "acme", "--from-stdin", "--grace", "5", stdin=f"{KEY}-2"),
        await ctl("keys", "ls", "acme"),
    ]
    held = world.key_store.keys[ClientId("acme")][0]
    ran.append(await ctl("keys", "revoke", "acme", "--yes"))
    wrong = [
        await ctl("keys", "set", "acme"),
        await ctl("keys", "set", "acme", "--from-stdin", stdin="two words"),
        await ctl("keys", "set", "acme", KEY),
    ]

    assert [one.exit_code for one in ran] == [0] * 4
    assert held == f"{KEY}-2"
    assert world.key_store.keys == {}
    assert [one.exit_code for one in wrong] == [2] * 3
    assert all(KEY not in one.output for one in ran)
