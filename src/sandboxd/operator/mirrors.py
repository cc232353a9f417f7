"""What the operator sees of the cluster: one mirror for each kind, and which key each change wakes.

What was just written is looked up before the mirror, until the mirror has caught up: the watch of one kind may be some
milliseconds behind that of another.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sandboxd.kubeapi.ports import Json, KubeApi
from sandboxd.kubeapi.reflector import SILENCE as EVENTS_SILENCE
from sandboxd.kubeapi.reflector import Key, Reflector
from sandboxd.model.cluster import INSTANCE_LABEL, pod_of
from sandboxd.model.cluster_backup import BACKUP_PREFIX, BackupState
from sandboxd.model.cluster_probe import PROBE_PREFIX
from sandboxd.model.ids import SandboxId
from sandboxd.operator.builders import AGENT_SECRET_TYPE
from sandboxd.operator.kinds import Kind
from sandboxd.operator.pool_index import PoolIndex
from sandboxd.operator.prepull import images_name, template_of

SILENCE: Final = timedelta(seconds=150)
"""Bookmarks come about every minute: a watch that is silent for longer is dead. Of Events there are no bookmarks."""
WRITTEN_SECONDS: Final = 5.0
"""For so long what was written is believed to be there before a mirror has it."""
_CLAIM: Final = re.compile(r"(?:home|workspace)-(sbx-[0-9a-z]{26})-0")
_OURS: Final = (
    Kind.SANDBOX,
    Kind.POOL,
    Kind.PROBE,
    Kind.BACKUP,
    Kind.STATEFUL_SET,
    Kind.POD,
    Kind.SECRET,
    Kind.CLAIM,
    Kind.NAMESPACE,
    Kind.QUOTA,
    Kind.LIMITS,
    Kind.POLICY,
)
_BEGIN: Final = frozenset({"", BackupState.WAITING.value})
_WAITED_FOR: Final = frozenset({Kind.QUOTA, Kind.LIMITS, Kind.POLICY, Kind.CLAIM, Kind.SANDBOX, Kind.POD})


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkKey:
    """What is reconciled as one: a sandbox, a pool, a probe, a backup, a client's namespace, or a template's images."""

    namespace: str = ""
    sandbox: str = ""
    """Empty for the namespace itself."""
    pool: str = ""
    """A pool of the namespace."""
    probe: str = ""
    """A probe of an image in the namespace."""
    backup: str = ""
    """A piece of work on the repository of the namespace's client."""
    template: str = ""
    """Empty for what is in a namespace."""

    @property
    def subject(self) -> str:
        """What it is, for metrics."""
        found = (
            ("template", self.template),
            ("pool", self.pool),
            ("probe", self.probe),
            ("backup", self.backup),
            ("sandbox", self.sandbox),
        )
        return next((subject for subject, name in found if name), "namespace")


class Mirrors:
    """All mirrors of one operator. `run` must run beside them."""

    def __init__(self, api: KubeApi, *, instance: str, namespace: str, wake: Callable[[WorkKey], None]) -> None:
        """Say what is mirrored, sandboxd's own namespace, and who is woken."""
        self._wake = wake
        selector = f"{INSTANCE_LABEL}={instance}"
        self._mirrors = {kind: self._mirror(api, kind, selector) for kind in _OURS}
        own = Kind.DAEMON_SET.within(namespace)
        self._mirrors[Kind.DAEMON_SET] = Reflector(api, own, label_selector=selector, silence=SILENCE)
        for kind in (Kind.TEMPLATE, Kind.STORAGE_CLASS, Kind.NODE, Kind.EVENT):
            fields = "involvedObject.kind=StatefulSet,reason=FailedCreate" if kind is Kind.EVENT else ""
            silence = EVENTS_SILENCE if kind is Kind.EVENT else SILENCE
            self._mirrors[kind] = Reflector(api, kind.everywhere(), field_selector=fields, silence=silence)
        self._written: dict[tuple[Kind, Key], tuple[float, Json]] = {}
        self._ready_nodes: dict[str, bool] = {}
        self._generations: dict[str, int | None] = {}
        self._failed: dict[Key, Json] = {}
        self.pools = PoolIndex()
        for kind, mirror in self._mirrors.items():
            mirror.listen(self._listener(kind))

    @staticmethod
    def _mirror(api: KubeApi, kind: Kind, selector: str) -> Reflector:
        fields = f"type={AGENT_SECRET_TYPE}" if kind is Kind.SECRET else ""
        return Reflector(api, kind.everywhere(), label_selector=selector, field_selector=fields, silence=SILENCE)

    async def run(self) -> None:
        """Mirror until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for kind, mirror in self._mirrors.items():
                tasks.create_task(mirror.run(), name=f"mirror-{kind.value[1]}")

    async def wait_synced(self) -> None:
        """Wait until every kind was listed once."""
        for mirror in self._mirrors.values():
            await mirror.wait_synced()

    def problems(self) -> Mapping[str, bool]:
        """Whether the mirror of each kind is cut off."""
        return {kind.value[1]: mirror.problem is not None for kind, mirror in self._mirrors.items()}

    @property
    def synced(self) -> bool:
        """True once every kind was listed."""
        return all(mirror.synced for mirror in self._mirrors.values())

    def get(self, kind: Kind, namespace: str, name: str) -> Json | None:
        """An object, as it was last seen or written. Not to be changed."""
        key = (namespace, name)
        seen = self._mirrors[kind].get(key)
        written = self._written.get((kind, key))
        if written is None:
            return seen
        at, obj = written
        if seen is not None and _version(seen) < _version(obj):
            return obj
        if seen is None and asyncio.get_running_loop().time() - at < WRITTEN_SECONDS:
            return obj
        del self._written[kind, key]
        return seen

    def remember(self, kind: Kind, obj: Json) -> None:
        """Take note of an object that the API server answered to a write."""
        key = (obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
        self._written[kind, key] = (asyncio.get_running_loop().time(), obj)

    def forget(self, kind: Kind, namespace: str, name: str) -> None:
        """Believe the mirror alone about an object."""
        self._written.pop((kind, (namespace, name)), None)

    def all(self, kind: Kind) -> Iterator[Json]:
        """All objects of a kind, as they were last seen."""
        return iter(self._mirrors[kind])

    def everything(self) -> Iterator[WorkKey]:
        """Everything there is to reconcile."""
        for namespace in self._mirrors[Kind.NAMESPACE]:
            yield WorkKey(namespace=namespace["metadata"]["name"])
        for sandbox in self._mirrors[Kind.SANDBOX]:
            yield WorkKey(namespace=sandbox["metadata"]["namespace"], sandbox=sandbox["metadata"]["name"])
        for pool in self._mirrors[Kind.POOL]:
            yield WorkKey(namespace=pool["metadata"]["namespace"], pool=pool["metadata"]["name"])
        for probe in self._mirrors[Kind.PROBE]:
            yield WorkKey(namespace=probe["metadata"]["namespace"], probe=probe["metadata"]["name"])
        for backup in self._mirrors[Kind.BACKUP]:
            yield WorkKey(namespace=backup["metadata"]["namespace"], backup=backup["metadata"]["name"])
        templates = {one["metadata"]["name"] for one in self._mirrors[Kind.TEMPLATE]}
        for name in templates | {template_of(one) for one in self._mirrors[Kind.DAEMON_SET]} - {""}:
            yield WorkKey(template=name)

    def failure(self, namespace: str, name: str) -> Json | None:
        """The last Event that says why a StatefulSet has no pod."""
        return self._failed.get((namespace, name))

    def node_ready(self, name: str) -> bool:
        """True for a node that answers, and for none."""
        return not name or self._ready_nodes.get(name, False)

    def _listener(self, kind: Kind) -> Callable[[Key, Json | None], None]:
        def changed(key: Key, obj: Json | None) -> None:
            if obj is None:
                self._written.pop((kind, key), None)
            for woken in (
                *self._woken(kind, key, obj),
                *self._pools_of(kind, key, obj),
                *self._probes_of(kind, key),
                *self._backups_of(kind, key),
            ):
                self._wake(woken)

        return changed

    def _woken(self, kind: Kind, key: Key, obj: Json | None) -> Iterator[WorkKey]:
        namespace, name = key
        match kind:
            case Kind.SANDBOX | Kind.STATEFUL_SET:
                yield WorkKey(namespace=namespace, sandbox=name)
            case Kind.POD if obj is not None and template_of(obj):
                yield WorkKey(template=template_of(obj))
            case Kind.POD:
                yield WorkKey(namespace=namespace, sandbox=name.removesuffix("-0"))
            case Kind.DAEMON_SET:
                yield from self._templates_of(name)
            case Kind.SECRET:
                yield WorkKey(namespace=namespace, sandbox=name.removesuffix("-agent"))
            case Kind.CLAIM:
                if found := _CLAIM.fullmatch(name):
                    yield WorkKey(namespace=namespace, sandbox=found[1])
            case Kind.NAMESPACE:
                yield WorkKey(namespace=name)
                yield from self._sandboxes(lambda one: one["metadata"]["namespace"] == name)
            case Kind.QUOTA | Kind.LIMITS | Kind.POLICY:
                yield WorkKey(namespace=namespace)
            case Kind.TEMPLATE:
                yield WorkKey(template=name)
                yield from self._template(name, obj)
            case Kind.NODE:
                yield from self._node(name, obj)
            case Kind.EVENT:
                yield from self._failed_create(obj)
            case Kind.STORAGE_CLASS | Kind.LEASE | Kind.POOL | Kind.PROBE | Kind.BACKUP:
                return
            case Kind.VOLUME | Kind.VOLUME_SNAPSHOT | Kind.SNAPSHOT_CONTENT:
                return  # not mirrored: a cluster may not even know snapshots

    def _pools_of(self, kind: Kind, key: Key, obj: Json | None) -> Iterator[WorkKey]:
        if kind is Kind.POOL:
            yield WorkKey(namespace=key[0], pool=key[1])
        elif kind is Kind.SANDBOX:
            for namespace, pool in self.pools.take(key, obj):
                yield WorkKey(namespace=namespace, pool=pool)

    def _probes_of(self, kind: Kind, key: Key) -> Iterator[WorkKey]:
        namespace, name = key
        if kind is Kind.PROBE or (kind is Kind.POD and name.startswith(PROBE_PREFIX)):
            yield WorkKey(namespace=namespace, probe=name)
        elif kind in (Kind.QUOTA, Kind.LIMITS, Kind.POLICY):  # its namespace may be ready now
            for probe in self._mirrors[Kind.PROBE]:
                if probe["metadata"]["namespace"] == namespace:
                    yield WorkKey(namespace=namespace, probe=probe["metadata"]["name"])

    def _backups_of(self, kind: Kind, key: Key) -> Iterator[WorkKey]:
        """Its own changes, its pods', and whatever it may have waited for in its namespace."""
        namespace, name = key
        if kind is Kind.BACKUP:
            yield WorkKey(namespace=namespace, backup=name)
        elif kind is Kind.POD and name.startswith(BACKUP_PREFIX):
            yield WorkKey(namespace=namespace, backup=name.rpartition("-")[0])
        elif kind in _WAITED_FOR:
            for backup in self._mirrors[Kind.BACKUP]:
                state = backup.get("status", {}).get("state", "")
                if backup["metadata"]["namespace"] == namespace and state in _BEGIN:
                    yield WorkKey(namespace=namespace, backup=backup["metadata"]["name"])

    def _template(self, name: str, template: Json | None) -> Iterator[WorkKey]:
        """Sandboxes of a template: what it says of its images is nothing to them."""
        generation = None if template is None else int(template["metadata"].get("generation", 0))
        if generation is not None and self._generations.get(name) == generation:
            return
        self._generations[name] = generation
        yield from self._sandboxes(lambda one: one["spec"].get("template") == name)

    def _templates_of(self, daemon_set: str) -> Iterator[WorkKey]:
        """Also one that is gone wakes its template, to be made again."""
        for one in self._mirrors[Kind.TEMPLATE]:
            if images_name(one["metadata"]["name"]) == daemon_set:
                yield WorkKey(template=one["metadata"]["name"])

    def _sandboxes(self, matches: Callable[[Json], bool]) -> Iterator[WorkKey]:
        for one in self._mirrors[Kind.SANDBOX]:
            if matches(one):
                yield WorkKey(namespace=one["metadata"]["namespace"], sandbox=one["metadata"]["name"])

    def _node(self, name: str, node: Json | None) -> Iterator[WorkKey]:
        conditions = [] if node is None else node.get("status", {}).get("conditions", [])
        ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
        if self._ready_nodes.get(name) == ready:
            return
        self._ready_nodes[name] = ready
        yield from self._sandboxes(lambda one: one.get("status", {}).get("node") == name)

    def _failed_create(self, event: Json | None) -> Iterator[WorkKey]:
        if event is None:
            return
        about = event["involvedObject"]
        key = (about.get("namespace", ""), about.get("name", ""))
        if self._mirrors[Kind.SANDBOX].get(key) is not None:
            self._failed[key] = event
            yield WorkKey(namespace=key[0], sandbox=key[1])


def pod_name(sandbox: str) -> str:
    """Name of a sandbox's pod."""
    return pod_of(SandboxId(sandbox))


def _version(obj: Mapping[str, Any]) -> int:  # Any: JSON
    """A resource version as a number: since Kubernetes 1.35 they may be compared; before, they were numbers, too."""
    text = str(obj["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdigit() else 0
