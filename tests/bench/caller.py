"""A process that calls one RPC as fast as it is answered, for some seconds, and prints what it saw as JSON."""

import argparse
import asyncio
import json
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any  # requests and answers of three RPCs

import grpc

from sandboxd.v1 import sandbox_pb2, sandbox_pb2_grpc

NANOSECONDS = 1e9


def _calls(stub: "sandbox_pb2_grpc.SandboxServiceAsyncStub", name: str, token: str) -> dict[str, Callable[[], Any]]:
    metadata = (("authorization", f"Bearer {token}"),)

    def update() -> Awaitable[Any]:
        request = sandbox_pb2.UpdateRequest(request_id=str(uuid.uuid4()))
        request.sandbox.name, request.sandbox.display_name = name, "bench"
        request.update_mask.paths.append("display_name")
        return stub.Update(request, metadata=metadata, timeout=30)

    return {
        "Get": lambda: stub.Get(sandbox_pb2.GetRequest(name=name), metadata=metadata, timeout=30),
        "List (50)": lambda: stub.List(sandbox_pb2.ListRequest(page_size=50), metadata=metadata, timeout=30),
        "Update": update,
    }


async def main() -> None:
    """Call, and print."""
    parser = argparse.ArgumentParser()
    for name in ("address", "token-file", "sandbox", "method"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--at-once", type=int, required=True)
    given = parser.parse_args()
    took: list[float] = []
    failed: list[str] = []
    async with grpc.aio.insecure_channel(given.address) as channel:
        stub: sandbox_pb2_grpc.SandboxServiceAsyncStub = sandbox_pb2_grpc.SandboxServiceStub(channel)
        call = _calls(stub, given.sandbox, Path(given.token_file).read_text().strip())[given.method]
        await call()  # the connection is made
        end = time.monotonic() + given.seconds

        async def keep_calling() -> None:
            while time.monotonic() < end:
                began = time.monotonic_ns()
                try:
                    await call()
                except grpc.aio.AioRpcError as error:
                    failed.append(error.code().name)
                else:
                    took.append((time.monotonic_ns() - began) / NANOSECONDS)

        began = time.monotonic()
        await asyncio.gather(*(keep_calling() for _ in range(given.at_once)))
        json.dump({"seconds": time.monotonic() - began, "took": took, "failed": failed}, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
