"""Asks the operator for work on backups by `SandboxBackup`s, follows it, and reads what it came to.

The work goes on when this service dies: whoever asks again by the same name follows it, or reads its result. Of what a
worker says nothing is believed but its result and its words, which are bounded.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, TypeVar

import structlog

from sandboxd.backends.kubernetes.objects import Installation, SandboxObjects
from sandboxd.backends.kubernetes.placed import quantities
from sandboxd.backends.kubernetes.refusals import LOOK, PATIENCE, RETRY_SOON, PlacementError, translated
from sandboxd.backends.kubernetes.work_watch import WorkWatch
from sandboxd.kubeapi.client import segment
from sandboxd.kubeapi.errors import KubeConflictError, KubeError, KubeInvalidError, KubeNotFoundError
from sandboxd.kubeapi.ports import Json, KubeApi
from sandboxd.kubeapi.reflector import Reflector
from sandboxd.model.backup import BackupMethod, BackupSetId, BackupSetProgress, RestoreId, SnapshotId, Volume
from sandboxd.model.backup_errors import BackupPasswordLostError, BackupToolError
from sandboxd.model.cluster import API_VERSION, SERVE_MANAGER, Mode, claims_of
from sandboxd.model.cluster_backup import (
    BACKUP_LABEL,
    BACKUP_PREFIX,
    BACKUPS,
    ENDS,
    PARTS,
    BackupAction,
    BackupState,
    BackupWorkStatus,
    PlacedBackup,
    RestorePart,
    backup_resource,
    password_secret,
)
from sandboxd.model.cluster_status import Reason
from sandboxd.model.errors import DeadlineError, InvalidRequestError, SandboxdError
from sandboxd.model.ids import ClientId
from sandboxd.model.sources import Clock
from sandboxd.volumes.outcomes import error_of
from sandboxd.volumes.ports import BackupProgress, RestoreOrder, VolumesOf, VolumesProgress
from sandboxd.volumes.volume_errors import VolumesInUseError, VolumesNotFoundError

REQUEST_TIMEOUT: Final = timedelta(seconds=10)
SHORTEST: Final = timedelta(seconds=10)
"""A pod that has less than this need not be made."""
POLL_SECONDS: Final = 0.5
"""Between looks whether pods are gone; they have no watch here, and are rarely waited for."""
OWN_PATIENCE: Final[Mapping[Reason, timedelta]] = {
    Reason.VOLUME_LOST: timedelta(seconds=10),
    Reason.QUOTA_EXCEEDED: timedelta(seconds=60),
    Reason.UNSCHEDULABLE: timedelta(seconds=120),
    Reason.STOPPING: timedelta(seconds=60),
    Reason.SNAPSHOT_FAILED: timedelta(seconds=120),
}
"""In place of `PATIENCE`: nobody sits before a backup, a pod that ends makes room, and snapshots are tried again."""

Tell = Callable[[VolumesProgress], None]
"""Takes how far work is."""
_Result = TypeVar("_Result")

log = structlog.get_logger(__name__)


class BackupWork:
    """Work of one method on backups."""

    def __init__(
        self,
        api: KubeApi,
        *,
        installation: Installation,
        clock: Clock,
        name: Callable[[], str],
        method: BackupMethod = BackupMethod.FILES,
    ) -> None:
        """Take what it works with.

        Args:
            api: Reaches the cluster.
            installation: What is ours in it.
            clock: The time.
            name: A fresh word for work that has no id, at most 50 characters of a label's.
            method: How the sets are kept that it is about.
        """
        self._api = api
        self._installation = installation
        self._objects = SandboxObjects(api, installation)
        self._clock = clock
        self._name = name
        self._method = method

    async def take(
        self, backup: BackupSetId, of: VolumesOf, *, timeout: timedelta, reading: int, progress: Tell
    ) -> Mapping[str, Any]:  # Any: JSON
        """Have a set taken; answers the worker's last word.

        Raises:
            VolumesNotFoundError: There are not both volumes.
            SandboxdError: As `do`.
        """
        await self._require_volumes(of, name=backup)
        work = self.ordered(BackupAction.TAKE, timeout=timeout, sandbox=of.sandbox, backup=backup, reading=reading)
        return await self.do(of.client, f"{BACKUP_PREFIX}{backup}", work, timeout=timeout, progress=progress)

    async def restore(
        self,
        order: RestoreOrder,
        *,
        part: RestorePart = RestorePart.ALL,
        timeout: timedelta,
        progress: Tell | None = None,
    ) -> Mapping[str, Any]:  # Any: JSON
        """Have volumes brought back; answers the worker's last word.

        Raises:
            VolumesInUseError: Compute of the sandbox runs.
            SandboxdError: As `do`.
        """
        into = order.into
        await self._refuse_running(into, name=order.id)
        sizes = quantities(into.resources)
        work = self.ordered(
            BackupAction.RESTORE,
            timeout=timeout,
            sandbox=into.sandbox,
            snapshots=order.snapshots,
            paths=order.paths,
            part=part,
            sizes={Volume.HOME: sizes.home, Volume.WORKSPACE: sizes.workspace},
        )
        name = f"{BACKUP_PREFIX}{order.id}{PARTS[part]}"
        return await self.do(into.client, name, work, timeout=timeout, progress=progress)

    async def discard(self, order: RestoreOrder, *, timeout: timedelta) -> None:
        """Have what was staged taken away, where there are volumes. Raises as `restore`."""
        async with self._asking(order.id):
            claims = await self._objects.claims(order.into.sandbox, timeout=REQUEST_TIMEOUT)
        if claims:
            await self.restore(order, part=RestorePart.DISCARD, timeout=timeout)
        await self.end(order.id, timeout=timeout)

    async def compare(
        self,
        name: RestoreId,
        of: VolumesOf,
        snapshots: Mapping[Volume, SnapshotId],
        *,
        timeout: timedelta,
        progress: Tell,
    ) -> Mapping[str, Any]:  # Any: JSON
        """Have volumes compared with snapshots; answers the worker's last word.

        Raises:
            VolumesNotFoundError: There are not both volumes.
            VolumesInUseError: Compute of the sandbox runs.
            SandboxdError: As `do`.
        """
        await self._require_volumes(of, name=name)
        await self._refuse_running(of, name=name)
        work = self.ordered(BackupAction.COMPARE, timeout=timeout, sandbox=of.sandbox, snapshots=snapshots)
        return await self.do(of.client, f"{BACKUP_PREFIX}{name}", work, timeout=timeout, progress=progress)

    async def _require_volumes(self, of: VolumesOf, *, name: str) -> None:
        async with self._asking(name):
            claims = await self._objects.claims(of.sandbox, timeout=REQUEST_TIMEOUT)
        if not {claim["metadata"]["name"] for claim in claims}.issuperset(claims_of(of.sandbox).values()):
            raise VolumesNotFoundError(of.sandbox)

    async def _refuse_running(self, of: VolumesOf, *, name: str) -> None:
        async with self._asking(name):
            placed = await self._objects.get(self._objects.namespace(of.client), of.sandbox)
        if placed is not None and placed.spec.mode is not Mode.STOPPED:
            raise VolumesInUseError(of.sandbox)

    def ordered(self, action: BackupAction, *, timeout: timedelta, **more: Any) -> PlacedBackup:  # Any: its fields
        """Say what is to be done."""
        return PlacedBackup(
            action=action, deadline=timeout, template=self._installation.template, method=self._method, **more
        )

    async def end(self, name: BackupSetId | RestoreId, *, timeout: timedelta) -> None:
        """Remove its resources wherever they are, and wait for their pods."""
        work = f"{BACKUP_PREFIX}{name}"
        parts = [f"{work}{part}" for part in PARTS.values()] if not name.startswith("bak-") else [work]
        try:
            async with self._asking(name), asyncio.timeout(timeout.total_seconds()):
                for part in parts:
                    found = await self._found(f"/apis/{API_VERSION}/{BACKUPS}", fieldSelector=f"metadata.name={part}")
                    for one in found:
                        await self._delete(_path(one["metadata"]["namespace"], part))
                for part in parts:
                    await self._until_quiet(part)
        except TimeoutError as error:
            raise DeadlineError(
                f"The work on {name} has not ended within {timeout.total_seconds():.0f} s: look at its pods "
                f"(kubectl get pods -A -l {BACKUP_LABEL}={work}).",
                work=work,
            ) from error

    async def do_once(self, client: ClientId, work: PlacedBackup, *, timeout: timedelta) -> Mapping[str, Any]:
        """Do work that has no id: nobody asks for it again, so nothing of it stays."""
        name = f"{BACKUP_PREFIX}{self._name()}"
        try:
            return await self.do(client, name, work, timeout=timeout)
        finally:
            with suppress(SandboxdError):
                await asyncio.shield(self._remove(self._objects.namespace(client), name))

    async def do(
        self, client: ClientId, name: str, work: PlacedBackup, *, timeout: timedelta, progress: Tell | None = None
    ) -> Mapping[str, Any]:  # Any: JSON
        """Ask for it, or follow it where it was asked for before; answers the worker's last word.

        Raises:
            SandboxdError: What the worker met, or why there is none.
        """
        if timeout < SHORTEST:
            raise DeadlineError("There is no time left for work on backups.", work=name)
        namespace, watch = (
            self._objects.namespace(client),
            WorkWatch(BackupWorkStatus(), read=BackupWorkStatus.from_mapping, patience=_patience),
        )
        try:
            async with self._asking(name), asyncio.timeout(timeout.total_seconds()):
                await self._ask(client, namespace, name, work)
                await self._follow(namespace, name, watch, progress)
        except TimeoutError as error:
            raise DeadlineError(
                f"The work on the backup did not end within {timeout.total_seconds():.0f} s: it is "
                f"{watch.status.state.value} ({watch.status.reason or 'the operator has not taken it up'}). "
                f"{watch.status.message}".rstrip(),
                work=name,
            ) from error
        if watch.status.state is BackupState.FAILED:
            await self._remove(namespace, name)  # whoever asks again wants it tried again
            raise self._failure(namespace, name, watch.status)
        said: Mapping[str, Any] = json.loads(watch.status.result or "{}")  # Any: JSON; the operator has read it
        return said

    async def _ask(self, client: ClientId, namespace: str, name: str, work: PlacedBackup) -> None:
        """Write the resource. One that is there is followed, but one that failed is made anew."""
        body = backup_resource(name, work, namespace=namespace, instance=self._installation.instance)
        while True:
            try:
                await self._create(client, namespace, body)
            except KubeConflictError as error:
                if error.reason != "AlreadyExists":
                    raise
            else:
                return
            with suppress(KubeNotFoundError):
                found = await self._api.get(_path(namespace, name), timeout=REQUEST_TIMEOUT)
                status = BackupWorkStatus.from_mapping(found.get("status") or {})
                if "deletionTimestamp" not in found["metadata"] and status.state is not BackupState.FAILED:
                    return
                await self._delete(_path(namespace, name))
                await self._until_quiet(name)

    async def _create(self, client: ClientId, namespace: str, body: Json) -> None:
        collection = f"/apis/{API_VERSION}/namespaces/{segment(namespace)}/{BACKUPS}"
        try:
            try:
                await self._api.create(collection, body, field_manager=SERVE_MANAGER, timeout=REQUEST_TIMEOUT)
            except KubeNotFoundError:
                await self._objects.make_namespace(client, timeout=REQUEST_TIMEOUT)
                await self._api.create(collection, body, field_manager=SERVE_MANAGER, timeout=REQUEST_TIMEOUT)
        except KubeInvalidError as error:
            raise InvalidRequestError(f"The work on the backup is refused: {error.message}") from error

    async def _follow(
        self, namespace: str, name: str, watch: WorkWatch[BackupWorkStatus], progress: Tell | None
    ) -> None:
        """Follow it to its end, or as long as waiting helps, and tell how far it is."""
        told: BackupSetProgress | None = None
        collection = f"/apis/{API_VERSION}/namespaces/{segment(namespace)}/{BACKUPS}"
        reflector = Reflector(self._api, collection, field_selector=f"metadata.name={name}")
        reflector.listen(watch.take)
        following = asyncio.create_task(reflector.run(), name=f"follow-{name}")
        try:
            while watch.status.state not in ENDS:
                changed = watch.changed
                if progress is not None and watch.status.progress not in (None, told):
                    told = watch.status.progress
                    progress(_told(told))
                if progress is not None and watch.status.cut_time is not None:
                    progress(replace(all_of(Volume.WORKSPACE, files=0, size=0), cut=True))
                if watch.gone:
                    raise self._unavailable(namespace, name, watch.status, "it was removed")
                if watch.over(self._clock.monotonic()):
                    await self._remove(namespace, name)
                    raise self._unavailable(namespace, name, watch.status, "it does not start")
                with suppress(TimeoutError):
                    async with asyncio.timeout(watch.left(self._clock.monotonic())):
                        await changed.wait()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    def _failure(self, namespace: str, name: str, status: BackupWorkStatus) -> SandboxdError:
        if status.reason.isupper():
            if status.reason == BackupPasswordLostError.reason:
                return BackupPasswordLostError(status.message, secret=password_secret(namespace))
            return error_of(status.reason, status.message)
        return self._unavailable(namespace, name, status, "it came to no end")

    def _unavailable(self, namespace: str, name: str, status: BackupWorkStatus, what: str) -> SandboxdError:
        reason = _reason_of(status)
        names = {"namespace": namespace, "template": self._installation.template, "sandbox": name}
        look = LOOK.get(reason, "").format(**names) if reason is not None else ""
        parts = (f"The work on the backup is not done: {what} ({status.reason or 'no operator'})", look, status.message)
        text = ". ".join(part.rstrip(".") for part in parts if part) + "."
        return PlacementError(text, retry_after=RETRY_SOON, work=name, cause=status.reason)

    async def _remove(self, namespace: str, name: str) -> None:
        """Take it away; what fails is the operator's."""
        try:
            await self._delete(_path(namespace, name))
        except KubeError as error:
            log.warning("cluster.backup_left", work=name, error=error.message)

    async def _delete(self, path: str) -> None:
        with suppress(KubeNotFoundError):
            await self._api.delete(path, propagation="Background", timeout=REQUEST_TIMEOUT)

    async def _until_quiet(self, name: str) -> None:
        """Wait until neither the resource nor a pod of it is there."""
        while await self._found(
            f"/apis/{API_VERSION}/{BACKUPS}", fieldSelector=f"metadata.name={name}"
        ) or await self._found("/api/v1/pods", labelSelector=f"{BACKUP_LABEL}={name}"):
            await asyncio.sleep(POLL_SECONDS)

    async def _found(self, collection: str, **query: str) -> Sequence[Json]:
        found: Sequence[Json] = (await self._api.get(collection, query=query, timeout=REQUEST_TIMEOUT)).get(
            "items"
        ) or ()
        return found

    @asynccontextmanager
    async def _asking(self, name: str) -> AsyncIterator[None]:
        try:
            yield
        except KubeError as error:
            raise translated(error, "The work on the backup cannot be asked for", sandbox=name) from error


def _patience(status: BackupWorkStatus) -> timedelta | None:
    reason = _reason_of(status)
    if status.state is not BackupState.WAITING or reason is None:
        return None
    return OWN_PATIENCE.get(reason, PATIENCE.get(reason))


def _reason_of(status: BackupWorkStatus) -> Reason | None:
    try:
        return Reason(status.reason)
    except ValueError:
        return None


def _path(namespace: str, name: str) -> str:
    return f"/apis/{API_VERSION}/namespaces/{segment(namespace)}/{BACKUPS}/{segment(name)}"


def read(make: Callable[[Mapping[str, Any]], _Result], said: Mapping[str, Any]) -> _Result:  # Any: JSON
    """Read a worker's last word.

    Raises:
        BackupToolError: It is none.
    """
    try:
        return make(said)
    except (KeyError, TypeError, ValueError) as error:
        raise BackupToolError("The worker's result cannot be read. Was it of another version?") from error


def all_of(volume: Volume, *, files: int, size: int) -> VolumesProgress:
    """Progress at the end."""
    trees = BackupProgress(files=files, total_files=files, bytes=size, total_bytes=size)
    return VolumesProgress(volume=volume, trees=trees)


def _told(said: BackupSetProgress) -> VolumesProgress:
    """Progress on the way, as the operator saw it last."""
    trees = BackupProgress(
        files=said.files, total_files=said.total_files, bytes=said.bytes, total_bytes=said.total_bytes
    )
    return VolumesProgress(volume=said.volume, trees=trees)
