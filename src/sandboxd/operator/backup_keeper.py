"""One pass over a `SandboxBackup`: its pods made one after the other, its status written, and all taken away at last.

Each client's repository has a password of its own, which is made with the first backup and kept in a Secret of
sandboxd's own namespace. **Whoever loses these Secrets loses the backups.**
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

import structlog

from sandboxd.kubeapi.errors import KubeConflictError, KubeNotFoundError
from sandboxd.kubeapi.ports import Json, KubeApi
from sandboxd.model.backup import BackupMethod, Volume
from sandboxd.model.backup_errors import BackupPasswordWrongError
from sandboxd.model.cluster import CLIENT_ANNOTATION, GROUP, INSTANCE_LABEL, OPERATOR_MANAGER, claims_of, pod_of
from sandboxd.model.cluster_backup import (
    ATTEMPTS,
    BACKUP_FINALIZER,
    BackupAction,
    BackupState,
    BackupWorkStatus,
    PlacedBackup,
    password_secret,
)
from sandboxd.model.sources import Clock
from sandboxd.operator.asked_work import AskedWork, until
from sandboxd.operator.backing_up import BackupWorld, conclude_backup, password_lost, plan_backup, wants_attempt
from sandboxd.operator.backup_progress import BackupProgressReader
from sandboxd.operator.backup_shape import BackupAccess, BackupMeans, pod_name
from sandboxd.operator.builders import MANAGED_BY
from sandboxd.operator.kinds import Kind
from sandboxd.operator.leader import Leadership
from sandboxd.operator.mirrors import Mirrors, WorkKey
from sandboxd.operator.observed import Refusal, is_terminating
from sandboxd.operator.plan import PlanSettings
from sandboxd.operator.snapshot_keeper import SnapshotKeeper, next_look
from sandboxd.operator.writing import TIMEOUT, Writer

PASSWORD_SECRET_TYPE: Final = "sandboxd.dev/backup-password"  # noqa: S105  a type of Secrets
PASSWORD_BYTES: Final = 32
"""Of randomness: as much as the key that restic derives."""
NEEDS_REPOSITORY: Final = frozenset({BackupAction.RESTORE, BackupAction.COMPARE})
"""Work on what a repository has: no password is made for it."""
MADE_FOR: Final = f"{GROUP}/made-for"
"""Annotation of a password: the work whose pod makes the repository with it, or learns that there is another one."""

log = structlog.get_logger(__name__)


class BackupKeeper:
    """Level-triggered, like the reconciler of sandboxes."""

    def __init__(
        self,
        api: KubeApi,
        *,
        mirrors: Mirrors,
        writer: Writer,
        leadership: Leadership,
        settings: PlanSettings,
        namespace: str,
        clock: Clock,
        later: Callable[[WorkKey, float], None],
    ) -> None:
        """Take what it works with; `namespace` is sandboxd's own."""
        self._api = api
        self._mirrors = mirrors
        self._asked = AskedWork(mirrors=mirrors, writer=writer, settings=settings)
        self._writer = writer
        self._leadership = leadership
        self._settings = settings
        self._namespace = namespace
        self._clock = clock
        self._later = later
        self._progress = BackupProgressReader(api, clock=clock)
        self._snapshots = SnapshotKeeper(api, mirrors=mirrors, writer=writer, leadership=leadership, settings=settings)

    async def reconcile(self, key: WorkKey) -> Sequence[Refusal]:
        """Converge one piece of work; answers what was refused, to be tried again later.

        Raises:
            KubeError: The API server did not answer, or something was changed meanwhile.
            NotLeaderError: Another operator leads.
        """
        try:
            world = self._look(key)
        except (KeyError, ValueError) as error:
            log.warning("operator.backup_unreadable", backup=key.backup, error=repr(error))
            return ()
        if world is None:
            self._progress.forget(key)
            return ()
        if world.work.method is BackupMethod.SNAPSHOTS:
            await self._reconcile_snapshots(key, world)
            return ()
        access, absent = await self._access(world, key)
        lost = absent and world.work.action in NEEDS_REPOSITORY
        nothing_there = absent and not lost
        world = replace(world, nothing_there=nothing_there, password_lost=lost)
        waves = plan_backup(world, self._settings, access, now=self._clock.now())
        refusals = await self._writer.carry_out(waves)
        seen = self._look(key)
        if seen is None or "deletionTimestamp" in seen.resource["metadata"]:
            self._progress.forget(key)
            return refusals
        now = self._clock.now()
        self._later(key, until(seen.deadline if now < seen.deadline else seen.ends, now=now))
        world = replace(seen, nothing_there=nothing_there, password_lost=lost, refusals=refusals)
        concluded, look_again = await self._progress.read(key, world, conclude_backup(world, self._settings, now=now))
        if look_again is not None:
            self._later(key, look_again)
        if concluded.as_mapping() == world.resource.get("status"):
            return refusals
        if concluded.state is BackupState.DONE and world.work.action is BackupAction.DESTROY:
            await self._destroy_password(key.namespace)
        if concluded.reason == BackupPasswordWrongError.reason and await self._take_back_password(key):
            concluded = password_lost(world, concluded)
        await self._write(key, world, concluded)
        return refusals

    async def _reconcile_snapshots(self, key: WorkKey, world: BackupWorld) -> None:
        now = self._clock.now()
        concluded = await self._snapshots.conclude(world, lambda: self._look(key), now=now)
        if concluded is None:
            if BACKUP_FINALIZER in world.resource["metadata"].get("finalizers", ()):
                self._later(key, next_look(world, now=now))
            elif not is_terminating(world.resource):
                self._later(key, until(world.ends, now=now))
            return
        self._later(key, next_look(world, now=now))
        if concluded.as_mapping() != world.resource.get("status"):
            await self._write(key, world, concluded)

    async def _write(self, key: WorkKey, world: BackupWorld, concluded: BackupWorkStatus) -> None:
        written = await self._asked.conclude(Kind.BACKUP, world.resource, concluded.as_mapping())
        if written and concluded.state is not world.status.state:
            log.info(
                "operator.backup",
                namespace=key.namespace,
                backup=key.backup,
                state=concluded.state.value,
                reason=concluded.reason,
            )

    def _look(self, key: WorkKey) -> BackupWorld | None:
        resource = self._asked.ours(Kind.BACKUP, key.namespace, key.backup)
        if resource is None:
            return None
        work = PlacedBackup.from_mapping(resource["spec"])
        attempt, pod = self._last_pod(key, int((resource.get("status") or {}).get("attempts", 0)))
        world = BackupWorld(
            resource=resource,
            template=self._asked.template(work.template),
            pod=pod,
            attempt=attempt,
            namespace_ready=self._asked.is_furnished(key.namespace),
        )
        if not work.sandbox:
            return world
        return replace(
            world,
            sandbox=self._asked.ours(Kind.SANDBOX, key.namespace, work.sandbox),
            sandbox_pod=self._mirrors.get(Kind.POD, key.namespace, pod_of(work.sandbox)),
            claims=self._claims(key.namespace, work),
        )

    def _last_pod(self, key: WorkKey, attempts: int) -> tuple[int, Json | None]:
        """The newest that is there: an operator that died may have made one more than the status says."""
        for attempt in range(min(attempts + 1, ATTEMPTS), 0, -1):
            pod = self._mirrors.get(Kind.POD, key.namespace, pod_name(key.backup, attempt))
            if pod is not None:
                return attempt, pod
        return attempts, None

    def _claims(self, namespace: str, work: PlacedBackup) -> Mapping[Volume, Json]:
        names = claims_of(work.sandbox)
        found = {volume: self._mirrors.get(Kind.CLAIM, namespace, names[volume.value]) for volume in Volume}
        return {volume: claim for volume, claim in found.items() if claim is not None}

    async def _access(self, world: BackupWorld, key: WorkKey) -> tuple[BackupAccess | None, bool]:
        """What opens the repository, where an attempt is to be made; and whether there is no password at all."""
        means = self._settings.backups
        if means is None or not wants_attempt(world, self._settings, now=self._clock.now()):
            return None, False
        password = await self._password(key, make=world.work.action is BackupAction.TAKE)
        if password is None:
            return None, True
        return self._opened(means, key.namespace, password), False

    def _opened(self, means: BackupMeans, namespace: str, password: bytes) -> BackupAccess:
        annotations = (self._mirrors.get(Kind.NAMESPACE, "", namespace) or {"metadata": {}})["metadata"]["annotations"]
        location = f"{means.location.rstrip('/')}/{annotations[CLIENT_ANNOTATION]}"
        return BackupAccess(location=location, password=password, credentials=means.credentials())

    async def _password(self, key: WorkKey, *, make: bool) -> bytes | None:
        namespace = key.namespace
        path = Kind.SECRET.path(self._namespace, password_secret(namespace))
        try:
            found = await self._api.get(path, timeout=TIMEOUT)
        except KubeNotFoundError:
            if not make:
                return None
            self._leadership.check()
            try:
                found = await self._api.create(
                    Kind.SECRET.within(self._namespace),
                    self._new_password(key),
                    field_manager=OPERATOR_MANAGER,
                    timeout=TIMEOUT,
                )
                log.info("operator.backup_password_made", namespace=namespace)
            except KubeConflictError:
                found = await self._api.get(path, timeout=TIMEOUT)
        return base64.b64decode(found["data"]["password"])

    async def _take_back_password(self, key: WorkKey) -> bool:
        """Remove the password that was made for a piece of work, where its repository turns out to have another one.

        The Secret had been lost, and whoever puts it back finds its place free. False: it was not made for this work.
        """
        path = Kind.SECRET.path(self._namespace, password_secret(key.namespace))
        try:
            found = await self._api.get(path, timeout=TIMEOUT)
            if (found["metadata"].get("annotations") or {}).get(MADE_FOR) != key.backup:
                return False
            self._leadership.check()
            await self._api.delete(path, uid=found["metadata"]["uid"], timeout=TIMEOUT)
        except KubeNotFoundError:
            return False
        log.warning("operator.backup_password_taken_back", namespace=key.namespace)
        return True

    def _new_password(self, key: WorkKey) -> Json:
        labels = {INSTANCE_LABEL: self._settings.instance, MANAGED_BY: OPERATOR_MANAGER}
        password = secrets.token_urlsafe(PASSWORD_BYTES).encode()
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": PASSWORD_SECRET_TYPE,
            "metadata": {
                "name": password_secret(key.namespace),
                "namespace": self._namespace,
                "labels": labels,
                "annotations": {MADE_FOR: key.backup},
            },
            "data": {"password": base64.b64encode(password).decode()},
        }

    async def _destroy_password(self, namespace: str) -> None:
        """The client is erased: what its storage may still keep by itself nobody reads any more."""
        self._leadership.check()
        with suppress(KubeNotFoundError):
            await self._api.delete(Kind.SECRET.path(self._namespace, password_secret(namespace)), timeout=TIMEOUT)
        log.info("operator.backup_password_destroyed", namespace=namespace)
