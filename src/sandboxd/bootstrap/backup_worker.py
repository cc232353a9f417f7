"""`sandboxd backup-worker`: does one piece of work on a client's repository of backups, in a pod of its own.

Everything that it needs is mounted (`operator/backup_shape.py`): no cluster, no database and no service is asked. Its
last word is one object of JSON in the container's termination message, which lives on in the pod's status.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import structlog

from sandboxd.backends.restic.child import ResticSettings
from sandboxd.backends.restic.repository import ResticRepository
from sandboxd.model.backup import BackupMethod, BackupSetProgress, RestoreId, Volume
from sandboxd.model.cluster_backup import (
    MESSAGE_BYTES,
    PARTS,
    PROGRESS_EVENT,
    VERDICT_STATUS,
    BackupAction,
    PlacedBackup,
    RestorePart,
    progress_as_mapping,
)
from sandboxd.model.errors import SandboxdError
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.model.sandbox import TIER_RESOURCES, Tier
from sandboxd.operator.backup_shape import CONFIG_DIRECTORY, VOLUMES_DIRECTORY, WORK_DIRECTORY
from sandboxd.volumes.mounted import count_trees, flush_trees
from sandboxd.volumes.outcomes import (
    compared_as_mapping,
    error_as_mapping,
    forgotten_as_mapping,
    proved_as_mapping,
    restored_as_mapping,
    strays_as_mapping,
    taken_as_mapping,
)
from sandboxd.volumes.ports import BackupRepository, RestoreOrder, VolumesOf, VolumesProgress
from sandboxd.volumes.trees import (
    compare_volumes,
    discard_trees,
    forget_sets,
    prove_trees,
    restore_trees,
    stage_trees,
    survey_sets,
    take_trees,
    within,
)

INTERRUPTED_STATUS: Final = 143
"""Of a worker that was told to end: the work is taken up by another."""
TOLD_EVERY: Final = 2.0
"""Seconds between two lines of progress in the log, whose end the operator reads."""
SPARE: Final = timedelta(seconds=5)
"""Of a pod's time, for saying that it is over: the kubelet ends it without a word."""

log = structlog.get_logger("sandboxd.bootstrap")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlaces:
    """Where what is."""

    config: Path
    """Has `order.json`, `password` and `s3-credentials`."""
    volumes: Mapping[Volume, Path]
    work: Path
    message: Path
    """Where the last word goes."""
    restic: str = "restic"


IN_A_POD: Final = WorkerPlaces(
    config=Path(CONFIG_DIRECTORY),
    volumes={volume: Path(VOLUMES_DIRECTORY) / volume.value for volume in Volume},
    work=Path(WORK_DIRECTORY),
    message=Path("/dev/termination-log"),
)


async def backup_worker(*, attempt: int, timeout: timedelta) -> int:
    """Work in a pod, until a signal says stop; answers the exit status."""
    working = asyncio.create_task(work_once(IN_A_POD, attempt=attempt, timeout=timeout), name="backup-worker")
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, working.cancel)
    try:
        return await working
    except asyncio.CancelledError:
        log.info("backup.interrupted")
        return INTERRUPTED_STATUS


async def work_once(
    places: WorkerPlaces,
    *,
    attempt: int,
    timeout: timedelta,
    open_repository: Callable[[Mapping[str, Any], WorkerPlaces, int], BackupRepository] | None = None,  # Any: JSON
    tell: Callable[[Mapping[str, Any]], None] | None = None,  # Any: JSON
) -> int:
    """Do it; answers the exit status.

    Args:
        places: Where what is.
        attempt: Above 1 another one was lost before: what it has stored is taken up.
        timeout: For all of it.
        open_repository: By the order, in place of restic's.
        tell: Takes what is said of progress, in place of the log.
    """
    order = json.loads((places.config / "order.json").read_bytes())
    work = PlacedBackup.from_mapping(order["work"])
    log.info("backup.begun", work=order["name"], action=work.action.value, attempt=attempt)
    try:
        left = max(timeout - SPARE, timeout / 2)
        if work.method is BackupMethod.SNAPSHOTS:
            result = await _at_snapshot(work, places, timeout=left)
        else:
            repository = (open_repository or _repository)(order, places, attempt)
            progress = _Teller(tell or _log_progress)
            result = await _do(repository, work, str(order["name"]), places, progress, timeout=left)
    except SandboxdError as error:
        log.warning("backup.failed", work=order["name"], reason=error.reason, error=error.message)
        _say(places.message, error_as_mapping(error))
        return VERDICT_STATUS
    log.info("backup.done", work=order["name"])
    _say(places.message, result)
    return 0


def _repository(order: Mapping[str, Any], places: WorkerPlaces, attempt: int) -> BackupRepository:  # Any: JSON
    credentials = places.config / "s3-credentials"
    made = ResticRepository(
        ResticSettings(
            location=str(order["location"]),
            password_file=places.config / "password",
            work=places.work,
            program=places.restic,
            s3_credentials_file=credentials if credentials.exists() and credentials.stat().st_size else None,
            upload_kibibytes=int(order.get("uploadKibibytes", 0)),
            download_kibibytes=int(order.get("downloadKibibytes", 0)),
        )
    )
    if attempt > 1:
        made.expect_leftovers()
    return made


async def _do(
    repository: BackupRepository,
    work: PlacedBackup,
    name: str,
    places: WorkerPlaces,
    progress: _Teller,
    *,
    timeout: timedelta,
) -> Mapping[str, Any]:  # Any: JSON
    if work.part is RestorePart.DISCARD:
        await discard_trees(places.volumes)
        return {}
    async with within(timeout) as left:
        if work.action is BackupAction.SURVEY:  # it makes none: two at once who do leave a repository that nobody opens
            return strays_as_mapping(await survey_sets(repository, work.sets, timeout=left()))
        await repository.prepare(timeout=left())
        match work.action:
            case BackupAction.TAKE:
                taken = await take_trees(
                    repository,
                    work.backup,
                    work.sandbox,
                    places.volumes,
                    timeout=left(),
                    progress=progress.tell,
                    reading=work.reading,
                )
                return taken_as_mapping(taken)
            case BackupAction.RESTORE:
                bring = stage_trees if work.part is RestorePart.STAGE else restore_trees
                restored = await bring(
                    repository, _restore_order(work, name), places.volumes, timeout=left(), progress=progress.tell
                )
                return restored_as_mapping(restored)
            case BackupAction.COMPARE:
                compared = await compare_volumes(
                    repository, work.snapshots, places.volumes, timeout=left(), progress=progress.tell
                )
                return compared_as_mapping(compared)
            case BackupAction.FORGET:
                return forgotten_as_mapping(await forget_sets(repository, work.sets, prune=work.prune, timeout=left()))
            case BackupAction.VERIFY if work.snapshots:
                return proved_as_mapping(await prove_trees(repository, [*work.snapshots.values()], timeout=left()))
            case BackupAction.VERIFY:
                await repository.verify(content=work.content, timeout=left())
                return {}
            case BackupAction.DESTROY:
                everything = [one.id for one in await repository.list(timeout=left())]
                await repository.forget(everything, timeout=left())
                await repository.prune(timeout=left())
                return {}


async def _at_snapshot(
    work: PlacedBackup, places: WorkerPlaces, *, timeout: timedelta
) -> Mapping[str, Any]:  # Any: JSON
    """A pod's part of snapshots: what was written is on the storage, or what came back can be read."""
    async with within(timeout):
        if work.action is BackupAction.TAKE:
            await asyncio.to_thread(flush_trees, list(places.volumes.values()))
            return {}
        return restored_as_mapping(await asyncio.to_thread(count_trees, list(places.volumes.values())))


def _restore_order(work: PlacedBackup, name: str) -> RestoreOrder:
    """The volumes are mounted: what they would be made like is said nowhere any more."""
    into = VolumesOf(
        sandbox=work.sandbox,
        client=ClientId(""),
        freelancer=FreelancerId(""),
        tier=Tier.BASIC,
        resources=TIER_RESOURCES[Tier.BASIC],
    )
    # All parts of a restore find each other's by one name.
    return RestoreOrder(
        id=RestoreId(name.removesuffix(PARTS[work.part])), into=into, snapshots=work.snapshots, paths=work.paths
    )


class _Teller:
    """Says how far it is, not too often."""

    def __init__(self, say: Callable[[Mapping[str, Any]], None]) -> None:  # Any: JSON
        self._say = say
        self._next = 0.0

    def tell(self, progress: VolumesProgress) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._next:
            self._next = now + TOLD_EVERY
            trees = progress.trees
            told = BackupSetProgress(
                volume=progress.volume,
                files=trees.files,
                total_files=trees.total_files,
                bytes=trees.bytes,
                total_bytes=trees.total_bytes,
            )
            self._say(progress_as_mapping(told))


def _log_progress(words: Mapping[str, Any]) -> None:  # Any: JSON
    log.info(PROGRESS_EVENT, **words)


def _say(place: Path, words: Mapping[str, Any]) -> None:  # Any: JSON
    """Write the last word, which must not be cut in the middle."""
    text = _json(words)
    while len(text) > MESSAGE_BYTES and (message := str(words.get("message", ""))):
        words = {**words, "message": message[: len(message) * 3 // 4]}
        text = _json(words)
    place.write_text(text)


def _json(words: Mapping[str, Any]) -> str:  # Any: JSON
    return json.dumps(words, ensure_ascii=True, separators=(",", ":"))
