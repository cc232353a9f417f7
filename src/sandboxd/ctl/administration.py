"""The calls of operators, as part of the client (`client.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from sandboxd.ctl.connection import WORK_SECONDS, Connection, new_request_id
from sandboxd.v1 import admin_pb2, admin_pb2_grpc


class AdminClient:
    """What the platform asks of one sandboxd."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._admin = admin_pb2_grpc.AdminServiceStub(connection.channel)

    async def status(self) -> admin_pb2.GetStatusResponse:
        """Return how the installation is."""
        return await self._connection.call(self._admin.GetStatus, admin_pb2.GetStatusRequest())

    async def sweep(self, sweeps: Sequence[str] = (), *, dry_run: bool = False) -> admin_pb2.SweepNowResponse:
        """Run sweeps now; all of them if none is named. Dry: tell what those that can tell would do."""
        wanted = [admin_pb2.Sweep.Value(f"SWEEP_{sweep.upper()}") for sweep in sweeps]
        request = admin_pb2.SweepNowRequest(request_id=new_request_id(), sweeps=wanted, dry_run=dry_run)
        return await self._connection.call(self._admin.SweepNow, request, timeout=WORK_SECONDS)

    async def drain(self) -> admin_pb2.DrainReplicaResponse:
        """Let the replica that answers hand over and take nothing new."""
        request = admin_pb2.DrainReplicaRequest(request_id=new_request_id())
        return await self._connection.call(self._admin.DrainReplica, request, timeout=WORK_SECONDS)

    async def undrain(self) -> admin_pb2.UndrainReplicaResponse:
        """Let the replica that answers take new work again."""
        request = admin_pb2.UndrainReplicaRequest(request_id=new_request_id())
        return await self._connection.call(self._admin.UndrainReplica, request)

    async def reset_circuit(self, gateway: str = "") -> admin_pb2.ResetCircuitResponse:
        """Let a gateway, or all of them, call the model API again at once."""
        request = admin_pb2.ResetCircuitRequest(request_id=new_request_id(), gateway=gateway)
        return await self._connection.call(self._admin.ResetCircuit, request)

    async def hold_pushes(self, holder: str, *, span: timedelta, wait: timedelta) -> admin_pb2.PushHold:
        """Keep everybody from writing to the registry; returns when nothing is in flight any more."""
        length = Duration()
        length.FromTimedelta(span)
        request = admin_pb2.HoldPushesRequest(request_id=new_request_id(), holder=holder, span=length)
        answer = await self._connection.call(self._admin.HoldPushes, request, timeout=wait.total_seconds())
        return answer.push_hold

    async def release_pushes(self, holder: str) -> bool:
        """Let everybody write to the registry again; False where nobody held."""
        request = admin_pb2.ReleasePushesRequest(request_id=new_request_id(), holder=holder)
        return (await self._connection.call(self._admin.ReleasePushes, request)).released

    async def abandoned(self) -> admin_pb2.ListAbandonedResponse:
        """Return what nobody needs any more."""
        return await self._connection.call(
            self._admin.ListAbandoned, admin_pb2.ListAbandonedRequest(), timeout=WORK_SECONDS
        )

    async def remove_abandoned(self, kind: admin_pb2.AbandonedKind.ValueType, name: str) -> admin_pb2.Abandoned:
        """Remove one such thing."""
        request = admin_pb2.RemoveAbandonedRequest(request_id=new_request_id(), kind=kind, name=name)
        return (await self._connection.call(self._admin.RemoveAbandoned, request, timeout=WORK_SECONDS)).abandoned
