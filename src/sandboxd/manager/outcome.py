"""What a request came to, as JSON: how it is kept, and how a kept error is raised again."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from sandboxd.manager.ports import ErrorRecord, RequestOutcome
from sandboxd.model.errors import ErrorKind, SandboxdError
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId
from sandboxd.model.sandbox import ApprovalMode, Sandbox, SandboxState, Tier


def record_error(error: SandboxdError) -> ErrorRecord:
    """Note an error so that a repeated request can be answered with it."""
    return ErrorRecord(
        kind=error.kind,
        reason=error.reason,
        message=error.message,
        metadata=dict(error.metadata),
        retry_after=error.retry_after,
    )


def restore_error(record: ErrorRecord) -> SandboxdError:
    """Build the error that was noted: of its own class where that still exists, else one with its kind and reason."""
    leaf = next((c for c in _descendants(SandboxdError) if (c.kind, c.reason) == (record.kind, record.reason)), None)
    if leaf is None:
        leaf = type("RecordedError", (SandboxdError,), {"kind": record.kind, "reason": record.reason})
    error = leaf.__new__(leaf, record.message)
    # The leaf's own constructor builds the message from parts that are not kept apart; the root's takes it as it is.
    SandboxdError.__init__(error, record.message, retry_after=record.retry_after, **record.metadata)
    for name in ("violations",):  # what some kinds carry beside it, empty here
        if not hasattr(error, name):
            setattr(error, name, ())
    return error


def encode_outcome(outcome: RequestOutcome) -> dict[str, Any]:
    """Turn an outcome into what JSON can hold."""
    error = outcome.error
    return {
        "sandbox": None if outcome.sandbox is None else _encode_sandbox(outcome.sandbox),
        "kept": outcome.kept,
        "response": None if outcome.response is None else base64.b64encode(outcome.response).decode(),
        "error": None
        if error is None
        else {
            "kind": error.kind.value,
            "reason": error.reason,
            "message": error.message,
            "metadata": dict(error.metadata),
            "retry_after": None if error.retry_after is None else error.retry_after.total_seconds(),
        },
    }


def decode_outcome(data: Mapping[str, Any]) -> RequestOutcome:
    """Turn back what `encode_outcome` made, by this version or an older one."""
    error = data.get("error")
    sandbox = data.get("sandbox")
    response = data.get("response")
    return RequestOutcome(
        sandbox=None if sandbox is None else _decode_sandbox(sandbox),
        kept=data.get("kept", ""),
        response=None if response is None else base64.b64decode(response),
        error=None
        if error is None
        else ErrorRecord(
            kind=ErrorKind(error["kind"]),
            reason=error["reason"],
            message=error["message"],
            metadata=error.get("metadata", {}),
            retry_after=None if error.get("retry_after") is None else timedelta(seconds=error["retry_after"]),
        ),
    )


def _encode_sandbox(sandbox: Sandbox) -> dict[str, Any]:
    return {
        "id": sandbox.id,
        "client": sandbox.client,
        "freelancer": sandbox.freelancer,
        "display_name": sandbox.display_name,
        "labels": dict(sandbox.labels),
        "tier": sandbox.tier.value,
        "model": sandbox.model,
        "approval_mode": sandbox.approval_mode.value,
        "state": sandbox.state.value,
        "state_reason": sandbox.state_reason,
        "incarnation": sandbox.incarnation,
        "incarnations": sandbox.incarnations,
        "create_time": sandbox.create_time.isoformat(),
        "update_time": sandbox.update_time.isoformat(),
        "last_use_time": sandbox.last_use_time.isoformat(),
        "terminate_time": None if sandbox.terminate_time is None else sandbox.terminate_time.isoformat(),
        "version": sandbox.version,
    }


def _decode_sandbox(data: Mapping[str, Any]) -> Sandbox:
    incarnation, terminated = data["incarnation"], data["terminate_time"]
    return Sandbox(
        id=SandboxId(data["id"]),
        client=ClientId(data["client"]),
        freelancer=FreelancerId(data["freelancer"]),
        display_name=data["display_name"],
        labels=dict(data["labels"]),
        tier=Tier(data["tier"]),
        model=data["model"],
        approval_mode=ApprovalMode(data["approval_mode"]),
        state=SandboxState(data["state"]),
        state_reason=data["state_reason"],
        incarnation=None if incarnation is None else IncarnationId(incarnation),
        incarnations=data["incarnations"],
        create_time=datetime.fromisoformat(data["create_time"]),
        update_time=datetime.fromisoformat(data["update_time"]),
        last_use_time=datetime.fromisoformat(data["last_use_time"]),
        terminate_time=None if terminated is None else datetime.fromisoformat(terminated),
        version=data["version"],
    )


def _descendants(root: type[SandboxdError]) -> Iterator[type[SandboxdError]]:
    for child in root.__subclasses__():
        yield child
        yield from _descendants(child)
