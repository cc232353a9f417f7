"""The small rules of sandboxctl: where it connects, what it exits with, how it reads words."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.main import get_command

from sandboxd.ctl import advice as advice_module
from sandboxd.ctl.advice import advise
from sandboxd.ctl.app import app
from sandboxd.ctl.backoff import Backoff, RetryPolicy
from sandboxd.ctl.commands.prompt import exit_code
from sandboxd.ctl.commands.usage import moment
from sandboxd.ctl.connection import Target, _parse
from sandboxd.ctl.exits import Exit, of_status
from sandboxd.ctl.figures import ago, money, span
from sandboxd.ctl.jsonlines import to_dict, to_line
from sandboxd.ctl.options import ORDER, Root, asks_for_json, hoist
from sandboxd.ctl.permissions import understand
from sandboxd.ctl.shell import UsageError
from sandboxd.ctl.target import SetupError, TargetOptions, TlsOptions, find
from sandboxd.v1 import sandbox_pb2, stream_pb2


def dev(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "token").write_text("from-dev\n")
    (tmp_path / "dev.json").write_text(json.dumps({"address": "127.0.0.1:7", "token_file": str(tmp_path / "token")}))
    return {"SANDBOXD_DATA_DIR": str(tmp_path)}


def test_a_running_dev_is_found_by_its_file(tmp_path: Path) -> None:
    found = find(TargetOptions(), dev(tmp_path))

    assert (found.address, found.read_token()) == ("127.0.0.1:7", "from-dev")


def test_arguments_come_before_the_environment_and_that_before_dev(tmp_path: Path) -> None:
    environment = {**dev(tmp_path), "SANDBOXCTL_ADDRESS": "env:1", "SANDBOXCTL_TOKEN": "from-env"}

    assert find(TargetOptions(), environment).address == "env:1"
    assert find(TargetOptions(), environment).read_token() == "from-env"
    said = find(TargetOptions(address="said:1", token="said"), environment)
    assert (said.address, said.read_token()) == ("said:1", "said")


def test_a_certificate_needs_no_token_and_comes_with_its_key_from_one_place(tmp_path: Path) -> None:
    environment = {"SANDBOXCTL_ADDRESS": "env:1", "SANDBOXCTL_CERT": "env.pem", "SANDBOXCTL_CERT_KEY": "env.key"}
    environment |= {"SANDBOXCTL_CA": "ca.pem", "SANDBOXCTL_FOR_CLIENT": "acme", "SANDBOXD_DATA_DIR": str(tmp_path)}

    from_environment = find(TargetOptions(), environment)
    from_arguments = find(TargetOptions(tls=TlsOptions(cert_file=Path("both.pem")), for_client="other"), environment)

    assert from_environment.read_token() == ""
    assert from_environment.tls == TlsOptions(
        ca_file=Path("ca.pem"), cert_file=Path("env.pem"), cert_key_file=Path("env.key")
    )
    assert (from_environment.for_client, from_arguments.for_client) == ("acme", "other")
    assert from_arguments.tls == TlsOptions(ca_file=Path("ca.pem"), cert_file=Path("both.pem"))


def test_a_certificate_at_the_command_goes_before_a_token_of_the_environment(tmp_path: Path) -> None:
    environment = {"SANDBOXCTL_ADDRESS": "env:1", "SANDBOXCTL_TOKEN": "somebody's", "SANDBOXD_DATA_DIR": str(tmp_path)}
    certificate = TlsOptions(cert_file=Path("platform.pem"))

    assert find(TargetOptions(tls=certificate), environment).read_token() == ""
    assert find(TargetOptions(tls=certificate, token="said"), environment).read_token() == "said"


def test_the_token_of_dev_goes_to_no_other_address(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no token for elsewhere:1") as caught:
        find(TargetOptions(address="elsewhere:1"), dev(tmp_path))

    assert caught.value.exit_code is Exit.AUTH


def test_nothing_found_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(SetupError) as caught:
        find(TargetOptions(), {"SANDBOXD_DATA_DIR": str(tmp_path)})

    assert "make run" in caught.value.advice
    assert caught.value.exit_code is Exit.UNAVAILABLE


@pytest.mark.parametrize("content", ["", "{", "[]", '{"address": "x"}'])
def test_a_broken_dev_file_is_no_dev(tmp_path: Path, content: str) -> None:
    (tmp_path / "dev.json").write_text(content)

    with pytest.raises(SetupError, match="No address"):
        find(TargetOptions(), {"SANDBOXD_DATA_DIR": str(tmp_path)})


@pytest.mark.parametrize(
    ("address", "connects_to", "secure"),
    [
        ("127.0.0.1:7", "127.0.0.1:7", False),
        ("localhost:7", "localhost:7", False),
        ("[::1]:7", "[::1]:7", False),
        ("unix:/run/s", "unix:/run/s", False),
        ("sandboxd.example:443", "sandboxd.example:443", True),
        ("https://sandboxd.example", "sandboxd.example:443", True),
        ("https://127.0.0.1:7/", "127.0.0.1:7", True),
        ("http://10.0.0.1:7", "10.0.0.1:7", False),
    ],
)
def test_a_token_crosses_a_network_in_clear_only_where_told(address: str, connects_to: str, secure: bool) -> None:
    assert _parse(Target(address=address, token=str))[:2] == (connects_to, secure)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("INVALID_ARGUMENT", 2),
        ("NOT_FOUND", 3),
        ("UNAUTHENTICATED", 4),
        ("PERMISSION_DENIED", 4),
        ("UNAVAILABLE", 5),
        ("DEADLINE_EXCEEDED", 5),
        ("FAILED_PRECONDITION", 6),
        ("ABORTED", 6),
        ("INTERNAL", 1),
        ("RESOURCE_EXHAUSTED", 1),
    ],
)
def test_each_status_has_its_exit_code(status: str, code: int) -> None:
    assert of_status(status) == code


@pytest.mark.parametrize(
    ("stop", "interrupted", "refused", "code"),
    [
        (stream_pb2.STOP_REASON_END_TURN, False, False, 0),
        (stream_pb2.STOP_REASON_END_TURN, False, True, 7),
        (stream_pb2.STOP_REASON_CANCELLED, True, False, 130),
        (stream_pb2.STOP_REASON_CANCELLED, False, True, 7),
        (stream_pb2.STOP_REASON_CANCELLED, False, False, 1),
        (stream_pb2.STOP_REASON_REFUSAL, False, False, 7),
        (stream_pb2.STOP_REASON_ERROR, False, True, 1),
        (stream_pb2.STOP_REASON_MAX_TOKENS, False, False, 1),
        (stream_pb2.STOP_REASON_INTERRUPTED, False, False, 1),
    ],
)
def test_the_end_of_a_turn_decides_the_exit_code(
    stop: stream_pb2.StopReason.ValueType, interrupted: bool, refused: bool, code: int
) -> None:
    done = stream_pb2.TurnCompleted(stop_reason=stop)

    assert exit_code(done, interrupted=interrupted, refused=refused) == code


@pytest.mark.parametrize(
    ("said", "option"),
    [
        *[("1", "once"), ("3", "no"), ("4", None), ("0", None), ("y", "once"), ("YES", "once"), ("n", "no")],
        *[("", None), ("always allow", "always"), ("always", "always"), ("maybe", None), ("²", None)],
    ],
)
def test_answers_are_understood_or_asked_for_again(said: str, option: str | None) -> None:
    kind = stream_pb2.PermissionOption
    options = [  # in the order of Gemini CLI, which is not the one that people are shown
        kind(option="always", label="Always allow", kind=kind.KIND_ALLOW_ALWAYS),
        kind(option="once", label="Allow once", kind=kind.KIND_ALLOW_ONCE),
        kind(option="no", label="Reject", kind=kind.KIND_REJECT_ONCE),
    ]

    assert understand(said, stream_pb2.PermissionRequest(options=options)) == option


def test_connection_options_may_stand_anywhere_but_after_two_dashes() -> None:
    assert hoist(["ls", "--token", "t", "-o", "json"]) == ["--token", "t", "ls", "-o", "json"]
    assert hoist(["ls", "--address=a:1"]) == ["--address=a:1", "ls"]
    assert hoist(["prompt", "a", "--", "--token", "t"]) == ["prompt", "a", "--", "--token", "t"]
    assert hoist(["ls", "--token"]) == ["--token", "ls"]


def test_json_is_seen_in_the_raw_words() -> None:
    assert asks_for_json(["ls", "-o", "json"])
    assert asks_for_json(["--output=json", "ls"])
    assert not asks_for_json(["prompt", "a", "--", "-o", "json"])
    assert not asks_for_json(["ls", "-o", "text"])
    assert not asks_for_json([])


def test_moments_are_dates_or_spans_back_from_now() -> None:
    now = datetime(2026, 11, 23, 12, tzinfo=UTC)

    assert moment("24h", now=now) == now - timedelta(hours=24)
    assert moment("2026-11-20T10:00+00:00") == datetime(2026, 11, 20, 10, tzinfo=UTC)
    assert moment("") is None
    with pytest.raises(UsageError, match="no moment"):
        moment("soon")


def test_json_has_proto_names_every_field_and_numbers() -> None:
    event = stream_pb2.StreamResponse(
        sequence=7, usage=stream_pb2.Usage(prompt_tokens=12, cost_micros=3), turn="sandboxes/a"
    )

    plain = to_dict(event)

    assert plain["sequence"] == 7
    assert plain["usage"]["prompt_tokens"] == 12
    assert plain["usage"]["cost_micros"] == 3
    assert plain["usage"]["estimated"] is False
    assert "text" not in plain
    assert json.loads(to_line(event)) == plain


def test_labels_and_escape_sequences_survive_json() -> None:
    sandbox = sandbox_pb2.Sandbox(labels={"a": "1"}, display_name="\x1b[31mred\u202e")

    line = to_line(sandbox)

    assert "\x1b" not in line
    assert "\u202e" not in line
    assert json.loads(line)["labels"] == {"a": "1"}


def test_waits_grow_have_jitter_and_end_with_the_budget() -> None:
    now = 0.0
    policy = RetryPolicy(first=timedelta(seconds=1), longest=timedelta(seconds=4), budget=timedelta(seconds=10))
    backoff = Backoff(policy, clock=lambda: now)

    delays = [backoff.next_delay() for _ in range(5)]
    now = 11.0

    assert all(delay is not None and delay <= limit for delay, limit in zip(delays, (1, 2, 4, 4, 4), strict=True))
    assert backoff.next_delay() is None
    backoff.reset()
    assert backoff.next_delay() is not None


def test_a_wait_is_at_least_what_the_service_asks_for() -> None:
    delay = Backoff(RetryPolicy(budget=timedelta(seconds=60))).next_delay(at_least=timedelta(seconds=9))

    assert delay is not None
    assert delay >= 9


def test_advice_names_what_it_is_about() -> None:
    advice = advise("FAILED_PRECONDITION", "SANDBOX_PAUSED", {"sandbox": "sandboxes/sbx-1"})

    assert advice == "Bring it back with: sandboxctl resume sbx-1"
    failed = advise("UNAVAILABLE", "UNAVAILABLE", {"sandbox": "sandboxes/sbx-1", "state": "FAILED"})
    assert failed == "Try again with: sandboxctl resume sbx-1\nOr end it with: sandboxctl rm sbx-1"
    assert "--force" in advise("FAILED_PRECONDITION", "TURN_IN_PROGRESS", {"sandbox": "sandboxes/a"})
    assert "history ses-1 --follow" in advise("FAILED_PRECONDITION", "TURN_IN_PROGRESS", {"session": "ses-1"})


def test_a_service_that_gives_a_reason_is_neither_asked_for_nor_short_of_a_sandbox() -> None:
    assert "Is sandboxd running" in advise("UNAVAILABLE", "", {}, address="host:1")
    assert advise("UNAVAILABLE", "BACKUP_INCOMPLETE", {}, address="host:1") == ""
    assert "home:.bashrc" in advise("NOT_FOUND", "BACKUP_SNAPSHOT_NOT_FOUND", {"sandbox": "sbx-1"})


def test_commands_that_are_advised_are_there_and_all_that_are_there_have_their_place() -> None:
    root = get_command(app)
    assert isinstance(root, Root)
    commands = root.list_commands(None)
    source = Path(advice_module.__file__).read_text(encoding="utf-8")
    advised = set(re.findall(r"sandboxctl ([a-z]+)", source))

    assert "resume" in advised
    assert advised <= set(commands)
    assert commands == list(ORDER), "and the help lists them so"


def test_figures_are_short() -> None:
    assert [money(0, "USD"), money(321, "USD"), money(12_345, "USD"), money(1_500_000, "CHF")] == [
        "$0.00",
        "$0.000321",
        "$0.0123",
        "1.50 CHF",
    ]
    assert [span(0.04), span(59.4), span(61), span(7300)] == ["0.0 s", "59 s", "1 min 1 s", "2 h 1 min"]
    now = datetime(2026, 11, 23, tzinfo=UTC)
    assert [ago(now, now=now), ago(now - timedelta(hours=5), now=now)] == ["just now", "5 h ago"]
