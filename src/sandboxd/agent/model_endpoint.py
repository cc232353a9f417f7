"""The model endpoint: an HTTP/1.1 server on 127.0.0.1 of the sandbox that forwards every request to the gateway.

It forwards any path and replaces whatever credentials a request carries by the sandbox token (`gateway_target`). It
decides nothing about models or budgets: that is the gateway's.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime

from sandboxd.agent.gateway_pool import READ_BYTES
from sandboxd.agent.gateway_target import make_target
from sandboxd.agent.model_exchange import ClientGoneError, Exchange, Forwarding
from sandboxd.model.processes import ModelEndpointState

MAX_CONNECTIONS = 256

log = logging.getLogger(__name__)


class ModelEndpoint:
    """The server and its state."""

    def __init__(self) -> None:
        self._forwarding = Forwarding()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port it listens on; 0 before the start."""
        sockets = self._server.sockets if self._server is not None else ()
        return int(sockets[0].getsockname()[1]) if sockets else 0

    @property
    def state(self) -> ModelEndpointState:
        """Its state; never the token."""
        shared, target = self._forwarding, self._forwarding.target
        return ModelEndpointState(
            model_port=self.port,
            base_url=target.base_url if target is not None else "",
            has_token=target is not None,
            expire_time=target.expire_time if target is not None else None,
            open_requests=shared.open_requests,
            requests=shared.requests,
            failed_requests=shared.failed_requests,
            last_request_time=shared.last_time,
        )

    async def start(self, port: int) -> None:
        """Listen on 127.0.0.1; port 0 takes a free one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=READ_BYTES)

    async def close(self) -> None:
        """Stop listening and end every connection."""
        if self._server is not None:
            self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._forwarding.pool.close()

    def set_target(self, *, base_url: str, token: str, expire_time: datetime | None, ca_pem: bytes) -> None:
        """Forward requests that begin from now on to this gateway, with this token.

        Raises:
            InvalidRequestError: Something in it cannot be used.
        """
        self._forwarding.target = make_target(
            base_url=base_url, token=token, expire_time=expire_time, ca_pem=ca_pem, before=self._forwarding.target
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._tasks) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._tasks.add(task)
        try:
            await Exchange(self._forwarding, reader, writer).run()
        except (ClientGoneError, OSError):
            pass
        except Exception:
            log.exception("model_endpoint.failed")
        finally:
            self._tasks.discard(task)
            writer.close()
