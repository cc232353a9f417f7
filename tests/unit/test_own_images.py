"""A start from an image of one's own, on a cluster in memory: what is the image's fault, and what is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest

from sandboxd.backends.kubernetes import image_trouble
from sandboxd.backends.kubernetes.refusals import PlacementError
from sandboxd.manager.backend_port import SandboxSpec
from sandboxd.model.boot_step import BootStep
from sandboxd.model.cluster import Mode
from sandboxd.model.cluster_status import Reason
from sandboxd.model.errors import DeadlineError, ErrorKind, SandboxdError
from sandboxd.model.image_errors import ImageBrokenError
from sandboxd.model.legible import legible
from sandboxd.operator.losses import find_loss
from tests.eventually import eventually
from tests.fakes.agent import FakeAgentConnector
from tests.fakes.cluster_operator import FakeOperator
from tests.fakes.images import an_image
from tests.fakes.kube import FakeKube
from tests.operator_world import a_desired, a_pod, running
from tests.unit.test_kubernetes_backend import SHORT, World, a_spec, an_incarnation, make_backend

SOON = timedelta(seconds=15)
OWN = str(an_image())
AGENT_IMAGE = f"registry.example/sandboxd/agent@sha256:{'9' * 64}"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    kube, connector = FakeKube(), FakeAgentConnector()
    backend = make_backend(kube, connector)
    async with FakeOperator(kube, connector).running() as operator:
        following = asyncio.create_task(backend.run())
        yield World(kube=kube, operator=operator, connector=connector, backend=backend)
        following.cancel()


def own() -> SandboxSpec:
    return replace(a_spec(), image=OWN)


async def refused(world: World, spec: SandboxSpec, *, timeout: timedelta = SOON) -> SandboxdError:
    with pytest.raises(SandboxdError) as caught:
        await world.backend.start(spec, an_incarnation(), timeout=timeout)
    return caught.value


@pytest.mark.parametrize(
    ("reason", "words", "step"),
    [
        (Reason.IMAGE_MISSING, f'ErrImagePull: failed to resolve reference "{OWN}": not found', "pull"),
        (Reason.IMAGE_BROKEN, f'ErrImagePull: failed to pull and unpack image "{OWN}": invalid tar header', "unpack"),
        (Reason.CONTAINER_FAILED, "CreateContainerError: mkdir /workspace: not a directory", "container"),
        (Reason.CONTAINER_FAILED, "RunContainerError: failed to create shim task", "container"),
    ],
)
async def test_an_image_that_cannot_come_up_is_told_with_its_step_and_its_pod_goes(
    world: World, reason: Reason, words: str, step: str
) -> None:
    spec = own()
    world.operator.trouble = (reason, words)

    error = await refused(world, spec)

    assert isinstance(error, ImageBrokenError)
    assert error.kind is ErrorKind.WRONG_STATE
    assert error.metadata == {"sandbox": spec.sandbox, "image": OWN, "step": step}
    assert words.replace("\n", " / ") in error.message
    assert world.resource(spec.sandbox)["mode"] == Mode.STOPPED.value


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (Reason.REGISTRY_UNAVAILABLE, f'ErrImagePull: "{OWN}": dial tcp: connection refused'),
        (Reason.IMAGE_MISSING, f'ErrImagePull: failed to resolve reference "{AGENT_IMAGE}": not found'),
        (Reason.IMAGE_FOREIGN, f"The image {OWN} is refused: its repository is not one of client globex."),
        (Reason.POD_REFUSED, "denied"),
    ],
    ids=["the registry is away", "the agent's image is gone", "another client's", "admission"],
)
async def test_what_another_image_would_not_help_leaves_the_image_what_it_is(
    world: World, reason: Reason, words: str
) -> None:
    world.operator.trouble = (reason, words)

    error = await refused(world, own())

    assert isinstance(error, PlacementError)
    assert error.metadata["cause"] == reason.value


async def test_a_missing_secret_is_waited_for(world: World) -> None:
    world.operator.trouble = (Reason.CONTAINER_FAILED, 'CreateContainerConfigError: secret "x" not found')

    assert isinstance(await refused(world, own(), timeout=SHORT), DeadlineError)


async def test_the_bases_trouble_is_no_broken_image(world: World) -> None:
    world.operator.trouble = (Reason.IMAGE_MISSING, "ErrImagePull: not found")

    assert isinstance(await refused(world, a_spec(), timeout=SHORT), PlacementError)


async def test_trouble_that_comes_after_the_address_is_told_too(world: World) -> None:
    """A pod has an address before its image is pulled."""
    spec = own()
    world.operator.mute = True
    starting = asyncio.create_task(refused(world, spec))

    async def addressed() -> bool:
        placed = world.backend._mirror.get(spec.sandbox)
        return placed is not None and placed.endpoint is not None

    await eventually(addressed)
    world.operator.lost = world.operator.trouble = (Reason.IMAGE_MISSING, f"ErrImagePull: {OWN}: not found")
    await world.operator.come_back()

    assert isinstance(await starting, ImageBrokenError)


@pytest.mark.parametrize("status", [1, 127, 139])
async def test_an_agent_that_ends_in_the_image_is_the_images_fault(world: World, status: int) -> None:
    world.operator.lost = (Reason.CONTAINER_RESTARTED, _ended(status))

    error = await refused(world, own())

    assert (type(error), error.metadata["step"]) == (ImageBrokenError, "agent")


@pytest.mark.parametrize("status", [2, 3])
async def test_an_agent_that_says_why_it_ends_is_not(world: World, status: int) -> None:
    world.operator.lost = (Reason.CONTAINER_RESTARTED, _ended(status))

    assert isinstance(await refused(world, own()), PlacementError)


@pytest.mark.parametrize("reason", [Reason.OUT_OF_MEMORY, Reason.POD_EVICTED, Reason.POD_DELETED, Reason.NODE_LOST])
async def test_a_pod_that_somebody_ends_says_nothing_of_its_image(world: World, reason: Reason) -> None:
    world.operator.lost = (reason, "it is gone")

    assert isinstance(await refused(world, own()), PlacementError)


async def test_an_agent_that_not_even_the_kubelet_finds_is_the_images_fault(world: World) -> None:
    world.backend._starting.listen_patience = timedelta(seconds=0.2)
    world.operator.mute = world.operator.deaf = True

    error = await refused(world, own())

    assert (type(error), error.metadata["step"]) == (ImageBrokenError, "agent")


async def test_an_agent_that_only_we_cannot_reach_is_a_way_that_is_closed(world: World) -> None:
    world.backend._starting.listen_patience = timedelta(seconds=0.1)
    world.operator.mute = True

    assert isinstance(await refused(world, own(), timeout=SHORT), DeadlineError)


async def test_after_a_broken_image_the_base_starts_at_once(world: World) -> None:
    spec, incarnation = own(), an_incarnation()
    world.operator.trouble = (Reason.IMAGE_MISSING, f"ErrImagePull: {OWN}: not found")
    await refused(world, spec)
    world.operator.trouble = None

    endpoint = await world.backend.start(replace(spec, image=""), incarnation, timeout=SOON)

    assert incarnation in endpoint.server_name
    assert world.resource(spec.sandbox)["image"] == ""


async def test_the_same_incarnation_starts_from_another_image_after_a_broken_one(world: World) -> None:
    spec, incarnation = own(), an_incarnation()
    world.operator.lost = (Reason.CONTAINER_RESTARTED, _ended(1))
    with pytest.raises(ImageBrokenError):
        await world.backend.start(spec, incarnation, timeout=SOON)
    world.operator.lost = None

    await world.backend.start(replace(spec, image=str(an_image("b"))), incarnation, timeout=SOON)

    assert world.resource(spec.sandbox)["image"] == str(an_image("b"))


async def test_what_a_stranger_wrote_is_bounded_and_without_controls(world: World) -> None:
    world.operator.trouble = (Reason.CONTAINER_FAILED, "CreateContainerError: \x1b[31mred\n" + "x" * 5000)

    error = await refused(world, own())

    assert len(error.message) < 1000
    assert error.message.isprintable()


def _ended(status: int) -> str:
    """What the operator says of a container that ended so."""
    last = {"terminated": {"exitCode": status, "reason": "Error", "message": "no more"}}
    loss = find_loss(a_desired(), running(pod=a_pod(restarts=1, last=last)))
    assert loss is not None
    return loss.message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one\n\n  two\tthree \r\n", "one / two three"),
        ("\x1b[2J\u202eabc", "?[2J?abc"),
        ("0123456789", "0123456789"),
        ("0123456789a", "…23456789a"),
        ("", ""),
    ],
)
def test_a_strangers_text_becomes_one_short_line(text: str, line: str) -> None:
    assert legible(text, limit=10) == line or legible(text, limit=len(line)) == line


def test_every_step_has_its_words() -> None:
    assert set(image_trouble.WORDS) == set(BootStep)
