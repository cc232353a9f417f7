"""The kept texts in memory, over the same store as the journal and the sessions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from typing_extensions import override

from sandboxd.model.client import ClientPolicy, TextPolicy
from sandboxd.model.events import SessionEvent, TextState
from sandboxd.model.ids import ClientId, SessionId
from sandboxd.model.session import Session
from sandboxd.stream.ports import KeptTexts
from sandboxd.stream.texts import treat, treat_text
from tests.fakes.journal import FakeStore


@dataclass(kw_only=True)
class FakeKeptTexts(KeptTexts):
    store: FakeStore
    policies: dict[ClientId, ClientPolicy] = field(default_factory=dict)
    erased: dict[SessionId, int] = field(default_factory=dict)
    redacted: dict[SessionId, int] = field(default_factory=dict)

    @override
    async def recent(self, *, ended_within: timedelta, grace: timedelta, limit: int) -> Sequence[SessionId]:
        await self.store.weather()
        now = datetime.now(UTC)
        ended = {
            turn.session
            for turn in self.store.turns.values()
            if turn.end_time is not None and now - ended_within <= turn.end_time <= now - grace
        }
        return [one.id for one in self._living() if one.id in ended and self._unsettled(one)][:limit]

    @override
    async def every(self, *, after: SessionId | None, limit: int) -> Sequence[SessionId]:
        await self.store.weather()
        return [
            one.id
            for one in self._living()
            if one.id > (after or "")
            and self.erased.get(one.id, 0) < one.head_sequence
            and (self._policy(one).text is not TextPolicy.FULL or self._policy(one).text_lifetime is not None)
        ][:limit]

    @override
    async def settle(self, session: SessionId, *, grace: timedelta) -> int:
        await self.store.weather()
        row, now = self.store.sessions[session], datetime.now(UTC)
        policy = self._policy(row)
        if policy.text is TextPolicy.NONE:
            return self._treat(row, TextState.ERASED, before=now - grace)
        treated = 0
        if policy.text_lifetime is not None:
            treated += self._treat(row, TextState.ERASED, before=now - policy.text_lifetime)
        if policy.text is TextPolicy.REDACTED:
            treated += self._treat(row, TextState.REDACTED, before=now - grace)
        return treated

    def _treat(self, row: Session, state: TextState, *, before: datetime) -> int:
        done = self.erased.get(row.id, 0)
        if state is TextState.REDACTED:
            done = max(done, self.redacted.get(row.id, 0))
        log = self.store.log[row.id]
        part = []
        for event in log[done:]:
            if self._is_live(event, before):
                break
            part.append(event)
        if not part:
            return 0
        log[done : done + len(part)] = treat(part, state)
        for turn in {event.turn for event in part if event.turn is not None}:
            known = self.store.turns[turn]
            prompt = replace(known.prompt, text=treat_text(known.prompt.text, state))
            self.store.turns[turn] = replace(known, prompt=prompt)
        self.store.sessions[row.id] = replace(row, title=treat_text(row.title, state))
        self.store.titles_settled.add(row.id)
        (self.erased if state is TextState.ERASED else self.redacted)[row.id] = part[-1].sequence
        return len(part)

    def _is_live(self, event: SessionEvent, before: datetime) -> bool:
        if event.turn is None:
            return event.event_time > before
        end_time = self.store.turns[event.turn].end_time
        return end_time is None or end_time > before

    def _living(self) -> list[Session]:
        return sorted((one for one in self.store.sessions.values() if one.delete_time is None), key=lambda one: one.id)

    def _policy(self, session: Session) -> ClientPolicy:
        return self.policies.get(session.client, ClientPolicy())

    def _unsettled(self, session: Session) -> bool:
        erased = self.erased.get(session.id, 0)
        match self._policy(session).text:
            case TextPolicy.NONE:
                return erased < session.head_sequence
            case TextPolicy.REDACTED:
                return max(erased, self.redacted.get(session.id, 0)) < session.head_sequence
            case _:
                return False
