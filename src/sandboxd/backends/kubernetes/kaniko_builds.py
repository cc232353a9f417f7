"""Runs builds by kaniko as Jobs, in a namespace where nothing else is.

Nothing of a client's is there and no pod of it is reached by a freelancer, so the account that pushes can be: what runs
in such a pod is kaniko and the program that applies a difference, and never anything out of that. Whatever happens to
this service, a build ends: its Job has a deadline, and the cluster removes it some minutes after its end.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import structlog
from typing_extensions import override

from sandboxd.backends.kubernetes.refusals import RETRY_SOON, PlacementError, translated
from sandboxd.images.kaniko import CONTEXT, KanikoBuilds, KanikoOrder
from sandboxd.kubeapi.client import segment
from sandboxd.kubeapi.errors import KubeConflictError, KubeError, KubeNotFoundError
from sandboxd.kubeapi.ports import Json, KubeApi
from sandboxd.model.cluster import INSTANCE_LABEL, SERVE_MANAGER
from sandboxd.model.errors import DeadlineError, SandboxdError
from sandboxd.model.legible import legible

BUILD_LABEL: Final = "sandboxd.dev/image-build"
"""On a Job and its pod, with the Job's name."""
AGENT_ROOT: Final = "/kaniko/agent"
"""Where a build has the agent's file system, for its interpreter: kaniko takes nothing below /kaniko into an image."""
DOCKER_CONFIG: Final = "/kaniko/.docker"
EXECUTOR: Final = "/kaniko/executor"
OUTPUTS: Final = "/kaniko/outputs"
"""Kaniko writes what it has pushed to `images` below `BUILDER_OUTPUT`, after the push. Its `--digest-file` is written
before that, and would hide its last words where the push fails."""
CAPABILITIES: Final = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETFCAP", "SETGID", "SETUID")
"""What it takes to unpack an image and to give its files away; within the pod's own user namespace."""
_DIGEST: Final = re.compile(r'"digest":"(sha256:[0-9a-f]{64})"')
KEPT_SECONDS: Final = 600
"""How long the cluster keeps a Job after its end that nobody has removed."""
LOOK_SECONDS: Final = 0.5
"""Between two looks at a build, which takes some seconds at least."""
REMOVAL_TIMEOUT: Final = timedelta(seconds=15)
IMAGE_PATIENCE: Final = timedelta(seconds=20)
"""How long a container may not come about: a pull is tried again after 10 s."""
POD_PATIENCE: Final = timedelta(seconds=60)
"""The same for a pod that has no node, or that is not made at all."""
MESSAGE_CHARACTERS: Final = 600
_CONTAINER: Final = "Container"
_ROOM_BYTES: Final = 20 << 30
"""Of the base as kaniko unpacks it."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlace:
    """Where builds run, and with what."""

    namespace: str
    instance: str
    """Ours in the cluster."""
    image: str
    """Has kaniko's executor."""
    agent_image: str
    """The agent's, for its interpreter."""
    secret: str = ""
    """Of the namespace, of the type `kubernetes.io/dockerconfigjson`: who pulls and pushes; nobody if empty."""
    registry: str
    """As pods reach it, host and port."""
    plain: bool = False
    """It speaks HTTP."""
    authority: bool = False
    """The Secret has `ca.crt`, which vouches for the registry."""
    host_users: bool = False
    """Without a user namespace, for clusters that have none."""
    zstd: bool = True
    architecture: str = "amd64"


class KubernetesKanikoBuilds(KanikoBuilds):
    """Makes one Job for each build."""

    def __init__(
        self,
        api: KubeApi,
        *,
        place: BuildPlace,
        image_patience: timedelta = IMAGE_PATIENCE,
        pod_patience: timedelta = POD_PATIENCE,
    ) -> None:
        self._api = api
        self._place = place
        self._patience = {True: image_patience.total_seconds(), False: pod_patience.total_seconds()}
        self._jobs = f"/apis/batch/v1/namespaces/{segment(place.namespace)}/jobs"
        self._pods = f"/api/v1/namespaces/{segment(place.namespace)}/pods"

    @override
    async def run(self, order: KanikoOrder, *, timeout: timedelta) -> str:
        name = job_name(order)
        scope = asyncio.timeout(timeout.total_seconds())
        try:
            async with scope:
                done = False
                try:  # also where it is not known whether there is a Job by now
                    await self._create(name, build_job(name, order, self._place, timeout=timeout))
                    digest = await self._follow(name, order)
                    done = True
                    return digest
                finally:
                    await self._remove(name, wait=not done)
        except KubeError as error:
            raise translated(
                error, f"The image of sandbox {order.sandbox} cannot be built", sandbox=order.sandbox
            ) from (error)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise DeadlineError(
                f"The build of the image of sandbox {order.sandbox} did not end within "
                f"{timeout.total_seconds():.0f} s. Try again.",
                sandbox=order.sandbox,
            ) from error

    async def _create(self, name: str, job: Json) -> None:
        """Make the Job; one that somebody has left goes first, so that it cannot push after this one."""
        try:
            await self._api.create(self._jobs, job, field_manager=SERVE_MANAGER)
        except KubeConflictError:
            await self._delete(name)
            while not await self._gone(name):
                await asyncio.sleep(LOOK_SECONDS)
            await self._api.create(self._jobs, job, field_manager=SERVE_MANAGER)

    async def _delete(self, name: str) -> None:
        with suppress(KubeNotFoundError):
            await self._api.delete(f"{self._jobs}/{segment(name)}", propagation="Foreground", timeout=REMOVAL_TIMEOUT)

    async def _gone(self, name: str) -> bool:
        try:
            await self._api.get(f"{self._jobs}/{segment(name)}")
        except KubeNotFoundError:
            return not await self._pods_of(name)
        return False

    async def _pods_of(self, name: str) -> list[Json]:
        found = await self._api.get(self._pods, query={"labelSelector": f"{BUILD_LABEL}={name}"})
        return list(found.get("items") or ())

    async def _remove(self, name: str, *, wait: bool) -> None:
        """Also when this was cancelled; what is left then ends by its deadline."""

        async def remove() -> None:
            try:
                async with asyncio.timeout(REMOVAL_TIMEOUT.total_seconds()):
                    await self._delete(name)
                    while wait and not await self._gone(name):
                        await asyncio.sleep(LOOK_SECONDS)
            except (KubeError, TimeoutError) as error:
                log.warning("image.build_left", job=name, error=str(error) or type(error).__name__)

        removing = asyncio.ensure_future(remove())
        try:
            await asyncio.shield(removing)
        except asyncio.CancelledError:
            with suppress(asyncio.CancelledError):
                await asyncio.wait({removing}, timeout=REMOVAL_TIMEOUT.total_seconds())
            raise

    async def _follow(self, name: str, order: KanikoOrder) -> str:
        trouble, since = "", time.monotonic()
        while True:
            pods = await self._pods_of(name)
            seen = _Seen.of(pods)
            if seen.digest:
                return seen.digest
            if seen.failed:
                raise self._failed(order, f"The build failed. {seen.failed}")
            if not pods and await self._gone(name):
                raise self._failed(order, "Somebody has removed the build.")
            now = time.monotonic()
            if seen.trouble != trouble:
                trouble, since = seen.trouble, now
            if trouble and now - since > self._patience[trouble == _CONTAINER]:
                raise self._failed(order, f"The build does not start. {seen.words}")
            await asyncio.sleep(LOOK_SECONDS)

    def _failed(self, order: KanikoOrder, what: str) -> SandboxdError:
        return PlacementError(
            f"The image of sandbox {order.sandbox} was not built. {what} "
            f"(kubectl get events -n {self._place.namespace})",
            retry_after=RETRY_SOON,
            sandbox=order.sandbox,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What the pods of a build say."""

    digest: str = ""
    """Of the manifest that it has pushed."""
    failed: str = ""
    """Why it has ended without one."""
    trouble: str = ""
    """A word for what keeps it from running; empty while it runs, or may."""
    words: str = ""

    @classmethod
    def of(cls, pods: list[Json]) -> _Seen:
        if not pods:
            return cls(trouble="NoPod", words="The cluster makes no pod of it: a quota, or its admission.")
        pod = max(pods, key=lambda one: str(one["metadata"].get("creationTimestamp", "")))
        status = pod.get("status") or {}
        states = [one.get("state") or {} for one in status.get("containerStatuses") or ()]
        ended = [one["terminated"] for one in states if "terminated" in one]
        said = " ".join(str(one.get("message", "")) for one in ended).strip()
        if status.get("phase") == "Succeeded":
            pushed = _DIGEST.search(said)
            return cls(digest=pushed[1]) if pushed else cls(failed=f"It names no image: {_short(said)}")
        if status.get("phase") == "Failed":
            reason = str(status.get("reason") or "".join(str(one.get("reason", "")) for one in ended))
            return cls(failed=_short(f"{reason}: {said or status.get('message', '')}"))
        waiting = [one["waiting"] for one in states if "waiting" in one]
        for one in waiting:
            reason = str(one.get("reason", ""))
            if reason not in {"", "ContainerCreating", "PodInitializing"}:
                return cls(trouble=_CONTAINER, words=_short(f"{reason}: {one.get('message', '')}"))
        for condition in status.get("conditions") or ():
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                return cls(trouble="Unscheduled", words=_short(str(condition.get("message", ""))))
        return cls()


def job_name(order: KanikoOrder) -> str:
    """One for each sandbox and generation, so that two services cannot build the same one beside each other."""
    digest = hashlib.sha256(f"{order.sandbox}/{order.generation}".encode()).hexdigest()
    return f"image-{digest[:20]}"


def build_job(name: str, order: KanikoOrder, place: BuildPlace, *, timeout: timedelta) -> Json:
    """The Job of a build."""
    labels = {BUILD_LABEL: name}  # of the pod, too; not the instance's, by which the operator watches its own
    seconds = max(1, round(timeout.total_seconds()))
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": place.namespace, "labels": {**labels, INSTANCE_LABEL: place.instance}},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": seconds,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "template": {"metadata": {"labels": labels}, "spec": _pod(order, place)},
        },
    }


def _pod(order: KanikoOrder, place: BuildPlace) -> Json:
    volumes = [
        {"name": "difference", "image": {"reference": str(order.handover), "pullPolicy": "IfNotPresent"}},
        {"name": "agent", "image": {"reference": place.agent_image, "pullPolicy": "IfNotPresent"}},
    ]
    mounts = [
        {"name": "difference", "mountPath": CONTEXT, "readOnly": True},
        {"name": "agent", "mountPath": AGENT_ROOT, "readOnly": True},
    ]
    spec: Json = {}
    if place.secret:
        items = [{"key": ".dockerconfigjson", "path": "config.json"}, {"key": "ca.crt", "path": "ca.crt"}]
        secret = {"secretName": place.secret, "optional": True, "defaultMode": 0o400, "items": items}
        volumes.append({"name": "account", "secret": secret})
        mounts.append({"name": "account", "mountPath": DOCKER_CONFIG, "readOnly": True})
        spec["imagePullSecrets"] = [{"name": place.secret}]
    room = str(_ROOM_BYTES + 3 * order.raw_bytes)
    container = {
        "name": "kaniko",
        "image": place.image,
        "imagePullPolicy": "IfNotPresent",
        "command": [EXECUTOR],
        "args": list(arguments(order, place)),
        "resources": {
            "requests": {"cpu": "100m", "memory": "256M", "ephemeral-storage": "1G"},
            # kaniko took 73 MiB and the applier 17, whatever the difference (docs/adr/0050).
            "limits": {"cpu": "2", "memory": "1Gi", "ephemeral-storage": room},
        },
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "capabilities": {"drop": ["ALL"], "add": list(CAPABILITIES)},
        },
        "env": [{"name": "BUILDER_OUTPUT", "value": OUTPUTS}],
        # Read back from the pod's status, as its last words are: nobody needs rights on logs.
        "terminationMessagePath": f"{OUTPUTS}/images",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    return spec | {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostUsers": place.host_users,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "nodeSelector": {"kubernetes.io/arch": place.architecture},
        "containers": [container],
        "volumes": volumes,
    }


def arguments(order: KanikoOrder, place: BuildPlace) -> tuple[str, ...]:
    """What kaniko is told. Its snapshots compare contents: a file may be rewritten with its size and time kept."""
    said = [
        f"--context=dir://{CONTEXT}",
        f"--dockerfile={CONTEXT}/Dockerfile",
        f"--destination={place.registry}/{order.repository}:{order.tag}",
        f"--custom-platform=linux/{place.architecture}",
        f"--compression={'zstd' if place.zstd else 'gzip'}",
        "--snapshot-mode=full",
        "--compressed-caching=false",
        "--ignore-var-run=false",
        "--skip-push-permission-check",
        "--image-download-retry=3",
        "--push-retry=3",
        "--force",  # without a service account's token it does not see that it is in a container
        "--log-format=text",
        "--log-timestamp=false",
    ]
    said += [f"--label={key}={value}" for key, value in sorted(order.labels.items())]
    if place.plain:
        said += ["--insecure", "--insecure-pull"]
    if place.authority:
        said.append(f"--registry-certificate={place.registry}={DOCKER_CONFIG}/ca.crt")
    return tuple(said)


def _short(text: str) -> str:
    return legible(text, limit=MESSAGE_CHARACTERS)
