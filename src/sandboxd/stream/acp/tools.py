"""Tool calls and permission requests of a session: one `ToolOutput` for each `ToolCall`, whatever the CLI omits.

The CLI sends a `tool_call` or asks for permission, never both; sends nothing at all for a refused tool, and only an
update for a call with bad arguments; and repeats its ids. So calls get ids of our own, and are matched oldest first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sandboxd.model.errors import InvalidRequestError, PermissionNotOpenError
from sandboxd.model.events import Notice, PermissionAnswered, PermissionRequest, ToolCall, ToolOutput, ToolStatus
from sandboxd.model.ids import TurnId
from sandboxd.stream.acp import content
from sandboxd.stream.acp.state import AcpSession, OpenCall, OpenPermission
from sandboxd.stream.acp.wire import Wire
from sandboxd.stream.cutting import shorten
from sandboxd.stream.limits import MAX_MESSAGE_BYTES, MAX_OPEN_CALLS
from sandboxd.stream.outbox import Outbox
from sandboxd.stream.reading import obj, text

_UNSAFE = re.compile(r"[^A-Za-z0-9_.:-]")
_ENDED = {"completed": ToolStatus.COMPLETED, "failed": ToolStatus.FAILED}
_CANCELLED = {"outcome": {"outcome": "cancelled"}}


class Tools:
    """Keeps the open calls and permission requests of all sessions in order."""

    def __init__(self, outbox: Outbox, wire: Wire) -> None:
        self._outbox = outbox
        self._wire = wire

    def called(self, session: AcpSession, update: Mapping[str, Any]) -> None:
        """The agent announced a call; where it is over already, it is closed too."""
        tool_call_id = text(update, "toolCallId")
        call = _find(session, tool_call_id, announced=False)
        if call is None:
            call = self._begin(session, update, announced=True)
        else:
            call.announced = True
            self._progress(session, call, update)
        if text(update, "status") in _ENDED:
            self._end(session, call, _ENDED[text(update, "status")], update)

    def updated(self, session: AcpSession, update: Mapping[str, Any]) -> None:
        """The agent reported on a call; one that we have not seen is begun first."""
        call = _find(session, text(update, "toolCallId")) or self._begin(session, update, announced=True)
        status = _ENDED.get(text(update, "status"))
        if status is None:
            self._progress(session, call, update)
        else:
            self._end(session, call, status, update)

    def asked(self, session: AcpSession, rpc: Any, params: Mapping[str, Any]) -> None:
        """The agent asks whether it may run a tool."""
        message = obj(params, "toolCall")
        call = _find(session, text(message, "toolCallId")) or self._begin(session, message, announced=False)
        options = content.permission_options(params)
        wanted = content.tool_content(message)
        permission = OpenPermission(
            permission=f"permission#{self._number(session)}",
            rpc=rpc,
            call=call.call,
            turn=call.turn,
            options={option.id: content.allows(option) for option in options},
        )
        if len(session.permissions) >= MAX_OPEN_CALLS:
            self._close(session, session.permissions[0])
        session.permissions.append(permission)
        request = PermissionRequest(
            permission=permission.permission,
            call=call.call,
            tool=call.tool,
            title=content.tool_title(message),
            options=tuple(options),
            text=f"{wanted.text}\n[cut]" if wanted.truncated else wanted.text,
            diffs=wanted.diffs,
        )
        self._outbox.emit(session.id, call.turn, request)
        turn = session.find_turn(call.turn)
        if turn is not None and turn.cancelling:
            # It asked before it saw the cancel, and would wait for ever; the cancel only works once this is answered.
            self.close_permissions(session, call.turn)
            self._wire.notify("session/cancel", {"sessionId": session.cli_session})

    def answer(self, session: AcpSession, permission: str, option: str, request_id: str) -> None:
        """A person chose.

        Raises:
            PermissionNotOpenError: No such request is open.
            InvalidRequestError: It has no such option.
        """
        found = session.find_permission(permission)
        if found is None:
            raise PermissionNotOpenError(permission)
        if option not in found.options:
            raise InvalidRequestError(f"The permission request has no option {option}.", option=option)
        self._wire.reply(found.rpc, {"outcome": {"outcome": "selected", "optionId": option}})
        self._settle(session, found, option, request_id)

    def observed(self, session: AcpSession, permission: OpenPermission, option: str, *, failed: bool) -> None:
        """Another client answered; an empty option is a refusal, `failed` an error in place of an answer."""
        if failed:
            session.permissions.remove(permission)
            answered = PermissionAnswered(permission=permission.permission, option="")
            self._outbox.emit(session.id, permission.turn, answered)
            return
        self._settle(session, permission, option, "")

    def close_permissions(self, session: AcpSession, turn: TurnId | None, *, request_id: str = "") -> None:
        """Answer the turn's open requests with `cancelled`, and close their calls."""
        for permission in [found for found in session.permissions if found.turn == turn]:
            self._close(session, permission, request_id=request_id)

    def close_calls(self, session: AcpSession, turn: TurnId | None) -> None:
        """Close the turn's calls: they will not report any more."""
        for call in [found for found in session.calls if found.turn == turn]:
            self._end(session, call, ToolStatus.CANCELLED, {})

    def _close(self, session: AcpSession, permission: OpenPermission, *, request_id: str = "") -> None:
        self._wire.reply(permission.rpc, _CANCELLED)
        self._settle(session, permission, "", request_id)

    def _settle(self, session: AcpSession, permission: OpenPermission, option: str, request_id: str) -> None:
        session.permissions.remove(permission)
        answered = PermissionAnswered(permission=permission.permission, option=option, request_id=request_id)
        self._outbox.emit(session.id, permission.turn, answered)
        call = next((found for found in session.calls if found.call == permission.call), None)
        if call is None:
            return
        if permission.options.get(option):
            if content.ends_with_its_permission(call.tool_call_id):
                self._end(session, call, ToolStatus.COMPLETED, {})
            return
        turn = session.find_turn(permission.turn)
        cancelled = not option and turn is not None and turn.cancelling
        self._end(session, call, ToolStatus.CANCELLED if cancelled else ToolStatus.REJECTED, {})

    def _begin(self, session: AcpSession, message: Mapping[str, Any], *, announced: bool) -> OpenCall:
        turn = session.current()
        tool_call_id = text(message, "toolCallId")
        number = self._number(session)
        call = OpenCall(
            call=f"{_UNSAFE.sub('_', tool_call_id)[:80]}#{number}",
            tool=content.tool_name(tool_call_id),
            tool_call_id=tool_call_id,
            turn=turn.id if turn else None,
            announced=announced,
        )
        if len(session.calls) >= MAX_OPEN_CALLS:
            self._end(session, session.calls[0], ToolStatus.CANCELLED, {})
        session.calls.append(call)
        begun = ToolCall(
            call=call.call,
            tool=call.tool,
            title=content.tool_title(message) or call.tool,
            kind=content.tool_kind(message),
            locations=content.tool_locations(message),
        )
        self._outbox.emit(session.id, call.turn, begun)
        return call

    def _end(self, session: AcpSession, call: OpenCall, status: ToolStatus, message: Mapping[str, Any]) -> None:
        session.calls.remove(call)
        said = content.tool_content(message)
        output = ToolOutput(
            call=call.call,
            tool=call.tool,
            status=status,
            text=said.text,
            diffs=said.diffs,
            truncated=said.truncated,
        )
        self._outbox.emit(session.id, call.turn, output)

    def _progress(self, session: AcpSession, call: OpenCall, update: Mapping[str, Any]) -> None:
        """What a tool says before it ends; the CLI of today does not, the protocol allows it."""
        said = content.tool_content(update).text or content.tool_title(update)
        notice = Notice(code="TOOL_PROGRESS", message=shorten(f"{call.tool}: {said}", MAX_MESSAGE_BYTES))
        self._outbox.emit(session.id, call.turn, notice)

    def _number(self, session: AcpSession) -> str:
        """What makes an id unique in the session, over all its processes: the turn, and a counter in it."""
        turn = session.current()
        if turn is None:
            session.strays += 1
            return f"{session.cli_session}.{session.strays}"
        turn.parts += 1
        return f"{turn.id}.{turn.parts}"


def _find(session: AcpSession, tool_call_id: str, *, announced: bool | None = None) -> OpenCall | None:
    """The oldest open call with the CLI's id."""
    for call in session.calls:
        if call.tool_call_id == tool_call_id and (announced is None or call.announced is announced):
            return call
    return None
