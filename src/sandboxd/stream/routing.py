"""Routing: brings an errand to the owner of its conversation, here or on another replica, however often that moves.

The owner is looked for anew after every attempt that led nowhere: a dead one is replaced at once, a frozen one when its
lease has run out. An attempt whose answer was lost is repeated; errands are made so that this does no harm. Patience is
bounded by the caller's budget.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.model.errors import SandboxdError, UnavailableError
from sandboxd.model.ids import SandboxId
from sandboxd.stream.custody import LEASE, Custody
from sandboxd.stream.desk import ErrandDesk
from sandboxd.stream.errands import Close, Errand
from sandboxd.stream.metrics import StreamMetrics
from sandboxd.stream.moves import MovedError, OwnedElsewhereError, PeerUnavailableError, StoppingError
from sandboxd.stream.opening import Accepted
from sandboxd.stream.ports import Holder, Peers, Replicas

log = structlog.get_logger(__name__)

PATIENCE_LEASES: Final = 2
"""A frozen owner is replaced after one lease; what must follow has the time of the other."""
ATTEMPT_PART: Final = 3
"""One attempt may take this part of a lease: a frozen owner costs no more before it is looked for again."""
MIN_ATTEMPT: Final = timedelta(seconds=1)
FIRST_WAIT_SECONDS: Final = 0.02
LAST_WAIT_SECONDS: Final = 0.5
MAX_KNOWN: Final = 10_000
"""Conversations whose holder is remembered."""


class ErrandRouter:
    """Finds owners."""

    def __init__(
        self,
        *,
        desk: ErrandDesk,
        custody: Custody,
        replica: str,
        replicas: Replicas | None = None,
        peers: Peers | None = None,
        lease: timedelta = LEASE,
        metrics: StreamMetrics | None = None,
    ) -> None:
        """Join what it routes between.

        Args:
            desk: Where errands for our own conversations are done.
            custody: Tells which those are.
            replica: Id of this process's life.
            replicas: Tells who holds the others. None: this is the only replica.
            peers: The way to them. None: this is the only replica.
            lease: How long a frozen owner keeps a conversation.
            metrics: Where forwarded errands are counted.
        """
        self._desk = desk
        self._custody = custody
        self._replica = replica
        self._replicas = replicas
        self._peers = peers
        self._metrics = metrics or StreamMetrics()
        self._patience = lease * PATIENCE_LEASES
        self._attempt = max(MIN_ATTEMPT, lease / ATTEMPT_PART)
        self._known: OrderedDict[SandboxId, Holder] = OrderedDict()

    async def do(
        self, errand: Errand, *, timeout: timedelta | None = None, unknown_since: float | None = None
    ) -> Accepted:
        """Have an errand done; answers when it is durable.

        Args:
            errand: What to do.
            timeout: The caller's budget; without one it is what taking over from a frozen owner needs.
            unknown_since: As `ErrandDesk.run` has it.

        Raises:
            StoppingError: This replica is stopping, and there is no other one.
            UnavailableError: No owner answered within the budget; what became of the errand is not known.
            SandboxdError: What the errand ended with.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + (timeout or self._patience).total_seconds()
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                return await self._try(errand, timedelta(seconds=deadline - clock()), unknown_since)
            except (OwnedElsewhereError, MovedError, PeerUnavailableError) as error:
                self._known.pop(errand.sandbox, None)
                pause = wait * random.uniform(0.5, 1.0)  # noqa: S311  no secret
                if clock() + pause >= deadline or (self._peers is None and not isinstance(error, MovedError)):
                    raise
                log.info("errand.repeated", sandbox=errand.sandbox, kind=type(errand).__name__, error=error.message)
            await asyncio.sleep(pause)
            wait = min(wait * 2, LAST_WAIT_SECONDS)

    async def _try(self, errand: Errand, left: timedelta, unknown_since: float | None) -> Accepted:
        sandbox = errand.sandbox
        holder = self._known.get(sandbox)
        if self._custody.held(sandbox) is None and holder is not None:
            return await self._ask(holder, errand, acquire=False, left=left)
        stopping = False
        try:
            return await self._desk.run(errand, acquire=True, unknown_since=unknown_since)
        except OwnedElsewhereError:
            if self._replicas is None:
                raise
        except StoppingError:
            if self._replicas is None:
                raise
            stopping = True
        holder = await self._replicas.holder(sandbox)
        if holder is not None and holder.replica != self._replica:
            accepted = await self._ask(holder, errand, acquire=False, left=left)
            self._remember(sandbox, holder)
            return accepted
        if not stopping:
            raise OwnedElsewhereError(sandbox)
        # Nobody holds it and we must not: another one may take it, and has it then when the caller comes there.
        others = await self._replicas.others(than=self._replica)
        if not others:
            raise StoppingError
        return await self._ask(random.choice(others), errand, acquire=True, left=left)  # noqa: S311  no secret

    async def _ask(self, peer: Holder, errand: Errand, *, acquire: bool, left: timedelta) -> Accepted:
        if self._peers is None:
            raise OwnedElsewhereError(errand.sandbox)
        usual = errand.timeout + MIN_ATTEMPT if isinstance(errand, Close) else self._attempt
        budget = min(usual, left)
        if budget <= timedelta():
            raise UnavailableError("The server that owns this conversation does not answer.")
        try:
            accepted = await self._asked(self._peers, peer, errand, acquire=acquire, budget=budget)
        except OwnedElsewhereError:
            self._metrics.forwarded("moved")
            raise
        except PeerUnavailableError:
            self._metrics.forwarded("unanswered")
            raise
        except SandboxdError:
            self._metrics.forwarded("refused")
            raise
        self._metrics.forwarded("done")
        return accepted

    async def _asked(self, peers: Peers, peer: Holder, errand: Errand, *, acquire: bool, budget: timedelta) -> Accepted:
        """Ask, and stop waiting for a long errand as soon as its owner has lost the conversation: it stands still."""
        asking = peers.ask(peer, errand, acquire=acquire, timeout=budget)
        if self._replicas is None or budget <= self._attempt:
            return await asking
        task = asyncio.create_task(asking, name=f"errand-{errand.sandbox}")
        try:
            while not (await asyncio.wait({task}, timeout=self._attempt.total_seconds()))[0]:
                if not await self._replicas.holds(peer.replica, errand.sandbox):
                    raise PeerUnavailableError
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _remember(self, sandbox: SandboxId, holder: Holder) -> None:
        self._known[sandbox] = holder
        self._known.move_to_end(sandbox)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
