"""A collection of the API, mirrored: listed once, then followed by one watch that is resumed where it was cut.

One for each kind and never one for each object. Bookmarks keep the place fresh, a version that has become too old ends
in a new list, and a watch that is silent for too long is opened anew: it may have been cut without our hearing of it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

import structlog

from sandboxd.kubeapi.errors import KubeError, KubeGoneError, KubeUnavailableError, error_of
from sandboxd.kubeapi.ports import Json, KubeApi

Key = tuple[str, str]
"""Namespace (empty for what has none) and name."""
Listener = Callable[[Key, Json | None], None]
"""Told of every change, with None for what is gone. Must not block."""

WATCH_SECONDS: Final = 300
"""How long the server keeps one watch open."""
SILENCE: Final = timedelta(seconds=WATCH_SECONDS + 30)
FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 10.0
PAGE: Final = 500

log = structlog.get_logger(__name__)


class Reflector:
    """The mirror of one collection. `run` must run beside it."""

    def __init__(
        self,
        client: KubeApi,
        path: str,
        *,
        label_selector: str = "",
        field_selector: str = "",
        silence: timedelta = SILENCE,
    ) -> None:
        """Say what is mirrored.

        Args:
            client: Reaches the API.
            path: The collection, for example `/api/v1/pods`; over all namespaces or in one.
            label_selector: Only objects with these labels.
            field_selector: Only objects with these fields.
            silence: How long a watch may say nothing.
        """
        self._client = client
        self._path = path
        self._selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
        self._silence = silence
        self._objects: dict[Key, Json] = {}
        self._version = ""
        self._listeners: list[Listener] = []
        self._synced = asyncio.Event()
        self.problem: KubeError | None = None
        """Why it is not up to date; None while it is."""
        self.lists = 0
        """How often the whole collection was read."""
        self.events = 0
        """How many changes came by the watch."""

    def get(self, key: Key) -> Json | None:
        """An object as it was last seen. Not to be changed."""
        return self._objects.get(key)

    def __iter__(self) -> Iterator[Json]:
        """All objects as they were last seen."""
        return iter(tuple(self._objects.values()))

    def __len__(self) -> int:
        """How many there are."""
        return len(self._objects)

    @property
    def synced(self) -> bool:
        """True once it was listed."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Wait until it was listed once."""
        await self._synced.wait()

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Have a function told of every change; answers what ends that."""
        self._listeners.append(listener)

        def end() -> None:
            with suppress(ValueError):
                self._listeners.remove(listener)

        return end

    async def run(self) -> None:
        """Mirror until cancelled."""
        delay = FIRST_DELAY
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
                delay = FIRST_DELAY
            except KubeGoneError:
                self._version = ""
            except KubeError as error:
                if self.problem is None:
                    log.warning("kube.watch_interrupted", path=self._path, error=error.message)
                self.problem = error
                if not isinstance(error, KubeUnavailableError):
                    self._version = ""
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311  spread, not a secret
                delay = min(delay * 2, LONGEST_DELAY)

    async def _list(self) -> None:
        found: dict[Key, Json] = {}
        query = self._query(limit=str(PAGE))
        while True:
            page = await self._client.get(self._path, query=query, timeout=timedelta(seconds=30))
            kind, api = str(page.get("kind", "")).removesuffix("List"), page.get("apiVersion", "")
            for item in page.get("items") or ():
                found[_key(item)] = _trimmed({"kind": kind, "apiVersion": api, **item})
            version, following = page["metadata"]["resourceVersion"], page["metadata"].get("continue")
            if not following:
                break
            query["continue"] = following
        self.lists += 1
        before = self._objects
        self._objects = found
        self._version = version
        self._well()
        self._synced.set()
        for key in before.keys() - found.keys():
            self._tell(key, None)
        for key, item in found.items():
            if before.get(key, {}).get("metadata") != item["metadata"]:
                self._tell(key, item)

    async def _watch(self) -> None:
        query = self._query(
            watch="true",
            allowWatchBookmarks="true",
            resourceVersion=self._version,
            timeoutSeconds=str(WATCH_SECONDS),
        )
        async with self._client.stream(self._path, query=query, silence=self._silence) as lines:
            self._well()
            async for event in lines:
                self._take(event)

    def _take(self, event: Mapping[str, Any]) -> None:  # Any: JSON
        kind, obj = event["type"], event["object"]
        if kind == "ERROR":
            raise error_of(int(obj.get("code", 0)), str(obj.get("reason", "")), str(obj.get("message", "")))
        self._version = obj["metadata"]["resourceVersion"]
        if kind == "BOOKMARK":
            return
        self.events += 1
        if kind == "DELETED":
            if self._objects.pop(_key(obj), None) is not None:
                self._tell(_key(obj), None)
        else:
            self._put(_key(obj), _trimmed(obj))

    def _put(self, key: Key, obj: Json) -> None:
        self._objects[key] = obj
        self._tell(key, obj)

    def _tell(self, key: Key, obj: Json | None) -> None:
        for listener in tuple(self._listeners):
            listener(key, obj)

    def _well(self) -> None:
        if self.problem is not None:
            log.info("kube.watch_resumed", path=self._path)
        self.problem = None

    def _query(self, **more: str) -> dict[str, str]:
        return {**{name: value for name, value in self._selectors.items() if value}, **more}


def _key(obj: Mapping[str, Any]) -> Key:  # Any: JSON
    meta = obj["metadata"]
    return meta.get("namespace", ""), meta["name"]


def _trimmed(obj: Json) -> Json:
    """Leave out who wrote which field: nobody here asks, and it is often half of an object."""
    obj["metadata"].pop("managedFields", None)
    return obj
