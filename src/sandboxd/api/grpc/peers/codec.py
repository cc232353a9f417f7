"""Errands between the stream room and the replicas' contract."""

from __future__ import annotations

from typing import assert_never

from sandboxd.api.grpc.codec_session import decode_prompt, encode_prompt
from sandboxd.internal.v1 import replica_pb2 as pb
from sandboxd.model.caller import Caller, Role
from sandboxd.model.errors import InvalidRequestError
from sandboxd.model.ids import ClientId, RequestId, SandboxId, SessionId
from sandboxd.stream import errands
from sandboxd.stream.errands import Deed, Errand
from sandboxd.v1 import stream_pb2


def encode_errand(errand: Errand, *, replica: str, acquire: bool) -> pb.RunErrandRequest:
    """Encode an errand for the replica that is meant."""
    request = pb.RunErrandRequest(replica=replica, sandbox=errand.sandbox, acquire=acquire)
    match errand:
        case errands.Order():
            request.order.CopyFrom(_encode_order(errand))
        case errands.Wish():
            request.wish.CopyFrom(pb.Wish(caller=_encode_caller(errand.caller), session=errand.session))
        case errands.Vanished():
            request.vanished.session = errand.session
        case errands.Close():
            request.close.reason = errand.reason
            request.close.timeout.FromTimedelta(errand.timeout)
            request.close.only_idle = errand.only_idle
        case _:
            assert_never(errand)
    return request


def decode_errand(request: pb.RunErrandRequest) -> Errand:
    """Decode an errand.

    Raises:
        InvalidRequestError: It comes from a version that knows more than this one.
    """
    sandbox = SandboxId(request.sandbox)
    match request.WhichOneof("errand"):
        case "order":
            return _decode_order(sandbox, request.order)
        case "wish":
            session = SessionId(request.wish.session)
            return errands.Wish(caller=_decode_caller(request.wish.caller), sandbox=sandbox, session=session)
        case "vanished":
            return errands.Vanished(sandbox=sandbox, session=SessionId(request.vanished.session))
        case "close":
            return errands.Close(
                sandbox=sandbox,
                reason=request.close.reason,
                timeout=request.close.timeout.ToTimedelta(),
                only_idle=request.close.only_idle,
            )
        case _:
            raise _unknown()


def _encode_order(order: errands.Order) -> pb.Order:
    made = pb.Order(
        caller=_encode_caller(order.caller),
        session=order.session,
        request_id=order.request_id,
        body_hash=order.body_hash,
        traceparent=order.traceparent,
    )
    deed = order.deed
    match deed:
        case errands.StartTurn():
            made.prompt.CopyFrom(encode_prompt(deed.prompt))
        case errands.AnswerPermission():
            made.answer_permission.CopyFrom(stream_pb2.AnswerPermission(permission=deed.permission, option=deed.option))
        case errands.CancelTurn():
            made.cancel_turn.SetInParent()
        case errands.SetMode():
            made.set_mode.mode = deed.mode
        case errands.SetModel():
            made.set_model.model = deed.model
        case errands.ForgetSession():
            made.forget_session.SetInParent()
        case _:
            assert_never(deed)
    return made


def _decode_order(sandbox: SandboxId, order: pb.Order) -> errands.Order:
    return errands.Order(
        caller=_decode_caller(order.caller),
        sandbox=sandbox,
        session=SessionId(order.session),
        request_id=RequestId(order.request_id),
        body_hash=order.body_hash,
        deed=_decode_deed(order),
        traceparent=order.traceparent,
    )


def _decode_deed(order: pb.Order) -> Deed:
    match order.WhichOneof("deed"):
        case "prompt":
            return errands.StartTurn(prompt=decode_prompt(order.prompt))
        case "answer_permission":
            answer = order.answer_permission
            return errands.AnswerPermission(permission=answer.permission, option=answer.option)
        case "cancel_turn":
            return errands.CancelTurn()
        case "set_mode":
            return errands.SetMode(mode=order.set_mode.mode)
        case "set_model":
            return errands.SetModel(model=order.set_model.model)
        case "forget_session":
            return errands.ForgetSession()
        case _:
            raise _unknown()


def _encode_caller(caller: Caller) -> pb.Caller:
    return pb.Caller(client=caller.client, subject=caller.subject, role=caller.role.value)


def _decode_caller(caller: pb.Caller) -> Caller:
    try:
        role = Role(caller.role)
    except ValueError as error:
        raise _unknown() from error
    return Caller(client=ClientId(caller.client), subject=caller.subject, role=role)


def _unknown() -> InvalidRequestError:
    return InvalidRequestError("This server's version does not know the command.")
