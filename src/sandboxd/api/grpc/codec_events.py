"""Events of a session's log, from the model to the contract. Every kind of event is here: `assert_never` holds that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, assert_never

from sandboxd.api.grpc.names import timestamp, turn_name
from sandboxd.model import events
from sandboxd.model.ids import SandboxId
from sandboxd.model.session import StopReason
from sandboxd.v1 import stream_pb2 as pb

TOOL_KINDS: Final[Mapping[events.ToolKind, pb.ToolKind.ValueType]] = {
    kind: pb.ToolKind.Value(f"TOOL_KIND_{kind.name}") for kind in events.ToolKind
}
TOOL_STATUSES: Final[Mapping[events.ToolStatus, pb.ToolStatus.ValueType]] = {
    status: pb.ToolStatus.Value(f"TOOL_STATUS_{status.name}") for status in events.ToolStatus
}
STOP_REASONS: Final[Mapping[StopReason, pb.StopReason.ValueType]] = {
    reason: pb.StopReason.Value(f"STOP_REASON_{reason.name}") for reason in StopReason
}
OPTION_KINDS: Final[Mapping[events.PermissionOptionKind, pb.PermissionOption.Kind.ValueType]] = {
    kind: pb.PermissionOption.Kind.Value(f"KIND_{kind.name}") for kind in events.PermissionOptionKind
}
TEXT_STATES: Final[Mapping[events.TextState, pb.TextState.ValueType]] = {
    events.TextState.KEPT: pb.TEXT_STATE_UNSPECIFIED,
    events.TextState.REDACTED: pb.TEXT_STATE_REDACTED,
    events.TextState.ERASED: pb.TEXT_STATE_ERASED,
}


def encode_event(event: events.SessionEvent, *, sandbox: SandboxId) -> pb.StreamResponse:
    """Encode one event of a log."""
    response = _encode_body(event.body)
    response.sequence = event.sequence
    response.event_time.CopyFrom(timestamp(event.event_time) or response.event_time)
    response.turn = turn_name(sandbox, event.session, event.turn)
    if event.text_state is not events.TextState.KEPT:
        response.text_state = TEXT_STATES[event.text_state]
    return response


def _encode_body(body: events.EventBody) -> pb.StreamResponse:  # noqa: C901  one case a kind
    match body:
        case events.SessionOpened():
            return pb.StreamResponse(session_opened=pb.SessionOpened(title=body.title))
        case events.Waking():
            return pb.StreamResponse(waking=pb.Waking(from_state=body.from_state))
        case events.SessionReady():
            return pb.StreamResponse(
                session_ready=pb.SessionReady(
                    resumed=body.resumed,
                    mode=body.mode,
                    modes=body.modes,
                    model=body.model,
                    models=body.models,
                    cli_version=body.cli_version,
                )
            )
        case events.TurnStarted():
            return pb.StreamResponse(turn_started=_turn_started(body))
        case events.Text():
            return pb.StreamResponse(text=pb.Text(text=body.text))
        case events.Thought():
            return pb.StreamResponse(thought=pb.Thought(subject=body.subject, text=body.text))
        case events.ToolCall():
            return pb.StreamResponse(
                tool_call=pb.ToolCall(
                    call=body.call,
                    tool=body.tool,
                    title=body.title,
                    kind=TOOL_KINDS[body.kind],
                    locations=body.locations,
                )
            )
        case events.ToolOutput():
            return pb.StreamResponse(
                tool_output=pb.ToolOutput(
                    call=body.call,
                    tool=body.tool,
                    status=TOOL_STATUSES[body.status],
                    text=body.text,
                    diffs=_diffs(body.diffs),
                    truncated=body.truncated,
                )
            )
        case events.PermissionRequest():
            return pb.StreamResponse(permission_request=_permission_request(body))
        case events.PermissionAnswered():
            return pb.StreamResponse(
                permission_answered=pb.PermissionAnswered(
                    permission=body.permission, option=body.option, request_id=body.request_id
                )
            )
        case events.ModeChanged():
            return pb.StreamResponse(mode_changed=pb.ModeChanged(mode=body.mode, request_id=body.request_id))
        case events.ModelChanged():
            return pb.StreamResponse(model_changed=pb.ModelChanged(model=body.model, request_id=body.request_id))
        case events.CommandsAvailable():
            return pb.StreamResponse(commands_available=pb.CommandsAvailable(commands=body.commands))
        case events.CancelRequested():
            return pb.StreamResponse(
                cancel_requested=pb.CancelRequested(request_id=body.request_id, reason=body.reason)
            )
        case events.Usage():
            return pb.StreamResponse(usage=_usage(body))
        case events.TurnCompleted():
            return pb.StreamResponse(turn_completed=_turn_completed(body))
        case events.Notice():
            return pb.StreamResponse(notice=pb.Notice(code=body.code, message=body.message))
        case events.Error():
            return pb.StreamResponse(
                error=pb.Error(
                    reason=body.reason,
                    message=body.message,
                    http_status=body.http_status or 0,
                    retryable=body.retryable,
                    request_id=body.request_id,
                )
            )
        case events.Unparsed():
            return pb.StreamResponse(
                unparsed=pb.Unparsed(data=body.data, size=body.size, why=body.why, sha256=body.sha256)
            )
    assert_never(body)


def _turn_started(body: events.TurnStarted) -> pb.TurnStarted:
    return pb.TurnStarted(
        request_id=body.request_id,
        number=body.number,
        text=body.text,
        attachments=[
            pb.AttachmentInfo(file_name=one.name, mime_type=one.mime_type, size=one.size, sha256=one.sha256)
            for one in body.attachments
        ],
    )


def _permission_request(body: events.PermissionRequest) -> pb.PermissionRequest:
    return pb.PermissionRequest(
        permission=body.permission,
        call=body.call,
        tool=body.tool,
        title=body.title,
        options=[
            pb.PermissionOption(option=one.id, label=one.label, kind=OPTION_KINDS[one.kind]) for one in body.options
        ],
        text=body.text,
        diffs=_diffs(body.diffs),
    )


def _usage(body: events.Usage) -> pb.Usage:
    return pb.Usage(
        usage_event=body.usage_event,
        model=body.model,
        prompt_tokens=body.prompt_tokens,
        cached_tokens=body.cached_tokens,
        output_tokens=body.output_tokens,
        thoughts_tokens=body.thoughts_tokens,
        tool_use_tokens=body.tool_use_tokens,
        total_tokens=body.total_tokens,
        cost_micros=body.cost_micros,
        currency=body.currency,
        http_status=body.http_status or 0,
        estimated=body.estimated,
    )


def _turn_completed(body: events.TurnCompleted) -> pb.TurnCompleted:
    return pb.TurnCompleted(
        stop_reason=STOP_REASONS[body.stop_reason],
        calls=body.calls,
        prompt_tokens=body.prompt_tokens,
        cached_tokens=body.cached_tokens,
        output_tokens=body.output_tokens,
        thoughts_tokens=body.thoughts_tokens,
        tool_use_tokens=body.tool_use_tokens,
        total_tokens=body.total_tokens,
        cost_micros=body.cost_micros,
        currency=body.currency,
        duration_ms=body.duration_ms,
        usage_complete=body.usage_complete,
    )


def _diffs(diffs: Iterable[events.Diff]) -> list[pb.Diff]:
    return [pb.Diff(path=one.path, old_text=one.old_text, new_text=one.new_text, kind=one.kind) for one in diffs]
