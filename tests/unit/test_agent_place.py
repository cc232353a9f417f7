"""The agent's first steps in a place, and whose the freelancer's processes are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandboxd.agent import furnishing, user
from sandboxd.agent.config import AgentConfig, ConfigError, load_config
from sandboxd.agent.furnishing import StartedBeforeError, claim_start, make_directories
from sandboxd.agent.user import User, oom_score

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may act as another user")


def _config(directory: Path, *, run: Path | None = None) -> AgentConfig:
    return AgentConfig(
        sandbox="sbx-a",
        incarnation="inc-a",
        home=directory / "home",
        workspace=directory / "workspace",
        spool_directory=directory / "spools",
        ready_file=directory / "ready.json",
        tls_certificate=directory / "c",
        tls_key=directory / "k",
        tls_client_authority=directory / "a",
        run_directory=run,
    )


def test_a_second_start_in_one_run_directory_is_refused_and_names_the_first(tmp_path: Path) -> None:
    config = _config(tmp_path, run=tmp_path / "run")
    claim_start(config)

    with pytest.raises(StartedBeforeError, match="inc-a was started here before"):
        claim_start(config)


def test_an_agent_without_a_run_directory_starts_as_often_as_it_is_asked_to(tmp_path: Path) -> None:
    claim_start(_config(tmp_path))
    claim_start(_config(tmp_path))


def test_a_run_directory_that_cannot_be_made_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError):
        claim_start(_config(tmp_path, run=tmp_path / "file" / "run"))


def test_a_user_of_the_configuration_is_a_whole_number(tmp_path: Path) -> None:
    file = tmp_path / "agent.json"
    file.write_text('{"user_id": -1}')

    with pytest.raises(ConfigError, match="user_id"):
        load_config(file)


def test_groups_and_names_are_read_from_files_and_broken_lines_are_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "passwd").write_text("root:x:0:0::/root:/bin/sh\nbroken\n\ngemini:x:1000:1000::/home/gemini:/bin/zsh\n")
    (tmp_path / "group").write_text("sudo:x:27:gemini\nbroken:x\nodd:x:a:gemini\ndocker:x:999:other,gemini\n")
    monkeypatch.setattr(user, "PASSWD", tmp_path / "passwd")
    monkeypatch.setattr(user, "GROUP", tmp_path / "group")

    found = User(user_id=1000, group_id=1000)

    assert (found.name, found.shell, found.groups()) == ("gemini", "/bin/zsh", [1000, 27, 999])


def test_without_the_files_of_accounts_the_user_has_its_own_group_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user, "PASSWD", tmp_path / "none")
    monkeypatch.setattr(user, "GROUP", tmp_path / "none")

    assert User(user_id=1000, group_id=1000).groups() == [1000]


def test_the_freelancers_processes_go_before_the_agent_where_memory_ends() -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())

    assert 500 <= oom_score() <= 1000
    assert oom_score() > own or own == 1000


@AS_ROOT
def test_an_empty_home_becomes_the_freelancers_with_the_skeleton_of_accounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skeleton = tmp_path / "skel"
    skeleton.mkdir()
    (skeleton / ".bashrc").write_text("shell")
    monkeypatch.setattr(furnishing, "SKELETON", skeleton)
    _open_to_all(tmp_path)
    config = _config(tmp_path)

    make_directories(config, User(user_id=1000, group_id=1000))

    assert (config.home / ".bashrc").read_text() == "shell"
    assert {path.stat().st_uid for path in (config.home, config.workspace, config.home / ".bashrc")} == {1000}


@AS_ROOT
def test_a_home_that_was_used_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skeleton = tmp_path / "skel"
    skeleton.mkdir()
    (skeleton / ".bashrc").write_text("shell")
    monkeypatch.setattr(furnishing, "SKELETON", skeleton)
    config = _config(tmp_path)
    config.home.mkdir()
    (config.home / "work").write_text("mine")

    make_directories(config, User(user_id=1000, group_id=1000))

    assert [path.name for path in config.home.iterdir()] == ["work"]


@AS_ROOT
def test_rights_are_a_users_for_as_long_as_they_are_asked_for_and_no_longer(tmp_path: Path) -> None:
    (tmp_path / "private").write_text("root's")
    (tmp_path / "private").chmod(0o600)
    _open_to_all(tmp_path)

    with User(user_id=1000, group_id=1000).rights(), pytest.raises(PermissionError):
        (tmp_path / "private").read_text()

    assert (tmp_path / "private").read_text() == "root's"


def _open_to_all(directory: Path) -> None:
    for parent in (directory, *directory.parents):
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
