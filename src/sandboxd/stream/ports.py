"""What the stream room needs from outside: the journal, the sessions, the sandboxes and the ledger's view of a turn.

The journal is where exactly-once lives. A conversation (the CLI of a sandbox with all its sessions) is a row with an
epoch; who holds the epoch is the owner and the only one who may append. An append is one transaction that holds the
events, the consumed output offset, the machine's snapshot, the stdin record and the request ids of the commands in it.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from sandboxd.model.events import Notice, SessionEvent, Usage
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, RequestId, SandboxId, SessionId, TurnId
from sandboxd.model.paging import Page
from sandboxd.model.sandbox import Incarnation, Sandbox
from sandboxd.model.session import Session, Turn
from sandboxd.stream.errands import Errand
from sandboxd.stream.opening import Accepted

Snapshot = Mapping[str, Any]
"""State of a dialect's machine: JSON, versioned by the machine itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """The CLI of one sandbox, as the journal knows it. One row per sandbox; it outlives incarnations."""

    sandbox: SandboxId
    epoch: int
    """Grows with every take-over. The journal and the agent refuse whoever comes with a smaller one."""
    owner: str
    """Replica that holds the epoch."""
    incarnation: IncarnationId | None = None
    """Life of the sandbox that the process belongs to; None before the first."""
    process: str = ""
    """Id of the CLI's process at the agent; empty while there is none."""
    dialect: str = ""
    """`acp` or `headless`."""
    consumed: int = 0
    """Output bytes of the process that the events so far stand for."""
    written: int = 0
    """Stdin bytes that were made durable for the process; the next record starts here."""
    snapshot: Snapshot = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StdinRecord:
    """Bytes for the process's stdin, at their absolute offset. Kept until the agent has taken them."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One mutating message of a stream, as it is remembered for idempotence."""

    client: ClientId
    request_id: RequestId
    body_hash: bytes
    """SHA-256 of the command's canonical bytes with its session."""
    session: SessionId
    turn: TurnId | None = None
    """Turn that it started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One append: everything that one step of a conversation changed. All of it, or nothing, becomes durable."""

    conversation: Conversation
    """The row after the step, with the epoch that the appender believes it holds."""
    events: Sequence[SessionEvent] = ()
    """In order; sequences continue each session's head without gaps."""
    stdin: StdinRecord | None = None
    commands: Sequence[Command] = ()
    sessions: Sequence[Session] = ()
    """Sessions that changed, after the step."""
    turns: Sequence[Turn] = ()
    """Turns that were made or changed, after the step."""


class Appended(enum.Enum):
    """What became of one entry."""

    DURABLE = "durable"
    STALE = "stale"
    """Another owner holds the conversation: nothing was written, stop."""


class Journal(Protocol):
    """Durable conversations. Every method has a deadline of the adapter's and may raise DatabaseUnavailableError."""

    async def append(self, entries: Sequence[Entry]) -> Sequence[Appended]:
        """Write entries of different conversations in one transaction; answers one outcome per entry, in order.

        The epoch in the row is compared under a lock. An entry whose epoch is stale leaves the others untouched. To
        repeat an append whose answer was lost is safe: an entry that is already there (same conversation, epoch,
        consumed and written, first event present) is answered DURABLE.

        Raises:
            DatabaseUnavailableError: Nothing is known about the outcome; append the same entries again.
        """
        ...

    async def acquire(
        self, sandbox: SandboxId, *, owner: str, lease: timedelta, force: bool = False
    ) -> Conversation | None:
        """Become owner: make the row, or raise its epoch. None while another owner lives.

        An owner is dead when its replica's advisory lock is free, or its lease has run out; the present owner itself
        always succeeds (with a new epoch). `force` takes it in any case.
        """
        ...

    async def renew(self, sandboxes: Sequence[SandboxId], *, owner: str, lease: timedelta) -> Sequence[SandboxId]:
        """Prolong leases; answers the sandboxes that are still ours."""
        ...

    async def release(self, sandbox: SandboxId, *, owner: str, epoch: int) -> None:
        """Give the conversation up, so that the next owner need not wait."""
        ...

    async def unattended(self, *, limit: int) -> Sequence[SandboxId]:
        """Conversations that need an owner: a process or an open turn, and no living owner."""
        ...

    async def pending_stdin(
        self, sandbox: SandboxId, *, incarnation: IncarnationId, process: str
    ) -> Sequence[StdinRecord]:
        """Records of this process that were not forgotten, by offset."""
        ...

    async def forget_stdin(self, sandbox: SandboxId, *, before: int) -> None:
        """Drop records that end at or before this offset: the agent has them."""
        ...

    async def find_command(self, client: ClientId, request_id: RequestId) -> Command | None:
        """The command that used this request id, or None."""
        ...

    async def events(
        self, session: SessionId, *, after: int, limit: int, max_bytes: int = 2 << 20
    ) -> Sequence[SessionEvent]:
        """Events after a sequence number, in order, at most `limit` and about `max_bytes` (at least one)."""
        ...

    async def events_of(
        self, cursors: Mapping[SessionId, int], *, limit: int, max_bytes: int
    ) -> Mapping[SessionId, Sequence[SessionEvent]]:
        """Events of several sessions, each after its sequence number and as `events` bounds them; one query."""
        ...

    async def head(self, session: SessionId) -> int:
        """Sequence number of the newest event; raises SessionNotFoundError."""
        ...


class SessionOrder(enum.Enum):
    """How sessions are listed."""

    CREATE_TIME = "create_time"
    CREATE_TIME_DESC = "create_time desc"
    UPDATE_TIME = "update_time"
    UPDATE_TIME_DESC = "update_time desc"


class Sessions(Protocol):
    """The session rows. A session of another client is not found."""

    async def create(self, session: Session, *, opened: SessionEvent, command: Command) -> tuple[Session, bool]:
        """Insert a session with the first event of its log, once per request id.

        Answers the session of that request id, and whether this call made it.

        Raises:
            RequestIdReusedError: The id was used with another body.
        """
        ...

    async def get(self, session: SessionId, *, client: ClientId, freelancer: FreelancerId | None) -> Session:
        """One session. `freelancer` None is a caller who may see all of the client's.

        Raises:
            SessionNotFoundError: None such, deleted, or somebody else's.
        """
        ...

    async def of_sandbox(self, sandbox: SandboxId) -> Sequence[Session]:
        """All living sessions of a sandbox, for their owner; the newest 1,000."""
        ...

    async def open_turns(self, sandbox: SandboxId) -> Sequence[Turn]:
        """Turns of a sandbox that are not COMPLETED or FAILED, oldest first, with their prompts' attachments."""
        ...

    async def list(
        self,
        sandbox: SandboxId,
        *,
        client: ClientId,
        freelancer: FreelancerId | None,
        order: SessionOrder,
        title_contains: str,
        page_size: int,
        page_token: str,
    ) -> Page[Session]:
        """One page of a sandbox's sessions."""
        ...

    async def delete(self, session: SessionId, *, at: datetime) -> None:
        """Mark a session deleted and remove its events and turns. Safe to repeat."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveSandbox:
    """A sandbox that is ready for use, with its present life."""

    sandbox: Sandbox
    incarnation: Incarnation


@dataclass(frozen=True, slots=True, kw_only=True)
class CliPlace:
    """Where the CLI of one sandbox finds its things, as seen from inside the sandbox."""

    node: str
    entry: str
    """The CLI's JavaScript file."""
    home: str
    workspace: str
    settings: str
    """Path for the system settings file."""
    model_endpoint: str
    """Base URL of the agent's model endpoint, `http://127.0.0.1:PORT`."""
    path: str
    """PATH of the CLI and of what it runs."""


class Sandboxes(Protocol):
    """What the stream asks of the sandbox manager."""

    async def get(self, sandbox: SandboxId) -> Sandbox:
        """The sandbox as it is, whoever owns it. Raises SandboxNotFoundError."""
        ...

    async def use(self, sandbox: SandboxId, *, timeout: timedelta) -> ActiveSandbox:
        """Make a sandbox ready: wake, start, or make a lost incarnation anew; counts as use.

        Raises:
            SandboxPausedError: Its owner paused it.
            InvalidTransitionError: It is terminated, failed, or on its way there.
            UnavailableError, DeadlineError: It could not be made ready in time.
        """
        ...

    async def present(self, sandbox: SandboxId) -> ActiveSandbox | None:
        """The sandbox with its living incarnation, as it is: nothing is woken, nothing counts as use.

        None where it has no life that an agent answers for.
        """
        ...

    async def incarnation_lost(self, sandbox: SandboxId, incarnation: IncarnationId) -> bool:
        """Find out whether that life is over: asks the backend; True makes it official (row ended)."""
        ...

    async def touch(self, sandbox: SandboxId) -> None:
        """Count a use; writes at most every few seconds."""
        ...

    async def place(self, active: ActiveSandbox) -> CliPlace:
        """Where the CLI finds its things in this sandbox."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnUsage:
    """The ledger's view of one turn."""

    calls: Sequence[Usage]
    """Settled and estimated calls, by start."""
    open_calls: int
    """Calls whose end is not there yet."""
    finish_reason: str = ""
    """Of the last call, as the API says it: `STOP`, `SAFETY`, `MAX_TOKENS` …; empty where it gave none."""
    block_reason: str = ""
    """`promptFeedback.blockReason` of the last call; empty where the prompt was not blocked."""
    notices: Sequence[Notice] = ()
    """What was said about budgets because of these calls."""


class KeptTexts(Protocol):
    """The texts that sessions, turns and events hold, as their clients' policies want them."""

    async def recent(self, *, ended_within: timedelta, grace: timedelta, limit: int) -> Sequence[SessionId]:
        """Sessions of clients that keep less than everything, whose newest turns have ended just so long ago."""
        ...

    async def every(self, *, after: SessionId | None, limit: int) -> Sequence[SessionId]:
        """Sessions of clients whose policy takes texts away, now or after a lifetime; by id, after the one given."""
        ...

    async def settle(self, session: SessionId, *, grace: timedelta) -> int:
        """Treat what is due of a session's texts as its client's policy says; answers how many events were treated.

        Due is what lies outside turns or in turns that have ended, `grace` ago where the policy keeps less than
        everything, its lifetime ago where it has one. A part at a time: call again while something is answered. Nothing
        is done, and 0 answered, while somebody else treats the session.
        """
        ...


class TurnLedger(Protocol):
    """The ledger as the stream reads it; the gateway writes it."""

    async def turn_usage(self, turn: TurnId) -> TurnUsage:
        """All calls of a turn so far."""
        ...


class TurnQuotas(Protocol):
    """How many turns a client and a freelancer may have at the same time."""

    def place(self, session: Session, request_id: RequestId) -> AbstractAsyncContextManager[None]:
        """Hold a place for a turn that a prompt is about to begin, until the turn is durable or was refused.

        Raises:
            QuotaExceededError: As many run as may.
        """
        ...


class Wakeups(Protocol):
    """Coalesced hints between processes. A hint may be lost; whoever waits also looks by itself now and then."""

    def listen(self, topic: str) -> AsyncIterator[str]:
        """Payloads on a topic (`usage`, `events`, `watchers`, `conversations` …) from now on; coalesced."""
        ...

    async def notify(self, topic: str, payload: str) -> None:
        """Send a hint."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The replica that holds a conversation."""

    replica: str
    address: str
    """Where other replicas reach it, `host:port`."""


class Replicas(Protocol):
    """Who else serves on this database. Every method may raise DatabaseUnavailableError."""

    async def holder(self, sandbox: SandboxId) -> Holder | None:
        """The living replica that holds a conversation; None where there is none, or where it has said no address."""
        ...

    async def others(self, *, than: str) -> Sequence[Holder]:
        """The other living replicas with an address."""
        ...

    async def holds(self, replica: str, sandbox: SandboxId) -> bool:
        """Tell whether a replica holds a conversation, and its lease has not run out."""
        ...


class Peers(Protocol):
    """The way to other replicas."""

    async def ask(self, peer: Holder, errand: Errand, *, acquire: bool, timeout: timedelta) -> Accepted:
        """Let another replica do an errand in a conversation that it holds, or with `acquire` may take.

        Raises:
            OwnedElsewhereError: It does not hold the conversation.
            PeerUnavailableError: It does not answer, or not in time; what became of the errand is not known.
            SandboxdError: What the errand itself ended with, over there.
        """
        ...
