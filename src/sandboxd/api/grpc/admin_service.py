"""AdminService: decode, call, encode."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Final

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from typing_extensions import override

from sandboxd.api.grpc.codec_abandoned import KINDS_BACK, encode_abandoned
from sandboxd.api.grpc.codec_lifecycle import STEPS
from sandboxd.api.grpc.codec_sandbox import STATES
from sandboxd.api.grpc.names import sandbox_name, timestamp
from sandboxd.api.grpc.rpc import current_rpc
from sandboxd.manager.abandoned import AbandonedLooks
from sandboxd.manager.administration import (
    MAX_NAMES,
    Administration,
    Figures,
    GatewayStatus,
    ImagePlan,
    ReplicaStatus,
    Sweep,
    SweepResult,
)
from sandboxd.manager.sweep import Planned
from sandboxd.model.ids import SandboxId
from sandboxd.model.push_hold import PushHold
from sandboxd.v1 import admin_pb2 as pb
from sandboxd.v1 import admin_pb2_grpc, sandbox_pb2

STATUS_TIMEOUT: Final = timedelta(seconds=5)
"""How long the database may take; then what this replica knows is all."""
HOLD_TIMEOUT: Final = timedelta(hours=1)
"""How long pushes in flight are waited for at most: an upgrade of a base may install for long."""
SWEEP_TIMEOUT: Final = timedelta(minutes=2)
LOOK_TIMEOUT: Final = timedelta(minutes=2)
"""For all places; what is not reached in it is told as it was seen last."""
REMOVE_TIMEOUT: Final = timedelta(minutes=5)
MAX_PLANS: Final = 1000
_SWEEPS: Final = {
    pb.SWEEP_RECOVERY: Sweep.RECOVERY,
    pb.SWEEP_ORPHANS: Sweep.ORPHANS,
    pb.SWEEP_USAGE: Sweep.USAGE,
    pb.SWEEP_RETENTION: Sweep.RETENTION,
    pb.SWEEP_LIFECYCLE: Sweep.LIFECYCLE,
    pb.SWEEP_IMAGES: Sweep.IMAGES,
}
_SHOWN: Final = {sweep: number for number, sweep in _SWEEPS.items()}
_CIRCUITS: Final = {
    "closed": pb.CIRCUIT_STATE_CLOSED,
    "open": pb.CIRCUIT_STATE_OPEN,
    "half_open": pb.CIRCUIT_STATE_HALF_OPEN,
}

Context = grpc.aio.ServicerContext[Any, Any]
"""Any: servicers here never touch the context's own request and response types."""


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Serves operators."""

    def __init__(self, *, administration: Administration, abandoned: AbandonedLooks) -> None:
        self._admin = administration
        self._abandoned = abandoned

    @override
    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:
        """Tell how the installation is."""
        here = _figures(self._admin.here(), draining=self._admin.draining)
        status = await self._admin.status(timeout=current_rpc().remaining(at_most=STATUS_TIMEOUT) * 0.9)
        if status is None:
            return pb.GetStatusResponse(here=here)
        return pb.GetStatusResponse(
            here=here,
            database_answers=True,
            replicas=[_replica(one) for one in status.replicas],
            gateways=[_gateway(one) for one in status.gateways],
            sandboxes=[
                pb.StateCount(state=STATES[state], sandboxes=number)
                for state, number in status.sandboxes.items()
                if number
            ],
            stuck_sandboxes=status.stuck,
            push_hold=None if status.push_hold is None else _push_hold(status.push_hold),
        )

    @override
    async def ListReplicas(self, request: pb.ListReplicasRequest, context: Context) -> pb.ListReplicasResponse:
        """List the replicas."""
        return pb.ListReplicasResponse(replicas=[_replica(one) for one in await self._admin.replicas()])

    @override
    async def SweepNow(self, request: pb.SweepNowRequest, context: Context) -> pb.SweepNowResponse:
        """Run sweeps."""
        wanted = [_SWEEPS[sweep] for sweep in request.sweeps]
        # A little less than the caller has, so that what was done is told.
        timeout = current_rpc().remaining(at_most=SWEEP_TIMEOUT) * 0.9
        results = await self._admin.sweep(wanted, timeout=timeout, dry_run=request.dry_run)
        return pb.SweepNowResponse(results=_results(results))

    @override
    async def DrainReplica(self, request: pb.DrainReplicaRequest, context: Context) -> pb.DrainReplicaResponse:
        """Hand over."""
        handed = await self._admin.drain()
        return pb.DrainReplicaResponse(replica=self._admin.here().replica, conversations=handed)

    @override
    async def UndrainReplica(self, request: pb.UndrainReplicaRequest, context: Context) -> pb.UndrainReplicaResponse:
        """Take new work again."""
        await self._admin.undrain()
        return pb.UndrainReplicaResponse(replica=self._admin.here().replica)

    @override
    async def ListAbandoned(self, request: pb.ListAbandonedRequest, context: Context) -> pb.ListAbandonedResponse:
        """Tell what nobody needs any more."""
        report = await self._abandoned.look(timeout=current_rpc().remaining(at_most=LOOK_TIMEOUT) * 0.8)
        return pb.ListAbandonedResponse(
            abandoned=[encode_abandoned(one) for one in report.found[:MAX_PLANS]],
            total=len(report.found),
            unasked=report.unasked,
        )

    @override
    async def RemoveAbandoned(self, request: pb.RemoveAbandonedRequest, context: Context) -> pb.RemoveAbandonedResponse:
        """Remove one such thing."""
        timeout = current_rpc().remaining(at_most=REMOVE_TIMEOUT) * 0.9
        gone = await self._abandoned.remove(KINDS_BACK[request.kind], request.name, timeout=timeout)
        return pb.RemoveAbandonedResponse(abandoned=encode_abandoned(gone))

    @override
    async def HoldPushes(self, request: pb.HoldPushesRequest, context: Context) -> pb.HoldPushesResponse:
        """Keep everybody from writing to the registry."""
        # A little less than the caller has, so that it hears what keeps it from it.
        timeout = current_rpc().remaining(at_most=HOLD_TIMEOUT) * 0.9
        span = request.span.ToTimedelta()
        held = await self._admin.pushes.hold(request.holder, span=span, timeout=timeout)
        return pb.HoldPushesResponse(push_hold=_push_hold(held))

    @override
    async def ReleasePushes(self, request: pb.ReleasePushesRequest, context: Context) -> pb.ReleasePushesResponse:
        """Let everybody write to the registry again."""
        return pb.ReleasePushesResponse(released=await self._admin.pushes.release(request.holder))

    @override
    async def ResetCircuit(self, request: pb.ResetCircuitRequest, context: Context) -> pb.ResetCircuitResponse:
        """Close circuits."""
        return pb.ResetCircuitResponse(gateways=await self._admin.reset_circuits(request.gateway))


def _figures(here: Figures, *, draining: bool) -> pb.ReplicaFigures:
    return pb.ReplicaFigures(
        id=here.replica,
        version=here.version,
        draining=draining,
        conversations=here.conversations,
        open_turns=here.open_turns,
        watchers=here.watchers,
        agent_connections=here.agent_connections,
        queued_appends=here.queued_appends,
        database_used=here.database_used,
        database_idle=here.database_idle,
        database_limit=here.database_limit,
    )


def _replica(one: ReplicaStatus) -> pb.Replica:
    began = Timestamp()
    began.FromDatetime(one.start_time)
    return pb.Replica(
        id=one.id,
        address=one.address,
        living=one.living,
        draining=one.draining,
        conversations=one.conversations,
        start_time=began,
    )


def _gateway(one: GatewayStatus) -> pb.Gateway:
    return pb.Gateway(
        id=one.id,
        version=one.version,
        living=one.living,
        silence=_span(one.silence),
        circuit=_CIRCUITS.get(one.circuit, pb.CIRCUIT_STATE_UNSPECIFIED),
        open_calls=one.open_calls,
        spooled_settlements=one.spooled,
    )


def _push_hold(hold: PushHold) -> pb.PushHold:
    return pb.PushHold(
        holder=hold.holder,
        since_time=timestamp(hold.since_time),
        until_time=timestamp(hold.until_time),
        held=hold.held_time is not None,
        overdue=not hold.running,
    )


def _results(results: Iterable[SweepResult]) -> list[pb.SweepResult]:
    return [
        pb.SweepResult(
            sweep=_SHOWN[one.sweep],
            done=one.swept.done,
            found=len(one.swept.names),
            names=list(one.swept.names)[:MAX_NAMES],
            failure=one.failure,
            duration=_span(one.duration),
            plans=[_plan(plan) for plan in one.swept.plans[:MAX_PLANS]],
            images=[_image(image) for image in one.swept.images[:MAX_PLANS]],
        )
        for one in results
    ]


def _plan(plan: Planned) -> pb.LifecyclePlan:
    return pb.LifecyclePlan(
        sandbox=sandbox_name(plan.sandbox),
        client=plan.client,
        state=STATES[plan.state],
        step=STEPS[plan.step] if plan.step else sandbox_pb2.LIFECYCLE_STEP_UNSPECIFIED,
        time=timestamp(plan.time),
        now=plan.act.value,
        hindrance=plan.hindrance,
    )


def _image(image: ImagePlan) -> pb.ImagePlan:
    return pb.ImagePlan(
        sandbox=sandbox_name(SandboxId(image.sandbox)) if image.sandbox else "",
        repository=image.repository,
        tags=image.tags,
        digest=image.digest,
        compressed_bytes=image.size,
        stays=image.stays,
        named_by=image.by,
    )


def _span(span: timedelta) -> Duration:
    made = Duration()
    made.FromTimedelta(max(span, timedelta(0)))
    return made
