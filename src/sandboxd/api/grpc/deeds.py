"""What a call is about, in the audit's words: who, what, on what, from where, and the details that may be kept.

Details are numbers, words of closed sets, and those few strings that are named here. No other string and no bytes of a
request are ever put on record: they may be prompts, keys or tokens.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, Final
from urllib.parse import unquote

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from sandboxd.api.grpc.errors import CODES
from sandboxd.api.grpc.interceptors.failures import first_of, request_id_of
from sandboxd.api.grpc.permissions import Scope
from sandboxd.api.grpc.rpc import OUR_PACKAGE, ClientGoneError, Rpc
from sandboxd.model.audit import SYSTEM_CHAIN
from sandboxd.model.caller import Caller, Role
from sandboxd.model.errors import SandboxdError
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.monitor.audit_ports import ANONYMOUS_ROLE, OK, Deed, Outcome

KEPT_STRINGS: Final = frozenset(
    {"approval_mode", "currency", "display_name", "labels", "mode", "model", "models", "option", "reason", "title"}
)
"""Strings of a request that are kept as details."""
_NEVER: Final = frozenset({"etag", "name", "page_token", "request_id"})
"""Kept elsewhere, or of no interest."""
_NAME: Final = re.compile(r"[a-z]{1,32}/[A-Za-z0-9._@-]{1,128}(/[a-z]{1,32}/[A-Za-z0-9._@-]{1,128}){0,3}")
_FREELANCER: Final = re.compile(r"(?:^|/)freelancers/([^/]+)")
_CLIENT: Final = re.compile(r"clients/([^/]+)")
_MAX_DEPTH: Final = 4
_MAX_ITEMS: Final = 20
_MAX_REQUEST_ID: Final = 128


def deed_of(rpc: Rpc, *, command: str = "", message: Message | None = None, target: str = "") -> Deed:
    """Say what a call, or one command of a stream, is about."""
    request = rpc.request if message is None else message
    action = rpc.method.removeprefix(OUR_PACKAGE) + (f".{command}" if command else "")
    caller = rpc.checked_caller
    if caller is None:
        return Deed(client=SYSTEM_CHAIN, role=ANONYMOUS_ROLE, action=action, peer=peer_of(rpc))
    name = target or target_of(request)
    freelancer = caller.freelancer or freelancer_of(request, name)
    request_id = getattr(message, "request_id", "") if message is not None else request_id_of(rpc)
    details = details_of(request)
    return Deed(
        client=_chain(rpc, caller, name),
        role=caller.role.value,
        action=action,
        actor=caller.subject,
        peer=peer_of(rpc),
        target=_FREELANCER.sub(lambda found: found[0].replace(found[1], "~"), name),
        request_id=request_id[:_MAX_REQUEST_ID],
        freelancer=freelancer,
        texts={"details": details} if details else {},
    )


def _chain(rpc: Rpc, caller: Caller, target: str) -> ClientId:
    """The caller's client; what the platform does to another one is in that one's chain, where its auditor reads it."""
    named = _CLIENT.match(target)
    if named is not None and rpc.permission is not None and rpc.permission.scope is Scope.PLATFORM:
        return ClientId(named[1]) if caller.role is Role.PLATFORM else caller.client
    return caller.client


def outcome_of(error: BaseException | None, *, target: str = "", deadline_over: bool = False) -> Outcome:
    """Say how a call ended, from what it raised; None: it succeeded."""
    if error is None:
        return Outcome(code=OK.code, target=target)
    if isinstance(error, BaseExceptionGroup):
        ours, rest = error.split(SandboxdError)
        if ours is not None and rest is None:
            error = first_of(ours)
    if isinstance(error, SandboxdError):
        return Outcome(code=CODES[error.kind].name, reason=error.reason)
    if isinstance(error, asyncio.CancelledError):
        code = grpc.StatusCode.DEADLINE_EXCEEDED if deadline_over else grpc.StatusCode.CANCELLED
        # What it began goes on (model: intent first), so that this says how the call ended, not the work.
        return Outcome(code=code.name, reason=code.name)
    if isinstance(error, ClientGoneError):
        return Outcome(code=grpc.StatusCode.CANCELLED.name, reason="CLIENT_GONE")
    return Outcome(code=grpc.StatusCode.INTERNAL.name, reason="INTERNAL")


def target_of(message: object) -> str:
    """Return the resource name that a request or a response is about; empty where it names none that we know."""
    if not isinstance(message, Message):
        return ""
    fields = [field for field in message.DESCRIPTOR.fields if not field.is_repeated]
    nested = [getattr(message, field.name) for field in fields if _is_ours(field) and message.HasField(field.name)]
    found = [_string(message, "name"), *(_string(one, "name") for one in nested)]
    found += [_string(one, field) for one in (message, *nested) for field in ("session", "sandbox")]
    found.append(_string(message, "parent"))
    if client := _string(message, "client") or _string(message, "client_id"):
        found.append(client if "/" in client else f"clients/{client}")
    return next((name for name in found if _NAME.fullmatch(name)), "")


def freelancer_of(message: object, name: str) -> FreelancerId | None:
    """Return the freelancer whom a request names."""
    if in_name := _FREELANCER.search(name):
        return FreelancerId(in_name[1])
    if not isinstance(message, Message):
        return None
    nested = [getattr(message, field.name) for field in message.DESCRIPTOR.fields if _is_ours(field)]
    for one in (message, *nested):
        for field in ("freelancer", "freelancer_id"):
            if isinstance(one, Message) and (said := _string(one, field).rpartition("/")[2]):
                return FreelancerId(said)
    return None


def details_of(message: object) -> str:
    """Return what may be kept of a request, as JSON; empty for nothing."""
    if not isinstance(message, Message):
        return ""
    kept = _kept(message, depth=0)
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":")) if kept else ""


def peer_of(rpc: Rpc) -> str:
    """Return where a call comes from, without the port, which is another one with every connection."""
    kind, _, address = unquote(rpc.context.peer() or "").partition(":")
    return address.rpartition(":")[0].strip("[]") if kind in {"ipv4", "ipv6"} else kind


def _kept(message: Message, *, depth: int) -> dict[str, Any]:  # Any: JSON
    kept: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.name in _NEVER:
            continue
        if field.is_repeated:
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                items: Any = dict(sorted(value.items())[:_MAX_ITEMS]) if field.name in KEPT_STRINGS else None
            else:
                items = [one for item in value[:_MAX_ITEMS] if (one := _single(field, item, depth=depth)) is not None]
            found = items or None
        else:
            found = _single(field, value, depth=depth)
        if found is not None:
            kept[field.name] = found
    return kept


def _single(field: FieldDescriptor, value: Any, *, depth: int) -> Any:  # Any: JSON, and what a field holds
    if field.message_type is not None:
        if field.message_type.full_name.startswith("google.protobuf."):
            known = field.message_type.name in {"Duration", "FieldMask", "Timestamp"}
            return MessageToDict(value) if known else None
        return (_kept(value, depth=depth + 1) or None) if depth < _MAX_DEPTH else None
    if field.enum_type is not None:
        named = field.enum_type.values_by_number.get(value)
        return named.name if named is not None else value
    if field.type == FieldDescriptor.TYPE_STRING:
        return value if field.name in KEPT_STRINGS else None
    return None if field.type == FieldDescriptor.TYPE_BYTES else value


def _is_ours(field: Any) -> bool:  # Any: protobuf has two classes of descriptors
    return (
        field.message_type is not None
        and not field.is_repeated
        and field.message_type.full_name.startswith(OUR_PACKAGE)
    )


def _string(message: Message, field: str) -> str:
    described = message.DESCRIPTOR.fields_by_name.get(field)
    if described is None or described.type != FieldDescriptor.TYPE_STRING or described.is_repeated:
        return ""
    return str(getattr(message, field))
