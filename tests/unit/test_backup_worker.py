"""What a worker on backups does not do."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

from sandboxd.bootstrap.backup_worker import WorkerPlaces, work_once
from sandboxd.model.cluster_backup import BackupAction, PlacedBackup
from tests.fakes.backups import FakeBackupRepository


async def test_a_survey_makes_no_repository_beside_the_backup_that_is_about_to(tmp_path: Path) -> None:
    repository = FakeBackupRepository(directory=tmp_path / "repository")
    work = PlacedBackup(action=BackupAction.SURVEY, deadline=timedelta(minutes=1), template="default")
    (tmp_path / "order.json").write_text(json.dumps({"name": "backup-1", "work": work.as_mapping(), "location": ""}))
    places = WorkerPlaces(config=tmp_path, volumes={}, work=tmp_path, message=tmp_path / "message")

    code = await work_once(
        places, attempt=1, timeout=timedelta(seconds=20), open_repository=lambda *_: repository, tell=lambda _: None
    )

    assert (code, json.loads(places.message.read_text())) == (0, {"sets": {}, "more": 0})
    assert not repository.directory.exists()
