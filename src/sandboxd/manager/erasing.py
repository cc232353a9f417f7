"""Carries erasures out: every few seconds, and at once when one was asked for, whichever replica comes first.

What is intended is in the database before anything is touched, and each step may be taken again: a service that was
killed in the middle goes on where it was, and counts nothing twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.account_cache import AccountCache
from sandboxd.manager.backend_port import Backend
from sandboxd.manager.changes import Changes
from sandboxd.manager.erasure_ports import ProofSigner
from sandboxd.manager.leased_tasks import Lease, LeasedTasks
from sandboxd.manager.own_deeds import UNRECORDED, OwnDeeds
from sandboxd.manager.patience import Patience
from sandboxd.manager.ports import (
    MAX_PAGE_SIZE,
    RequestOutcome,
    SandboxFilter,
    SandboxOrder,
    UnitsOfWork,
)
from sandboxd.manager.resting import Resting
from sandboxd.model.caller import Caller, Request, Role
from sandboxd.model.client import AccountState
from sandboxd.model.erasure import Erasure, PendingFiles, write_document
from sandboxd.model.errors import InvalidTransitionError, SandboxdError, StaleOwnerError
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import ClientId, FreelancerId, RequestId, SandboxId
from sandboxd.model.sandbox import SandboxState
from sandboxd.model.sources import Clock

EVERY: Final = timedelta(seconds=3)
AT_ONCE: Final = 20
"""Erasures that are read in one pass."""
BATCH: Final = 2000
"""Rows that one transaction erases."""
STEP_TIMEOUT: Final = timedelta(seconds=120)
"""For the termination of one sandbox, and for the removal of its files."""
FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 60.0
"""Seconds between attempts at an erasure that keeps failing; doubled each time from one."""
SYSTEM: Final = "sandboxd"
"""Subject of what the service does by itself."""

log = structlog.get_logger(__name__)

RemoveKeys = Callable[[ClientId], Awaitable[int]]
"""Removes the keys of a client from where they are kept; answers how many there were."""
RemoveImages = Callable[[ClientId, FreelancerId], Awaitable[int]]
"""Removes what a freelancer's root file systems were kept as; answers how many images there were."""
RemoveProject = Callable[[ClientId], Awaitable[None]]
"""Removes what the registry has of a client beside images."""
RemoveBackups = Callable[[ClientId, FreelancerId | None], Awaitable[int]]
"""Destroys the backups of a person or a client; answers how many there were."""
RemoveTexts = Callable[[ClientId, FreelancerId | None], Awaitable[int]]
"""Removes what the audit keeps of a person's texts; answers how many there were."""


class Eraser:
    """Does the work of erasures. `run` must run beside the manager."""

    def __init__(
        self,
        *,
        units: UnitsOfWork,
        accounts: AccountCache,
        resting: Resting,
        backend: Backend,
        signer: ProofSigner,
        changes: Changes,
        clock: Clock,
        tasks: LeasedTasks,
        deeds: OwnDeeds = UNRECORDED,
        remove_keys: RemoveKeys | None = None,
        remove_texts: RemoveTexts | None = None,
        remove_images: RemoveImages | None = None,
        remove_project: RemoveProject | None = None,
        remove_backups: RemoveBackups | None = None,
    ) -> None:
        self._units = units
        self._accounts = accounts
        self._resting = resting
        self._backend = backend
        self._signer = signer
        self._changes = changes
        self._clock = clock
        self._tasks = tasks
        self._deeds = deeds
        self._remove_keys = remove_keys
        self._remove_texts = remove_texts
        self._remove_images = remove_images
        self._remove_project = remove_project
        self._remove_backups = remove_backups
        self._asked = asyncio.Event()
        self._patience = Patience[str](clock, first=FIRST_DELAY, longest=LONGEST_DELAY)

    def wake(self) -> None:
        """Look at once: an erasure was asked for."""
        self._asked.set()

    async def run(self) -> None:
        """Erase until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._tasks.run(), name="erasure-leases")
                group.create_task(self._erase_again_and_again(), name="erasures")
        finally:
            await self._tasks.drain(grace=timedelta(0))

    async def _erase_again_and_again(self) -> None:
        while True:
            self._asked.clear()
            try:
                await self.finish_left_over()
            except SandboxdError as error:
                log.warning("erasure.pass_failed", error=error.message)
            except Exception:  # a loop: one bad pass must not end all that follow
                log.exception("erasure.pass_broken")
            try:
                async with asyncio.timeout(EVERY.total_seconds()):
                    await self._asked.wait()
            except TimeoutError:
                continue

    async def finish_left_over(self) -> int:
        """Carry out every erasure that nobody else works on; answers how many were finished."""
        async with self._units.begin() as work:
            found = await work.erasures.unfinished(limit=AT_ONCE)
        finished = 0
        for erasure in found:
            if self._patience.waits(erasure.id):
                continue
            try:
                finished += await self._carry_out(erasure)
            except SandboxdError as error:
                self._patience.failed(erasure.id)
                log.warning("erasure.interrupted", erasure=erasure.id, error=error.message)
            else:
                self._patience.forget(erasure.id)
        return finished

    async def _carry_out(self, erasure: Erasure) -> bool:
        async with self._units.begin() as work:
            lease = await self._tasks.take(work, SandboxId(erasure.name))
            if lease is None:
                return False
            await work.commit()
        await self._tasks.finish(lease, lambda: self._erase(erasure, lease), name=f"erase-{erasure.id}")
        return True

    async def _erase(self, erasure: Erasure, lease: Lease) -> None:
        if erasure.freelancer is None:
            async with self._units.begin() as work:
                await work.pools.abandon(erasure.client)  # the refill ends what waits in them
                await work.commit()
        await self._end_sandboxes(erasure)
        await self._erase_files(erasure)
        await self._erase_texts(erasure)
        await self._erase_backups(erasure)
        await self._erase_rows(erasure)
        if erasure.freelancer is None and self._remove_project is not None:
            await self._remove_project(erasure.client)
        failpoint("erasure.before_keys")
        if erasure.freelancer is None and self._remove_keys is not None:
            removed = await self._remove_keys(erasure.client)
            await self._record(erasure, lambda now: now.add("api_keys", erased=removed))
        await self._finish(erasure, lease)
        await self._accounts.announce(erasure.client)
        await self._changes.announce(SandboxId(erasure.name))
        log.info("erasure.complete", erasure=erasure.id)

    async def _end_sandboxes(self, erasure: Erasure) -> None:
        """Terminate what is not terminated yet; nothing new begins, because its account may not act."""
        for sandbox in await self._living(erasure):
            caller = Caller(client=erasure.client, subject=SYSTEM, role=Role.PLATFORM)
            request = Request(
                caller=caller, request_id=RequestId(f"{erasure.id}.{sandbox}"), body_hash=erasure.id.encode()
            )
            try:
                async with self._deeds.recorded("Erasure/Terminate", client=erasure.client, sandbox=sandbox):
                    await self._resting.terminate(request, sandbox, timeout=STEP_TIMEOUT, keep=False)
            except InvalidTransitionError as error:
                if error.metadata.get("state") != SandboxState.TERMINATED.value:
                    raise  # on its way there by another's wish: the next pass finds it ended
            failpoint("erasure.after_terminate")

    async def _living(self, erasure: Erasure) -> Sequence[SandboxId]:
        where, found, token = SandboxFilter(client=erasure.client, freelancer=erasure.freelancer), list[SandboxId](), ""
        while True:
            async with self._units.begin() as work:
                page = await work.sandboxes.list(
                    where, order=SandboxOrder.CREATE_TIME, page_size=MAX_PAGE_SIZE, page_token=token
                )
            found += [sandbox.id for sandbox in page.items]
            token = page.next_token
            if not token:
                return found

    async def _erase_files(self, erasure: Erasure) -> None:
        while True:
            async with self._units.begin() as work:
                found = await work.erasures.sandboxes(erasure.client, erasure.freelancer, limit=AT_ONCE)
            if not found:
                return
            for sandbox in found:
                await self._erase_files_of(erasure, sandbox)

    async def _erase_files_of(self, erasure: Erasure, sandbox: SandboxId) -> None:
        now = await self._current(erasure)
        if now.pending is None or now.pending.sandbox != sandbox:
            # Counted before anything is removed, durably: what a crash leaves half removed was counted whole.
            size = await self._backend.measure(sandbox, timeout=STEP_TIMEOUT)
            pending = PendingFiles(sandbox=sandbox, files=size.files, size_bytes=size.size_bytes)
            await self._record(erasure, lambda now: replace(now, pending=pending))
        failpoint("erasure.before_files")
        await self._backend.erase(sandbox, timeout=STEP_TIMEOUT)
        images = await self._erase_images_of(sandbox)
        failpoint("erasure.after_files")
        async with self._units.begin() as work:
            now = await work.erasures.get(erasure.id, for_update=True)
            if now.pending is not None and now.pending.sandbox == sandbox:
                counted = now.add("files", erased=now.pending.files).add("file_bytes", erased=now.pending.size_bytes)
                if images:
                    counted = counted.add("images", erased=images)
                await work.erasures.erase_sandbox(sandbox)
                await work.erasures.save(replace(counted.add("sandbox_texts", erased=1), pending=None))
            await work.commit()

    async def _erase_images_of(self, sandbox: SandboxId) -> int:
        if self._remove_images is None:
            return 0
        async with self._units.begin() as work:
            found = await work.sandboxes.get(sandbox)
        return await self._remove_images(found.client, found.freelancer)

    async def _erase_texts(self, erasure: Erasure) -> None:
        if self._remove_texts is None:
            return
        removed = await self._remove_texts(erasure.client, erasure.freelancer)
        await self._record(erasure, lambda now: now.add("audit_texts", erased=removed))

    async def _erase_backups(self, erasure: Erasure) -> None:
        """Before the rows, which say what there is; they are counted with the rows."""
        if self._remove_backups is not None:
            await self._remove_backups(erasure.client, erasure.freelancer)

    async def _erase_rows(self, erasure: Erasure) -> None:
        async with self._units.begin() as work:
            kinds = work.erasures.kinds()
        for kind in kinds:
            while await self._erase_some(erasure, kind):
                failpoint("erasure.after_batch")
            await self._record(erasure, lambda now, kind=kind: now.add(kind))  # type: ignore[misc]  # of a loop

    async def _erase_some(self, erasure: Erasure, kind: str) -> int:
        async with self._units.begin() as work:
            now = await work.erasures.get(erasure.id, for_update=True)
            erased = await work.erasures.erase(kind, erasure.client, erasure.freelancer, limit=BATCH)
            if erased:
                await work.erasures.save(now.add(kind, erased=erased))
            await work.commit()
        return erased

    async def _finish(self, erasure: Erasure, lease: Lease) -> None:
        now = self._clock.now()
        async with self._units.begin() as work:
            if not await work.operations.holds(lease.key, lease.operation):
                raise StaleOwnerError(f"Another replica has taken over the erasure {erasure.id}.")
            ended = replace(await work.erasures.get(erasure.id, for_update=True), end_time=now)
            if erasure.freelancer is None:
                client = await work.clients.get(erasure.client, for_update=True)
                people = await work.erasures.close_freelancers(erasure.client, at=now)
                ended = ended.add("freelancer_names", erased=people).add("client_names", erased=1)
                gone = client.enter(AccountState.DELETED, at=now)
                await work.clients.save(replace(gone, display_name=""))
            else:
                person = await work.freelancers.get(erasure.client, erasure.freelancer, for_update=True)
                ended = ended.add("freelancer_names", erased=1)
                if person.state is not AccountState.DELETED:
                    gone_person = person.enter(AccountState.DELETED, at=now)
                    await work.freelancers.save(replace(gone_person, display_name="", quotas=None))
            for kind, number, why in await work.erasures.kept(erasure.client, erasure.freelancer):
                ended = ended.keep(kind, kept=number, why=why)
            document = write_document(ended)
            await work.erasures.save(replace(ended, document=document, signature=self._signer.sign(document)))
            for record in await work.requests.in_progress(SandboxId(erasure.name)):
                await work.requests.finish(record.client, record.request_id, RequestOutcome(response=b""))
            await work.operations.release(lease.key, lease.operation)
            failpoint("erasure.before_proof")
            await work.commit()
        failpoint("erasure.after_proof")

    async def _current(self, erasure: Erasure) -> Erasure:
        async with self._units.begin() as work:
            return await work.erasures.get(erasure.id)

    async def _record(self, erasure: Erasure, change: Callable[[Erasure], Erasure]) -> None:
        async with self._units.begin() as work:
            now = await work.erasures.get(erasure.id, for_update=True)
            changed = change(now)
            if changed != now:
                await work.erasures.save(changed)
            await work.commit()
