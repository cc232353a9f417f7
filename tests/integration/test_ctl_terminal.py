"""sandboxctl at a real (pseudo) terminal: chat, questions, Ctrl-C, live tables, completion in bash."""

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.ctl.exits import Exit
from sandboxd.v1 import stream_pb2
from tests.fakes.platform_server import TOKEN, FakePlatform

BOX = "sbx-00000000000000000000000001"
SANDBOXCTL = Path(sys.executable).parent / "sandboxctl"
_SEQUENCE = re.compile(r"\x1b\][^\x07]*\x07|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[ -/]*[0-~]")


class Terminal:
    """A program at a pseudo terminal, and what it has written there."""

    def __init__(self, *words: str, env: dict[str, str], cwd: Path) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        # A session leader that opens a terminal gets it as its own, and then Ctrl-C as from a keyboard.
        own_terminal = ["sh", "-c", f'exec "$@" <>{os.ttyname(theirs)} >&0 2>&0', "sh"]
        self.process = subprocess.Popen([*own_terminal, *words], env=env, cwd=cwd, start_new_session=True)
        os.close(theirs)
        self._descriptor = ours
        self._raw = ""
        self._seen = 0

    def send(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def expect(self, text: str, *, within: float = 40) -> str:
        """Wait until the text was written after what was expected before, and return what came up to it."""
        deadline = time.monotonic() + within
        while True:
            plain = self.plain
            found = plain.find(text, self._seen)
            if found >= 0:
                before, self._seen = plain[self._seen : found], found + len(text)
                return before
            if time.monotonic() > deadline:
                raise AssertionError(f"{text!r} was not written within {within} s; this was:\n{plain[self._seen :]}")
            self._read(0.1)

    def end(self, *, within: float = 40) -> int:
        """Wait for the end of the program and return its exit code."""
        deadline = time.monotonic() + within
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"it did not end; this was written:\n{self.plain[-2000:]}")
            self._read(0.05)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._descriptor)

    @property
    def plain(self) -> str:
        return _SEQUENCE.sub("", self._raw).replace("\r", "")

    def _read(self, seconds: float) -> None:
        if select.select([self._descriptor], [], [], seconds)[0]:
            try:
                self._raw += os.read(self._descriptor, 65536).decode(errors="replace")
            except OSError:  # its other side is closed
                time.sleep(0.01)


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    with FakePlatform().served() as platform:
        platform.given_sandbox(BOX, display_name="demo")
        yield platform


@pytest.fixture
def env(platform: FakePlatform, tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": f"{SANDBOXCTL.parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "SANDBOXCTL_ADDRESS": platform.address,
        "SANDBOXCTL_TOKEN": TOKEN,
    }


@pytest.fixture
def chat(env: dict[str, str], tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(str(SANDBOXCTL), "chat", "demo", env=env, cwd=tmp_path)
    terminal.expect("Ctrl-D leaves")
    terminal.expect("> ")
    yield terminal
    terminal.close()


def test_a_chat_from_the_first_prompt_to_the_last(platform: FakePlatform, chat: Terminal, tmp_path: Path) -> None:
    # two lines, one prompt
    chat.send("hello\x1b\rworld\r")
    chat.expect("Echo: hello\nworld")
    chat.expect("✓ done")
    assert platform.prompts == ["hello\nworld"]

    # a question is answered; a word that is no answer is asked for again
    chat.expect("> ")
    chat.send("permission\r")
    chat.expect("May run_shell_command run?")
    chat.expect("Answer 1-3")
    chat.send("what?\r")
    chat.expect("Answer 1-3")
    chat.send("2\r")
    chat.expect("You said always.")

    # Ctrl-C cancels the turn and not the program
    chat.expect("> ")
    chat.send("slow\r")
    chat.expect("working on it")
    chat.send("\x03")
    chat.expect("■ cancelled")

    # words for sandboxctl
    chat.expect("> ")
    chat.send("/mode yolo\r")
    chat.expect("mode is yolo now")
    (tmp_path / "a.txt").write_text("a")
    chat.send("/attach a.txt\r")
    chat.expect("goes with the next prompt: a.txt")
    chat.send("/help\r")
    chat.expect("Alt-Enter")

    # Ctrl-C clears the line; twice on an empty one leaves
    chat.expect("> ")
    chat.send("half a though")
    chat.expect("half a though")
    chat.send("\x03")
    chat.send("\x03")
    chat.expect("Ctrl-C again")
    chat.send("\x03")
    chat.expect("Come back with: sandboxctl chat")

    assert chat.end() == 0
    assert platform.prompts == ["hello\nworld", "permission", "slow"]
    assert "hello" in (tmp_path / ".local/state/sandboxctl/history").read_text()


def test_a_question_that_is_answered_with_ctrl_c_cancels_the_turn(platform: FakePlatform, chat: Terminal) -> None:
    chat.send("permission\r")
    chat.expect("Answer 1-3")
    chat.send("\x03")
    chat.expect("■ cancelled")

    chat.expect("> ")
    chat.send("\x04")

    assert chat.end() == 0


def test_ctrl_c_after_a_question_cancels_the_turn(platform: FakePlatform, chat: Terminal) -> None:
    chat.send("permission slow\r")
    chat.expect("Answer 1-3")
    chat.send("y\r")
    chat.expect("working on it")
    chat.send("\x03")
    chat.expect("■ cancelled")

    assert chat.process.poll() is None


def test_a_burst_of_ctrl_c_while_nothing_runs_is_no_crash(platform: FakePlatform, chat: Terminal) -> None:
    chat.send("/session\r")
    chat.expect("sandboxes/")
    chat.send("\x03")
    chat.expect("Ctrl-C again")
    chat.send("\x03")
    chat.expect("Come back with")

    assert chat.end() == 0


def test_what_was_typed_before_a_question_does_not_answer_it(platform: FakePlatform, chat: Terminal) -> None:
    chat.send("permission\ry\r1\r")
    chat.expect("Answer 1-3")
    time.sleep(0.3)  # the time that a wrong answer would need; nothing shows that nothing happens

    assert [session.answers for session in platform.sessions.values()] == [{}]


def test_a_restart_of_the_service_in_a_turn_is_told_and_survived(platform: FakePlatform, chat: Terminal) -> None:
    chat.send("slow\r")
    chat.expect("working on it")
    platform.stop()
    chat.expect("connection lost")
    platform.start()
    chat.expect("connected again")
    chat.send("\x03")
    chat.expect("■ cancelled")

    assert platform.prompts == ["slow"]
    assert "chttp2" not in chat.plain


def test_a_turn_of_somebody_else_is_shown_and_what_was_typed_comes_back(platform: FakePlatform, chat: Terminal) -> None:
    chat.send("my half prom")
    chat.expect("my half prom")
    session = next(iter(platform.sessions.values()))

    turn = f"{session.session.name}/turns/trn-x"
    platform.say(session, turn=turn, turn_started=_started("from elsewhere"))
    chat.expect("» from elsewhere")
    platform.say(session, turn=turn, turn_completed=_completed())
    chat.expect("✓ done")
    chat.expect("my half prom")
    chat.send("pt\r")
    chat.expect("Echo: my half prompt")


def test_ctrl_c_in_prompt_cancels_the_turn_and_exits_130(
    platform: FakePlatform, env: dict[str, str], tmp_path: Path
) -> None:
    terminal = Terminal(str(SANDBOXCTL), "prompt", "demo", "slow", env=env, cwd=tmp_path)
    terminal.expect("working on it")
    terminal.send("\x03")
    terminal.expect("■ cancelled")

    assert terminal.end() == 130
    terminal.close()


def test_rm_asks_and_no_means_no(platform: FakePlatform, env: dict[str, str], tmp_path: Path) -> None:
    for answer, state in (("n\n", "ACTIVE"), ("y\n", "TERMINATED")):
        terminal = Terminal(str(SANDBOXCTL), "rm", "demo", env=env, cwd=tmp_path)
        terminal.expect("[y/N]")
        terminal.send(answer)
        assert terminal.end() == 0
        terminal.close()
        shown = subprocess.run([SANDBOXCTL, "show", BOX], env=env, capture_output=True, text=True, check=True).stdout
        assert state in shown


def test_watch_shows_a_table_that_changes(platform: FakePlatform, env: dict[str, str], tmp_path: Path) -> None:
    terminal = Terminal(str(SANDBOXCTL), "watch", env=env, cwd=tmp_path)
    terminal.expect(BOX)
    platform.given_sandbox("sbx-00000000000000000000000002", display_name="fresh", state="CREATING")
    terminal.expect("fresh")
    terminal.send("\x03")

    assert terminal.end() == 130
    terminal.close()


def test_watch_without_a_terminal_writes_a_line_for_each_change(platform: FakePlatform, env: dict[str, str]) -> None:
    process = subprocess.Popen([SANDBOXCTL, "watch"], env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert BOX in process.stdout.readline()
    platform.given_sandbox("sbx-00000000000000000000000002", state="CREATING")
    assert "CREATING" in process.stdout.readline()

    process.send_signal(signal.SIGINT)

    assert process.wait(20) == 130
    process.stdout.close()


def test_history_follows_until_ctrl_c(platform: FakePlatform, env: dict[str, str]) -> None:
    session = platform.given_session(BOX, "ses-1")
    process = subprocess.Popen(
        [SANDBOXCTL, "history", "demo/last", "--follow", "-o", "json"], env=env, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert "session_opened" in process.stdout.readline()
    platform.say(session, turn_started=_started("news"))
    assert "news" in process.stdout.readline()

    process.send_signal(signal.SIGINT)

    assert process.wait(20) == 130
    process.stdout.close()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("words", "suggested"),
    [
        (["sandboxctl", "hist"], ["history"]),
        (["sandboxctl", "show", "de"], ["demo"]),
        (["sandboxctl", "show", "sbx-0"], [BOX]),
        (["sandboxctl", "history", "demo/"], ["demo/ses-1"]),
        (["sandboxctl", "prompt", "demo", "--session", "s"], ["ses-1"]),
        (["sandboxctl", "show", "nothing-like-it"], []),
        (["sandboxctl", "restore", "pa"], ["past"]),
        (["sandboxctl", "restore", "demo", "--into", "de"], ["demo"]),
        (["sandboxctl", "backups", "show", "pa"], ["past"]),
        (["sandboxctl", "sbom", "pa"], ["past"]),
        (["sandboxctl", "commit", "pa"], []),
        (["sandboxctl", "admin", "abandoned", "--r"], ["--remove"]),
        (["sandboxctl", "pools", "create", "--tier", "p"], ["premium"]),
    ],
)
def test_bash_completes_commands_and_names(
    platform: FakePlatform, env: dict[str, str], words: list[str], suggested: list[str]
) -> None:
    platform.given_session(BOX, "ses-1")
    platform.given_sandbox("sbx-ended", display_name="past", state="TERMINATED")

    assert _complete(words, env) == suggested


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_are_given_the_same(platform: FakePlatform, env: dict[str, str], shell: str) -> None:
    platform.given_sandbox("sbx-ended", display_name="past", state="TERMINATED")
    for words, suggested in (
        ("backups rm pa", "past"),
        ("restore --w", "--workspace-only"),
        ("admin sweep i", "images"),
    ):
        asked = {"_SANDBOXCTL_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": f"sandboxctl {words}"}
        asked["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
        done = subprocess.run([SANDBOXCTL], env=env | asked, capture_output=True, text=True, check=True, timeout=60)

        assert (suggested in done.stdout, done.stderr) == (True, "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_completion_is_silent_where_nobody_answers(platform: FakePlatform, env: dict[str, str]) -> None:
    platform.stop()

    assert _complete(["sandboxctl", "show", "de"], env) == []


def _complete(words: list[str], env: dict[str, str]) -> list[str]:
    """Complete the last word as bash would, with the script that sandboxctl itself hands out."""
    script = f"""
        eval "$(_SANDBOXCTL_COMPLETE=source_bash sandboxctl)"
        COMP_WORDS=({" ".join(words)}) COMP_CWORD={len(words) - 1}
        _sandboxctl_completion sandboxctl
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _started(text: str) -> object:
    return stream_pb2.TurnStarted(request_id="somebody-else", number=1, text=text)


def _completed() -> object:
    return stream_pb2.TurnCompleted(stop_reason=stream_pb2.STOP_REASON_END_TURN)


def test_a_restore_shows_how_far_it_is(platform: FakePlatform, env: dict[str, str], tmp_path: Path) -> None:
    platform.restoring.clear()
    terminal = Terminal(str(SANDBOXCTL), "restore", "demo", env=env, cwd=tmp_path)
    terminal.expect("restoring home 23.0 MB of 45.0 MB")

    platform.restoring.set()

    terminal.expect("is back")
    assert terminal.end() == 0
    terminal.close()


def test_ctrl_c_cancels_a_restore(platform: FakePlatform, env: dict[str, str], tmp_path: Path) -> None:
    platform.restoring.clear()
    terminal = Terminal(str(SANDBOXCTL), "restore", "demo", env=env, cwd=tmp_path)
    terminal.expect("restoring home")

    terminal.send("\x03")

    terminal.expect("Cancelling the restore")
    terminal.expect("The restore was cancelled.")
    assert terminal.end() == Exit.WRONG_STATE
    assert platform.cancelled_restores == [f"sandboxes/{BOX}"]
    terminal.close()
