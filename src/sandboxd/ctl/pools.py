"""The calls of warm pools, as part of the client (`client.py`)."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.field_mask_pb2 import FieldMask

from sandboxd.ctl.connection import Connection, new_request_id
from sandboxd.v1 import pool_pb2, pool_pb2_grpc


class PoolClient:
    """The pools of one client."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = pool_pb2_grpc.PoolServiceStub(connection.channel)

    async def create(self, pool: pool_pb2.Pool) -> pool_pb2.Pool:
        """Make a pool."""
        request = pool_pb2.CreatePoolRequest(request_id=new_request_id(), pool=pool)
        return (await self._connection.call(self._stub.CreatePool, request)).pool

    async def list(self) -> Sequence[pool_pb2.Pool]:
        """Return all pools as they stand."""
        return list((await self._connection.call(self._stub.ListPools, pool_pb2.ListPoolsRequest())).pools)

    async def update(self, pool: pool_pb2.Pool, fields: Sequence[str]) -> pool_pb2.Pool:
        """Change some numbers of a pool."""
        request = pool_pb2.UpdatePoolRequest(
            request_id=new_request_id(), pool=pool, update_mask=FieldMask(paths=list(fields))
        )
        return (await self._connection.call(self._stub.UpdatePool, request)).pool

    async def delete(self, name: str) -> None:
        """Delete a pool."""
        await self._connection.call(
            self._stub.DeletePool, pool_pb2.DeletePoolRequest(request_id=new_request_id(), name=name)
        )
