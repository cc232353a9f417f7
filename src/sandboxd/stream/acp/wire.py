"""The wire to the agent: composes JSON-RPC messages, counts our ids, remembers what is unanswered.

An observing wire writes nothing: it is taught what another client sent (`observe`), with that client's ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sandboxd.model.ids import SessionId
from sandboxd.stream.acp.state import Pending, RequestKind
from sandboxd.stream.outbox import Outbox
from sandboxd.stream.reading import number, obj

METHOD_NOT_FOUND = -32601


class Wire:
    """Our half of the JSON-RPC connection."""

    def __init__(self, outbox: Outbox, *, observing: bool = False) -> None:
        self._outbox = outbox
        self._observing = observing
        self._next = 0
        self._pending: dict[str, Pending] = {}

    @property
    def observing(self) -> bool:
        """True where another client writes and we only watch."""
        return self._observing

    def request(self, method: str, params: Mapping[str, Any], pending: Pending) -> None:
        """Send a request and remember it."""
        number_ = self._next
        self._next += 1
        self._pending[_key(number_)] = pending
        self._send({"jsonrpc": "2.0", "id": number_, "method": method, "params": params})

    def notify(self, method: str, params: Mapping[str, Any]) -> None:
        """Send a notification."""
        self._send({"jsonrpc": "2.0", "method": method, "params": params})

    def reply(self, rpc: Any, result: Mapping[str, Any]) -> None:
        """Answer a request of the agent."""
        self._send({"jsonrpc": "2.0", "id": rpc, "result": result})

    def refuse(self, rpc: Any, method: str) -> None:
        """Answer a request of the agent that we do not serve."""
        error = {"code": METHOD_NOT_FOUND, "message": f"Method not found: {method[:200]}"}
        self._send({"jsonrpc": "2.0", "id": rpc, "error": error})

    def observe(self, rpc: Any, pending: Pending) -> None:
        """Remember a request that another client sent."""
        self._pending[_key(rpc)] = pending

    def answered(self, rpc: Any) -> Pending | None:
        """The request that an answer belongs to; it is forgotten. None where nothing has this id."""
        return self._pending.pop(_key(rpc), None)

    def knows(self, rpc: Any) -> bool:
        """Tell whether a request with this id is unanswered."""
        return _key(rpc) in self._pending

    def awaits(self, kind: RequestKind, session: SessionId, value: str) -> bool:
        """Tell whether such a request is unanswered."""
        return any(
            (pending.kind, pending.session, pending.value) == (kind, session, value)
            for pending in self._pending.values()
        )

    def drop_all(self) -> Iterable[Pending]:
        """Forget all requests: nobody will answer them."""
        dropped = list(self._pending.values())
        self._pending.clear()
        return dropped

    def to_json(self) -> dict[str, Any]:
        """As the snapshot has it."""
        return {"next": self._next, "pending": {key: pending.to_json() for key, pending in self._pending.items()}}

    def load_json(self, value: Mapping[str, Any]) -> None:
        """From the snapshot."""
        self._next = number(value, "next")
        self._pending = {key: Pending.from_json(pending) for key, pending in obj(value, "pending").items()}

    def _send(self, message: Mapping[str, Any]) -> None:
        if not self._observing:
            line = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
            self._outbox.write(line.encode("utf-8", "replace") + b"\n")


def _key(rpc: Any) -> str:
    """Ids are integers or texts; the JSON keeps `1` and `"1"` apart."""
    return json.dumps(rpc)
