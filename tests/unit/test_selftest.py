"""The agent's self test of an image: what it finds broken, and that it neither hangs nor repeats what it was told."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd.agent import selftest
from sandboxd.agent.selftest import BROKEN, UNUSABLE, BrokenError, Expected
from sandboxd.model.boot_step import BootStep

PASSWD = "root:x:0:0:root:/root:/bin/bash\ngemini:x:1000:1000::/home/gemini:/bin/bash\n"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    for directory in ("etc", "home/gemini", "workspace", "run"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text("gemini:x:1000:\n")
    return tmp_path


def expected(image: Path) -> Expected:
    return Expected(
        user="gemini",
        user_id=1000,
        group_id=1000,
        home="/home/gemini",
        directories=["/home/gemini", "/workspace"],
        mounts=["/run/sandboxd", "/etc/sandboxd/agent"],
        root=image,
    )


def broken(image: Path) -> tuple[BootStep, str]:
    """What the checks that run nothing say."""

    def look() -> None:
        selftest._user(expected(image))
        selftest._mounts(expected(image))

    with pytest.raises(BrokenError) as caught:
        look()
    return caught.value.step, str(caught.value)


def test_what_is_as_it_should_be_passes(image: Path) -> None:
    selftest._user(expected(image))
    selftest._mounts(expected(image))


@pytest.mark.parametrize(
    ("passwd", "words"),
    [
        ("root:x:0:0:root:/root:/bin/bash\n", "has no user gemini"),
        (PASSWD.replace("1000:1000", "1001:1000"), "is 1001:1000 in /etc/passwd and must be 1000:1000"),
        (PASSWD.replace("/home/gemini", "/home/ada"), "home of gemini is /home/ada"),
        ("\x00\xff not a table", "has no user gemini"),
    ],
)
def test_a_user_that_is_not_as_it_must_be_is_told(image: Path, passwd: str, words: str) -> None:
    (image / "etc/passwd").write_text(passwd)

    step, text = broken(image)

    assert step is BootStep.USER
    assert words in text


@pytest.mark.parametrize("name", ["passwd", "group"])
def test_a_table_of_users_that_is_gone_is_told(image: Path, name: str) -> None:
    (image / "etc" / name).unlink()

    assert broken(image) == (BootStep.USER, f"/etc/{name} is no file.")


def test_a_home_that_is_gone_is_told(image: Path) -> None:
    (image / "home/gemini").rmdir()

    assert broken(image) == (BootStep.MOUNTS, "/home/gemini is not there.")


@pytest.mark.parametrize("name", ["workspace", "run/sandboxd"])
def test_a_mount_point_that_is_something_else_is_told(image: Path, name: str) -> None:
    if (image / name).exists():
        (image / name).rmdir()
    (image / name).symlink_to("/tmp")

    assert broken(image) == (BootStep.MOUNTS, f"/{name} is no directory.")


def test_a_mount_point_below_a_file_is_told(image: Path) -> None:
    (image / "etc/sandboxd").write_text("")

    step, text = broken(image)

    assert (step, text) == (BootStep.MOUNTS, "/etc/sandboxd/agent: Not a directory.")


def run(script: str, *, seconds: float = 5.0) -> str:
    return selftest._run(BootStep.CLI, [sys.executable, "-c", script], seconds=seconds)


def test_a_program_that_works_is_heard() -> None:
    assert run("print('one'); print('two')") == "one / two"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import sys; print('why'); sys.exit(3)", "exit status 3. why"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
    ],
)
def test_a_program_that_fails_is_told_with_its_last_words(script: str, words: str) -> None:
    with pytest.raises(BrokenError, match=words) as caught:
        run(script)

    assert caught.value.step is BootStep.CLI


def test_a_program_that_is_not_there_is_told() -> None:
    with pytest.raises(BrokenError, match="/no/such/program does not start: No such file or directory"):
        selftest._run(BootStep.SHELL, ["/no/such/program"])


def test_a_program_that_does_not_end_is_killed_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = (
        "import os, pathlib, time\n"
        f"pathlib.Path({str(note)!r}).write_text(str(os.fork() or os.getpid()))\n"
        "print('waiting', flush=True)\n"
        "time.sleep(60)"
    )

    with pytest.raises(BrokenError, match=r"did not end within 1 s. waiting"):
        run(script, seconds=1.0)

    child, until = int(note.read_text()), time.monotonic() + 10
    while _runs(child) and time.monotonic() < until:
        time.sleep(0.01)  # killed with its parent, which alone was waited for
    assert not _runs(child)


def test_what_a_program_waits_for_a_processor_is_no_part_of_its_time() -> None:
    argv = [sys.executable, "-c", "import time; time.sleep(1.2); print('late')"]

    assert selftest._run(BootStep.CLI, argv, seconds=1.0, waits=lambda _: 5.0) == "late"


def test_a_program_that_always_waits_ends_nevertheless() -> None:
    argv = [sys.executable, "-c", "import time; time.sleep(60)"]
    began = time.monotonic()

    with pytest.raises(BrokenError, match="did not end"):
        selftest._run(BootStep.CLI, argv, seconds=0.2, waits=lambda _: 1e9)

    assert time.monotonic() - began < 10


def test_the_kernel_counts_what_a_process_waits() -> None:
    assert selftest.waited(os.getpid()) > 0
    assert selftest.waited(1 << 30) == 0


def test_a_program_that_writes_without_end_takes_no_memory_and_no_more_than_its_time() -> None:
    began = time.monotonic()

    with pytest.raises(BrokenError) as caught:
        run("while True: print('x' * 1000)", seconds=1.0)

    assert time.monotonic() - began < 10
    assert len(str(caught.value)) < 1000


def test_what_a_program_leaves_running_keeps_nobody_waiting() -> None:
    script = (
        "import os, time\nif os.fork() == 0:\n    time.sleep(3)\nelse:\n    print('done', flush=True)\n    os._exit(0)"
    )
    began = time.monotonic()

    assert run(script, seconds=10.0) == "done"
    assert time.monotonic() - began < 2.5


def test_escape_sequences_are_not_repeated() -> None:
    with pytest.raises(BrokenError) as caught:
        run("import sys; print('\\x1b[2J\\x07evil'); sys.exit(1)")

    assert str(caught.value).isprintable()


def test_the_verdict_is_written_for_the_kubelet(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "termination-log"
    report.write_text("what somebody else has written")
    given = {"user": "nobody-has-this", "user_id": 1, "group_id": 1, "home": "/", "directories": []}

    assert selftest.main([json.dumps(given)], report=report) == BROKEN

    told = json.loads(report.read_text())
    assert told == {"step": "user", "message": "/etc/passwd has no user nobody-has-this."}


@pytest.mark.parametrize("arguments", [[], ["{"], ["{}"], ["[]"], ["{}", "{}"]])
def test_an_argument_that_is_none_is_no_verdict(arguments: list[str], tmp_path: Path) -> None:
    assert selftest.main(arguments, report=tmp_path / "log") == UNUSABLE
    assert not (tmp_path / "log").exists()


def test_the_freelancers_programs_run_as_the_freelancer(image: Path) -> None:
    """Only root can become another user; in a pod the agent is root."""
    if os.getuid() != 0:
        with pytest.raises(BrokenError, match="does not start"):
            selftest._shell(expected(image))
        return
    selftest._shell(expected(image))
    whoami = 'test "$(id -u)" = 1000 && test "$HOME" = /home/gemini && test "$(umask)" = 0022 || exit 7'

    selftest._cli(replace(expected(image), cli=["/bin/sh", "-c", whoami]))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
