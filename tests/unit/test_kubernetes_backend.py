"""The Kubernetes backend on a cluster in memory: what it writes, what it says when things fail, what it never does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest

from sandboxd.backends.kubernetes.backend import KubernetesBackend
from sandboxd.backends.kubernetes.objects import FILES_ANNOTATION, Installation
from sandboxd.backends.kubernetes.placed import quantities
from sandboxd.backends.kubernetes.pod_place import POD_PLACE
from sandboxd.backends.kubernetes.refusals import (
    CapacityError,
    ClusterUnavailableError,
    PlacementError,
    SupersededError,
)
from sandboxd.backends.kubernetes.watch_of_start import WatchOfStart
from sandboxd.kubeapi.errors import KubeError, KubeForbiddenError, KubeUnavailableError
from sandboxd.manager.backend_port import FilesSize, SandboxSpec
from sandboxd.model.cluster import KEPT_LABEL, Mode, claims_of, pod_of
from sandboxd.model.cluster_status import Reason
from sandboxd.model.errors import DeadlineError, ErrorKind
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId, make_id
from sandboxd.model.sandbox import TIER_RESOURCES, Tier
from sandboxd.model.startup import StartPath, StartStepName
from tests.eventually import eventually
from tests.fakes.agent import FakeAgentConnector
from tests.fakes.cluster_operator import FakeOperator
from tests.fakes.kube import FakeKube

SOON = timedelta(seconds=10)
SHORT = timedelta(seconds=0.3)
_numbers = count(1)


class LoopClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


@dataclass(kw_only=True)
class World:
    kube: FakeKube
    operator: FakeOperator
    connector: FakeAgentConnector
    backend: KubernetesBackend

    def resource(self, sandbox: SandboxId) -> dict[str, object]:
        (found,) = [obj for obj in self.kube.all("sandboxes") if obj["metadata"]["name"] == sandbox]
        spec: dict[str, object] = found["spec"]
        return spec

    def gpus(self, sandbox: SandboxId) -> object:
        resources = self.resource(sandbox)["resources"]
        assert isinstance(resources, dict)
        return resources.get("gpu")


def make_backend(kube: FakeKube, connector: FakeAgentConnector, *, premium_gpus: int = 0) -> KubernetesBackend:
    return KubernetesBackend(
        api=kube,
        installation=Installation(
            instance="test", namespace_prefix="client-", template="default", premium_gpus=premium_gpus
        ),
        place=POD_PLACE,
        connector=connector,
        clock=LoopClock(),
    )


@pytest.fixture
async def world() -> AsyncIterator[World]:
    kube, connector = FakeKube(), FakeAgentConnector()
    backend = make_backend(kube, connector)
    async with FakeOperator(kube, connector).running() as operator:
        following = asyncio.create_task(backend.run())
        yield World(kube=kube, operator=operator, connector=connector, backend=backend)
        following.cancel()


def an_incarnation() -> IncarnationId:
    return IncarnationId(make_id("inc", at=datetime.now(UTC), entropy=next(_numbers).to_bytes(10, "big")))


def a_spec(*, client: str = "acme") -> SandboxSpec:
    sandbox = SandboxId(make_id("sbx", at=datetime.now(UTC), entropy=next(_numbers).to_bytes(10, "big")))
    return SandboxSpec(
        sandbox=sandbox,
        client=ClientId(client),
        freelancer=FreelancerId("ada"),
        resources=TIER_RESOURCES[Tier.STANDARD],
        tier=Tier.STANDARD,
    )


async def test_what_is_written_says_whose_it_is_how_large_and_which_life(world: World) -> None:
    spec, incarnation = a_spec(client="Acme.Inc"), an_incarnation()

    await world.backend.start(spec, incarnation, timeout=SOON)

    (obj,) = world.kube.all("sandboxes")
    assert obj["spec"] | {"client": "Acme.Inc", "freelancer": "ada", "incarnation": incarnation} == obj["spec"]
    assert (obj["spec"]["tier"], obj["spec"]["mode"], obj["spec"]["template"]) == ("standard", "Running", "default")
    assert obj["spec"]["resources"] == {
        "cpu": "2",
        "memory": "4G",
        "home": "10G",
        "workspace": "40G",
        "ephemeralStorage": "50G",
    }
    (namespace,) = world.kube.all("namespaces")
    assert obj["metadata"]["namespace"] == namespace["metadata"]["name"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "baseline"


async def test_only_the_tier_premium_has_gpus_also_after_a_change_of_tier(world: World) -> None:
    backend = make_backend(world.kube, world.connector, premium_gpus=2)
    spec, incarnation = a_spec(), an_incarnation()
    premium = replace(spec, tier=Tier.PREMIUM, resources=TIER_RESOURCES[Tier.PREMIUM])
    following = asyncio.create_task(backend.run())

    await backend.start(spec, incarnation, timeout=SOON)
    seen = [world.gpus(spec.sandbox)]
    for changed in (premium, spec):
        await backend.resize(changed, incarnation, timeout=SOON)
        seen.append(world.gpus(spec.sandbox))
    following.cancel()

    assert seen == [None, 2, None]


async def test_a_sandbox_that_comes_up_costs_two_requests_and_one_watch_serves_all(world: World) -> None:
    await world.backend.start(a_spec(), an_incarnation(), timeout=SOON)
    world.kube.requests.clear()

    for _ in range(3):
        await world.backend.start(a_spec(), an_incarnation(), timeout=SOON)

    methods = [method for method, path in world.kube.requests if "events" not in path]
    assert methods == ["POST"] * 3
    assert len([path for _, path in world.kube.requests if "events" in path]) <= 3


async def test_a_cut_watch_is_resumed_and_nothing_that_happened_meanwhile_is_missed(world: World) -> None:
    spec = a_spec()
    starting = asyncio.create_task(world.backend.start(spec, an_incarnation(), timeout=SOON))
    await world.kube.cut_watches()

    await starting

    assert [one.sandbox for one in await world.backend.list()] == [spec.sandbox]


@pytest.mark.parametrize(
    ("trouble", "kind", "words"),
    [
        (Reason.QUOTA_EXCEEDED, ErrorKind.EXHAUSTED, "quota"),
        (Reason.NAMESPACE_FOREIGN, ErrorKind.UNAVAILABLE, "belongs to somebody else"),
    ],
)
async def test_what_waiting_does_not_help_is_told_at_once(
    world: World, trouble: Reason, kind: ErrorKind, words: str
) -> None:
    world.operator.trouble = (trouble, "as the cluster said")

    with pytest.raises((CapacityError, PlacementError)) as refused:
        await world.backend.start(a_spec(), an_incarnation(), timeout=SOON)

    assert refused.value.kind is kind
    assert words in refused.value.message
    assert "as the cluster said" in refused.value.message
    assert refused.value.retry_after is not None
    assert refused.value.metadata["cause"] == trouble.value


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (Reason.IMAGE_MISSING, "cannot be pulled: its registry has none such. Look at the images of template default"),
        (Reason.IMAGE_BROKEN, "cannot be unpacked"),
        (Reason.REGISTRY_UNAVAILABLE, "pull secrets of template default in namespace client-acme"),
        (Reason.UNSCHEDULABLE, "add nodes"),
        (Reason.VOLUME_PENDING, "storage class"),
        (Reason.TEMPLATE_MISSING, "no SandboxTemplate default"),
    ],
)
async def test_what_may_pass_is_waited_for_and_then_told_with_what_to_look_at(
    world: World, trouble: Reason, words: str
) -> None:
    world.operator.trouble = (trouble, "")

    with pytest.raises((CapacityError, PlacementError, DeadlineError)) as refused:
        await world.backend.start(a_spec(), an_incarnation(), timeout=SHORT)

    assert words in refused.value.message


async def test_trouble_that_passes_lets_the_start_go_on(world: World) -> None:
    world.operator.trouble = (Reason.UNSCHEDULABLE, "0/1 nodes")
    spec, incarnation = a_spec(), an_incarnation()
    starting = asyncio.create_task(world.backend.start(spec, incarnation, timeout=SOON))
    await eventually(lambda: bool(world.kube.all("sandboxes")))

    world.operator.trouble = None
    await world.operator.come_back()

    assert incarnation in (await starting).server_name


async def test_an_operator_that_is_down_is_named(world: World) -> None:
    world.operator.down = True

    with pytest.raises(DeadlineError, match="`sandboxd operator` of instance test"):
        await world.backend.start(a_spec(), an_incarnation(), timeout=SHORT)


async def test_an_agent_that_never_answers_is_told_with_its_address(world: World) -> None:
    world.operator.mute = True

    with pytest.raises(DeadlineError, match=r"at 127.0.0.1:\d+ does not answer"):
        await world.backend.start(a_spec(), an_incarnation(), timeout=SHORT)


async def test_an_api_server_that_is_away_is_unavailable_and_nothing_is_lost(world: World) -> None:
    spec, incarnation = a_spec(), an_incarnation()
    await world.backend.start(spec, incarnation, timeout=SOON)
    world.kube.away = KubeUnavailableError("connection refused")

    for asking in (
        world.backend.observe(spec.sandbox),
        world.backend.stop(spec.sandbox, incarnation, grace=SHORT, timeout=SHORT),
        world.backend.remove(spec.sandbox, timeout=SHORT),
        world.backend.start(a_spec(), an_incarnation(), timeout=SHORT),
    ):
        with pytest.raises(ClusterUnavailableError) as refused:
            await asking
        assert refused.value.kind is ErrorKind.UNAVAILABLE

    world.kube.away = None
    assert [life.incarnation for life in (await world.backend.observe(spec.sandbox)).running] == [incarnation]


async def test_where_the_cli_is_needs_no_api_server(world: World) -> None:
    """A service that has just started knows the sandbox from its row, and nothing of the cluster yet."""
    world.kube.away = KubeUnavailableError("connection refused")

    assert await world.backend.place(a_spec().sandbox, an_incarnation()) is POD_PLACE


async def test_a_short_absence_of_the_api_server_does_not_fail_a_start(world: World) -> None:
    failures = iter([KubeUnavailableError("away")])
    world.kube.refuse = lambda method, _: next(failures, None) if method == "POST" else None

    await world.backend.start(a_spec(), an_incarnation(), timeout=SOON)


async def test_a_quota_that_the_api_server_itself_names_is_exhausted(world: World) -> None:
    error: KubeError = KubeForbiddenError("exceeded quota: sandboxd, requested: count/sandboxes=1", status=403)
    world.kube.refuse = lambda method, _: error if method == "POST" else None

    with pytest.raises(CapacityError) as refused:
        await world.backend.start(a_spec(), an_incarnation(), timeout=SOON)

    assert refused.value.retry_after is not None


async def test_of_two_services_that_start_different_lives_the_one_that_saw_less_is_refused(world: World) -> None:
    spec, first, second = a_spec(), an_incarnation(), an_incarnation()
    await world.backend.start(spec, first, timeout=SOON)
    stalled = await world.backend._objects.search(spec.sandbox)
    assert stalled is not None
    await world.backend.start(spec, second, timeout=SOON)

    with pytest.raises(Exception, match="test failed"):
        await world.backend._objects.change(stalled, {"incarnation": "inc-late"})

    assert world.resource(spec.sandbox)["incarnation"] == second


async def test_a_start_that_somebody_else_overtakes_ends_and_says_so(world: World) -> None:
    spec, first, second = a_spec(), an_incarnation(), an_incarnation()
    world.operator.trouble = (Reason.VOLUME_PENDING, "")
    starting = asyncio.create_task(world.backend.start(spec, first, timeout=SOON))
    await eventually(lambda: bool(world.kube.all("sandboxes")))
    world.operator.trouble = None

    placed = await world.backend._objects.search(spec.sandbox)
    assert placed is not None
    await world.backend._objects.change(placed, {"incarnation": second})

    with pytest.raises(SupersededError):
        await starting


async def test_with_the_operator_down_a_dead_pod_is_still_seen_as_dead(world: World) -> None:
    spec, incarnation = a_spec(), an_incarnation()
    await world.backend.start(spec, incarnation, timeout=SOON)
    world.operator.down = True

    await world.kube.drop("pods", "client-acme", pod_of(spec.sandbox))

    observation = await world.backend.observe(spec.sandbox)
    assert (observation.present, list(observation.running)) == (True, [])


async def test_removing_keeps_both_claims_and_erasing_destroys_them(world: World) -> None:
    spec = a_spec()
    await world.backend.start(spec, an_incarnation(), timeout=SOON)

    kept = await world.backend.remove(spec.sandbox, timeout=SOON)

    assert all(claim in kept for claim in claims_of(spec.sandbox).values())
    claims = world.kube.all("persistentvolumeclaims")
    assert [claim["metadata"]["labels"][KEPT_LABEL] for claim in claims] == ["true", "true"]

    await world.backend.erase(spec.sandbox, timeout=SOON)

    assert world.kube.all("persistentvolumeclaims") == []
    assert await world.backend.remove(spec.sandbox, timeout=SOON) == ""


async def test_erasing_refuses_to_claim_what_a_retained_volume_would_keep(world: World) -> None:
    spec = a_spec()
    await world.backend.start(spec, an_incarnation(), timeout=SOON)
    volume = f"pv-{claims_of(spec.sandbox)['home']}"
    await world.kube.put(
        "persistentvolumes", {"metadata": {"name": volume}, "spec": {"persistentVolumeReclaimPolicy": "Retain"}}
    )
    await world.backend.remove(spec.sandbox, timeout=SOON)

    with pytest.raises(PlacementError, match="reclaim policy is Retain"):
        await world.backend.erase(spec.sandbox, timeout=SOON)

    assert len(world.kube.all("persistentvolumeclaims")) == 2


async def test_files_are_counted_by_the_agent_and_remembered_when_it_is_stopped(world: World) -> None:
    spec, incarnation = a_spec(), an_incarnation()
    await world.backend.start(spec, incarnation, timeout=SOON)
    (home,) = [claim for claim in world.kube.all("persistentvolumeclaims") if "home" in claim["metadata"]["name"]]
    home["metadata"]["annotations"] = {FILES_ANNOTATION: "3,4096"}
    await world.kube.put("persistentvolumeclaims", home)

    await world.backend.remove(spec.sandbox, timeout=SOON)

    assert await world.backend.measure(spec.sandbox, timeout=SOON) == FilesSize(files=3, size_bytes=4096)
    assert await world.backend.measure(a_spec().sandbox, timeout=SOON) == FilesSize()


async def test_a_stopped_sandbox_is_stopped_in_its_resource_and_starts_again_in_the_same_place(world: World) -> None:
    spec, first, second = a_spec(), an_incarnation(), an_incarnation()
    await world.backend.start(spec, first, timeout=SOON)

    await world.backend.stop(spec.sandbox, first, grace=SHORT, timeout=SOON)

    assert world.resource(spec.sandbox)["mode"] == Mode.STOPPED.value
    assert world.kube.all("pods") == []
    await world.backend.start(spec, second, timeout=SOON)
    assert [world.resource(spec.sandbox)[name] for name in ("mode", "incarnation")] == ["Running", second]


async def test_a_report_tells_the_path_and_the_time_of_each_step(world: World) -> None:
    incarnation = an_incarnation()

    await world.backend.start(a_spec(), incarnation, timeout=SOON)

    report = world.backend.startup(incarnation)
    assert report is not None
    assert report.path is StartPath.LOCAL
    assert {step.name for step in report.steps} <= set(StartStepName)
    assert world.backend.startup(an_incarnation()) is None


def test_a_pull_is_read_from_what_the_kubelet_says() -> None:
    watch = WatchOfStart(began=0.0)
    watch.scheduled, watch.started = 0.1, 3.0

    watch.read(['Successfully pulled image "a" in 1m2.5s (1m2.5s including waiting). Image size: 5 bytes.'])
    watch.read(['Container image "b" already present on machine', 'Successfully pulled image "c" in 250ms (…)'])

    report = watch.report(answered=3.2)
    assert report.path is StartPath.PULL
    assert {step.name: step.duration for step in report.steps}[StartStepName.PULL] == timedelta(seconds=62.75)


def test_a_fifth_of_the_storage_is_home() -> None:
    made = quantities(TIER_RESOURCES[Tier.BASIC])

    assert (made.cpu, made.memory, made.home, made.workspace) == ("1", "2G", "2G", "8G")
