"""Sandboxes between the model and the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sandboxd.api.grpc.codec_backup import backup_of
from sandboxd.api.grpc.codec_image import image_name
from sandboxd.api.grpc.codec_lifecycle import decode_lifecycle, encode_lifecycle, encode_next_step
from sandboxd.api.grpc.names import moment, sandbox_name, timestamp
from sandboxd.manager.creation import NewSandbox
from sandboxd.manager.editing import KEEP, SandboxEdit
from sandboxd.manager.ports import SandboxOrder
from sandboxd.manager.reading import ChangeKind, SandboxChange, Selection
from sandboxd.model.ids import FreelancerId
from sandboxd.model.next_step import NextStep
from sandboxd.model.sandbox import ApprovalMode, Sandbox, SandboxState, Tier
from sandboxd.v1 import sandbox_pb2 as pb

STATES: Final[Mapping[SandboxState, pb.SandboxState.ValueType]] = {
    SandboxState.CREATING: pb.SANDBOX_STATE_CREATING,
    SandboxState.ACTIVE: pb.SANDBOX_STATE_ACTIVE,
    SandboxState.HIBERNATING: pb.SANDBOX_STATE_HIBERNATING,
    SandboxState.HIBERNATED: pb.SANDBOX_STATE_HIBERNATED,
    SandboxState.WAKING: pb.SANDBOX_STATE_WAKING,
    SandboxState.STOPPING: pb.SANDBOX_STATE_STOPPING,
    SandboxState.STOPPED: pb.SANDBOX_STATE_STOPPED,
    SandboxState.STARTING: pb.SANDBOX_STATE_STARTING,
    SandboxState.PAUSING: pb.SANDBOX_STATE_PAUSING,
    SandboxState.PAUSED: pb.SANDBOX_STATE_PAUSED,
    SandboxState.RESUMING: pb.SANDBOX_STATE_RESUMING,
    SandboxState.RESTORING: pb.SANDBOX_STATE_RESTORING,
    SandboxState.TERMINATING: pb.SANDBOX_STATE_TERMINATING,
    SandboxState.TERMINATED: pb.SANDBOX_STATE_TERMINATED,
    SandboxState.FAILED: pb.SANDBOX_STATE_FAILED,
}
TIERS: Final[Mapping[Tier, pb.Tier.ValueType]] = {
    Tier.BASIC: pb.TIER_BASIC,
    Tier.STANDARD: pb.TIER_STANDARD,
    Tier.PREMIUM: pb.TIER_PREMIUM,
}
CHANGES: Final[Mapping[ChangeKind, pb.WatchResponse.Change.ValueType]] = {
    ChangeKind.PRESENT: pb.WatchResponse.CHANGE_PRESENT,
    ChangeKind.UPDATED: pb.WatchResponse.CHANGE_UPDATED,
    ChangeKind.REMOVED: pb.WatchResponse.CHANGE_REMOVED,
    ChangeKind.SYNCED: pb.WatchResponse.CHANGE_SYNCED,
}
_STATES_BACK: Final = {number: state for state, number in STATES.items()}
_TIERS_BACK: Final = {number: tier for tier, number in TIERS.items()}


def encode_sandbox(sandbox: Sandbox, *, backend: str, planned: NextStep | None = None) -> pb.Sandbox:
    """Encode a sandbox with what policy does next."""
    return pb.Sandbox(
        name=sandbox_name(sandbox.id),
        client=sandbox.client,
        freelancer=sandbox.freelancer,
        display_name=sandbox.display_name,
        labels=sandbox.labels,
        tier=TIERS[sandbox.tier],
        model=sandbox.model,
        approval_mode=sandbox.approval_mode.value,
        state=STATES[sandbox.state],
        state_reason=sandbox.state_reason,
        incarnation=sandbox.incarnation or "",
        incarnations=sandbox.incarnations,
        backend=backend,
        create_time=timestamp(sandbox.create_time),
        update_time=timestamp(sandbox.update_time),
        last_use_time=timestamp(sandbox.last_use_time),
        terminate_time=timestamp(sandbox.terminate_time),
        etag=str(sandbox.version),
        lifecycle=encode_lifecycle(sandbox.lifecycle),
        keep_awake_until=timestamp(sandbox.keep_awake_until),
        state_time=timestamp(sandbox.state_time),
        next_step=encode_next_step(planned),
        unsaved=_encode_unsaved(sandbox),
        image=image_name(sandbox.id, sandbox.image.number) if sandbox.image else "",
        volumes_release=_encode_release(sandbox),
    )


def _encode_unsaved(sandbox: Sandbox) -> pb.Unsaved | None:
    if sandbox.dirty_since is None:
        return None
    return pb.Unsaved(dirty_since=timestamp(sandbox.dirty_since), packages=sandbox.unsaved_packages)


def _encode_release(sandbox: Sandbox) -> pb.VolumesRelease | None:
    said = sandbox.volumes_released
    if said is None:
        return None
    return pb.VolumesRelease(
        backup=f"{sandbox_name(sandbox.id)}/backups/{said.backup}",
        begin_time=timestamp(said.begin_time),
        end_time=timestamp(said.end_time),
    )


def encode_change(change: SandboxChange, *, backend: str, planned: NextStep | None = None) -> pb.WatchResponse:
    """Encode one message to a watcher."""
    sandbox = encode_sandbox(change.sandbox, backend=backend, planned=planned) if change.sandbox else None
    return pb.WatchResponse(change=CHANGES[change.kind], sandbox=sandbox)


def decode_wish(request: pb.CreateRequest) -> NewSandbox:
    """Decode what a new sandbox shall be."""
    message = request.sandbox
    return NewSandbox(
        freelancer=FreelancerId(message.freelancer) if message.freelancer else None,
        display_name=message.display_name,
        labels=dict(message.labels),
        tier=_TIERS_BACK.get(message.tier),
        model=message.model,
        approval_mode=_approval_mode(message.approval_mode) if message.approval_mode else None,
        lifecycle=decode_lifecycle(message.lifecycle),
        keep_awake_until=moment(message, "keep_awake_until"),
        from_backup=backup_of(request.from_backup),
        workspace_only=request.workspace_only,
    )


def decode_edit(message: pb.UpdateRequest) -> SandboxEdit:
    """Decode what shall change: the fields that the mask names."""
    paths, wished = set(message.update_mask.paths), message.sandbox
    return SandboxEdit(
        display_name=wished.display_name if "display_name" in paths else None,
        labels=dict(wished.labels) if "labels" in paths else None,
        model=wished.model if "model" in paths else None,
        approval_mode=_approval_mode(wished.approval_mode) if "approval_mode" in paths else None,
        tier=_TIERS_BACK.get(wished.tier, Tier.BASIC) if "tier" in paths else None,
        lifecycle=decode_lifecycle(wished.lifecycle) if "lifecycle" in paths else None,
        keep_awake_until=moment(wished, "keep_awake_until") if "keep_awake_until" in paths else KEEP,
    )


def decode_selection(message: pb.SandboxFilter) -> Selection:
    """Decode which sandboxes are meant."""
    return Selection(
        freelancer=FreelancerId(message.freelancer) if message.freelancer else None,
        states=frozenset(_STATES_BACK[state] for state in message.states),
        labels=dict(message.labels),
    )


def decode_order(text: str) -> SandboxOrder:
    """Decode an order; the contract's rules let no other text through."""
    return SandboxOrder(text or SandboxOrder.CREATE_TIME.value)


def _approval_mode(text: str) -> ApprovalMode:
    return ApprovalMode(text) if text else ApprovalMode.DEFAULT
