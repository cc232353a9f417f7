"""When clients' projects on a registry are made, put right and removed: with commits, by the care, with erasures."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from sandboxd.manager.image_care_metrics import ImageCareMetrics
from sandboxd.manager.image_erasing import ImageErasing
from sandboxd.manager.project_care import ProjectCare
from sandboxd.model.errors import UnavailableError
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.model.image import GenerationStatus
from sandboxd.model.image_errors import ProjectForeignError
from sandboxd.model.image_names import belongs_to, user_project, user_repository
from tests.fakes.image_projects import FakeImageProjects
from tests.manager_world import SOON, ManagerWorld, a_caller, a_request

ACME, OTHER = ClientId("acme"), ClientId("other")
PASSES = "sandboxd_image_project_passes_total"


class ProjectWorld(ManagerWorld):
    """Commits to a registry with projects."""

    def __init__(self) -> None:
        super().__init__(keeps_root=False, commits=True)
        self.projects = FakeImageProjects()
        self.image_tools = replace(self.image_tools, projects=self.projects)
        self.core, self.manager = self.replica("second")


@pytest.fixture
def world() -> ProjectWorld:
    return ProjectWorld()


async def commit(world: ProjectWorld, *, client: str = "acme", dry_run: bool = False) -> None:
    caller = a_caller(client=client)
    sandbox = await world.given_active(caller)
    world.builder.roots[sandbox.id] = "with ripgrep"
    await world.manager.images.commit(a_request(caller), sandbox.id, timeout=SOON, dry_run=dry_run)


async def test_a_commit_sees_to_the_clients_project_and_a_dry_run_does_not(world: ProjectWorld) -> None:
    await commit(world, dry_run=True)
    assert world.projects.there == {}

    await commit(world)
    await commit(world)

    assert world.projects.there == {ACME: 2}


async def test_a_commit_fails_where_the_project_is_somebody_elses_and_builds_nothing(world: ProjectWorld) -> None:
    world.projects.errors[ACME] = ProjectForeignError("The project is somebody else's.")

    with pytest.raises(ProjectForeignError):
        await commit(world)

    (row,) = world.units.rows.generations.values()
    assert row.failure is not None
    assert (row.status, row.failure.reason) == (GenerationStatus.FAILED, "REGISTRY_PROJECT_FOREIGN")
    assert world.builder.orders == []


async def test_the_care_puts_every_project_right_once_and_makes_none(world: ProjectWorld) -> None:
    figures = CollectorRegistry()
    care = ProjectCare(units=world.units, projects=world.projects, metrics=ImageCareMetrics(figures))
    for client in ("acme", "other", "third"):
        await commit(world, client=client)
    del world.projects.there[ClientId("third")]
    world.projects.errors[ACME] = UnavailableError("Harbor does not answer.")

    assert await care.run() == 1
    assert figures.get_sample_value(PASSES, {"outcome": "failed"}) == 1
    assert world.projects.there == {ACME: 1, OTHER: 2}

    world.projects.errors.clear()
    assert await care.run() == 2
    assert figures.get_sample_value(PASSES, {"outcome": "done"}) == 1


async def test_the_care_sees_to_the_collection_and_what_fails_there_keeps_no_project_waiting(
    world: ProjectWorld,
) -> None:
    figures = CollectorRegistry()
    care = ProjectCare(units=world.units, projects=world.projects, metrics=ImageCareMetrics(figures))
    await commit(world)
    world.projects.collection_error = UnavailableError("The account lacks a right.")

    assert await care.run() == 1
    assert figures.get_sample_value(PASSES, {"outcome": "failed"}) == 1

    world.projects.collection_error = None
    assert await care.run() == 1
    assert (world.projects.scheduled, figures.get_sample_value(PASSES, {"outcome": "done"})) == (1, 1)


async def test_an_erasure_takes_the_repository_and_that_of_a_client_the_project(world: ProjectWorld) -> None:
    await commit(world)
    erasing = ImageErasing(images=world.image_tools)

    assert await erasing.erase(ACME, FreelancerId("ada")) == 1
    assert world.projects.removed_repositories == ["acme/gemini-cli-user-ada"]
    assert list(world.projects.there) == [ACME]

    for _ in range(2):
        await erasing.erase_project(ACME)
    assert world.projects.there == {}


def test_no_two_clients_share_a_project_and_each_ones_images_lie_in_its_own() -> None:
    clients = [ClientId(name) for name in ("a", "a-b", "a_b", "a__b", "a--b", "a-_b", "A", "a.b", "a@b", "1")]

    names = [user_project(client, prefix="p") for client in clients]

    assert len(set(names)) == len(names)
    assert names[0] == "p-a"
    for client, name in zip(clients, names, strict=True):
        repository = user_repository(client, FreelancerId("ada"), prefix=name)
        assert [one for one in clients if belongs_to(repository, one)] == [client]
