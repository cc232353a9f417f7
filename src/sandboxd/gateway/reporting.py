"""Says how this gateway is, with every beat, and does what an operator asked for meanwhile."""

from __future__ import annotations

import asyncio
from datetime import datetime

import structlog

from sandboxd import __version__
from sandboxd.gateway.breaker import CircuitBreaker
from sandboxd.gateway.meter import Meter
from sandboxd.model.errors import SandboxdError
from sandboxd.monitor.ports import GatewayReport, GatewayReports

_log = structlog.get_logger()


class Reporter:
    """One for each gateway. A report that fails is not repeated: the next one says the same."""

    def __init__(
        self, *, meter: Meter, breaker: CircuitBreaker, reports: GatewayReports, every: float, timeout: float
    ) -> None:
        """Make it; times are in seconds."""
        self._meter = meter
        self._breaker = breaker
        self._reports = reports
        self._every = every
        self._timeout = timeout
        self._asked: datetime | None = None

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            await asyncio.sleep(self._every)
            try:
                async with asyncio.timeout(self._timeout):
                    asked = await self._report()
            except (SandboxdError, TimeoutError) as error:
                _log.info("gateway.report_unanswered", error=type(error).__name__)
                continue
            except Exception as error:  # noqa: BLE001 - a loop; no traceback, as everywhere in this room
                _log.error("gateway.report_failed", error=type(error).__name__)
                continue
            if asked is not None and asked != self._asked:
                self._asked = asked
                self._breaker.reset()
                _log.info("gateway.circuit_reset")

    async def _report(self) -> datetime | None:
        return await self._reports.report(
            self._meter.gateway,
            GatewayReport(
                version=__version__,
                circuit=self._breaker.state.value,
                open_calls=self._meter.open_calls,
                spooled=self._meter.spooled,
            ),
        )
