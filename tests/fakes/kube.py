"""A cluster in memory, as far as `serve` uses it: objects with versions, generations and finalizers, and watches."""

from __future__ import annotations

import asyncio
import copy
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import count
from typing import Any
from uuid import uuid4

from typing_extensions import override

from sandboxd.kubeapi.errors import KubeConflictError, KubeError, KubeInvalidError, KubeNotFoundError
from sandboxd.kubeapi.ports import JSON_PATCH, MERGE_PATCH, Json, KubeApi

_PATH = re.compile(
    r"(?P<api>/api/v1|/apis/[^/]+/[^/]+)(?:/namespaces/(?P<namespace>[^/]+)(?=/))?/(?P<kind>[a-z]+)(?:/(?P<name>[^/]+)(?:/status)?)?"
)


class FakeKube(KubeApi):
    """Keeps objects by kind, namespace and name."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Json] = {}
        self.logs: dict[str, list[str]] = {}
        """Lines of pods, by their names."""
        self.requests: list[tuple[str, str]] = []
        self.away: KubeError | None = None
        """What every request fails with."""
        self._versions = count(1)
        self._events: list[tuple[str, str, Json]] = []
        self._changed = asyncio.Condition()
        self._version = 0
        self.cuts = 0
        """Grows to cut every open watch."""
        self.refuse: Callable[[str, str], KubeError | None] = lambda method, path: None

    @override
    async def get(self, path: str, *, query: Mapping[str, str] | None = None, timeout: timedelta | None = None) -> Json:
        kind, namespace, name = self._begin("GET", path)
        if name:
            return copy.deepcopy(self._find(kind, namespace, name))
        items = [obj for obj in self._all(kind, namespace) if _selected(obj, query or {})]
        return {"kind": "List", "metadata": {"resourceVersion": str(self._version)}, "items": copy.deepcopy(items)}

    @override
    async def text(self, path: str, *, query: Mapping[str, str], timeout: timedelta | None = None) -> str:
        pod, _, log = path.rpartition("/")
        assert log == "log"
        kind, namespace, name = self._begin("GET", pod)
        self._find(kind, namespace, name)
        return "".join(self.logs.get(name, ())[-int(query["tailLines"]) :])

    @override
    async def create(self, path: str, body: Json, *, field_manager: str = "", timeout: timedelta | None = None) -> Json:
        kind, namespace, _ = self._begin("POST", path)
        name = body["metadata"]["name"]
        if namespace and ("namespaces", "", namespace) not in self.objects:
            raise KubeNotFoundError(f'namespaces "{namespace}" not found', status=404, reason="NotFound")
        if (kind, namespace, name) in self.objects:
            raise KubeConflictError(f"{name} already exists", status=409, reason="AlreadyExists")
        made = copy.deepcopy(body)
        made["metadata"] |= {"uid": str(uuid4()), "generation": 1}
        if namespace:
            made["metadata"]["namespace"] = namespace
        return await self.put(kind, made)

    @override
    async def patch(
        self,
        path: str,
        body: object,
        *,
        kind: str = MERGE_PATCH,
        field_manager: str = "",
        force: bool = False,
        timeout: timedelta | None = None,
    ) -> Json:
        plural, namespace, name = self._begin("PATCH", path)
        found = copy.deepcopy(self._find(plural, namespace, name))
        before = json.dumps(found.get("spec"), sort_keys=True)
        if kind == JSON_PATCH:
            _apply_steps(found, body)
        else:
            _merge(found, body)
        if json.dumps(found.get("spec"), sort_keys=True) != before:
            found["metadata"]["generation"] += 1
        return await self.put(plural, found)

    @override
    async def replace(
        self, path: str, body: Json, *, field_manager: str = "", timeout: timedelta | None = None
    ) -> Json:
        kind, *_ = self._begin("PUT", path)
        return await self.put(kind, copy.deepcopy(body))

    @override
    async def delete(
        self,
        path: str,
        *,
        uid: str = "",
        resource_version: str = "",
        grace: timedelta | None = None,
        propagation: str = "",
        timeout: timedelta | None = None,
    ) -> Json:
        kind, namespace, name = self._begin("DELETE", path)
        found = self._find(kind, namespace, name)
        if uid and found["metadata"]["uid"] != uid:
            raise KubeConflictError("another uid", status=409, reason="Conflict")
        if found["metadata"].get("finalizers"):
            marked = copy.deepcopy(found)
            marked["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            await self.put(kind, marked)
        else:
            await self.drop(kind, namespace, name)
        return {}

    @override
    @asynccontextmanager
    async def stream(
        self, path: str, *, query: Mapping[str, str], silence: timedelta
    ) -> AsyncIterator[AsyncIterator[Json]]:
        kind, namespace, _ = self._begin("WATCH", path)
        yield self._follow(kind, namespace, query)

    async def _follow(self, kind: str, namespace: str, query: Mapping[str, str]) -> AsyncIterator[Json]:
        cuts, after = self.cuts, int(query["resourceVersion"])
        while cuts == self.cuts:
            for word, plural, obj in tuple(self._events):
                version = int(obj["metadata"]["resourceVersion"])
                if version > after:
                    after = version
                    mine = plural == kind and (not namespace or obj["metadata"].get("namespace") == namespace)
                    if mine and _selected(obj, query):
                        yield {"type": word, "object": copy.deepcopy(obj)}
            async with self._changed:
                await self._changed.wait_for(lambda: self._version > after or cuts != self.cuts)  # noqa: B023

    async def cut_watches(self) -> None:
        """End every open watch."""
        self.cuts += 1
        async with self._changed:
            self._changed.notify_all()

    async def put(self, kind: str, obj: Json) -> Json:
        """Write an object as it is."""
        meta = obj["metadata"]
        key = (kind, meta.get("namespace", ""), meta["name"])
        word = "MODIFIED" if key in self.objects else "ADDED"
        self._version = next(self._versions)
        meta["resourceVersion"] = str(self._version)
        self.objects[key] = obj
        await self._tell(word, kind, obj)
        return copy.deepcopy(obj)

    async def drop(self, kind: str, namespace: str, name: str) -> None:
        """Take an object away at once."""
        obj = self.objects.pop((kind, namespace, name), None)
        if obj is not None:
            gone = copy.deepcopy(obj)
            self._version = next(self._versions)
            gone["metadata"]["resourceVersion"] = str(self._version)
            await self._tell("DELETED", kind, gone)

    def all(self, kind: str) -> list[Json]:
        """All objects of a kind."""
        return copy.deepcopy(list(self._all(kind, "")))

    def _all(self, kind: str, namespace: str) -> Iterator[Json]:
        for (plural, place, _), obj in sorted(self.objects.items()):
            if plural == kind and namespace in ("", place):
                yield obj

    async def _tell(self, word: str, kind: str, obj: Json) -> None:
        self._events.append((word, kind, copy.deepcopy(obj)))
        async with self._changed:
            self._changed.notify_all()

    def _begin(self, method: str, path: str) -> tuple[str, str, str]:
        self.requests.append((method, path))
        if self.away is not None:
            raise self.away
        if (refused := self.refuse(method, path)) is not None:
            raise refused
        found = _PATH.fullmatch(path)
        assert found is not None, path
        return found["kind"], found["namespace"] or "", found["name"] or ""

    def _find(self, kind: str, namespace: str, name: str) -> Json:
        found = self.objects.get((kind, namespace, name))
        if found is None:
            raise KubeNotFoundError(f'{kind} "{name}" not found', status=404, reason="NotFound")
        return found


def _selected(obj: Json, query: Mapping[str, str]) -> bool:
    labels = obj["metadata"].get("labels") or {}
    wanted = [part.partition("=") for part in query.get("labelSelector", "").split(",") if part]
    fields = [part.split("=") for part in query.get("fieldSelector", "").split(",") if part]
    return all(labels.get(name) == value if equal else name in labels for name, equal, value in wanted) and all(
        _field(obj, name) == value for name, value in fields
    )


def _field(obj: Any, path: str) -> Any:
    for part in path.split("."):
        obj = obj.get(part) if isinstance(obj, dict) else None
    return obj


def _apply_steps(obj: Json, steps: Any) -> None:
    for step in steps:
        *parents, last = step["path"].strip("/").split("/")
        place: Any = obj
        for parent in parents:
            place = place[parent]
        if step["op"] == "test":
            if place.get(last) != step["value"]:
                raise KubeInvalidError("the test failed: test failed", status=422, reason="Invalid")
        else:
            place[last] = copy.deepcopy(step["value"])


def _merge(target: Json, patch: Any) -> None:
    for name, value in patch.items():
        if isinstance(value, dict):
            _merge(target.setdefault(name, {}), value)
        elif value is None:
            target.pop(name, None)
        else:
            target[name] = value
