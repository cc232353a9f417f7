"""The service's own work in the audit: actor `sandboxd` of the role `system`, an intent before and an outcome after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

from sandboxd.model.errors import SandboxdError
from sandboxd.model.ids import ClientId, SandboxId
from sandboxd.monitor.audit_ports import OK, SYSTEM_ROLE, AuditTrail, Deed, Outcome

ACTOR: Final = "sandboxd"
INTENT_WAIT: Final = timedelta(seconds=5)


class AuditedDeeds:
    """Records in the chain of the client whose sandbox it is; the manager's port `OwnDeeds`."""

    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail

    @asynccontextmanager
    async def recorded(
        self, action: str, *, client: ClientId, sandbox: SandboxId, target: str = ""
    ) -> AsyncIterator[None]:
        """Do what is inside between an intent and its outcome. Raises AuditUnavailableError."""
        about = target or f"sandboxes/{sandbox}"
        deed = Deed(client=client, role=SYSTEM_ROLE, action=action, actor=ACTOR, target=about)
        intent = await self._trail.intend(deed, timeout=INTENT_WAIT)
        outcome = Outcome(code="INTERNAL")
        try:
            yield
            outcome = OK
        except asyncio.CancelledError:
            outcome = Outcome(code="CANCELLED")
            raise
        except SandboxdError as error:
            outcome = Outcome(code="UNKNOWN", reason=error.reason)
            raise
        finally:
            self._trail.conclude(intent, outcome)
