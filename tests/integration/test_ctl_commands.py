"""Every command of sandboxctl against the contract: what it prints, as text and as JSON, and what it exits with."""

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from typer.testing import CliRunner

from sandboxd.ctl.app import app
from sandboxd.v1 import package_pb2
from tests.eventually import eventually
from tests.fakes.platform_server import TOKEN, FakePlatform

BOX = "sbx-00000000000000000000000001"
OTHER = "sbx-00000000000000000000000002"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.err.splitlines()[-1])["error"]
        return found


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakePlatform]:
    with FakePlatform().served() as platform:
        platform.given_sandbox(BOX, display_name="demo", client="acme", freelancer="ada", labels={"project": "web"})
        platform.given_sandbox(OTHER, display_name="other", state="PAUSED", freelancer="bob")
        monkeypatch.setenv("SANDBOXCTL_ADDRESS", platform.address)
        monkeypatch.setenv("SANDBOXCTL_TOKEN", TOKEN)
        monkeypatch.delenv("SANDBOXCTL_TOKEN_FILE", raising=False)
        monkeypatch.setenv("SANDBOXD_DATA_DIR", str(tmp_path))
        yield platform


def ctl(*words: str, stdin: str | None = None) -> Ran:
    result = CliRunner().invoke(app, words, input=stdin)
    return Ran(code=result.exit_code, out=result.stdout, err=result.stderr)


def test_create_makes_what_was_asked_for(platform: FakePlatform) -> None:
    ran = ctl("create", "--name", "new", "--freelancer", "eve", "-l", "a=1", "--tier", "premium", "--mode", "plan")

    assert ran.code == 0
    assert "is ACTIVE after" in ran.out
    assert "sandboxctl chat new" in ran.out
    made = ctl("show", "new", "-o", "json").objects[0]
    assert (made["freelancer"], made["labels"], made["tier"]) == ("eve", {"a": "1"}, "TIER_PREMIUM")
    assert made["approval_mode"] == "plan"


def test_create_with_the_same_request_id_makes_one_sandbox(platform: FakePlatform) -> None:
    first = ctl("create", "--quiet", "--request-id", "a-request-id")
    second = ctl("create", "--quiet", "--request-id", "a-request-id")

    assert first.out == second.out
    assert first.out.startswith("sbx-")


def test_create_in_json_is_the_sandbox(platform: FakePlatform) -> None:
    ran = ctl("create", "--name", "new", "--output", "json", "--wait")

    assert [each["display_name"] for each in ran.objects] == ["new"]
    assert "creating the sandbox" in ran.err


def test_a_label_without_a_value_is_a_usage_error(platform: FakePlatform) -> None:
    ran = ctl("create", "--label", "nonsense")

    assert ran.code == 2
    assert "KEY=VALUE" in ran.err


def test_ls_shows_a_table_over_all_pages_and_filters(platform: FakePlatform) -> None:
    platform.given_sandbox("sbx-00000000000000000000000003", state="TERMINATED")
    platform.given_sandbox("sbx-00000000000000000000000004", display_name="third")

    assert [line.split()[0] for line in ctl("ls").out.splitlines()][1:] == [
        BOX,
        OTHER,
        "sbx-00000000000000000000000004",
    ]
    assert len(ctl("ls", "--all", "-q").out.splitlines()) == 4
    assert ctl("ls", "-q", "--state", "paused").out == f"{OTHER}\n"
    assert ctl("ls", "-q", "--label", "project=web").out == f"{BOX}\n"
    assert ctl("ls", "-q", "--freelancer", "bob").out == f"{OTHER}\n"
    assert [each["name"] for each in ctl("ls", "-o", "json").objects][:2] == [f"sandboxes/{BOX}", f"sandboxes/{OTHER}"]


def test_ls_of_nothing_says_how_to_begin(platform: FakePlatform) -> None:
    ran = ctl("ls", "--freelancer", "nobody")

    assert (ran.code, ran.out) == (0, "")
    assert "sandboxctl create" in ran.err


@pytest.mark.parametrize("said", [BOX, f"sandboxes/{BOX}", "demo", "dem"])
def test_a_sandbox_may_be_named_by_id_name_or_beginning(platform: FakePlatform, said: str) -> None:
    assert ctl("show", said, "-o", "json").objects[0]["name"] == f"sandboxes/{BOX}"


def test_a_beginning_that_fits_several_names_them(platform: FakePlatform) -> None:
    ran = ctl("show", "sbx-0")

    assert ran.code == 2
    assert BOX in ran.err
    assert OTHER in ran.err


def test_show_lists_facts_and_the_newest_sessions(platform: FakePlatform) -> None:
    platform.given_session(BOX, "ses-1", title="parser", turns=2)

    ran = ctl("show", "demo")

    assert ran.code == 0
    assert "project=web" in ran.out
    assert "parser" in ran.out


def test_prompt_streams_one_turn(platform: FakePlatform) -> None:
    ran = ctl("prompt", "demo", "hello", "there")

    assert ran.code == 0
    assert "Echo: hello there" in ran.out
    assert "+two" in ran.out
    assert "✓ done" in ran.out
    assert "\x1b" not in ran.out
    assert platform.prompts == ["hello there"]


def test_prompt_in_json_gives_the_events_and_nothing_else(platform: FakePlatform) -> None:
    ran = ctl("prompt", "demo", "-o", "json", "hello")

    numbers = [each["sequence"] for each in ran.objects if each["sequence"]]
    assert numbers == [*range(1, len(numbers) + 1)]
    assert "".join(each["text"]["text"] for each in ran.objects if "text" in each) == "Echo: hello"
    assert ran.objects[-1]["turn_completed"]["stop_reason"] == "STOP_REASON_END_TURN"
    assert ran.objects[-1]["turn_completed"]["total_tokens"] == 1060


def test_prompt_reads_stdin_and_sends_attachments(platform: FakePlatform, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("some notes")

    ran = ctl("prompt", "demo", "--attach", str(tmp_path / "notes.txt"), "-o", "json", "-", stdin="from stdin")

    started = next(each["turn_started"] for each in ran.objects if "turn_started" in each)
    assert started["text"] == "from stdin"
    assert [(each["file_name"], each["mime_type"], each["size"]) for each in started["attachments"]] == [
        ("notes.txt", "text/plain", 10)
    ]


def test_prompt_continues_a_session_and_shows_only_what_is_new(platform: FakePlatform) -> None:
    ctl("prompt", "demo", "first")
    session = ctl("sessions", "demo", "-o", "json").objects[0]["name"]

    for said in ("last", session, session.rpartition("/")[2]):
        ran = ctl("prompt", "demo", "--session", said, "again")

        assert ran.code == 0
        assert "first" not in ran.out
    assert len(platform.sessions) == 1


@pytest.mark.parametrize(("flags", "code", "answer"), [(["--yes"], 0, "once"), (["--deny"], 7, "no"), ([], 7, "no")])
def test_prompt_answers_permissions_as_told_and_refuses_without_a_terminal(
    platform: FakePlatform, flags: list[str], code: int, answer: str
) -> None:
    ran = ctl("prompt", "demo", *flags, "permission", "please")

    assert ran.code == code
    assert f"You said {answer}." in ran.out


def test_prompt_cannot_ask_without_a_terminal(platform: FakePlatform) -> None:
    assert ctl("prompt", "demo", "--ask", "permission").code == 2
    assert ctl("prompt", "demo", "--yes", "--deny", "x").code == 2
    assert platform.prompts == []


@pytest.mark.parametrize(("text", "code"), [("fail", 1), ("refuse", 7)])
def test_prompt_exits_with_how_the_turn_ended(platform: FakePlatform, text: str, code: int) -> None:
    assert ctl("prompt", "demo", text).code == code


def test_prompt_into_a_session_that_is_working_says_how_to_join(platform: FakePlatform) -> None:
    session = platform.given_session(BOX, "ses-00000000000000000000000001")
    session.session.open_turn = f"{session.session.name}/turns/trn-1"

    ran = ctl("prompt", "demo", "--session", "last", "hello")

    assert ran.code == 6
    assert "--follow" in ran.err


def test_prompt_in_a_paused_sandbox_says_how_to_resume(platform: FakePlatform) -> None:
    ran = ctl("prompt", "other", "hello", "--output", "json")

    assert ran.code == 6
    assert ran.error["reason"] == "SANDBOX_PAUSED"
    assert ran.error["exit_code"] == 6
    assert "sandboxctl resume" in ran.error["advice"]


def test_prompt_without_text_is_a_usage_error(platform: FakePlatform) -> None:
    assert ctl("prompt", "demo").code == 2
    assert ctl("prompt", "demo", "-", stdin=" \n").code == 2


def test_prompt_with_an_attachment_that_is_not_there_is_a_usage_error(platform: FakePlatform) -> None:
    ran = ctl("prompt", "demo", "--attach", "/no/such/file", "hello")

    assert ran.code == 2
    assert "/no/such/file" in ran.err
    assert platform.prompts == []


def test_chat_needs_a_terminal(platform: FakePlatform) -> None:
    ran = ctl("chat", "demo")

    assert ran.code == 2
    assert "sandboxctl prompt" in ran.err


def test_sessions_lists_newest_first(platform: FakePlatform) -> None:
    platform.given_session(BOX, "ses-1", title="old", turns=1)
    platform.given_session(BOX, "ses-2", title="new \x1b[31mred", turns=2, open_turn="x")

    ran = ctl("sessions", "demo")

    assert [line.split()[0] for line in ran.out.splitlines()] == ["SESSION", "ses-2", "ses-1"]
    assert "working" in ran.out
    assert "\x1b" not in ran.out
    assert [each["title"] for each in ctl("sessions", "demo", "-o", "json").objects] == ["new \x1b[31mred", "old"]


@pytest.mark.parametrize("said", ["demo/last", "last-word", "demo/last-word"])
def test_history_shows_the_whole_log(platform: FakePlatform, said: str) -> None:
    ctl("prompt", "demo", "--title", "last-word", "hello")

    ran = ctl("history", said)

    assert ran.code == 0
    assert "» hello" in ran.out
    assert "Echo: hello" in ran.out


def test_history_after_an_event_in_json(platform: FakePlatform) -> None:
    ctl("prompt", "demo", "hello")

    ran = ctl("history", "demo/last", "--after", "3", "-o", "json")

    assert [each["sequence"] for each in ran.objects] == [*range(4, 4 + len(ran.objects))]
    assert "turn_completed" in ran.objects[-1]


def test_history_of_nothing_is_not_found(platform: FakePlatform) -> None:
    assert ctl("history", "demo/last").code == 3
    assert ctl("history", "nothing-like-that").code == 3
    assert ctl("history", "last").code == 2


def test_pause_and_resume(platform: FakePlatform) -> None:
    assert "is PAUSED" in ctl("pause", "demo").out
    assert ctl("resume", "demo", "-o", "json").objects[0]["state"] == "SANDBOX_STATE_ACTIVE"
    assert ctl("resume", "demo").code == 6


def test_pause_in_a_turn_needs_force(platform: FakePlatform) -> None:
    platform.given_session(BOX, "ses-1", open_turn="x")

    refused = ctl("pause", "demo")

    assert refused.code == 6
    assert "--force" in refused.err
    assert ctl("pause", "demo", "--force").code == 0


def test_rm_without_a_terminal_needs_yes(platform: FakePlatform) -> None:
    assert ctl("rm", "demo").code == 2
    assert ctl("rm", "demo", "--yes").out.splitlines() == [
        f"✓ {BOX} is terminated",
        "  its files were kept: /data/kept",
        "  backed up: not yet; policy does it soon",
    ]
    assert ctl("ls", "-q").out == f"{OTHER}\n"


def test_rm_of_several_goes_on_after_one_that_is_missing(platform: FakePlatform) -> None:
    missing = "sbx-00000000000000000000000009"

    ran = ctl("rm", "--yes", missing, BOX)

    assert ran.code == 3
    assert missing in ran.err
    assert ctl("show", BOX, "-o", "json").objects[0]["state"] == "SANDBOX_STATE_TERMINATED"


def test_usage_adds_up_by_what_was_asked_for(platform: FakePlatform) -> None:
    ctl("prompt", "demo", "one")
    ctl("prompt", "demo", "two")

    table = ctl("usage", "--by", "model", "--by", "freelancer").out.splitlines()

    assert table[0].split()[:3] == ["MODEL", "FREELANCER", "CALLS"]
    assert table[1].split()[:4] == ["gemini-2.5-flash", "ada", "2", "0"]
    assert table[-1].split()[0] == "total"
    assert "$0.002468" in table[-1]
    summary = ctl("usage", "-o", "json").objects[0]
    assert summary["total"]["tokens"]["total"] == 2120
    assert summary["total"]["costs"] == [{"micros": 2468, "currency": "USD"}]


def test_usage_events_are_the_rows_of_the_ledger(platform: FakePlatform) -> None:
    for text in ("one", "two", "three"):
        ctl("prompt", "demo", text)

    assert len(ctl("usage", "--events", "--since", "24h").out.splitlines()) == 4
    assert [each["id"] for each in ctl("usage", "--events", "-o", "json").objects] == ["use-1", "use-2", "use-3"]
    request = next(request for method, request in platform.calls if method == "ListUsageEvents")
    assert request.filter.start_time.seconds > 0  # type: ignore[attr-defined]  # any message


def test_usage_refuses_what_cannot_be_added_up(platform: FakePlatform) -> None:
    assert ctl("usage", "--by", "moon").code == 2
    assert ctl("usage", "--by", "day", "--by", "day").code == 2
    assert ctl("usage", "--since", "soon").code == 2


def test_a_wrong_token_is_an_authentication_error(platform: FakePlatform) -> None:
    ran = ctl("ls", "--token", "wrong")

    assert ran.code == 4
    assert "SANDBOXCTL_TOKEN" in ran.err


def test_a_token_file_is_read_and_a_missing_one_is_told(platform: FakePlatform, tmp_path: Path) -> None:
    (tmp_path / "t").write_text(f"{TOKEN}\n")

    assert ctl("--token-file", str(tmp_path / "t"), "ls").code == 0
    assert ctl("ls", "--token-file", str(tmp_path / "none")).code == 4


def test_a_running_dev_needs_no_options(
    platform: FakePlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SANDBOXCTL_ADDRESS")
    monkeypatch.delenv("SANDBOXCTL_TOKEN")
    assert ctl("ls").code == 5

    (tmp_path / "token").write_text(TOKEN)
    dev = {"address": platform.address, "token_file": str(tmp_path / "token")}
    (tmp_path / "dev.json").write_text(json.dumps(dev))

    assert ctl("ls").code == 0


def test_a_service_that_does_not_answer_is_told_in_words_and_in_json(platform: FakePlatform) -> None:
    platform.stop()

    ran = ctl("ls", "-o", "json")

    assert ran.code == 5
    assert ran.error["code"] == "UNAVAILABLE"
    assert "make run" in ran.error["advice"]


def test_a_wrong_command_line_in_json_is_told_in_json(platform: FakePlatform) -> None:
    ran = ctl("ls", "-o", "json", "--bogus")

    assert ran.code == 2
    assert ran.error["reason"] == "USAGE"


def test_help_of_every_command_has_examples() -> None:
    commands = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]

    assert len(commands) >= 12
    for command in commands:
        assert f"sandboxctl {command}" in ctl(command, "--help").out
    assert "130 interrupted" in ctl("--help").out


# --- budgets and prices


def test_budgets_are_set_listed_and_removed(platform: FakePlatform) -> None:
    money = ctl("budgets", "set", "1.25 usd", "--per", "day", "--freelancer", "ada", "--warn", "50")
    tokens = ctl("budgets", "set", "2Mtokens", "--sandbox", "demo", "-o", "json").objects[0]
    table = ctl("budgets", "ls").out.splitlines()
    of_ada = ctl("budgets", "ls", "--freelancer", "ada", "-o", "json").objects
    removed = ctl("budgets", "rm", "bdg-1")
    again = ctl("budgets", "rm", "bdg-1")

    assert money.code == 0
    assert "ada may spend $1.25 a day" in money.out
    assert (tokens["tokens"], tokens["sandbox"], tokens["period"]) == (
        2_000_000,
        f"sandboxes/{BOX}",
        "BUDGET_PERIOD_MONTH",
    )
    assert len(table) == 3
    assert "$1.25" in table[1]
    assert "72 %" in table[1]
    assert "2,000,000 tokens" in table[2]
    assert [one["warn_percents"] for one in of_ada] == [[50]]
    assert (removed.code, again.code) == (0, 3)
    assert "1 sums were wrong" in ctl("budgets", "rebuild").out


def test_prices_are_added_ended_and_listed(platform: FakePlatform) -> None:
    added = ctl(
        "prices", "add", "gemini-x", "0.30/0.03/2.50", "200000:0.60/0.06/5", "--from", "2027-01-01", "-o", "json"
    ).objects[0]
    table = ctl("prices", "ls").out.splitlines()
    ended = ctl("prices", "end", "price-1", "--at", "2028-01-01")

    assert added["rates"] == [
        {"above_prompt_tokens": 0, "input": 300_000, "cached": 30_000, "output": 2_500_000},
        {"above_prompt_tokens": 200_000, "input": 600_000, "cached": 60_000, "output": 5_000_000},
    ]
    assert added["currency"] == "USD"
    assert len(table) == 3
    assert "keep their price" in ended.out
    assert len(ctl("prices", "ls").out.splitlines()) == 1
    assert len(ctl("prices", "ls", "--all").out.splitlines()) == 3


@pytest.mark.parametrize(
    "words",
    [
        ("budgets", "set", "25"),
        ("budgets", "set", "25dollars"),
        ("budgets", "set", "25USD", "--warn", "101"),
        ("budgets", "set", "25USD", "--per", "year"),
        ("prices", "add", "gemini-x", "0.30"),
        ("prices", "add", "gemini-x", "1.1.1/1/1"),
    ],
)
def test_what_is_no_budget_and_no_price_is_a_usage_error(platform: FakePlatform, words: tuple[str, ...]) -> None:
    assert ctl(*words).code == 2


def test_usage_is_watched_across_restarts_of_the_service(platform: FakePlatform) -> None:
    ctl("prompt", "demo", "hello")
    ctl("prompt", "demo", "again")

    watched = ctl("usage", "--watch")
    as_json = ctl("usage", "-w", "-o", "json").objects

    lines = watched.out.splitlines()
    assert watched.code == 4  # the fake refuses when everything was seen
    assert sum(line.startswith("total: 2 calls, 2,120 tokens") for line in lines) == 2
    assert sum("gemini-2.5-flash  1,060" in line for line in lines) == 2
    assert [each["event"]["id"] for each in as_json if "event" in each] == ["use-1", "use-2"]
    assert ctl("usage", "--watch", "--by", "day").code == 2


def test_running_time_and_storage_are_added_up(platform: FakePlatform) -> None:
    runtime = ctl("usage", "runtime", "--by", "tier", "--since", "7d").out.splitlines()
    storage = ctl("usage", "runtime", "--storage", "--sandbox", "demo").out

    assert runtime[1].split()[:2] == ["basic", "2"]
    assert "1 h 30 min" in runtime[1]
    assert "10.000" in storage
    assert ctl("usage", "runtime", "-o", "json").objects[0]["total"]["sandboxes"] == 2
    assert ctl("usage", "runtime", "--by", "moon").code == 2


# --- operating


def test_an_operator_sees_replicas_gateways_and_what_is_wrong(platform: FakePlatform) -> None:
    shown = ctl("admin", "status")
    as_json = ctl("admin", "status", "-o", "json").objects[0]
    platform.database_answers = False
    alone = ctl("admin", "status")

    assert shown.code == 0
    assert all(word in shown.out for word in ("rep-1", "2 open turns", "dead", "gtw-1", "open", "7 active"))
    assert "1 are stuck" in shown.err
    assert as_json["gateways"][0]["circuit"] == "CIRCUIT_STATE_OPEN"
    assert (alone.code, "does not answer" in alone.err) == (1, True)


def test_an_operator_sees_what_is_abandoned_and_ends_some_of_it(platform: FakePlatform) -> None:
    shown = ctl("admin", "abandoned")
    tried = ctl("admin", "abandoned", "--remove", "volume:client-acme/home-sbx-9", "--dry-run")
    absent = ctl("admin", "abandoned", "--remove", "nothing")
    removed = ctl("admin", "abandoned", "--remove", "client-acme/home-sbx-9")
    after = ctl("admin", "abandoned", "-o", "json").objects[0]

    assert (shown.code, tried.code, absent.code, removed.code) == (0, 0, 2, 0)
    assert "home-sbx-9" in shown.out
    assert "0.20" in shown.out
    assert "would be removed" in tried.out
    assert [one["name"] for one in after["abandoned"]] == ["client-gone"]


def test_an_operator_sweeps_drains_and_resets(platform: FakePlatform) -> None:
    found = ctl("admin", "sweep", "orphans")
    failed = ctl("admin", "sweep")
    drained = ctl("admin", "drain")
    draining = ctl("admin", "status").out
    undrained = ctl("admin", "undrain")
    absent = ctl("admin", "circuit", "reset", "gtw-9")
    reset = ctl("admin", "circuit", "reset", "-o", "json")

    assert (found.code, failed.code) == (0, 1)
    assert "sandbox_unknown sbx-9" in found.out
    assert "usage: failed: DATABASE_UNAVAILABLE" in failed.out
    assert "handed over 3 conversations" in drained.out
    assert "draining" in draining
    assert undrained.code == 0
    assert absent.code == 3
    assert reset.objects == [{"gateways": ["gtw-1"]}]
    assert ctl("admin", "sweep", "nonsense").code == 2


def test_an_operator_holds_pushes_and_releases_them(platform: FakePlatform, tmp_path: Path) -> None:
    held = ctl("admin", "hold-pushes", "gc", "--for", "2h", "--held-file", str(tmp_path / "held"))
    shown = ctl("admin", "status").err
    other = ctl("admin", "hold-pushes", "other")
    released = ctl("admin", "release-pushes", "gc")
    again = ctl("admin", "release-pushes", "gc", "-o", "json")

    assert (held.code, other.code, released.code, again.code) == (0, 6, 0, 0)
    assert "held by gc until" in held.out
    assert (tmp_path / "held").exists()
    assert "Pushes are held by gc" in shown
    assert "Pushes go on" in released.out
    assert again.objects == [{"released": False}]
    assert ctl("admin", "hold-pushes", "gc", "--for", "soon").code == 2


async def test_a_hold_until_a_signal_comes_is_released_then(platform: FakePlatform, tmp_path: Path) -> None:
    held = tmp_path / "held"
    words = ("admin", "hold-pushes", "gc", "--until-stopped", "--held-file", str(held))
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "sandboxd.ctl", *words, env={**os.environ})
    await eventually(held.exists, within=20)
    during = platform.push_hold
    process.terminate()
    code = await asyncio.wait_for(process.wait(), 20)

    assert (during is not None, platform.push_hold, code) == (True, None, 0)


def test_an_operator_sees_what_would_become_of_images(platform: FakePlatform) -> None:
    shown = ctl("admin", "sweep", "images", "--dry-run")

    assert shown.code == 0
    goes, stays = (line.split() for line in shown.out.splitlines() if "g00000" in line)
    assert goes == ["sbx-1", "acme/a", "g000001", "sha256:1", "1.5", "MB", "goes"]
    assert stays == ["-", "acme/a", "g000007", "sha256:7", "-", "named:", "Pod", "acme/sbx-1-0"]


def test_packages_lists_all_pages_and_says_what_is_kept(platform: FakePlatform) -> None:
    dpkg, pip = package_pb2.PACKAGE_MANAGER_DPKG, package_pb2.PACKAGE_MANAGER_PIP
    root, home = package_pb2.PACKAGE_PLACE_ROOT, package_pb2.PACKAGE_PLACE_HOME
    platform.packages = [
        package_pb2.Package(manager=dpkg, name="bash", version="5.2", place=root, initial=True, requested=True),
        package_pb2.Package(manager=dpkg, name="tree", version="2.1", place=root, requested=True, unsaved=True),
        package_pb2.Package(manager=pip, name="rich\x1b[2J", version="13", place=home, requested=True),
    ]

    everything = ctl("packages", "demo")
    unsaved = ctl("packages", "demo", "--unsaved", "-o", "json")
    of_pip = ctl("packages", "demo", "--manager", "pip", "-o", "json")
    none = ctl("packages", "demo", "--manager", "pip", "--unsaved")

    kept = {words[1]: " ".join(words[3:-1]) for line in everything.out.splitlines()[1:] if (words := line.split())}
    assert {name: kept[name] for name in ("bash", "tree")} == {"bash": "image", "tree": "not saved"}
    assert "home volume" in everything.out
    assert "\x1b[2J" not in everything.out
    assert [one["name"] for one in unsaved.objects] == ["tree"]
    assert [one["manager"] for one in of_pip.objects] == ["PACKAGE_MANAGER_PIP"]
    assert "No package is unsaved." in none.err
    assert "something else in the root file system was changed" in none.out + none.err
    assert "MANAGER" not in none.out, "a table of nothing"
    assert ctl("packages", "nobody").code == 3


def test_packages_of_a_sandbox_that_does_not_run_are_what_was_known(platform: FakePlatform) -> None:
    dpkg, root = package_pb2.PACKAGE_MANAGER_DPKG, package_pb2.PACKAGE_PLACE_ROOT
    platform.packages = [package_pb2.Package(manager=dpkg, name="tree", version="2.1", place=root, unsaved=True)]
    platform.record_time = Timestamp(seconds=1_800_000_000)

    shown = ctl("packages", "demo")

    assert "does not run" in shown.out + shown.err
    assert "What is not saved is gone." in shown.out + shown.err


def test_packages_shows_the_history_with_the_newest_last(platform: FakePlatform) -> None:
    dpkg, pip = package_pb2.PACKAGE_MANAGER_DPKG, package_pb2.PACKAGE_MANAGER_PIP
    platform.changes = [
        package_pb2.PackageChange(
            number=number,
            kind=package_pb2.PACKAGE_CHANGE_KIND_CHANGED,
            package=package_pb2.Package(
                manager=dpkg if number % 2 else pip,
                name=f"p{number}\x1b[2J",
                version="2",
                place=package_pb2.PACKAGE_PLACE_ROOT,
                unsaved=number == 5,
            ),
            old_version="1",
            requester=package_pb2.PACKAGE_REQUESTER_IMAGE,
            session="sandboxes/demo/sessions/ses-1" if number == 5 else "",
        )
        for number in range(1, 6)
    ]
    platform.missed = 7

    shown = ctl("packages", "demo", "--history")
    newest = ctl("packages", "demo", "--history", "--limit", "3", "-o", "json")
    of_pip = ctl("packages", "demo", "--history", "--manager", "pip", "-o", "json")
    unsaved = ctl("packages", "demo", "--history", "--unsaved", "-o", "json")

    assert [int(line.split()[0]) for line in shown.out.splitlines()[1:6]] == [1, 2, 3, 4, 5]
    assert "1 → 2" in shown.out
    assert ("ses-1" in shown.out, "the image" in shown.out, "not saved" in shown.out) == (True, True, True)
    assert "\x1b[2J" not in shown.out
    assert "7 changes" in shown.out + shown.err
    assert [one["number"] for one in newest.objects] == [3, 4, 5]
    assert [one["number"] for one in of_pip.objects] == [2, 4]
    assert [one["number"] for one in unsaved.objects] == [5]


def test_ls_and_show_say_what_is_unsaved(platform: FakePlatform) -> None:
    before = ctl("ls")
    sandbox = platform.sandboxes[f"sandboxes/{BOX}"]
    sandbox.unsaved.dirty_since.GetCurrentTime()
    changed = ctl("ls"), ctl("show", "demo")
    sandbox.unsaved.packages = 2
    packages = ctl("ls"), ctl("show", "demo")

    assert "UNSAVED" not in before.out
    assert ("UNSAVED" in changed[0].out, "changes of the root file system, since" in changed[1].out) == (True, True)
    assert all("2 packages" in shown.out for shown in packages)
