"""The operator as one thing to run: mirrors, election, and the workers of the active one."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.kubeapi.errors import KubeConflictError, KubeError, KubeUnavailableError
from sandboxd.kubeapi.ports import KubeApi
from sandboxd.model.sources import Clock
from sandboxd.operator.backup_keeper import BackupKeeper
from sandboxd.operator.leader import Leadership, LeaseSettings, NotLeaderError
from sandboxd.operator.metrics import OperatorMetrics
from sandboxd.operator.mirrors import Mirrors, WorkKey
from sandboxd.operator.plan import PlanSettings
from sandboxd.operator.pools import PoolKeeper
from sandboxd.operator.ports import AgentIdentities
from sandboxd.operator.prepuller import Prepuller
from sandboxd.operator.prober import Prober
from sandboxd.operator.pull_secrets import PullSecrets
from sandboxd.operator.queue import WorkQueue
from sandboxd.operator.reconciler import Reconciler
from sandboxd.operator.writing import Writer

WORKERS: Final = 16
"""So many keys are worked on at once; each pass is a few requests."""
NOT_LEADING_SECONDS: Final = 0.2

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """How one operator is set up."""

    plan: PlanSettings
    namespace: str
    """sandboxd's own: the Lease is in it."""
    identity: str
    """Name of this process among its like."""
    lease: timedelta
    image_pulls: str = ""
    """Secret of that namespace with the accounts that pull clients' images; none if empty."""


class Operator:
    """One operator. All of an installation mirror the cluster; one of them writes."""

    def __init__(
        self,
        api: KubeApi,
        *,
        settings: OperatorSettings,
        identities: AgentIdentities,
        clock: Clock,
        metrics: OperatorMetrics,
    ) -> None:
        self._metrics = metrics
        self._leading = asyncio.Event()
        self._has_led = False
        self._queue: WorkQueue[WorkKey] = WorkQueue()
        instance = settings.plan.instance
        self.mirrors = Mirrors(api, instance=instance, namespace=settings.namespace, wake=self._wake)
        lease = LeaseSettings(
            namespace=settings.namespace, instance=instance, identity=settings.identity, duration=settings.lease
        )
        self.leadership = Leadership(api, lease, clock=clock, changed=self._leads)
        writer = Writer(
            api,
            mirrors=self.mirrors,
            leadership=self.leadership,
            identities=identities,
            instance=instance,
            metrics=metrics,
        )
        self._reconciler = Reconciler(
            api,
            mirrors=self.mirrors,
            writer=writer,
            settings=settings.plan,
            clock=clock,
            reporter=settings.identity,
            later=self._queue.add_later,
        )
        self._prepuller = Prepuller(mirrors=self.mirrors, writer=writer, settings=settings.plan, clock=clock)
        self._prober = Prober(
            mirrors=self.mirrors, writer=writer, settings=settings.plan, clock=clock, later=self._queue.add_later
        )
        self._backups = BackupKeeper(
            api,
            mirrors=self.mirrors,
            writer=writer,
            leadership=self.leadership,
            settings=settings.plan,
            namespace=settings.namespace,
            clock=clock,
            later=self._queue.add_later,
        )
        self._pulls = None
        if settings.image_pulls:
            self._pulls = PullSecrets(
                api,
                mirrors=self.mirrors,
                leadership=self.leadership,
                instance=instance,
                namespace=settings.namespace,
                source=settings.image_pulls,
                clock=clock,
            )
        self._pools = PoolKeeper(
            mirrors=self.mirrors,
            writer=writer,
            instance=instance,
            clock=clock,
            reporter=settings.identity,
            later=self._queue.add_later,
        )
        metrics.watch_depth(lambda: len(self._queue))
        metrics.watches.problems = self.mirrors.problems
        metrics.watches.states = self._reconciler.states

    async def run(self) -> None:
        """Operate until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.mirrors.run(), name="mirrors")
            await self.mirrors.wait_synced()
            log.info("operator.synced")
            for number in range(WORKERS):
                tasks.create_task(self._work(), name=f"worker-{number}")
            # Last, so that it is cancelled while nobody waits for it: it gives the Lease up at the end.
            tasks.create_task(self.leadership.run(), name="leadership")

    def _wake(self, key: WorkKey) -> None:
        if self._has_led:
            self._queue.add(key)

    def _leads(self, leads: bool) -> None:
        self._metrics.lead(leads)
        if not leads:
            self._leading.clear()
            return
        # Keys that still wait stay in front: leadership that comes and goes must not begin anew each time.
        self._has_led = True
        for key in self.mirrors.everything():
            self._queue.add(key)
        self._leading.set()

    async def _work(self) -> None:
        while True:
            await self._leading.wait()
            key = await self._queue.take()
            began = time.perf_counter()
            outcome = "failed"
            try:
                outcome = await self._pass(key)
            except NotLeaderError:
                self._queue.add_later(key, NOT_LEADING_SECONDS)  # for when it leads again
            except Exception:
                log.exception(
                    "operator.pass_failed", namespace=key.namespace, sandbox=key.sandbox, template=key.template
                )
                self._queue.retry(key)
            finally:
                self._queue.done(key)
                self._metrics.reconciled(key.subject, outcome=outcome, seconds=time.perf_counter() - began)

    async def _pass(self, key: WorkKey) -> str:
        try:
            if self._pulls is not None:
                await self._pulls.prepare(key)
            if key.template:
                refusals = await self._prepuller.reconcile(key.template)
            elif key.pool:
                refusals = await self._pools.reconcile(key)
            elif key.probe:
                refusals = await self._prober.reconcile(key)
            elif key.backup:
                refusals = await self._backups.reconcile(key)
            else:
                refusals = await self._reconciler.reconcile(key)
        except KubeConflictError:
            self._queue.retry(key)  # the watch brings what has changed
            return "conflict"
        except KubeUnavailableError as error:
            delay = self._queue.retry(key)
            log.warning("operator.unanswered", sandbox=key.sandbox, error=error.message, seconds=round(delay, 2))
            return "failed"
        except KubeError as error:
            # The resource itself went while it was worked on; its own event ends its work.
            log.info("operator.pass_refused", sandbox=key.sandbox, error=error.message)
            self._queue.retry(key)
            return "refused"
        if refusals:
            delay = self._queue.retry(key)
            log.info("operator.refused", sandbox=key.sandbox, error=refusals[0].message, seconds=round(delay, 2))
            return "refused"
        self._queue.forget(key)
        return "done"
