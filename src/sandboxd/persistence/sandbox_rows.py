"""Sandboxes, incarnations and requests: from what the database holds to the model, and back. No I/O."""

from __future__ import annotations

import base64
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from sandboxd.manager.ports import ErrorRecord, RequestOutcome, RequestRecord
from sandboxd.model.backup import BackupSetId, ReleasedVolumes, RestoreId, Restoring, Volume
from sandboxd.model.errors import ErrorKind
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, RequestId, SandboxId
from sandboxd.model.image import GenerationId, SandboxImage
from sandboxd.model.sandbox import AgentEndpoint, ApprovalMode, Incarnation, Sandbox, SandboxState, Tier
from sandboxd.persistence.lifecycle_rows import overrides_json, read_overrides
from sandboxd.persistence.progress_rows import progress_json, read_progress


class Row(Protocol):
    """A record: SQLAlchemy's mapping or plain JSON."""

    def __getitem__(self, column: str, /) -> Any:  # Any: its columns have any type
        """The value of a column."""


Values = dict[str, Any]
"""Values by column. Any: its columns have any type."""

_MOMENTS: Final = (
    "create_time",
    "update_time",
    "last_use_time",
    "state_time",
    "keep_awake_until",
    "terminate_time",
)


_UNSAVED: Final[Values] = {"dirty_since": None, "unsaved_packages": 0, "restoring": None, "released": None}
"""What is no part of a sandbox as it was: it is written by who keeps packages (`packages.py`), or on the way."""


def sandbox_values(sandbox: Sandbox) -> Values:
    """A sandbox by columns, without what is unsaved of it."""
    image = sandbox.image
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
        "create_time": sandbox.create_time,
        "update_time": sandbox.update_time,
        "last_use_time": sandbox.last_use_time,
        "state_time": sandbox.state_time,
        "lifecycle": overrides_json(sandbox.lifecycle),
        "keep_awake_until": sandbox.keep_awake_until,
        "terminate_time": sandbox.terminate_time,
        "restoring": None if sandbox.restoring is None else _restoring_json(sandbox.restoring),
        "released": None if sandbox.released is None else _released_json(sandbox.released),
        "image_generation": image.generation if image else None,
        "image_number": image.number if image else None,
        "image_reference": image.reference if image else None,
        "version": sandbox.version,
    }


def read_sandbox(row: Row) -> Sandbox:
    """A sandbox from its columns."""
    image = None
    if row["image_generation"] is not None:
        image = SandboxImage(
            generation=GenerationId(row["image_generation"]),
            number=row["image_number"],
            reference=row["image_reference"],
        )
    return Sandbox(
        id=SandboxId(row["id"]),
        client=ClientId(row["client"]),
        freelancer=FreelancerId(row["freelancer"]),
        display_name=row["display_name"],
        labels=row["labels"],
        tier=Tier(row["tier"]),
        model=row["model"],
        approval_mode=ApprovalMode(row["approval_mode"]),
        state=SandboxState(row["state"]),
        state_reason=row["state_reason"],
        incarnation=IncarnationId(row["incarnation"]) if row["incarnation"] else None,
        incarnations=row["incarnations"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        last_use_time=row["last_use_time"],
        state_time=row["state_time"],
        lifecycle=read_overrides(row["lifecycle"]),
        keep_awake_until=row["keep_awake_until"],
        terminate_time=row["terminate_time"],
        image=image,
        restoring=None if row["restoring"] is None else _read_restoring(row["restoring"]),
        released=None if row["released"] is None else _read_released(row["released"]),
        dirty_since=row["dirty_since"],
        unsaved_packages=row["unsaved_packages"],
        version=row["version"],
    )


def _restoring_json(restoring: Restoring) -> Values:
    return {
        "id": restoring.id,
        "backup": restoring.backup,
        # In hexadecimal digits: they are any bytes.
        "paths": {volume.value: [path.hex() for path in paths] for volume, paths in restoring.paths.items()},
        "volumes": [volume.value for volume in restoring.volumes],
        "came_from": restoring.came_from,
        "still_since": None if restoring.still_since is None else restoring.still_since.isoformat(),
        "restored": restoring.restored,
        "placing": restoring.placing,
        "cancelled": restoring.cancelled,
        "progress": None if restoring.progress is None else progress_json(restoring.progress),
    }


def _read_restoring(said: Values) -> Restoring:
    paths: Values = said["paths"]
    return Restoring(
        id=RestoreId(said["id"]),
        backup=None if said["backup"] is None else BackupSetId(said["backup"]),
        paths={Volume(name): tuple(bytes.fromhex(path) for path in those) for name, those in paths.items()},
        volumes=tuple(Volume(name) for name in said.get("volumes", (one.value for one in Volume))),
        came_from=said["came_from"],
        still_since=None if said["still_since"] is None else datetime.fromisoformat(said["still_since"]),
        restored=said["restored"],
        placing=bool(said.get("placing")),
        cancelled=bool(said.get("cancelled")),
        progress=None if said.get("progress") is None else read_progress(said["progress"]),
    )


def _released_json(released: ReleasedVolumes) -> Values:
    return {
        "backup": released.backup,
        "incarnation": released.incarnation,
        "begin_time": released.begin_time.isoformat(),
        "end_time": None if released.end_time is None else released.end_time.isoformat(),
    }


def _read_released(said: Values) -> ReleasedVolumes:
    return ReleasedVolumes(
        backup=BackupSetId(said["backup"]),
        incarnation=IncarnationId(said["incarnation"]),
        begin_time=datetime.fromisoformat(said["begin_time"]),
        end_time=None if said["end_time"] is None else datetime.fromisoformat(said["end_time"]),
    )


def incarnation_values(incarnation: Incarnation) -> Values:
    """An incarnation by columns."""
    endpoint = incarnation.endpoint
    return {
        "id": incarnation.id,
        "sandbox": incarnation.sandbox,
        "number": incarnation.number,
        "host": endpoint.host if endpoint else None,
        "port": endpoint.port if endpoint else None,
        "server_name": endpoint.server_name if endpoint else None,
        "start_time": incarnation.start_time,
        "ready_time": incarnation.ready_time,
        "end_time": incarnation.end_time,
        "end_reason": incarnation.end_reason,
    }


def read_incarnation(row: Row) -> Incarnation:
    """An incarnation from its columns."""
    endpoint = None
    if row["host"] is not None:
        endpoint = AgentEndpoint(host=row["host"], port=row["port"], server_name=row["server_name"])
    return Incarnation(
        id=IncarnationId(row["id"]),
        sandbox=SandboxId(row["sandbox"]),
        number=row["number"],
        endpoint=endpoint,
        start_time=row["start_time"],
        ready_time=row["ready_time"],
        end_time=row["end_time"],
        end_reason=row["end_reason"],
    )


def request_values(record: RequestRecord) -> Values:
    """A remembered request by columns."""
    return {
        "client": record.client,
        "request_id": record.request_id,
        "method": record.method,
        "subject": record.subject,
        "body_hash": record.body_hash,
        "sandbox": record.sandbox,
        "outcome": outcome_json(record.outcome) if record.outcome else None,
        "create_time": record.create_time,
        "expire_time": record.expire_time,
    }


def read_request(row: Row) -> RequestRecord:
    """A remembered request from its columns."""
    return RequestRecord(
        client=ClientId(row["client"]),
        request_id=RequestId(row["request_id"]),
        method=row["method"],
        subject=row["subject"],
        body_hash=bytes(row["body_hash"]),
        sandbox=SandboxId(row["sandbox"]),
        outcome=read_outcome(row["outcome"]) if row["outcome"] is not None else None,
        create_time=row["create_time"],
        expire_time=row["expire_time"],
    )


def outcome_json(outcome: RequestOutcome) -> Values:
    """An outcome as JSON: a sandbox as it was then, a response, or an error."""
    written: Values = {"kept": outcome.kept}
    if outcome.response is not None:
        written["response"] = base64.b64encode(outcome.response).decode()
    if outcome.sandbox is not None:
        values = sandbox_values(outcome.sandbox)
        moments = {name: values[name].isoformat() if values[name] else None for name in _MOMENTS}
        written["sandbox"] = values | moments
    if outcome.error is not None:
        written["error"] = {
            "kind": outcome.error.kind.value,
            "reason": outcome.error.reason,
            "message": outcome.error.message,
            "metadata": dict(outcome.error.metadata),
            "retry_seconds": None if outcome.error.retry_after is None else outcome.error.retry_after.total_seconds(),
        }
    return written


def read_outcome(written: Values) -> RequestOutcome:
    """An outcome from its JSON."""
    sandbox, error = written.get("sandbox"), written.get("error")
    record = None
    if error is not None:
        seconds = error.get("retry_seconds")  # an older version may have written it
        record = ErrorRecord(
            kind=ErrorKind(error["kind"]),
            reason=error["reason"],
            message=error["message"],
            metadata=error["metadata"],
            retry_after=None if seconds is None else timedelta(seconds=seconds),
        )
    if sandbox is not None:
        moments = {name: datetime.fromisoformat(sandbox[name]) if sandbox.get(name) else None for name in _MOMENTS}
        sandbox = read_sandbox(
            {"lifecycle": None, "image_generation": None} | _UNSAVED | sandbox | moments
        )  # an older version may have written it
    response = written.get("response")
    return RequestOutcome(
        sandbox=sandbox,
        kept=written.get("kept", ""),
        response=None if response is None else base64.b64decode(response),
        error=record,
    )
