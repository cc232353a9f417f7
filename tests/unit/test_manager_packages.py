"""Who may look at the packages of which sandbox, and how a list of them is paged."""

import pytest

from sandboxd.manager.packages import Packages, PackageSelection, SandboxNotRunningError
from sandboxd.model.caller import Role
from sandboxd.model.errors import InvalidRequestError, SandboxNotFoundError
from sandboxd.model.packages import InstalledPackages, Package, PackageKey, PackageManager, PackagePlace
from sandboxd.model.sandbox import Sandbox
from tests.fakes.packages import FakePackageSource
from tests.manager_world import ManagerWorld, a_caller

ADA = a_caller(subject="ada", role=Role.FREELANCER)
BOB = a_caller(subject="bob", role=Role.FREELANCER)
EVERYTHING = PackageSelection()


def a_package(manager: PackageManager, name: str, place: PackagePlace, *, initial: bool = False) -> Package:
    key = PackageKey(manager=manager, name=name, directory="/somewhere")
    return Package(key=key, version="1", place=place, initial=initial)


INSTALLED = [
    a_package(PackageManager.PIP, "rich", PackagePlace.HOME),
    a_package(PackageManager.DPKG, "tree", PackagePlace.ROOT),
    a_package(PackageManager.DPKG, "bash", PackagePlace.ROOT, initial=True),
]


class World:
    """A running sandbox of Ada's."""

    def __init__(self) -> None:
        self.manager = ManagerWorld()
        self.source = FakePackageSource()
        self.packages = Packages(units=self.manager.units, source=self.source)

    async def given_running(self) -> Sandbox:
        sandbox = await self.manager.given_active(ADA)
        endpoint = self.manager.lives(sandbox.id)[-1].endpoint
        assert endpoint is not None
        self.source.installed[endpoint] = InstalledPackages(packages=INSTALLED, sequence=0, complete=False)
        return sandbox


@pytest.fixture
def world() -> World:
    return World()


async def test_packages_come_by_manager_and_name_in_pages(world: World) -> None:
    sandbox = await world.given_running()

    first = await world.packages.list(ADA, sandbox.id, EVERYTHING, page_size=2)
    second = await world.packages.list(ADA, sandbox.id, EVERYTHING, page_size=2, page_token=first.next_token)

    assert [[one.key.name for one in page.packages] for page in (first, second)] == [["bash", "tree"], ["rich"]]
    assert (second.next_token, second.complete) == ("", False)


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        (PackageSelection(unsaved=True), ["tree"]),
        (PackageSelection(manager=PackageManager.PIP), ["rich"]),
        (PackageSelection(manager=PackageManager.PIP, unsaved=True), []),
    ],
)
async def test_a_selection_leaves_out_the_rest(world: World, selection: PackageSelection, names: list[str]) -> None:
    sandbox = await world.given_running()

    page = await world.packages.list(ADA, sandbox.id, selection)

    assert [one.key.name for one in page.packages] == names


async def test_another_ones_sandbox_does_not_exist(world: World) -> None:
    sandbox = await world.given_running()

    for stranger in (BOB, a_caller(client="other")):
        with pytest.raises(SandboxNotFoundError):
            await world.packages.list(stranger, sandbox.id, EVERYTHING)


async def test_looking_wakes_nothing_and_is_no_use(world: World) -> None:
    paused = await world.manager.given_paused()
    running = await world.given_running()
    before = dict(world.manager.units.rows.sandboxes)

    with pytest.raises(SandboxNotRunningError):
        await world.packages.list(a_caller(), paused.id, EVERYTHING)
    await world.packages.list(ADA, running.id, EVERYTHING)

    assert world.manager.units.rows.sandboxes == before


@pytest.mark.parametrize("token", ["x", "e30=", "WyJkcGtnIl0=", "WyJubyIsICJhIiwgImIiXQ=="])
async def test_a_token_of_no_list_is_refused(world: World, token: str) -> None:
    sandbox = await world.given_running()

    with pytest.raises(InvalidRequestError):
        await world.packages.list(ADA, sandbox.id, EVERYTHING, page_token=token)
