"""Sessions between the model and the contract, and what a prompt carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sandboxd.api.grpc.names import sandbox_id, session_id, session_name, timestamp, turn_name
from sandboxd.model.ids import RequestId
from sandboxd.model.session import Attachment, PromptInput, Session
from sandboxd.stream.opening import Opening
from sandboxd.stream.ports import SessionOrder
from sandboxd.v1 import session_pb2, stream_pb2

ORDERS: Final[Mapping[str, SessionOrder]] = {
    "": SessionOrder.CREATE_TIME_DESC,
    "create_time": SessionOrder.CREATE_TIME,
    "create_time desc": SessionOrder.CREATE_TIME_DESC,
    "update_time": SessionOrder.UPDATE_TIME,
    "update_time desc": SessionOrder.UPDATE_TIME_DESC,
}


def encode_session(session: Session) -> session_pb2.Session:
    """Encode a session."""
    return session_pb2.Session(
        name=session_name(session.sandbox, session.id),
        title=session.title,
        mode=session.mode,
        model=session.model,
        turns=session.turns,
        head_sequence=session.head_sequence,
        open_turn=turn_name(session.sandbox, session.id, session.open_turn),
        create_time=timestamp(session.create_time),
        update_time=timestamp(session.update_time),
    )


def decode_opening(message: stream_pb2.Open, *, request_id: str, body_hash: bytes) -> Opening:
    """Decode how a call opens its session."""
    return Opening(
        sandbox=sandbox_id(message.sandbox),
        session=session_id(message.session) if message.session else None,
        after_sequence=message.after_sequence,
        watch_only=message.watch_only,
        cancel_on_disconnect=message.cancel_on_disconnect,
        title=message.title,
        mode=message.mode,
        model=message.model,
        request_id=RequestId(request_id),
        body_hash=body_hash,
    )


def decode_prompt(message: stream_pb2.Prompt) -> PromptInput:
    """Decode what a person sends."""
    return PromptInput(
        text=message.text,
        attachments=tuple(
            Attachment(name=one.file_name, mime_type=one.mime_type, data=one.data) for one in message.attachments
        ),
    )


def encode_prompt(prompt: PromptInput) -> stream_pb2.Prompt:
    """Encode what a person sent, for another replica."""
    return stream_pb2.Prompt(
        text=prompt.text,
        attachments=[
            stream_pb2.Attachment(file_name=one.name, mime_type=one.mime_type, data=one.data)
            for one in prompt.attachments
        ],
    )
