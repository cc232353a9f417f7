"""sandboxd's client for programs in Python: `sandboxctl` and `sandboxd demo` are built on it.

Calls are repeated with the same request id while the service is away; lists are read page by page behind an async
iterator; a conversation is a `SessionStream`, which reconnects by itself. All failures are `ApiError`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from sandboxd.ctl.accounting import AccountingClient
from sandboxd.ctl.administration import AdminClient
from sandboxd.ctl.audit import AuditClient
from sandboxd.ctl.backoff import RECONNECT, UNARY, RetryPolicy
from sandboxd.ctl.backups import BackupClient
from sandboxd.ctl.connection import WORK_SECONDS, Connection, Target, new_request_id
from sandboxd.ctl.errors import ApiError, Violation
from sandboxd.ctl.images import ImageClient
from sandboxd.ctl.packages import PackageClient
from sandboxd.ctl.pools import PoolClient
from sandboxd.ctl.session_stream import Link, SessionStream, attachment
from sandboxd.ctl.target import TlsOptions
from sandboxd.ctl.usage_watching import watch_usage
from sandboxd.ctl.watching import watch
from sandboxd.v1 import (
    backup_pb2,
    sandbox_pb2,
    sandbox_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    stream_pb2,
    usage_pb2,
    usage_pb2_grpc,
)

__all__ = ["ApiError", "Client", "Link", "SessionStream", "Target", "Violation", "attachment", "connect"]

PAGE_SIZE = 200


class Client:
    """The services of one sandboxd, as one caller."""

    def __init__(self, connection: Connection, *, reconnect: RetryPolicy = RECONNECT) -> None:
        self.connection = connection
        """The channel, for calls that this class has no method for."""
        self.accounting = AccountingClient(connection)
        """Budgets and prices."""
        self.admin = AdminClient(connection)
        self.audit = AuditClient(connection)
        self.backups = BackupClient(connection)
        self.pools = PoolClient(connection)
        self.images = ImageClient(connection)
        """Commits and what became of them."""
        self.packages = PackageClient(connection)
        self._reconnect = reconnect
        self._sandboxes = sandbox_pb2_grpc.SandboxServiceStub(connection.channel)
        self._sessions = session_pb2_grpc.SessionServiceStub(connection.channel)
        self._usage = usage_pb2_grpc.UsageServiceStub(connection.channel)

    async def create(
        self,
        *,
        display_name: str = "",
        freelancer: str = "",
        labels: Mapping[str, str] | None = None,
        tier: str = "",
        model: str = "",
        approval_mode: str = "",
        from_backup: str = "",
        workspace_only: bool = False,
        request_id: str = "",
        timeout: float = WORK_SECONDS,
    ) -> sandbox_pb2.Sandbox:
        """Create a sandbox, empty or from a backup, and return it when it is ACTIVE."""
        wanted = sandbox_pb2.Sandbox(
            display_name=display_name,
            freelancer=freelancer,
            labels=dict(labels or {}),
            tier=sandbox_pb2.Tier.Value(f"TIER_{tier.upper() or 'UNSPECIFIED'}"),
            model=model,
            approval_mode=approval_mode,
        )
        request = sandbox_pb2.CreateRequest(
            request_id=request_id or new_request_id(),
            sandbox=wanted,
            from_backup=from_backup,
            workspace_only=workspace_only,
        )
        return (await self.connection.call(self._sandboxes.Create, request, timeout=timeout)).sandbox

    async def get(self, name: str) -> sandbox_pb2.Sandbox:
        """Return one sandbox by its resource name."""
        return (await self.connection.call(self._sandboxes.Get, sandbox_pb2.GetRequest(name=name))).sandbox

    async def sandboxes(
        self,
        *,
        states: Iterable[str] = (),
        freelancer: str = "",
        labels: Mapping[str, str] | None = None,
        order_by: str = "",
        page_size: int = PAGE_SIZE,
    ) -> AsyncIterator[sandbox_pb2.Sandbox]:
        """Yield the caller's sandboxes; without states all but terminated ones."""
        wanted = sandbox_filter(states=states, freelancer=freelancer, labels=labels)
        request = sandbox_pb2.ListRequest(filter=wanted, order_by=order_by, page_size=page_size)
        while True:
            page = await self.connection.call(self._sandboxes.List, request)
            for sandbox in page.sandboxes:
                yield sandbox
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def watch(
        self, *, states: Iterable[str] = (), freelancer: str = "", labels: Mapping[str, str] | None = None
    ) -> AsyncIterator[sandbox_pb2.WatchResponse]:
        """Yield the present sandboxes, then every change; survives a restart of the service."""
        wanted = sandbox_filter(states=states, freelancer=freelancer, labels=labels)
        return watch(self.connection, sandbox_pb2.WatchRequest(filter=wanted), patience=self._reconnect)

    async def update(
        self, sandbox: sandbox_pb2.Sandbox, paths: Iterable[str], *, timeout: float = WORK_SECONDS
    ) -> sandbox_pb2.Sandbox:
        """Write the named fields of a sandbox, unless somebody has changed it since it was read."""
        request = sandbox_pb2.UpdateRequest(
            request_id=new_request_id(), sandbox=sandbox, update_mask=FieldMask(paths=paths)
        )
        return (await self.connection.call(self._sandboxes.Update, request, timeout=timeout)).sandbox

    async def pause(self, name: str, *, force: bool = False, timeout: float = WORK_SECONDS) -> sandbox_pb2.Sandbox:
        """Pause a sandbox and return it when it is PAUSED."""
        request = sandbox_pb2.PauseRequest(request_id=new_request_id(), name=name, force=force)
        return (await self.connection.call(self._sandboxes.Pause, request, timeout=timeout)).sandbox

    async def resume(self, name: str, *, timeout: float = WORK_SECONDS) -> sandbox_pb2.Sandbox:
        """Resume a paused or failed sandbox and return it when it is ACTIVE."""
        request = sandbox_pb2.ResumeRequest(request_id=new_request_id(), name=name)
        return (await self.connection.call(self._sandboxes.Resume, request, timeout=timeout)).sandbox

    async def terminate(
        self, name: str, *, force: bool = False, timeout: float = WORK_SECONDS
    ) -> sandbox_pb2.TerminateResponse:
        """End a sandbox; the answer says where its files were kept."""
        request = sandbox_pb2.TerminateRequest(request_id=new_request_id(), name=name, force=force)
        return await self.connection.call(self._sandboxes.Terminate, request, timeout=timeout)

    async def restore(
        self,
        name: str,
        *,
        backup: str = "",
        paths: Sequence[tuple[str, bytes]] = (),
        workspace_only: bool = False,
        timeout: float = WORK_SECONDS,
    ) -> sandbox_pb2.Sandbox:
        """Bring a sandbox back to what a backup has, or some paths (`home` or `workspace`, path); ACTIVE at the end."""
        request = sandbox_pb2.RestoreRequest(
            request_id=new_request_id(), name=name, backup=backup, workspace_only=workspace_only
        )
        for volume, path in paths:
            kind = backup_pb2.BackupVolumeKind.Value(f"BACKUP_VOLUME_KIND_{volume.upper()}")
            request.paths.add(kind=kind, path=path)
        return (await self.connection.call(self._sandboxes.Restore, request, timeout=timeout)).sandbox

    async def sessions(
        self, sandbox: str, *, order_by: str = "", page_size: int = PAGE_SIZE
    ) -> AsyncIterator[session_pb2.Session]:
        """Yield the sessions of a sandbox, newest first unless asked otherwise."""
        request = session_pb2.ListSessionsRequest(sandbox=sandbox, order_by=order_by, page_size=page_size)
        while True:
            page = await self.connection.call(self._sessions.ListSessions, request)
            for session in page.sessions:
                yield session
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def session(self, name: str) -> session_pb2.Session:
        """Return one session by its resource name."""
        return (await self.connection.call(self._sessions.GetSession, session_pb2.GetSessionRequest(name=name))).session

    async def history(
        self, session: str, *, after_sequence: int = 0, page_size: int = PAGE_SIZE
    ) -> AsyncIterator[stream_pb2.StreamResponse]:
        """Yield the events of a session's log that exist now."""
        request = session_pb2.GetHistoryRequest(name=session, after_sequence=after_sequence, page_size=page_size)
        while True:
            page = await self.connection.call(self._sessions.GetHistory, request)
            for event in page.events:
                yield event
            if not page.next_after_sequence:
                return
            request.after_sequence = page.next_after_sequence

    async def delete_session(self, session: str) -> None:
        """Delete a session with its log."""
        request = session_pb2.DeleteSessionRequest(request_id=new_request_id(), name=session)
        await self.connection.call(self._sessions.DeleteSession, request)

    async def usage_events(
        self, wanted: usage_pb2.UsageFilter | None = None, *, page_size: int = PAGE_SIZE
    ) -> AsyncIterator[usage_pb2.UsageEvent]:
        """Yield rows of the ledger, oldest first; `usage_filter` makes the filter."""
        request = usage_pb2.ListUsageEventsRequest(filter=wanted, page_size=page_size)
        while True:
            page = await self.connection.call(self._usage.ListUsageEvents, request)
            for event in page.events:
                yield event
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def usage_summary(
        self, wanted: usage_pb2.UsageFilter | None = None, *, by: Sequence[str] = ()
    ) -> usage_pb2.SummarizeUsageResponse:
        """Add the ledger up, by up to three of client, freelancer, sandbox, session, model and day."""
        dimensions = [usage_pb2.UsageDimension.Value(f"USAGE_DIMENSION_{each.upper()}") for each in by]
        request = usage_pb2.SummarizeUsageRequest(filter=wanted, group_by=dimensions)
        return await self.connection.call(self._usage.SummarizeUsage, request)

    def watch_usage(
        self, wanted: usage_pb2.UsageFilter | None = None, *, cursor: str = ""
    ) -> AsyncIterator[usage_pb2.WatchUsageResponse]:
        """Yield totals, then every call as it is settled; survives a restart of the service."""
        return watch_usage(self.connection, wanted, cursor=cursor, patience=self._reconnect)

    async def resources(self, request: usage_pb2.SummarizeResourcesRequest) -> usage_pb2.SummarizeResourcesResponse:
        """Add up for how long sandboxes ran, or how much storage they kept."""
        return await self.connection.call(self._usage.SummarizeResources, request)

    def stream(
        self,
        sandbox: str,
        *,
        session: str = "",
        after_sequence: int = 0,
        watch_only: bool = False,
        cancel_on_disconnect: bool = False,
        title: str = "",
        mode: str = "",
        model: str = "",
        on_link: Callable[[Link], None] | None = None,
    ) -> SessionStream:
        """Open a conversation; use it as `async with`, send commands, iterate over it for the events.

        Args:
            sandbox: Resource name.
            session: Resource name of the session to continue; empty makes a new one.
            after_sequence: Events after this one; 0 is the whole log, -1 only what comes from now on.
            watch_only: Send no commands, and wake nothing.
            cancel_on_disconnect: End the open turn when this client vanishes.
            title: Of a new session.
            mode: Approval mode of a new session.
            model: Model of a new session.
            on_link: Told when the connection is lost, tried again and back.
        """
        opening = stream_pb2.Open(
            sandbox=sandbox,
            session=session,
            after_sequence=after_sequence,
            watch_only=watch_only,
            cancel_on_disconnect=cancel_on_disconnect,
            title=title,
            mode=mode,
            model=model,
        )
        retry, reconnect = self.connection.retry, self._reconnect
        return SessionStream(self.connection, opening, retry=retry, reconnect=reconnect, on_link=on_link)


@asynccontextmanager
async def connect(
    address: str,
    *,
    token: str | Callable[[], str] = "",
    tls: TlsOptions | None = None,
    for_client: str = "",
    retry: RetryPolicy = UNARY,
    reconnect: RetryPolicy = RECONNECT,
) -> AsyncIterator[Client]:
    """Connect to a service; nothing is sent before the first call.

    Args:
        address: See `Target.address`.
        token: The bearer token, or what to ask for it before each call.
        tls: Whom to trust and what to show; each file asks for TLS.
        for_client: The client that the platform acts for, where its token or certificate belongs to none.
        retry: Patience of calls.
        reconnect: Patience of conversations and watches that were open.
    """
    source = token if callable(token) else lambda: token
    connection = Connection(
        Target(address=address, token=source, tls=tls or TlsOptions(), for_client=for_client), retry=retry
    )
    try:
        yield Client(connection, reconnect=reconnect)
    finally:
        await connection.close()


def sandbox_filter(
    *, states: Iterable[str] = (), freelancer: str = "", labels: Mapping[str, str] | None = None
) -> sandbox_pb2.SandboxFilter:
    """Make a filter; states by their names, in any case."""
    values = [sandbox_pb2.SandboxState.Value(f"SANDBOX_STATE_{state.upper()}") for state in states]
    return sandbox_pb2.SandboxFilter(states=values, freelancer=freelancer, labels=dict(labels or {}))


def usage_filter(
    *,
    freelancer: str = "",
    sandbox: str = "",
    session: str = "",
    model: str = "",
    since: datetime | None = None,
    until: datetime | None = None,
) -> usage_pb2.UsageFilter:
    """Make a filter of the ledger; moments are aware."""
    wanted = usage_pb2.UsageFilter(freelancer=freelancer, sandbox=sandbox, session=session, model=model)
    for moment, field in ((since, wanted.start_time), (until, wanted.end_time)):
        if moment is not None:
            stamp = Timestamp()
            stamp.FromDatetime(moment)
            field.CopyFrom(stamp)
    return wanted
