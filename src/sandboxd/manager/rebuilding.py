"""Makes new sandboxes from backup sets: of their freelancer whole, of another one's their workspace alone.

The row is RESTORING from its beginning, with what comes into it; the work is that of every restore
(`restoring.py`), so whoever comes after a crash goes on with it. Keys, certificates, tokens and sessions are those of
the new sandbox: none of them is in a set.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from sandboxd.manager.admission import Admission
from sandboxd.manager.creation import NewSandbox
from sandboxd.manager.intents import Intents
from sandboxd.manager.operations import Operations
from sandboxd.manager.ports import RequestRecord, UnitOfWork
from sandboxd.manager.requests import Requests
from sandboxd.manager.restore_rules import require_for, usable_set
from sandboxd.manager.restoring import Restores
from sandboxd.model.backup import BackupSet, BackupSetId, RestoreId, Restoring, Volume
from sandboxd.model.caller import Request
from sandboxd.model.errors import FieldViolation, InternalError, InvalidRequestError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import SandboxId
from sandboxd.model.sandbox import ApprovalMode, Sandbox, SandboxState, Tier
from sandboxd.model.sources import Clock, IdSource


class Rebuilding:
    """The use case of Create from a backup."""

    def __init__(
        self,
        *,
        intents: Intents,
        operations: Operations,
        requests: Requests,
        restores: Restores,
        admission: Admission,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._intents = intents
        self._operations = operations
        self._requests = requests
        self._restores = restores
        self._admission = admission
        self._clock = clock
        self._ids = ids

    async def create(self, request: Request, wish: NewSandbox, *, timeout: timedelta) -> Sandbox:
        """Make a sandbox that begins with what a set has, and answer when its agent answers.

        What the wish leaves open is as the set says: freelancer, tier, model and approval mode.

        Raises:
            BackupsOffError: Nothing is backed up in this installation.
            BackupSetNotFoundError: The caller has no such backup.
            BackupSetStatusError: It is not complete.
            BackupHomeError: It is another freelancer's than the sandbox would be, and more than its workspace is
                wanted.
            ForbiddenError: The caller is a freelancer and names another, or sets when the sandbox rests.
            InvalidRequestError: No backup is named, or it shall be kept awake for too long.
            QuotaExceededError: A quota of the client or the freelancer does not hold it.
            RequestIdReusedError: The request id was used with another body.
            DeadlineError: It is not done within `timeout`; the work goes on.
            SandboxdError: What could not be restored; the sandbox is TERMINATED, or FAILED where it does not start.
        """
        if wish.from_backup is None:
            raise InvalidRequestError(
                "The workspace alone of what? Say from which backup the sandbox is to be made.",
                violations=[FieldViolation(field="from_backup", description="names a backup")],
            )
        self._restores.require_room()
        source = wish.from_backup
        name = SandboxId(self._ids.new("sbx"))
        claim = self._requests.record(request, "Create", name, kept_for=None)
        began = self._clock.monotonic()

        async def plan(work: UnitOfWork) -> tuple[Sandbox, None]:
            return await self._planned(work, request, wish, source, name), None

        failpoint("restore.before_commit")
        made = await self._intents.create(plan, claim=claim)
        left = max(timedelta(0), timeout - timedelta(seconds=self._clock.monotonic() - began))
        match made:
            case RequestRecord():
                return (await self._requests.repeat(made, claim, timeout=left)).sandbox
            case Sandbox() | None:
                raise InternalError(f"Sandbox {name} was to be restored, and is not on its way.")
            case _:
                return (await self._operations.finish(made, self._restores.finish, timeout=left)).sandbox

    async def _planned(
        self,
        work: UnitOfWork,
        request: Request,
        wish: NewSandbox,
        source: tuple[SandboxId, BackupSetId],
        name: SandboxId,
    ) -> Sandbox:
        now = self._clock.now()
        chosen = await usable_set(work, request.caller, source)
        sandbox = _completed(wish, chosen).sandbox(request, name, at=now)
        volumes = (Volume.WORKSPACE,) if wish.workspace_only else tuple(Volume)
        restoring = Restoring(
            id=RestoreId(self._ids.new("rst")),
            backup=chosen.id,
            volumes=volumes,
            came_from=SandboxState.TERMINATED.value,
        )
        require_for(sandbox, chosen, restoring)
        await self._admission.admit(work, sandbox.client, sandbox.freelancer, tier=sandbox.tier, at=now)
        return replace(sandbox, state=SandboxState.RESTORING, state_time=now, restoring=restoring)


def _completed(wish: NewSandbox, chosen: BackupSet) -> NewSandbox:
    """Fill in what the wish leaves open, from what the set says; words that this version does not know are let be."""
    spec = chosen.spec
    tiers, modes = {one.value: one for one in Tier}, {one.value: one for one in ApprovalMode}
    return replace(
        wish,
        freelancer=wish.freelancer or chosen.freelancer,
        tier=wish.tier or tiers.get(spec.get("tier", "")),
        model=wish.model or spec.get("model", ""),
        approval_mode=wish.approval_mode or modes.get(spec.get("approval_mode", "")),
    )
