"""From a `SandboxBackup` and what is there of it to the steps between, and to its status. Pure.

A pod that was lost says nothing of the work: another one takes it up, where the volumes are by then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from sandboxd.model.backup import BackupMethod, Volume
from sandboxd.model.backup_errors import BackupPasswordLostError
from sandboxd.model.cluster import Mode, PlacedSpec
from sandboxd.model.cluster_backup import (
    ATTEMPTS,
    BACKUP_CONTAINER,
    ENDS,
    KEPT,
    MESSAGE_BYTES,
    NEEDS_VOLUMES,
    VERDICT_STATUS,
    BackupAction,
    BackupState,
    BackupWorkStatus,
    PlacedBackup,
    password_secret,
)
from sandboxd.model.cluster_status import PlacedStatus, Reason
from sandboxd.model.legible import legible
from sandboxd.operator.backup_shape import BackupAccess, BackupMeans, backup_claim, backup_pod, backup_secret, pod_name
from sandboxd.operator.builders import Json
from sandboxd.operator.conditions import IMAGE_REASONS, reason_of
from sandboxd.operator.image_rules import pull_reason
from sandboxd.operator.kinds import Kind
from sandboxd.operator.observed import Refusal, is_ours, is_terminating, pod_condition
from sandboxd.operator.plan import Create, Delete, PlanSettings, Wave
from sandboxd.operator.template import Template

UNSET: Final = "BackupsUnset"
"""The operator was not told where backups are kept."""
_UNSET_TEXTS: Final = {
    BackupMethod.FILES: "The operator was not told where backups are kept (SANDBOXD_BACKUPS_LOCATION).",
    BackupMethod.SNAPSHOTS: "The operator was not told to work on snapshots (SANDBOXD_KUBERNETES_SNAPSHOTS).",
}
OUT_OF_TIME: Final = "DeadlineExceeded"
MESSAGE_CHARACTERS: Final = 1200
_WORD: Final = re.compile(r"[A-Z][A-Z_]{1,63}")
_BEFORE_START: Final = frozenset({"", "ContainerCreating", "PodInitializing"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupWorld:
    """What the mirrors hold for one piece of work. None is what is not there."""

    resource: Json
    template: Template | None = None
    sandbox: Json | None = None
    """The `Sandbox` whose volumes they are; a terminated one has none."""
    sandbox_pod: Json | None = None
    claims: Mapping[Volume, Json] = field(default_factory=dict)
    pod: Json | None = None
    """Of the last attempt that is there."""
    attempt: int = 0
    """Its number; of none that of the last one known."""
    namespace_ready: bool = True
    """Its policies and quotas are there: a pod before them would have a network."""
    nothing_there: bool = False
    """The client never had a repository, and the work makes none."""
    password_lost: bool = False
    """The work is on what a repository has, and the Secret with its password is not there."""
    refusals: Sequence[Refusal] = ()

    @property
    def work(self) -> PlacedBackup:
        """What is wanted."""
        return PlacedBackup.from_mapping(self.resource["spec"])

    @property
    def status(self) -> BackupWorkStatus:
        """As it was written last."""
        return BackupWorkStatus.from_mapping(self.resource.get("status") or {})

    @property
    def deadline(self) -> datetime:
        """When its time is over."""
        made = datetime.fromisoformat(self.resource["metadata"]["creationTimestamp"])
        return made + self.work.deadline

    @property
    def ends(self) -> datetime:
        """When it is removed, whoever still waits."""
        return self.deadline + KEPT


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What the end of a pod says."""

    lost: bool
    """True: nothing of the work; another attempt may be made."""
    state: BackupState
    reason: str
    message: str = ""
    result: str = ""


def wants_attempt(world: BackupWorld, settings: PlanSettings, *, now: datetime) -> bool:
    """Tell whether a pod is to be made now."""
    return (
        not is_terminating(world.resource)
        and world.status.state not in ENDS
        and now < world.deadline
        and world.pod is None
        and world.attempt < ATTEMPTS
        and world.namespace_ready
        and not world.nothing_there
        and not world.password_lost
        and blocked(world, settings) is None
    )


def plan_backup(
    world: BackupWorld, settings: PlanSettings, access: BackupAccess | None, *, now: datetime
) -> Sequence[Wave]:
    """Say what to do. Nothing to do is no wave.

    Args:
        world: What there is.
        settings: Of the installation.
        access: To the client's repository; given where `wants_attempt`.
        now: The time.
    """
    if is_terminating(world.resource):
        return ()  # its pods go with it
    if now >= world.ends:
        return ([_delete(Kind.BACKUP, world.resource)],)
    pod = world.pod
    if pod is not None and not is_terminating(pod):
        outcome = _outcome_of(pod)
        # Only when the status tells of it: an attempt that nobody has counted would be made again and again.
        lost = outcome is not None and outcome.lost and conclude_backup(world, settings, now=now) == world.status
        over = world.status.state in ENDS or now >= world.deadline
        return ([_delete(Kind.POD, pod)],) if lost or over else ()
    if access is None or not wants_attempt(world, settings, now=now):
        return ()
    return _attempt(world, settings, access, now=now)


def conclude_backup(world: BackupWorld, settings: PlanSettings, *, now: datetime) -> BackupWorkStatus:
    """Say how far it is. An end that is known once stays."""
    status = world.status
    if status.state in ENDS:
        return status
    pod = world.pod
    if pod is not None:
        status = replace(status, attempts=world.attempt, pod_uid=pod["metadata"]["uid"])
        if not is_ours(pod, instance=settings.instance, owner=world.resource["metadata"]["uid"]):
            return told(status, BackupState.FAILED, Reason.OBJECT_FOREIGN.value, "A pod of somebody else has its name.")
        outcome = _outcome_of(pod)
        if outcome is not None and not outcome.lost:
            return told(status, outcome.state, outcome.reason, outcome.message, result=outcome.result)
        if outcome is not None and world.attempt >= ATTEMPTS:
            text = f"{world.attempt} pods of it were lost, the last one so: {outcome.message}"
            return told(status, BackupState.FAILED, outcome.reason, text)
        if now < world.deadline:
            now_so = outcome or _progress(pod, status)
            return told(status, now_so.state, now_so.reason, now_so.message)
    if now >= world.deadline:
        return told(status, BackupState.FAILED, OUT_OF_TIME, f"Its time is over. {status.message}".rstrip())
    if world.nothing_there:
        return told(status, BackupState.DONE, Reason.AS_DESIRED.value)
    if world.password_lost:
        return password_lost(world, status)
    if (found := blocked(world, settings)) is not None:
        return told(status, *found)
    if world.refusals:
        refusal = world.refusals[0]
        return told(status, BackupState.WAITING, reason_of(refusal).value, refusal.message)
    if world.attempt >= ATTEMPTS:
        return told(status, BackupState.FAILED, Reason.POD_DELETED.value, f"{world.attempt} pods of it were deleted.")
    if world.attempt:
        reason = status.reason if status.state is BackupState.WAITING else Reason.POD_DELETED.value
        return told(status, BackupState.WAITING, reason, status.message or "Its pod was deleted; another one follows.")
    return told(status, BackupState.WAITING, Reason.NOT_CREATED.value)


def password_lost(world: BackupWorld, status: BackupWorkStatus) -> BackupWorkStatus:
    """Say that nothing opens the client's repository."""
    secret = password_secret(world.resource["metadata"]["namespace"])
    text = (
        f"The Secret {secret} of sandboxd's own namespace is gone, and nothing else opens the backups of this client. "
        "Put it back there from a copy (kubectl apply), and try again. No other password was kept in its place."
    )
    return told(status, BackupState.FAILED, BackupPasswordLostError.reason, text)


def blocked(world: BackupWorld, settings: PlanSettings) -> tuple[BackupState, str, str] | None:
    """Say why nothing can be done as things are."""
    work = world.work
    if means_of(work, settings) is None:
        return BackupState.FAILED, UNSET, _UNSET_TEXTS[work.method]
    if world.template is None and (work.method is BackupMethod.FILES or work.action in NEEDS_VOLUMES):
        return BackupState.WAITING, Reason.TEMPLATE_MISSING.value, f"There is no SandboxTemplate {work.template}."
    if work.action not in NEEDS_VOLUMES:
        return None
    for volume in Volume:
        claim = world.claims.get(volume)
        if claim is None and (work.action is not BackupAction.RESTORE or volume not in work.sizes):
            text = f"The sandbox has no volume {volume.value}."
            return BackupState.WAITING, Reason.VOLUME_LOST.value, text
        if claim is None:
            continue
        name = claim["metadata"]["name"]
        if is_terminating(claim):
            return BackupState.WAITING, Reason.VOLUME_PENDING.value, f"The claim {name} is being deleted."
        if claim.get("status", {}).get("phase") == "Lost" and work.method is BackupMethod.FILES:
            text = f"The volume of claim {name} is gone. Delete the claim: a restore makes another one."
            return BackupState.WAITING, Reason.VOLUME_LOST.value, text
    if work.action is not BackupAction.TAKE and _runs(world):
        return (
            BackupState.WAITING,
            Reason.STOPPING.value,
            "The sandbox runs: its volumes are restored, or compared, when it has ended.",
        )
    return None


def _runs(world: BackupWorld) -> bool:
    if world.sandbox_pod is not None:
        return True
    return world.sandbox is not None and PlacedSpec.from_mapping(world.sandbox["spec"]).mode is not Mode.STOPPED


def _attempt(world: BackupWorld, settings: PlanSettings, access: BackupAccess, *, now: datetime) -> Sequence[Wave]:
    """The Secret, the volumes that a restore lacks, and the pod."""
    work, means, instance = world.work, means_of(world.work, settings), settings.instance
    assert means is not None
    assert world.template is not None
    metadata = world.resource["metadata"]
    name, namespace, uid = metadata["name"], metadata["namespace"], metadata["uid"]
    secret = backup_secret(name, work, access, means, namespace=namespace, uid=uid, instance=instance)
    waves: list[Wave] = [[Create(kind=Kind.SECRET, namespace=namespace, name=name, body=secret, owner=uid)]]
    if work.action is BackupAction.RESTORE:
        kept = world.sandbox is None
        claims = [
            backup_claim(work, volume, world.template, namespace=namespace, instance=instance, kept=kept)
            for volume in Volume
            if volume not in world.claims
        ]
        waves.append(
            [
                Create(kind=Kind.CLAIM, namespace=namespace, name=claim["metadata"]["name"], body=claim)
                for claim in claims
            ]
        )
    attempt = world.attempt + 1
    placed = PlacedStatus.from_mapping((world.sandbox or {}).get("status") or {})
    pod = backup_pod(
        name,
        attempt,
        work,
        world.template,
        means,
        namespace=namespace,
        uid=uid,
        instance=instance,
        node=node_of(world.sandbox_pod) if work.action in NEEDS_VOLUMES else "",
        last_node=placed.node or placed.last_node,
        left=world.deadline - now,
    )
    waves.append([Create(kind=Kind.POD, namespace=namespace, name=pod_name(name, attempt), body=pod, owner=uid)])
    return [wave for wave in waves if wave]


def node_of(pod: Json | None) -> str:
    """Where a pod is that may have its volumes mounted."""
    if pod is None or pod.get("status", {}).get("phase") in ("Failed", "Succeeded"):
        return ""
    return str(pod["spec"].get("nodeName", ""))


def _outcome_of(pod: Json) -> _Outcome | None:
    """Say what its end says; None while it goes on."""
    ended = _container(pod).get("state", {}).get("terminated")
    found = pod.get("status", {})
    if ended is not None:
        said = str(ended.get("message") or "")[:MESSAGE_BYTES]
        if ended["exitCode"] == 0:
            return _done(said)
        if ended["exitCode"] == VERDICT_STATUS and (verdict := _verdict(said)) is not None:
            return verdict
    if found.get("phase") in ("Failed", "Succeeded") or ended is not None:
        return _lost(found, ended or {})
    if is_terminating(pod):
        return _Outcome(
            lost=True, state=BackupState.WAITING, reason=Reason.POD_DELETED.value, message="Its pod is being deleted."
        )
    return None


def _done(said: str) -> _Outcome:
    with suppress(ValueError):
        if isinstance(json.loads(said), dict):
            return _Outcome(lost=False, state=BackupState.DONE, reason=Reason.AS_DESIRED.value, result=said)
    text = "The worker has ended without its result."
    return _Outcome(lost=True, state=BackupState.WAITING, reason=Reason.CONTAINER_FAILED.value, message=text)


def _verdict(said: str) -> _Outcome | None:
    try:
        told = json.loads(said)
        reason, message = str(told["reason"]), str(told["message"])
    except (ValueError, KeyError, TypeError):
        return None
    if _WORD.fullmatch(reason) is None:
        return None
    return _Outcome(lost=False, state=BackupState.FAILED, reason=reason, message=message)


def _lost(found: Mapping[str, Any], ended: Mapping[str, Any]) -> _Outcome:
    why = str(ended.get("reason") or found.get("reason") or found.get("phase"))
    reason = Reason.POD_FAILED
    if why == "OOMKilled":
        reason = Reason.OUT_OF_MEMORY
    elif found.get("reason") == "Evicted":
        reason = Reason.POD_EVICTED
    elif ended:
        reason = Reason.CONTAINER_FAILED
    said = str(found.get("message") or ended.get("message") or "")
    text = f"Its pod ended ({why}, exit code {ended.get('exitCode', 'unknown')}). {said}".rstrip()
    return _Outcome(lost=True, state=BackupState.WAITING, reason=reason.value, message=text)


def _progress(pod: Json, status: BackupWorkStatus) -> _Outcome:
    """Say how far a pod is that goes on."""

    def waits(reason: Reason, message: str = "") -> _Outcome:
        return _Outcome(lost=False, state=BackupState.WAITING, reason=reason.value, message=message)

    state = _container(pod).get("state", {})
    if "running" in state:
        return _Outcome(lost=False, state=BackupState.RUNNING, reason=Reason.STARTING.value)
    placed = pod_condition(pod, "PodScheduled")
    if placed.get("status") == "False":
        return waits(Reason.UNSCHEDULABLE, str(placed.get("message", "")))
    waiting = state.get("waiting", {})
    why, text = str(waiting.get("reason", "")), str(waiting.get("message", ""))
    if why in _BEFORE_START:
        return waits(Reason.STARTING)
    if why in IMAGE_REASONS or why.startswith("ErrImage"):
        before = Reason(status.reason) if status.reason in {one.value for one in Reason} else Reason.NOT_CREATED
        return waits(pull_reason(why, text, before=before), f"{why}: {text}")
    return waits(Reason.CONTAINER_FAILED, f"{why}: {text}")


def _container(pod: Json) -> Mapping[str, Any]:  # Any: JSON
    found = (one for one in pod.get("status", {}).get("containerStatuses", ()) if one["name"] == BACKUP_CONTAINER)
    return next(found, {})


def means_of(work: PlacedBackup, settings: PlanSettings) -> BackupMeans | None:
    """What the pods of a piece of work are made with; those of snapshots reach no repository."""
    if work.method is BackupMethod.FILES:
        return settings.backups
    if settings.snapshots is None:
        return None
    return BackupMeans(image=settings.snapshots.image, location="", credentials=lambda: b"")


def told(
    status: BackupWorkStatus, state: BackupState, reason: str, message: str = "", *, result: str = ""
) -> BackupWorkStatus:
    """Return the status with what is to be said now."""
    return replace(
        status, state=state, reason=reason, message=legible(message, limit=MESSAGE_CHARACTERS), result=result
    )


def _delete(kind: Kind, obj: Json) -> Delete:
    metadata = obj["metadata"]
    return Delete(kind=kind, namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"])
