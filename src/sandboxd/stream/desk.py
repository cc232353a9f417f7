"""The desk: does errands in conversations that this replica owns, for callers of this replica and of others."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final, assert_never

import structlog

from sandboxd.model.errors import DeadlineError, RequestIdReusedError, TurnInProgressError
from sandboxd.model.events import ModeChanged, ModelChanged
from sandboxd.model.ids import TurnId
from sandboxd.stream.conversation import LiveConversation
from sandboxd.stream.custody import Custody
from sandboxd.stream.errands import (
    AnswerPermission,
    CancelTurn,
    Close,
    Errand,
    ForgetSession,
    Order,
    SetMode,
    SetModel,
    StartTurn,
    Vanished,
    Wish,
)
from sandboxd.stream.moves import OwnedElsewhereError
from sandboxd.stream.opening import Accepted
from sandboxd.stream.owner import ConversationOwner, Services
from sandboxd.stream.ports import Command

log = structlog.get_logger(__name__)

CLOSE_GRACE: Final = timedelta(seconds=5)
"""What a CLI has after TERM, at most."""
_DONE: Final = Accepted(repeated=False)


class ErrandDesk:
    """Does errands as the owner."""

    def __init__(self, services: Services, custody: Custody) -> None:
        self._services = services
        self._custody = custody

    async def run(self, errand: Errand, *, acquire: bool, unknown_since: float | None = None) -> Accepted:
        """Do an errand once its conversation is ours; answers when it is durable.

        Args:
            errand: What to do.
            acquire: Become the owner where nobody is. Without it only a conversation that is held already is touched.
            unknown_since: When, by the event loop's clock, the journal was last asked for the request id and did not
                have it. Saves asking again where the conversation was ours by then.

        Raises:
            OwnedElsewhereError, StoppingError: It is not ours.
            MovedError: It was, and is not any more.
            SandboxdError: What the errand ends with.
        """
        owner = self._custody.held(errand.sandbox)
        if owner is None and not acquire:
            raise OwnedElsewhereError(errand.sandbox)
        if owner is None and isinstance(errand, Close | Vanished):
            owner = await self._custody.owner(errand.sandbox, only_if_used=True)
            if owner is None:
                return _DONE
        elif owner is None:
            owner = await self._custody.owner(errand.sandbox)
        match errand:
            case Order():
                return await self._order(owner, errand, unknown_since)
            case Wish():
                await self._know(owner, errand)
                await owner.act(lambda: owner.conversation.want(errand.session))
            case Vanished():
                await owner.act(lambda: owner.conversation.cancel(errand.session, reason="CLIENT_GONE"))
            case Close():
                await self._close(owner, errand)
            case _:
                assert_never(errand)
        return _DONE

    async def _order(self, owner: ConversationOwner, order: Order, unknown_since: float | None) -> Accepted:
        # An owner before us may have made the command durable after the asker looked. It cannot any more.
        if unknown_since is None or owner.since > unknown_since:
            known = await self._services.journal.find_command(order.caller.client, order.request_id)
            if known is not None:
                return repeated(known, order)
        await self._know(owner, order)

        def step() -> Accepted:
            conversation = owner.conversation
            seen = conversation.seen(order.request_id)
            if seen is not None:
                return repeated(seen, order)
            turn = _do(conversation, order)
            conversation.remember(
                Command(
                    client=order.caller.client,
                    request_id=order.request_id,
                    body_hash=order.body_hash,
                    session=order.session,
                    turn=turn,
                )
            )
            return Accepted(repeated=False, turn=turn)

        return await owner.act(step)

    async def _know(self, owner: ConversationOwner, errand: Order | Wish) -> None:
        if errand.session in owner.conversation.book.sessions:
            return
        caller = errand.caller
        fresh = await self._services.sessions.get(errand.session, client=caller.client, freelancer=caller.freelancer)
        await owner.act(lambda: owner.conversation.book.know(fresh))

    async def _close(self, owner: ConversationOwner, errand: Close) -> None:
        log.info("conversation.closing", sandbox=errand.sandbox, reason=errand.reason)
        try:
            async with asyncio.timeout(errand.timeout.total_seconds()):
                await owner.close(grace=min(errand.timeout / 2, CLOSE_GRACE), only_idle=errand.only_idle)
        except TimeoutError as error:
            raise DeadlineError("The CLI did not end in time.", sandbox=errand.sandbox) from error
        if not owner.conversation.busy:  # a prompt may have come while an idle CLI ended: it is ours to start the next
            await self._custody.give_up(errand.sandbox)


def repeated(known: Command, order: Order) -> Accepted:
    """Answer a command that was taken before.

    Raises:
        RequestIdReusedError: It was another one, with the same request id.
    """
    if known.body_hash != order.body_hash:
        raise RequestIdReusedError(known.request_id)
    return Accepted(repeated=True, turn=known.turn)


def _do(conversation: LiveConversation, order: Order) -> TurnId | None:
    book, session, request_id, deed = conversation.book, order.session, order.request_id, order.deed
    match deed:
        case StartTurn():
            turn = book.start_turn(
                book.session(session).id, request_id=request_id, prompt=deed.prompt, traceparent=order.traceparent
            )
            conversation.prompt(turn)
            return turn.id
        case AnswerPermission():
            conversation.answer(session, permission=deed.permission, option=deed.option, request_id=request_id)
        case CancelTurn():
            conversation.cancel(session, request_id=request_id)
        case SetMode():
            if not conversation.set_mode(session, deed.mode, request_id=request_id):
                book.set_preferences(session, mode=deed.mode)
                book.emit(session, ModeChanged(mode=deed.mode, request_id=request_id))
        case SetModel():
            if not conversation.set_model(session, deed.model, request_id=request_id):
                book.set_preferences(session, model=deed.model)
                book.emit(session, ModelChanged(model=deed.model, request_id=request_id))
        case ForgetSession():
            open_turn = book.turn_of(session)
            if open_turn is not None:
                raise TurnInProgressError(session, turn=open_turn.id)
            conversation.forget(session)
        case _:
            assert_never(deed)
    return None
