"""Cares for kept texts: applies the clients' policies to what was said in turns that have ended.

While a turn is open its text is in the journal whatever the policy says, because a client that reconnects must get it.
When it has ended, and `GRACE` later, what the policy does not want is rewritten: redacted or erased. Every replica
cares; the store lets one at a time treat a session.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.model.errors import UnavailableError
from sandboxd.model.ids import SessionId
from sandboxd.stream.feed import EventFeed
from sandboxd.stream.ports import KeptTexts, Wakeups

log = structlog.get_logger(__name__)

TEXTS: Final = "texts"
"""Topic: a session whose texts were treated."""
GRACE: Final = timedelta(minutes=1)
"""How long after its turn's end a text is still there in full: a client that reconnects gets the answer."""
CARE_SECONDS: Final = 20.0
"""How often turns that ended lately are looked at."""
RECENT: Final = timedelta(minutes=15)
"""How far back that look goes; what is older is for the full round."""
ROUND_SECONDS: Final = 1800.0
"""How often all sessions of clients with such a policy are looked at: lifetimes, changed policies, missed turns."""
BATCH: Final = 200


class TextCare:
    """Applies text policies, until cancelled."""

    def __init__(
        self,
        *,
        texts: KeptTexts,
        feed: EventFeed,
        wakeups: Wakeups,
        grace: timedelta = GRACE,
        every: float = CARE_SECONDS,
    ) -> None:
        self._texts = texts
        self._feed = feed
        self._wakeups = wakeups
        self._grace = grace
        self._every = every

    async def run(self) -> None:
        """Care, and hear what the other replicas have treated."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._care(), name="texts-care")
            tasks.create_task(self._hear(), name="texts-hear")

    async def _hear(self) -> None:
        async for session in self._wakeups.listen(TEXTS):
            self._feed.forget(SessionId(session))

    async def _care(self) -> None:
        """Look at what ended lately every few seconds, and at everything now and then."""
        loop = asyncio.get_running_loop()
        next_round = loop.time()
        while True:
            try:
                if loop.time() >= next_round:
                    await self.care_for_all()
                    next_round = loop.time() + ROUND_SECONDS
                else:
                    await self.care_for_recent()
            except UnavailableError as error:
                log.warning("texts.interrupted", error=error.message)
            await asyncio.sleep(self._every)

    async def care_for_recent(self) -> int:
        """Treat the texts of turns that ended lately; answers how many events were treated."""
        ended_within = RECENT + self._grace
        found = await self._texts.recent(ended_within=ended_within, grace=self._grace, limit=BATCH)
        return sum([await self._settle(session) for session in found])

    async def care_for_all(self) -> int:
        """Treat everything that is due; answers how many events were treated."""
        treated, after = 0, None
        while found := await self._texts.every(after=after, limit=BATCH):
            for session in found:
                treated += await self._settle(session)
            after = found[-1]
        return treated

    async def _settle(self, session: SessionId) -> int:
        treated = 0
        try:
            while part := await self._texts.settle(session, grace=self._grace):
                treated += part
        except UnavailableError:
            raise
        except (
            Exception
        ):  # a loop: one session that cannot be treated must not keep the others, or the service, from it
            log.exception("texts.not_settled", session=session)
        if treated:
            # What the feeds remember of the session is what it said before.
            self._feed.forget(session)
            await self._wakeups.notify(TEXTS, session)
            log.info("texts.settled", session=session, events=treated)
        return treated
