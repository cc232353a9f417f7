"""PoolService: decode, call, encode."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from typing_extensions import override

from sandboxd.api.grpc.codec_sandbox import TIERS
from sandboxd.api.grpc.names import timestamp
from sandboxd.api.grpc.requests import request_of
from sandboxd.api.grpc.rpc import current_rpc
from sandboxd.manager.pools import Pools, PoolWish
from sandboxd.model.errors import FieldViolation, InvalidRequestError
from sandboxd.model.pool import PoolId, PoolStatus
from sandboxd.model.sandbox import Tier
from sandboxd.v1 import pool_pb2 as pb
from sandboxd.v1 import pool_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
"""Any: servicers here never touch the context's own request and response types."""
_TIERS_BACK: Final = {number: tier for tier, number in TIERS.items()}
_FIELDS: Final = ("min", "target", "max", "idle_timeout", "max_age")


class PoolServicer(pool_pb2_grpc.PoolServiceServicer):
    """Serves pools."""

    def __init__(self, *, pools: Pools) -> None:
        self._pools = pools

    @override
    async def CreatePool(self, request: pb.CreatePoolRequest, context: Context) -> pb.CreatePoolResponse:
        """Make a pool."""
        wished = request.pool
        answer = await self._pools.create(
            request_of(request, request.request_id),
            _TIERS_BACK.get(wished.tier, Tier.BASIC),
            PoolWish(
                min=wished.min,
                target=wished.target or None,
                max=wished.max or None,
                idle_timeout=_span(wished, "idle_timeout"),
                max_age=_span(wished, "max_age"),
            ),
            encode=lambda status: pb.CreatePoolResponse(pool=encode_pool(status)).SerializeToString(),
        )
        return pb.CreatePoolResponse.FromString(answer)

    @override
    async def GetPool(self, request: pb.GetPoolRequest, context: Context) -> pb.GetPoolResponse:
        """Return one pool."""
        return pb.GetPoolResponse(pool=encode_pool(await self._pools.get(current_rpc().caller, _pool_id(request.name))))

    @override
    async def ListPools(self, request: pb.ListPoolsRequest, context: Context) -> pb.ListPoolsResponse:
        """List pools as they stand."""
        found = await self._pools.list(current_rpc().caller)
        return pb.ListPoolsResponse(pools=[encode_pool(status) for status in found])

    @override
    async def UpdatePool(self, request: pb.UpdatePoolRequest, context: Context) -> pb.UpdatePoolResponse:
        """Change a pool."""
        paths, wished = set(request.update_mask.paths), request.pool
        if unknown := paths.difference(_FIELDS):
            text = f"may name {', '.join(_FIELDS)}; not {', '.join(sorted(unknown))}"
            raise InvalidRequestError(
                "The update mask names fields that cannot be changed.",
                violations=[FieldViolation(field="update_mask", description=text)],
            )
        answer = await self._pools.update(
            request_of(request, request.request_id),
            _pool_id(wished.name),
            PoolWish(
                min=wished.min if "min" in paths else None,
                target=wished.target if "target" in paths else None,
                max=wished.max if "max" in paths else None,
                idle_timeout=_span(wished, "idle_timeout") if "idle_timeout" in paths else None,
                max_age=_span(wished, "max_age") if "max_age" in paths else None,
            ),
            etag=wished.etag,
            encode=lambda status: pb.UpdatePoolResponse(pool=encode_pool(status)).SerializeToString(),
        )
        return pb.UpdatePoolResponse.FromString(answer)

    @override
    async def DeletePool(self, request: pb.DeletePoolRequest, context: Context) -> pb.DeletePoolResponse:
        """Delete a pool."""
        answer = await self._pools.delete(
            request_of(request, request.request_id),
            _pool_id(request.name),
            encode=lambda _: pb.DeletePoolResponse().SerializeToString(),
        )
        return pb.DeletePoolResponse.FromString(answer)


def encode_pool(status: PoolStatus) -> pb.Pool:
    """Encode a pool as it stands."""
    pool, counts = status.pool, status.counts
    idle, age = Duration(), Duration()
    idle.FromTimedelta(pool.idle_timeout)
    age.FromTimedelta(pool.max_age)
    return pb.Pool(
        name=f"pools/{pool.id}",
        client=pool.client,
        template=pool.template,
        tier=TIERS[pool.tier],
        min=pool.size.min,
        target=pool.size.target,
        max=pool.size.max,
        idle_timeout=idle,
        max_age=age,
        state=pb.POOL_STATE_DELETING if pool.deleting else pb.POOL_STATE_ACTIVE,
        wanted=status.wanted,
        starting=counts.starting,
        ready=counts.ready,
        claimed=counts.claimed,
        ending=counts.ending,
        create_time=timestamp(pool.create_time),
        update_time=timestamp(pool.update_time),
        use_time=timestamp(pool.use_time),
        etag=str(pool.version),
    )


def _pool_id(name: str) -> PoolId:
    parts = name.split("/")
    if len(parts) != 2 or parts[0] != "pools":  # UpdatePool's name has no rule of its own in the contract
        raise InvalidRequestError(
            "The name of the pool is not one.",
            violations=[FieldViolation(field="pool.name", description="must be pools/{pool}")],
        )
    return PoolId(parts[1])


def _span(message: pb.Pool, field: str) -> timedelta | None:
    span: Duration = getattr(message, field)
    return span.ToTimedelta() if message.HasField(field) else None  # type: ignore[arg-type]  # a name from _FIELDS
