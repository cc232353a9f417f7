"""Requests that no client of ours would make, to the services of backups, images and packages: each has its answer.

What is in the fields is drawn from names that are there, names that are not, and what breaks parsers. None of it may
end as an error of ours, and afterwards everything works.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from sandboxd.v1 import backup_pb2, image_pb2, package_pb2
from tests.integration.api_world import World, a_world
from tests.manager_world import SOON, a_request

EACH: Final = 40
"""Requests to each method."""
CALL_SECONDS: Final = 5.0
NOT_OURS: Final = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED}
SERVICES: Final[Sequence[ServiceDescriptor]] = [
    module.DESCRIPTOR.services_by_name[name]
    for module, name in (
        (backup_pb2, "BackupService"),
        (image_pb2, "ImageService"),
        (package_pb2, "PackageService"),
    )
]
METHODS: Final = [method for service in SERVICES for method in service.methods]
ODD: Final = (
    "",
    "-",
    "sandboxes/",
    "sandboxes/a/backups/",
    "sandboxes/../sandboxes/a",
    "sandboxes/a/backups/bak-" + "0" * 26,
    "sandboxes/a/images/g000001",
    "sandboxes/" + "a" * 64,
    "\x00",
    "\x1b[2J\r\n",
    "g999999",
    "%s{0}${x}",
    "'; DROP TABLE backup_sets; --",
    "ü\u202e\U0001f600",
    "x" * 5_000,
    "AAAA",
)
FOR_THE_PLATFORM: Final = {"RunDrill"}
_NEEDED: Final = {"request_id", "name", "sandbox"}
"""Fields without which nothing is looked at."""
WHOLE: Final = (0, 1, -1, 2, 50, 1000, 2**31 - 1, -(2**31))


class Chance:
    """Draws requests."""

    def __init__(self, seed: int, names: Sequence[str]) -> None:
        self._random = random.Random(seed)
        self._names = names

    def fill(self, message: Message, *, depth: int = 3) -> Message:
        """Give some of the fields values."""
        for field in message.DESCRIPTOR.fields:
            if field.name not in _NEEDED and self._random.random() < 0.6:
                continue
            if field.is_repeated:
                if field.message_type is not None and field.message_type.GetOptions().map_entry:
                    continue
                self._repeat(message, field, depth)
            elif field.message_type is not None:
                if depth:
                    self.fill(getattr(message, field.name), depth=depth - 1)
                    getattr(message, field.name).SetInParent()
            else:
                setattr(message, field.name, self._value(field))
        return message

    def _repeat(self, message: Message, field: Any, depth: int) -> None:  # Any: one of two classes
        place = getattr(message, field.name)
        for _ in range(self._random.choice((0, 1, 1, 2, 150))):
            if field.message_type is None:
                place.append(self._value(field))
            elif depth:
                self.fill(place.add(), depth=depth - 1)

    def _value(self, field: Any) -> Any:  # Any: two classes of descriptors; and of the field's own type
        if field.type == FieldDescriptor.TYPE_STRING:
            if field.name == "request_id" and self._random.random() < 0.9:
                return f"request-{self._random.randrange(10**9)}"
            if field.name in _NEEDED and self._random.random() < 0.7:
                return self._random.choice(self._names)
            return self._random.choice(ODD)
        if field.type == FieldDescriptor.TYPE_BYTES:
            return self._random.choice((b"", b"\0", b"../x", b"/", b"a/b", b"\xff\xfe", b"x" * 5_000))
        if field.type == FieldDescriptor.TYPE_BOOL:
            return self._random.random() < 0.5
        if field.type == FieldDescriptor.TYPE_ENUM:
            return self._random.choice((0, 1, 2, 3, 99, -1))
        if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
            return self._random.choice((0.0, -1.0, float("nan"), float("inf")))
        unsigned = field.type in (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64)
        return self._random.choice([one for one in WHOLE if one >= 0 or not unsigned])


async def answer_of(world: World, method: MethodDescriptor, request: Message) -> grpc.StatusCode:
    """Call, read all that comes, and tell what it ended with."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    into = GetMessageClass(method.output_type).FromString
    outof, channel = type(request).SerializeToString, world.channel
    role = "platform" if method.name in FOR_THE_PLATFORM else "client_admin"
    try:
        if method.server_streaming:
            stream = channel.unary_stream(path, request_serializer=outof, response_deserializer=into)
            async for _ in stream(request, metadata=world.metadata(role=role), timeout=CALL_SECONDS):
                pass
        else:
            call = channel.unary_unary(path, request_serializer=outof, response_deserializer=into)
            await call(request, metadata=world.metadata(role=role), timeout=CALL_SECONDS)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("method", METHODS, ids=[f"{one.containing_service.name}-{one.name}" for one in METHODS])
async def test_an_odd_request_has_its_answer_and_breaks_nothing(tmp_path: Path, method: MethodDescriptor) -> None:
    async with a_world(tmp_path) as world:
        core, boss = world.core, a_request()
        sandbox = await core.given_active()
        core.volumes.given(sandbox.id, home={b"f": b"1"}, workspace={})
        core.builder.roots[sandbox.id] = "one"
        image = await core.manager.images.commit(boss, sandbox.id, timeout=SOON)
        backup = await core.manager.backups.create(a_request(), sandbox.id, timeout=SOON)
        name = f"sandboxes/{sandbox.id}"
        chance = Chance(
            7,
            [
                name,
                f"{name}/backups/{backup.id}",
                f"{name}/images/{image.generation.tag}",
                f"{name}/backups/bak-{'0' * 26}",
            ],
        )
        requests = [chance.fill(GetMessageClass(method.input_type)()) for _ in range(EACH)]

        codes = await asyncio.gather(*(answer_of(world, method, one) for one in requests))

        wrong = [(code.name, str(one)[:300]) for code, one in zip(codes, requests, strict=True) if code in NOT_OURS]
        assert wrong == []
        assert {grpc.StatusCode.INVALID_ARGUMENT} < set(codes), "some are looked at further"
        assert (await core.manager.backups.create(a_request(), sandbox.id, timeout=SOON)).volumes
