"""What a person sees of a session's events, and what no event can do to a terminal."""

import io

import pytest
from rich.console import Console

from sandboxd.ctl.console import make_console
from sandboxd.ctl.render import EventRenderer
from sandboxd.ctl.sanitize import clean, clean_line
from sandboxd.v1 import package_pb2
from sandboxd.v1 import stream_pb2 as pb

Event = pb.StreamResponse

OPTIONS = [
    pb.PermissionOption(option="once", label="Allow once", kind=pb.PermissionOption.KIND_ALLOW_ONCE),
    pb.PermissionOption(option="no", label="Reject", kind=pb.PermissionOption.KIND_REJECT_ONCE),
]


def plain(*events: pb.StreamResponse, output_lines: int = 12) -> str:
    out = io.StringIO()
    console = Console(file=out, width=100, markup=False, emoji=False, highlight=False, soft_wrap=True)
    renderer = EventRenderer(console, output_lines=output_lines)
    for event in events:
        renderer.show(event)
    renderer.end_line()
    return out.getvalue()


def coloured(*events: pb.StreamResponse) -> str:
    out = io.StringIO()
    console = Console(
        file=out, width=60, markup=False, emoji=False, highlight=False, force_terminal=True, color_system="standard"
    )
    renderer = EventRenderer(console)
    for event in events:
        renderer.show(event)
    return out.getvalue()


def test_a_turn_reads_from_top_to_bottom() -> None:
    diff = pb.Diff(path="a.py", old_text="x = 1\ny = 2\n", new_text="x = 1\ny = 3\n", kind="modify")
    shown = plain(
        Event(session_opened=pb.SessionOpened(title="parser")),
        Event(waking=pb.Waking(from_state="HIBERNATED")),
        Event(session_ready=pb.SessionReady(mode="default", model="gemini-2.5-flash", cli_version="0.61.0")),
        Event(turn_started=pb.TurnStarted(text="Fix it,\nplease")),
        Event(thought=pb.Thought(subject="Reading", text="Look first.")),
        Event(tool_call=pb.ToolCall(tool="run_shell_command", title="make test", kind=pb.TOOL_KIND_EXECUTE)),
        Event(tool_output=pb.ToolOutput(tool="run_shell_command", status=pb.TOOL_STATUS_COMPLETED, text="1 failed\n")),
        Event(tool_call=pb.ToolCall(tool="replace", title="a.py", kind=pb.TOOL_KIND_EDIT)),
        Event(permission_request=pb.PermissionRequest(tool="replace", title="a.py", options=OPTIONS, diffs=[diff])),
        Event(tool_output=pb.ToolOutput(tool="replace", status=pb.TOOL_STATUS_COMPLETED, diffs=[diff])),
        Event(text=pb.Text(text="It is ")),
        Event(text=pb.Text(text="fixed.")),
        Event(
            usage=pb.Usage(
                model="gemini-2.5-flash",
                prompt_tokens=1200,
                cached_tokens=1000,
                output_tokens=30,
                thoughts_tokens=5,
                cost_micros=321,
                currency="USD",
                http_status=200,
            )
        ),
        Event(
            turn_completed=pb.TurnCompleted(
                stop_reason=pb.STOP_REASON_END_TURN,
                calls=2,
                total_tokens=2470,
                cost_micros=1_234_567,
                currency="USD",
                duration_ms=8123,
                usage_complete=True,
            )
        ),
    )

    assert shown == (
        "session opened: parser\n"
        "the sandbox is hibernated; making it ready …\n"
        "ready: gemini-2.5-flash, mode default, Gemini CLI 0.61.0\n"
        "» Fix it,\n"
        "  please\n"
        "∴ Reading\n"
        "  │ Look first.\n"
        "$ make test  run_shell_command\n"
        "  │ 1 failed\n"
        "✎ a.py  replace\n"
        "? permission needed\n"
        "  │ a.py\n"
        "  │ a.py  changed +1 -1\n"
        "  │ @@ -1,2 +1,2 @@\n"
        "  │  x = 1\n"
        "  │ -y = 2\n"
        "  │ +y = 3\n"
        "  │   1 Allow once\n"
        "  │   2 Reject\n"
        "  │ a.py  changed +1 -1\n"
        "  │ @@ -1,2 +1,2 @@\n"
        "  │  x = 1\n"
        "  │ -y = 2\n"
        "  │ +y = 3\n"
        "It is fixed.\n"
        "  ⋅ gemini-2.5-flash · 1,200 in (1,000 cached) · 30 out + 5 thinking · $0.000321\n"
        "✓ done  8.1 s · 2 model calls · 2,470 tokens · $1.23\n"
    )


def test_what_goes_wrong_says_so_and_what_to_do() -> None:
    shown = plain(
        Event(error=pb.Error(reason="MODEL_RATE_LIMITED", message="Slow down.", http_status=429, retryable=True)),
        Event(tool_output=pb.ToolOutput(tool="write_file", status=pb.TOOL_STATUS_REJECTED)),
        Event(unparsed=pb.Unparsed(data=b"\xffhm", size=3, why="NOT_JSON")),
        Event(command_failed=pb.CommandFailed(reason="TURN_IN_PROGRESS", message="A turn is open.")),
        Event(turn_completed=pb.TurnCompleted(stop_reason=pb.STOP_REASON_ERROR, calls=1, duration_ms=100)),
    )

    assert shown == (
        "✗ MODEL_RATE_LIMITED  Slow down.  (HTTP 429)\n"
        "  The same prompt may work later.\n"
        "  ✗ write_file was not allowed\n"
        "  ? 3 bytes not understood (NOT_JSON): \ufffdhm\n"
        "✗ A turn is open.\n"
        "■ failed  0.1 s · 1 model call · 0 tokens · more to come in the ledger\n"
    )


def test_long_output_is_trimmed_in_the_middle_and_counted() -> None:
    text = "\n".join(f"line {number}" for number in range(100))

    shown = plain(Event(tool_output=pb.ToolOutput(status=pb.TOOL_STATUS_COMPLETED, text=text)), output_lines=6)

    assert shown.splitlines() == [
        "  │ line 0",
        "  │ line 1",
        "  │ line 2",
        "  │ line 3",
        "  │ … 94 more lines …",
        "  │ line 98",
        "  │ line 99",
    ]


def test_colour_marks_what_was_added_and_removed() -> None:
    diff = pb.Diff(path="a", old_text="old\n", new_text="new\n")

    shown = coloured(Event(tool_output=pb.ToolOutput(status=pb.TOOL_STATUS_COMPLETED, diffs=[diff])))

    assert "\x1b[31m-old\x1b[0m" in shown
    assert "\x1b[32m+new\x1b[0m" in shown


def test_a_question_stands_in_a_frame_at_a_terminal() -> None:
    request = pb.PermissionRequest(tool="run_shell_command", title="rm -rf build", options=OPTIONS)

    shown = coloured(Event(permission_request=request))

    assert "May run_shell_command run?" in shown
    assert shown.count("╭") == 1


def test_markup_in_events_is_text() -> None:
    shown = plain(Event(text=pb.Text(text="[bold red]not markup[/] :smile: [link=http://x]y[/link]\n")))

    assert shown == "[bold red]not markup[/] :smile: [link=http://x]y[/link]\n"


ATTACKS = {
    "title": "\x1b]0;owned\x07x",
    "clipboard": "\x1b]52;c;aGk=\x1b\\x",
    "hyperlink": "\x1b]8;;http://evil\x1b\\x\x1b]8;;\x1b\\",
    "clear": "\x1b[2J\x1b[Hx",
    "eight bit CSI": "\x9b31mx",
    "eight bit OSC": "\x9d0;owned\x9cx",
    "DCS": "\x1bPq#0\x1b\\x",
    "reset": "\x1bcx",
    "backspace": "\x08\x08x",
    "bell": "\x07x",
    "right to left": "\u202ex",
    "half a sequence": "x\x1b",
    "unfinished string": "x\x1b]0;owned",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_escape_sequences_are_removed_from_text(attack: str) -> None:
    assert clean(attack) == "x"


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_no_event_can_bring_a_control_character_to_the_terminal(attack: str) -> None:
    everywhere = [
        Event(session_opened=pb.SessionOpened(title=attack)),
        Event(waking=pb.Waking(from_state=attack)),
        Event(session_ready=pb.SessionReady(mode=attack, model=attack, cli_version=attack)),
        Event(
            turn_started=pb.TurnStarted(
                text=attack, attachments=[pb.AttachmentInfo(file_name=attack, mime_type=attack, size=1)]
            )
        ),
        Event(text=pb.Text(text=attack)),
        Event(thought=pb.Thought(subject=attack, text=attack)),
        Event(tool_call=pb.ToolCall(tool=attack, title=attack)),
        Event(
            tool_output=pb.ToolOutput(
                tool=attack, text=attack, diffs=[pb.Diff(path=attack, old_text=attack, new_text=attack + "!")]
            )
        ),
        Event(tool_output=pb.ToolOutput(tool=attack, status=pb.TOOL_STATUS_FAILED)),
        Event(
            permission_request=pb.PermissionRequest(
                tool=attack, title=attack, text=attack, options=[pb.PermissionOption(label=attack)]
            )
        ),
        Event(mode_changed=pb.ModeChanged(mode=attack)),
        Event(model_changed=pb.ModelChanged(model=attack)),
        Event(cancel_requested=pb.CancelRequested(reason=attack)),
        Event(usage=pb.Usage(model=attack, cost_micros=1, currency="USD")),
        Event(turn_completed=pb.TurnCompleted()),
        Event(notice=pb.Notice(code=attack, message=attack)),
        Event(
            packages_changed=pb.PackagesChanged(
                changes=[
                    package_pb2.PackageChange(
                        package=package_pb2.Package(name=attack, version=attack), old_version=attack, session=attack
                    )
                ]
            )
        ),
        Event(error=pb.Error(reason=attack, message=attack)),
        Event(
            command_failed=pb.CommandFailed(
                message=attack, violations=[pb.FieldViolation(field=attack, description=attack)]
            )
        ),
        Event(unparsed=pb.Unparsed(data=attack.encode(), why=attack)),
    ]

    shown = plain(*everywhere)

    forbidden = {*map(chr, range(32)), *map(chr, range(127, 160)), "\u202e"} - {"\n"}
    assert forbidden & {*shown} == set()


def test_changes_of_packages_are_one_line_that_says_what_is_not_saved() -> None:
    changes = [
        package_pb2.PackageChange(
            number=number,
            kind=package_pb2.PACKAGE_CHANGE_KIND_CHANGED if number == 7 else package_pb2.PACKAGE_CHANGE_KIND_INSTALLED,
            package=package_pb2.Package(
                name=f"p{number}", version="2", manager=package_pb2.PACKAGE_MANAGER_DPKG, unsaved=number == 7
            ),
            old_version="1" if number == 7 else "",
        )
        for number in range(2, 8)
    ]

    shown = plain(Event(packages_changed=pb.PackagesChanged(changes=changes, earlier=3, last_number=7)))
    saved = plain(Event(packages_changed=pb.PackagesChanged(changes=changes[:1], last_number=2)))

    assert shown.startswith("packages: 4 packages before these, installed p3 2 (dpkg), ")
    assert shown.endswith("changed p7 1 → 2 (dpkg); not saved yet\n")
    assert saved == "packages: installed p2 2 (dpkg)\n"


def test_a_long_line_is_cut_where_one_line_is_wanted() -> None:
    assert clean_line("a\nb\tc" + "x" * 300, limit=10) == "a b cxxxx…"


def test_without_a_terminal_no_escape_sequence_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    renderer = EventRenderer(make_console())

    renderer.show(Event(error=pb.Error(reason="X", message="y")))

    assert capsys.readouterr().out == "✗ X  y\n"


def test_an_event_of_a_newer_service_is_passed_over() -> None:
    assert plain(Event(sequence=4)) == ""
