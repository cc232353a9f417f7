"""AdminService of the service that speaks the contract from memory (platform_server.py)."""

from __future__ import annotations

from typing import Any

import grpc
from typing_extensions import override

from sandboxd.v1 import admin_pb2, admin_pb2_grpc, sandbox_pb2


class FakeAdmin(admin_pb2_grpc.AdminServiceServicer):
    """One replica and one gateway, whose circuit is open until it is reset."""

    def __init__(self) -> None:
        self.database_answers = True
        self.draining = False
        self.circuit_open = True
        self.push_hold: admin_pb2.PushHold | None = None
        self.abandoned = [
            admin_pb2.Abandoned(
                kind=admin_pb2.ABANDONED_KIND_VOLUME,
                name="client-acme/home-sbx-9",
                reason=admin_pb2.ABANDONED_REASON_NO_ROW,
                size_bytes=2_000_000_000,
                cost_micros=200_000,
                removable=True,
            ),
            admin_pb2.Abandoned(
                kind=admin_pb2.ABANDONED_KIND_NAMESPACE,
                name="client-gone",
                reason=admin_pb2.ABANDONED_REASON_CLIENT_DELETED,
            ),
        ]

    def add_admin_to(self, server: grpc.Server) -> None:
        admin_pb2_grpc.add_AdminServiceServicer_to_server(self, server)

    @override
    def GetStatus(self, request: admin_pb2.GetStatusRequest, context: Any) -> admin_pb2.GetStatusResponse:
        here = admin_pb2.ReplicaFigures(id="rep-1", version="1", draining=self.draining, open_turns=2)
        if not self.database_answers:
            return admin_pb2.GetStatusResponse(here=here)
        circuit = admin_pb2.CIRCUIT_STATE_OPEN if self.circuit_open else admin_pb2.CIRCUIT_STATE_CLOSED
        return admin_pb2.GetStatusResponse(
            here=here,
            database_answers=True,
            replicas=[
                admin_pb2.Replica(id="rep-1", address="10.0.0.1:1", living=True, draining=self.draining),
                admin_pb2.Replica(id="rep-0", address="10.0.0.2:1"),
            ],
            gateways=[admin_pb2.Gateway(id="gtw-1", version="1", living=True, circuit=circuit)],
            sandboxes=[admin_pb2.StateCount(state=sandbox_pb2.SANDBOX_STATE_ACTIVE, sandboxes=7)],
            stuck_sandboxes=1,
            push_hold=self.push_hold,
        )

    @override
    def ListReplicas(self, request: admin_pb2.ListReplicasRequest, context: Any) -> admin_pb2.ListReplicasResponse:
        return admin_pb2.ListReplicasResponse(replicas=[admin_pb2.Replica(id="rep-1", living=True)])

    @override
    def SweepNow(self, request: admin_pb2.SweepNowRequest, context: Any) -> admin_pb2.SweepNowResponse:
        found = admin_pb2.SweepResult(sweep=admin_pb2.SWEEP_ORPHANS, found=1, names=["sandbox_unknown sbx-9"])
        failed = admin_pb2.SweepResult(sweep=admin_pb2.SWEEP_USAGE, failure="DATABASE_UNAVAILABLE")
        images = admin_pb2.SweepResult(sweep=admin_pb2.SWEEP_IMAGES)
        if request.dry_run:
            images.images.add(
                sandbox="sandboxes/sbx-1",
                repository="acme/a",
                tags=["g000001"],
                digest="sha256:1",
                compressed_bytes=1500000,
            )
            images.images.add(
                repository="acme/a", tags=["g000007"], digest="sha256:7", stays="named", named_by="Pod acme/sbx-1-0"
            )
        results = [found, failed, images]
        return admin_pb2.SweepNowResponse(
            results=[one for one in results if not request.sweeps or one.sweep in request.sweeps]
        )

    @override
    def DrainReplica(self, request: admin_pb2.DrainReplicaRequest, context: Any) -> admin_pb2.DrainReplicaResponse:
        self.draining = True
        return admin_pb2.DrainReplicaResponse(replica="rep-1", conversations=3)

    @override
    def UndrainReplica(
        self, request: admin_pb2.UndrainReplicaRequest, context: Any
    ) -> admin_pb2.UndrainReplicaResponse:
        self.draining = False
        return admin_pb2.UndrainReplicaResponse(replica="rep-1")

    @override
    def ResetCircuit(self, request: admin_pb2.ResetCircuitRequest, context: Any) -> admin_pb2.ResetCircuitResponse:
        if request.gateway not in {"", "gtw-1"}:
            context.abort(grpc.StatusCode.NOT_FOUND, "No living gateway has this id.")
        self.circuit_open = False
        return admin_pb2.ResetCircuitResponse(gateways=["gtw-1"])

    @override
    def HoldPushes(self, request: admin_pb2.HoldPushesRequest, context: Any) -> admin_pb2.HoldPushesResponse:
        if self.push_hold is not None and self.push_hold.holder != request.holder:
            context.abort(grpc.StatusCode.ABORTED, f"Pushes are held by {self.push_hold.holder}.")
        self.push_hold = admin_pb2.PushHold(holder=request.holder, held=True)
        self.push_hold.until_time.FromSeconds(1_800_000_000 + request.span.seconds)
        return admin_pb2.HoldPushesResponse(push_hold=self.push_hold)

    @override
    def ReleasePushes(self, request: admin_pb2.ReleasePushesRequest, context: Any) -> admin_pb2.ReleasePushesResponse:
        held, self.push_hold = self.push_hold, None
        return admin_pb2.ReleasePushesResponse(released=held is not None)

    @override
    def ListAbandoned(self, request: admin_pb2.ListAbandonedRequest, context: Any) -> admin_pb2.ListAbandonedResponse:
        found = admin_pb2.ListAbandonedResponse(abandoned=self.abandoned, total=len(self.abandoned))
        if not self.database_answers:
            found.unasked["the cluster"] = "It does not answer."
        return found

    @override
    def RemoveAbandoned(
        self, request: admin_pb2.RemoveAbandonedRequest, context: Any
    ) -> admin_pb2.RemoveAbandonedResponse:
        (one,) = [one for one in self.abandoned if (one.kind, one.name) == (request.kind, request.name)]
        self.abandoned.remove(one)
        return admin_pb2.RemoveAbandonedResponse(abandoned=one)
