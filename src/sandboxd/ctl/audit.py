"""The calls of the audit, as part of the client (`client.py`)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc

from sandboxd.ctl.connection import Connection
from sandboxd.ctl.errors import from_rpc_error
from sandboxd.v1 import audit_pb2, audit_pb2_grpc

PAGE_SIZE = 200


class AuditClient:
    """The audit of one sandboxd, as one caller. `chain` is `clients/{client}` or `system`; empty is one's own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._audit = audit_pb2_grpc.AuditServiceStub(connection.channel)

    async def entries(
        self, where: audit_pb2.AuditFilter | None = None, *, chain: str = "", newest_first: bool = False
    ) -> AsyncIterator[audit_pb2.AuditEntry]:
        """Yield entries in their order, or the newest first."""
        order = "sequence desc" if newest_first else "sequence"
        request = audit_pb2.ListAuditEntriesRequest(chain=chain, filter=where, order_by=order, page_size=PAGE_SIZE)
        while True:
            page = await self._connection.call(self._audit.ListAuditEntries, request)
            for entry in page.entries:
                yield entry
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def verify(self, *, chain: str = "", first: int = 0) -> AsyncIterator[audit_pb2.VerifyAuditResponse]:
        """Yield what the service says while it checks a chain; the verdict is the last.

        Raises:
            ApiError: The service refused, or went away.
        """
        request = audit_pb2.VerifyAuditRequest(chain=chain, first_sequence=first)
        call = self._audit.VerifyAudit(request, metadata=self._connection.metadata())
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as failure:
            raise from_rpc_error(failure) from failure
        finally:
            call.cancel()

    async def export(
        self, *, chain: str = "", first: int = 0, without_texts: bool = False
    ) -> AsyncIterator[audit_pb2.ExportAuditResponse]:
        """Yield the records of an export; the seal is the last.

        Raises:
            ApiError: The service refused, or went away.
        """
        request = audit_pb2.ExportAuditRequest(chain=chain, first_sequence=first, without_texts=without_texts)
        call = self._audit.ExportAudit(request, metadata=self._connection.metadata())
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as failure:
            raise from_rpc_error(failure) from failure
        finally:
            call.cancel()
