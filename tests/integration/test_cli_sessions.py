"""The real CLI: conversations survive being started again at once, and our settings are in force."""

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.dev.gemini_cli import GeminiCli, ensure_gemini_cli
from sandboxd.dev.node import find_node
from sandboxd.model.events import Error, Notice, SessionReady, Text, ToolOutput, ToolStatus
from sandboxd.model.ids import SessionId
from sandboxd.stream.acp import launch
from sandboxd.stream.acp.chat_files import prepare_argv
from sandboxd.stream.acp.user_settings import merge_argv
from tests.fake_gemini import FakeGemini
from tests.real_cli import RealCli

A, B = SessionId("ses-a"), SessionId("ses-b")


@pytest.fixture(scope="module")
def cli() -> GeminiCli:
    return ensure_gemini_cli(print)


@pytest.fixture
def gemini() -> Iterator[FakeGemini]:
    with FakeGemini() as fake:
        yield fake


def last_contents(gemini: FakeGemini) -> str:
    return json.dumps(gemini.requests[-1]["body"]["contents"])


def hint_of(gemini: FakeGemini) -> str:
    headers = {name.lower(): value for name, value in gemini.requests[-1]["headers"].items()}
    return str(headers["x-goog-api-key"])


def test_conversations_survive_three_kills_and_loads_within_moments(
    cli: GeminiCli, gemini: FakeGemini, tmp_path: Path
) -> None:
    with RealCli(cli, tmp_path, gemini.url) as first:
        first.open(A)
        first.open(B)
        first.prompt(A, "trn-a0", "remember BANANA")
        first.prompt(B, "trn-b0", "remember CHERRY")
        a, b = first.sessions[A].cli_session, first.sessions[B].cli_session

    for number in range(1, 4):
        with RealCli(cli, tmp_path, gemini.url, load=(a, b)) as again:
            again.open(A, cli_session=a)
            again.open(B, cli_session=b)
            said = again.prompt(A, f"trn-a{number}", f"round {number}")
            contents, hint = last_contents(gemini), hint_of(gemini)
            again.prompt(B, f"trn-b{number}", "and you")

            assert said == f"You said: round {number}"
            assert "BANANA" in contents
            assert all(f"round {earlier}" in contents for earlier in range(1, number + 1))
            assert "CHERRY" not in contents
            assert "CHERRY" in last_contents(gemini)
            assert (hint, hint_of(gemini)) == ("sbxd-ses-a", "sbxd-ses-b")
            assert [ready.resumed for ready in again.of(SessionReady)] == [True, True]
            assert again.of(Error) == []
            assert all("BANANA" not in text.text for text in again.of(Text))


def test_a_long_history_never_leaks_into_the_turn_that_follows(
    cli: GeminiCli, gemini: FakeGemini, tmp_path: Path
) -> None:
    with RealCli(cli, tmp_path, gemini.url) as first:
        first.open(A)
        first.prompt(A, "trn-0", "hello")
        session = first.sessions[A].cli_session
    (chat,) = (tmp_path / "home").glob(f".gemini/tmp/*/chats/session-*-{session[:8]}.jsonl")
    with chat.open("a") as file:
        for number in range(1500):
            moment = {"id": str(uuid.uuid4()), "timestamp": "2026-01-01T00:00:00.000Z"}
            asked = {**moment, "type": "user", "content": [{"text": f"OLD question {number} {'x' * 2000}"}]}
            said = {**moment, "id": str(uuid.uuid4()), "type": "gemini", "content": f"OLD answer {number} {'y' * 2000}"}
            file.write(json.dumps(asked) + "\n" + json.dumps(said) + "\n")

    with RealCli(cli, tmp_path, gemini.url, load=(session,)) as again:
        again.open(A, cli_session=session)
        said_now = again.prompt(A, "trn-1", "fake:text(chunks=3)")

    assert said_now == "chunk 1 of 3. chunk 2 of 3. chunk 3 of 3. "
    assert len(again.of(Text)) == 3
    assert "OLD question 1499" in last_contents(gemini)


def test_a_conversation_that_is_not_there_is_begun_anew(cli: GeminiCli, gemini: FakeGemini, tmp_path: Path) -> None:
    with RealCli(cli, tmp_path, gemini.url) as running:
        running.open(A, cli_session=str(uuid.uuid4()))
        said = running.prompt(A, "trn-1", "hello")

    assert said == "You said: hello"
    assert [notice.code for notice in running.of(Notice)] == ["CONVERSATION_LOST"]


def test_our_settings_are_in_force_where_the_system_ones_are_skipped(
    cli: GeminiCli, gemini: FakeGemini, tmp_path: Path
) -> None:
    with RealCli(cli, tmp_path, gemini.url) as running:
        running.open(A, mode="default")
        running.prompt(
            A, "trn-1", "fake:shell(cmd=echo visible && env | grep -c GEMINI_API_KEY)", answer="proceed_once"
        )

    output = running.of(ToolOutput)[0]
    assert output.status is ToolStatus.COMPLETED
    # With the interactive shell there would be no text at all; without the redaction the count would be 1.
    assert output.text.splitlines()[:2] == ["visible", "0"]
    assert running.asked() == ["echo visible && env | grep -c GEMINI_API_KEY"]


def chats(home: Path, *names: str) -> Path:
    directory = home / ".gemini" / "tmp" / "workspace" / "chats"
    directory.mkdir(parents=True)
    for name in names:
        (directory / name).write_text("")
    return directory


def prepare(home: Path, *sessions: str) -> None:
    subprocess.run(list(prepare_argv(sessions)), env={"HOME": str(home), "PATH": os.environ["PATH"]}, check=True)


ID = "5b464b2b-96eb-46ef-9883-e05d27d66683"
OTHER = "5b464b2b-0000-46ef-9883-e05d27d66683"


def chat(session: str, *answers: str) -> str:
    header = json.dumps({"sessionId": session, "kind": "main"}, separators=(",", ":"))
    records = [json.dumps({"type": "gemini", "content": answer}, separators=(",", ":")) for answer in answers]
    return "\n".join([header, *records]) + "\n"


def test_the_oldest_recording_becomes_the_truth_and_what_loads_left_behind_goes(tmp_path: Path) -> None:
    directory = chats(tmp_path)
    (directory / "session-2026-11-23T23-20-5b464b2b.jsonl").write_text(chat(ID, "the truth"))
    (directory / "session-2026-11-23T23-21-5b464b2b.jsonl").write_text(chat(ID))
    (directory / "session-2026-11-23T23-22-5b464b2b.jsonl").write_text(chat(OTHER, "of another session"))
    (directory / "session-2026-11-23T23-23-5b464b2b.jsonl").write_text(chat(ID, "not to be lost"))
    (directory / "session-2026-11-23T23-20-aaaaaaaa.jsonl").write_text(chat("aaaaaaaa-1", "a terminal's"))

    prepare(tmp_path, ID)
    prepare(tmp_path, ID)

    assert sorted(path.name for path in directory.iterdir()) == [
        f"session-0-{ID}-5b464b2b.jsonl",
        "session-2026-11-23T23-20-aaaaaaaa.jsonl",
        "session-2026-11-23T23-22-5b464b2b.jsonl",
        "session-2026-11-23T23-23-5b464b2b.jsonl.kept",
    ]
    assert "the truth" in (directory / f"session-0-{ID}-5b464b2b.jsonl").read_text()


def test_a_home_without_sessions_is_no_failure(tmp_path: Path) -> None:
    prepare(tmp_path, ID)
    prepare(tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_what_is_no_id_never_reaches_the_shell() -> None:
    assert list(prepare_argv(["$(rm -rf /)", "", "../..", ID]))[4:] == [ID]


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        (None, {}),
        ('{"ui": {"theme": "Dracula"}}', {"ui": {"theme": "Dracula"}}),
        (
            '{\n // mine\n "ui": {"theme": "a // b"}, /* x */ "tools": {"shell": {"pager": "less"}}\n}',
            {"ui": {"theme": "a // b"}},
        ),
        ('{"general": {"sessionRetention": {"enabled": true}}}', {}),
    ],
)
def test_our_settings_win_and_the_freelancer_s_others_stay(
    tmp_path: Path, before: str | None, kept: dict[str, object]
) -> None:
    file = tmp_path / ".gemini" / "settings.json"
    if before is not None:
        file.parent.mkdir()
        file.write_text(before)
    argv = merge_argv(node=str(find_node().binary), settings=launch.system_settings())

    for _ in range(2):
        subprocess.run(list(argv), env={"HOME": str(tmp_path)}, check=True)

    merged = json.loads(file.read_text())
    assert merged["general"]["sessionRetention"] == {"enabled": False}
    assert merged["tools"]["shell"]["enableInteractiveShell"] is False
    assert {key: merged[key] for key in kept} == kept
    if before and "pager" in before:
        assert merged["tools"]["shell"]["pager"] == "less"


def test_settings_that_are_no_json_are_put_aside(tmp_path: Path) -> None:
    file = tmp_path / ".gemini" / "settings.json"
    file.parent.mkdir()
    file.write_text("{broken")
    argv = merge_argv(node=str(find_node().binary), settings={"a": 1})

    subprocess.run(list(argv), env={"HOME": str(tmp_path)}, check=True)

    assert json.loads(file.read_text()) == {"a": 1}
    assert (file.parent / "settings.json.unreadable").read_text() == "{broken"
