"""What every backend promises: held by the fake, by real agents on this machine, and by a cluster."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Protocol

import psutil
import pytest

from sandboxd.agent.client import GrpcAgentConnector
from sandboxd.backends.certificates import CertificateAuthority
from sandboxd.backends.kubernetes.backend import KubernetesBackend
from sandboxd.backends.kubernetes.objects import Installation
from sandboxd.backends.kubernetes.pod_place import POD_PLACE
from sandboxd.backends.local.backend import CliFiles, LocalBackend
from sandboxd.backends.local.launching import NICENESS, Launcher
from sandboxd.backends.local.layout import Layout
from sandboxd.backends.local.processes import AgentProcess, find_agents
from sandboxd.manager.backend_port import Backend, SandboxSpec
from sandboxd.model.cluster import pod_of
from sandboxd.model.errors import AgentUnavailableError, UnavailableError
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId, make_id
from sandboxd.model.processes import ProcessId, ProcessSpec
from sandboxd.model.sandbox import TIER_RESOURCES, AgentEndpoint, Tier
from sandboxd.stream.agent_port import AgentConnector
from tests.eventually import eventually
from tests.fakes.agent import FakeAgentConnector
from tests.fakes.cluster_operator import FakeOperator
from tests.fakes.kube import FakeKube
from tests.fakes.manager import FakeBackend
from tests.installation import ClusterInstallation

TIMEOUT = timedelta(seconds=20)
GRACE = timedelta(seconds=2)
_numbers = count(1)


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


class BackendWorld(Protocol):
    @property
    def backend(self) -> Backend: ...

    @property
    def connector(self) -> AgentConnector: ...

    def kill_agent(self, sandbox: SandboxId, incarnation: IncarnationId) -> None:
        """The agent dies at once."""


@dataclass(kw_only=True)
class FakeWorld:
    backend: FakeBackend
    connector: AgentConnector

    def kill_agent(self, sandbox: SandboxId, incarnation: IncarnationId) -> None:
        self.backend.kill(sandbox, incarnation)


@dataclass(kw_only=True)
class LocalWorld:
    backend: LocalBackend
    connector: AgentConnector
    layout: Layout
    authority: CertificateAuthority

    def agents(self) -> list[AgentProcess]:
        return find_agents(self.layout)

    def kill_agent(self, sandbox: SandboxId, incarnation: IncarnationId) -> None:
        for agent in self.agents():
            if (agent.sandbox, agent.incarnation) == (sandbox, incarnation):
                os.kill(agent.pid, signal.SIGKILL)

    def another_service(self) -> LocalBackend:
        """As another process on the same directory would have it."""
        return _backend(self.layout.data)[0]


def _backend(data: Path) -> tuple[LocalBackend, AgentConnector, CertificateAuthority]:
    clock = SystemClock()
    authority = CertificateAuthority.open(data / "pki", clock=clock)
    service = authority.issue_service()
    connector = GrpcAgentConnector(
        certificate=service.certificate, key=service.key, agent_authority=authority.certificate
    )
    backend = LocalBackend(
        data=data,
        cli=CliFiles(node=Path("/opt/node/bin/node"), entry=Path("/opt/gemini.js")),
        launcher=Launcher(authority=authority, connector=connector, clock=clock),
        connector=connector,
        clock=clock,
    )
    return backend, connector, authority


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalWorld]:
    backend, connector, authority = _backend(tmp_path)
    world = LocalWorld(
        backend=backend, connector=connector, layout=Layout(data=tmp_path.absolute()), authority=authority
    )
    yield world
    for observation in await backend.list():
        await backend.remove(observation.sandbox, timeout=TIMEOUT)
    assert world.agents() == []


@dataclass(kw_only=True)
class MemoryClusterWorld:
    """The Kubernetes backend on a cluster in memory."""

    backend: KubernetesBackend
    connector: AgentConnector
    operator: FakeOperator

    def kill_agent(self, sandbox: SandboxId, incarnation: IncarnationId) -> None:
        self.operator.kill(sandbox)


@pytest.fixture
async def memory_cluster() -> AsyncIterator[MemoryClusterWorld]:
    kube, connector = FakeKube(), FakeAgentConnector()
    backend = KubernetesBackend(
        api=kube,
        installation=Installation(instance="test", namespace_prefix="client-", template="default"),
        place=POD_PLACE,
        connector=connector,
        clock=SystemClock(),
    )
    async with FakeOperator(kube, connector).running() as operator:
        following = asyncio.create_task(backend.run())
        yield MemoryClusterWorld(backend=backend, connector=connector, operator=operator)
        following.cancel()


@dataclass(kw_only=True)
class ClusterWorld:
    """The Kubernetes backend on a real cluster, with the real operator and real pods."""

    backend: KubernetesBackend
    connector: AgentConnector
    installation: ClusterInstallation

    def kill_agent(self, sandbox: SandboxId, incarnation: IncarnationId) -> None:
        place = ("-n", f"{self.installation.instance}-acme", pod_of(sandbox))
        self.installation.kubectl("delete", "pod", *place, "--grace-period=0", "--force", "--wait=false")


@pytest.fixture
async def on_a_cluster(cluster_installation: ClusterInstallation) -> AsyncIterator[ClusterWorld]:
    async with cluster_installation.client() as api:
        backend, connector = cluster_installation.backend(api)
        following = asyncio.create_task(backend.run())
        yield ClusterWorld(backend=backend, connector=connector, installation=cluster_installation)
        for observation in await backend.list():
            await backend.erase(observation.sandbox, timeout=TIMEOUT)
        following.cancel()


@pytest.fixture(params=["fake", "local", "memory_cluster", pytest.param("on_a_cluster", marks=pytest.mark.cluster)])
def world(request: pytest.FixtureRequest) -> BackendWorld:
    if request.param != "fake":
        made: BackendWorld = request.getfixturevalue(request.param)
        return made
    fake = FakeBackend()
    return FakeWorld(backend=fake, connector=fake.connector)


def an_incarnation() -> IncarnationId:
    return IncarnationId(make_id("inc", at=datetime.now(UTC), entropy=next(_numbers).to_bytes(10, "big")))


def a_spec() -> SandboxSpec:
    sandbox = SandboxId(make_id("sbx", at=datetime.now(UTC), entropy=next(_numbers).to_bytes(10, "big")))
    return SandboxSpec(
        sandbox=sandbox,
        client=ClientId("acme"),
        freelancer=FreelancerId("ada"),
        resources=TIER_RESOURCES[Tier.BASIC],
    )


async def answers(world: BackendWorld, endpoint: AgentEndpoint) -> str:
    """Which incarnation answers at an endpoint."""
    agent = await world.connector.connect(endpoint)
    try:
        return (await agent.describe()).incarnation
    finally:
        await agent.close()


async def test_a_started_incarnation_answers_and_is_observed(world: BackendWorld) -> None:
    spec, incarnation = a_spec(), an_incarnation()

    endpoint = await world.backend.start(spec, incarnation, timeout=TIMEOUT)

    assert await answers(world, endpoint) == incarnation
    observation = await world.backend.observe(spec.sandbox)
    assert observation.present
    assert [(life.incarnation, life.endpoint) for life in observation.running] == [(incarnation, endpoint)]
    assert observation in await world.backend.list()
    assert incarnation in endpoint.server_name


async def test_starting_an_incarnation_again_answers_the_one_that_runs(world: BackendWorld) -> None:
    spec, incarnation = a_spec(), an_incarnation()
    first = await world.backend.start(spec, incarnation, timeout=TIMEOUT)

    assert await world.backend.start(spec, incarnation, timeout=TIMEOUT) == first
    assert len((await world.backend.observe(spec.sandbox)).running) == 1


async def test_starting_another_incarnation_ends_the_one_before(world: BackendWorld) -> None:
    spec, old, new = a_spec(), an_incarnation(), an_incarnation()
    before = await world.backend.start(spec, old, timeout=TIMEOUT)

    await world.backend.start(spec, new, timeout=TIMEOUT)

    assert [life.incarnation for life in (await world.backend.observe(spec.sandbox)).running] == [new]
    with pytest.raises(AgentUnavailableError):
        await answers(world, before)


async def test_stop_ends_the_incarnation_keeps_the_files_and_can_be_repeated(world: BackendWorld) -> None:
    spec, incarnation = a_spec(), an_incarnation()
    await world.backend.start(spec, incarnation, timeout=TIMEOUT)

    for _ in range(2):
        await world.backend.stop(spec.sandbox, incarnation, grace=GRACE, timeout=TIMEOUT)

    observation = await world.backend.observe(spec.sandbox)
    assert (observation.present, observation.running) == (True, [])
    with pytest.raises(UnavailableError):
        await world.backend.place(spec.sandbox, incarnation)


async def test_stopping_what_never_was_is_success(world: BackendWorld) -> None:
    await world.backend.stop(a_spec().sandbox, an_incarnation(), grace=GRACE, timeout=TIMEOUT)


async def test_stopping_another_incarnation_leaves_the_one_that_runs(world: BackendWorld) -> None:
    spec, incarnation = a_spec(), an_incarnation()
    endpoint = await world.backend.start(spec, incarnation, timeout=TIMEOUT)

    await world.backend.stop(spec.sandbox, an_incarnation(), grace=GRACE, timeout=TIMEOUT)

    assert await answers(world, endpoint) == incarnation


async def test_another_tier_leaves_what_runs_running_and_can_be_asked_for_again(world: BackendWorld) -> None:
    spec, life = a_spec(), an_incarnation()
    endpoint = await world.backend.start(spec, life, timeout=TIMEOUT)
    larger = replace(spec, tier=Tier.STANDARD, resources=TIER_RESOURCES[Tier.STANDARD])

    await world.backend.resize(larger, life, timeout=TIMEOUT)
    await world.backend.resize(larger, life, timeout=TIMEOUT)

    seen = await world.backend.observe(spec.sandbox)
    assert [one.incarnation for one in seen.running] == [life]
    assert await world.backend.start(larger, life, timeout=TIMEOUT) == endpoint


async def test_another_tier_for_what_does_not_run_is_for_its_next_start(world: BackendWorld) -> None:
    await world.backend.resize(a_spec(), an_incarnation(), timeout=TIMEOUT)


async def test_what_is_shrunk_and_grown_again_goes_on_as_the_same_life(world: BackendWorld) -> None:
    spec, life = a_spec(), an_incarnation()
    endpoint = await world.backend.start(spec, life, timeout=TIMEOUT)

    for _ in range(2):
        await world.backend.shrink(spec.sandbox, life, timeout=TIMEOUT)
    small = await world.backend.observe(spec.sandbox)
    answered = await answers(world, endpoint)
    for _ in range(2):
        await world.backend.grow(spec.sandbox, life, timeout=TIMEOUT)
    grown = await world.backend.observe(spec.sandbox)

    assert (small.shrunk, grown.shrunk) in ((True, False), (None, None))
    assert [one.incarnation for one in (*small.running, *grown.running)] == [life, life]
    assert answered == life == await answers(world, endpoint)


async def test_what_was_stopped_is_neither_shrunk_nor_brought_back_by_growing(world: BackendWorld) -> None:
    spec, life = a_spec(), an_incarnation()
    await world.backend.start(spec, life, timeout=TIMEOUT)
    await world.backend.stop(spec.sandbox, life, grace=GRACE, timeout=TIMEOUT)

    await world.backend.shrink(spec.sandbox, life, timeout=TIMEOUT)
    await world.backend.grow(spec.sandbox, life, timeout=TIMEOUT)

    seen = await world.backend.observe(spec.sandbox)
    assert (seen.shrunk or False, list(seen.running)) == (False, [])


async def test_remove_ends_what_runs_and_answers_the_same_when_repeated(world: BackendWorld) -> None:
    spec = a_spec()
    await world.backend.start(spec, an_incarnation(), timeout=TIMEOUT)

    kept = await world.backend.remove(spec.sandbox, timeout=TIMEOUT)

    assert kept
    observation = await world.backend.observe(spec.sandbox)
    assert (observation.present, observation.running) == (False, [])
    assert await world.backend.remove(spec.sandbox, timeout=TIMEOUT) == kept


async def test_removing_what_never_was_answers_nothing(world: BackendWorld) -> None:
    assert await world.backend.remove(a_spec().sandbox, timeout=TIMEOUT) == ""


async def test_an_agent_that_died_is_not_observed_and_its_incarnation_can_be_started_again(
    world: BackendWorld,
) -> None:
    spec, incarnation = a_spec(), an_incarnation()
    await world.backend.start(spec, incarnation, timeout=TIMEOUT)

    world.kill_agent(spec.sandbox, incarnation)

    async def gone() -> bool:
        return not (await world.backend.observe(spec.sandbox)).running

    await eventually(gone)
    endpoint = await world.backend.start(spec, incarnation, timeout=TIMEOUT)
    assert await answers(world, endpoint) == incarnation


# What the local backend alone promises.


async def test_files_stay_over_stop_and_start_and_are_kept_when_removed(local: LocalWorld) -> None:
    spec, first, second = a_spec(), an_incarnation(), an_incarnation()
    await local.backend.start(spec, first, timeout=TIMEOUT)
    place = await local.backend.place(spec.sandbox, first)
    (Path(place.workspace) / "work.txt").write_text("mine")
    await local.backend.stop(spec.sandbox, first, grace=GRACE, timeout=TIMEOUT)
    await local.backend.start(spec, second, timeout=TIMEOUT)
    assert (Path(place.workspace) / "work.txt").read_text() == "mine"

    kept = await local.backend.remove(spec.sandbox, timeout=TIMEOUT)

    assert (Path(kept) / "workspace" / "work.txt").read_text() == "mine"
    assert not list(Path(kept).glob("**/*.key"))


async def test_an_agents_environment_holds_nothing_of_the_service(
    local: LocalWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOXD_DATABASE_URL", "canary")
    monkeypatch.setenv("GEMINI_API_KEY", "canary")
    spec = a_spec()

    await local.backend.start(spec, an_incarnation(), timeout=TIMEOUT)

    (agent,) = local.agents()
    environment = psutil.Process(agent.pid).environ()
    assert "canary" not in environment.values()
    assert set(environment) <= {"PATH", "LANG", "PYTHONPATH", "LC_CTYPE"}


async def test_place_names_what_is_there(local: LocalWorld) -> None:
    spec, incarnation = a_spec(), an_incarnation()
    await local.backend.start(spec, incarnation, timeout=TIMEOUT)

    place = await local.backend.place(spec.sandbox, incarnation)

    assert Path(place.home).is_dir()
    assert Path(place.workspace).is_dir()
    assert Path(place.settings).parent.is_dir()
    assert place.path.startswith("/opt/node/bin:")
    assert place.model_endpoint.startswith("http://127.0.0.1:")


async def test_stop_ends_every_process_of_the_sandbox(local: LocalWorld) -> None:
    spec, incarnation = a_spec(), an_incarnation()
    pids = await _start_sleepers(local, spec, incarnation)

    await local.backend.stop(spec.sandbox, incarnation, grace=GRACE, timeout=TIMEOUT)

    assert [pid for pid in pids if _runs(pid)] == []


async def test_what_a_killed_agent_left_is_ended_by_the_next_start_and_nothing_else(local: LocalWorld) -> None:
    spec, other, incarnation = a_spec(), a_spec(), an_incarnation()
    pids = await _start_sleepers(local, spec, incarnation)
    untouched = await _start_sleepers(local, other, an_incarnation())
    local.kill_agent(spec.sandbox, incarnation)
    await eventually(lambda: all(agent.sandbox != spec.sandbox for agent in local.agents()))
    assert [pid for pid in pids if _runs(pid)], "there is nothing left to end: the test shows nothing"

    await local.backend.start(spec, an_incarnation(), timeout=TIMEOUT)

    assert [pid for pid in pids if _runs(pid)] == []
    assert [pid for pid in untouched if _runs(pid)] == untouched


async def test_an_agent_that_hears_nothing_is_killed_with_its_tree(local: LocalWorld) -> None:
    spec, incarnation = a_spec(), an_incarnation()
    pids = await _start_sleepers(local, spec, incarnation)
    (agent,) = local.agents()
    os.kill(agent.pid, signal.SIGSTOP)
    local.backend._exit_seconds = 0.3

    await local.backend.stop(spec.sandbox, incarnation, grace=timedelta(0), timeout=TIMEOUT)

    assert [pid for pid in [agent.pid, *pids] if _runs(pid)] == []


async def test_a_number_that_belongs_to_somebody_else_by_now_is_never_signalled(local: LocalWorld) -> None:
    spec, incarnation = a_spec(), an_incarnation()
    await local.backend.start(spec, incarnation, timeout=TIMEOUT)
    local.kill_agent(spec.sandbox, incarnation)
    await eventually(lambda: not local.agents())
    bystander = await asyncio.create_subprocess_exec("sleep", "60")
    run = local.layout.sandbox(spec.sandbox).run(incarnation)
    run.ready.write_text(f'{{"pid": {bystander.pid}, "port": 1, "model_port": 1}}')

    assert not (await local.backend.observe(spec.sandbox)).running
    await local.backend.stop(spec.sandbox, incarnation, grace=GRACE, timeout=TIMEOUT)

    assert bystander.returncode is None
    assert _runs(bystander.pid)
    bystander.kill()
    await bystander.wait()


async def test_an_agent_that_cannot_start_says_why(local: LocalWorld) -> None:
    spec, incarnation = a_spec(), an_incarnation()
    files = local.layout.sandbox(spec.sandbox)
    files.make()
    shutil.rmtree(files.workspace)
    run = files.run(incarnation)
    run.directory.mkdir(parents=True)
    run.spool.write_text("a file where a directory must be")

    with pytest.raises(UnavailableError) as refused:
        await local.backend.start(spec, incarnation, timeout=TIMEOUT)

    assert "ended before it was ready" in refused.value.message
    assert "spool" in refused.value.message
    assert not local.agents()


async def test_two_services_that_start_the_same_incarnation_start_one_agent(local: LocalWorld) -> None:
    spec, incarnation = a_spec(), an_incarnation()

    first, second = await asyncio.gather(
        local.backend.start(spec, incarnation, timeout=TIMEOUT),
        local.another_service().start(spec, incarnation, timeout=TIMEOUT),
    )

    assert first == second
    assert len(local.agents()) == 1


async def test_an_agent_accepts_no_other_agents_certificate(local: LocalWorld) -> None:
    spec, incarnation = a_spec(), an_incarnation()
    endpoint = await local.backend.start(spec, incarnation, timeout=TIMEOUT)
    thief = local.authority.issue_agent(an_incarnation())
    connector = GrpcAgentConnector(
        certificate=thief.certificate, key=thief.key, agent_authority=local.authority.certificate
    )
    agent = await connector.connect(endpoint)

    with pytest.raises(AgentUnavailableError):
        await agent.describe(timeout=timedelta(seconds=1))
    await agent.close()


def test_the_local_backend_says_that_it_isolates_nothing(tmp_path: Path) -> None:
    description = _backend(tmp_path)[0].describe()

    assert not description.isolates
    assert "isolates nothing" in description.warning
    assert "SIGKILL" in description.warning


async def test_sandboxes_weigh_less_on_the_processors_than_the_service(local: LocalWorld) -> None:
    pids = await _start_sleepers(local, a_spec(), an_incarnation())
    (agent,) = local.agents()

    assert os.getpriority(os.PRIO_PROCESS, 0) == 0
    assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in (agent.pid, *pids)] == [NICENESS] * 3
    if Path("/proc/self/autogroup").exists():  # then niceness counts within a session only, and the group's beyond it
        # Not the second one below: whoever leaves their session begins a group of their own, as at a shell.
        groups = [Path(f"/proc/{pid}/autogroup").read_text() for pid in (agent.pid, pids[0])]
        assert all(group.endswith(f" nice {NICENESS}\n") for group in groups), groups


async def _start_sleepers(local: LocalWorld, spec: SandboxSpec, incarnation: IncarnationId) -> list[int]:
    """A process of the sandbox, and one below it that left its group and its session."""
    endpoint = await local.backend.start(spec, incarnation, timeout=TIMEOUT)
    place = await local.backend.place(spec.sandbox, incarnation)
    agent = await local.connector.connect(endpoint)
    noted = Path(place.workspace) / "pids"
    process = await agent.start_process(
        ProcessId("sleepers"),
        ProcessSpec(
            argv=["/bin/sh", "-c", f"setsid sleep 300 & echo $$ $! > {noted}.part; mv {noted}.part {noted}; wait"],
            environment={"HOME": place.home, "PATH": place.path},
        ),
    )
    await agent.close()
    await eventually(noted.exists)
    pids = [int(word) for word in noted.read_text().split()]
    assert process.pid in pids
    return pids


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
