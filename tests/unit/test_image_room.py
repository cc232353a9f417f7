"""What builds images is made of settings; where they name no registry, nothing does."""

from pathlib import Path

import pytest

from sandboxd.backends.registry.harbor import HarborProjects
from sandboxd.backends.registry.harbor_registry import HarborRegistry
from sandboxd.bootstrap.images import image_room
from sandboxd.images.building import RegistryImageBuilder
from sandboxd.images.kaniko import KanikoImageBuilder
from sandboxd.manager.push_gate import GatedRegistry
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId
from sandboxd.settings import SettingsError, load_settings
from tests.fakes.kube import FakeKube
from tests.fakes.rootfs import FakeRootfsCapture

CAPTURE = FakeRootfsCapture(incarnation=IncarnationId("inc-1"))


def test_without_a_registry_nothing_is_kept() -> None:
    settings = load_settings()

    assert image_room(settings, capture=CAPTURE) is None


async def test_with_a_registry_images_are_built(tmp_path: Path) -> None:
    settings = load_settings(
        data_dir=tmp_path,
        images_registry="registry.test:5000",
        images_registry_user="u",
        images_registry_password="p",
        images_repository_prefix="sandboxes",
    )

    room = image_room(settings, capture=CAPTURE)

    assert room is not None
    assert isinstance(room.builder, RegistryImageBuilder)
    assert room.repository_of(ClientId("a"), FreelancerId("b")) == "sandboxes/a/gemini-cli-user-b"
    assert not list(tmp_path.iterdir()), "nothing is made before it is needed"
    await room.close()


async def test_with_harbor_each_client_has_a_project_and_in_a_cluster_an_account_to_pull_with(tmp_path: Path) -> None:
    given = {
        "data_dir": tmp_path,
        "images_registry": "harbor.test",
        "images_registry_kind": "harbor",
        "images_registry_user": "robot$sandboxd",
        "images_registry_password": "p",
        "images_repository_prefix": "boxes",
        "image_pulls_secret": "image-pulls",
    }

    room = image_room(load_settings(**given), capture=CAPTURE, cluster=FakeKube())

    assert room is not None
    assert isinstance(room.registry, GatedRegistry)
    assert isinstance(room.registry.inner, HarborRegistry)
    assert isinstance(room.projects, HarborProjects)
    assert room.repository_of(ClientId("a"), FreelancerId("b")) == "boxes-a/a/gemini-cli-user-b"
    await room.close()


def test_harbor_without_what_it_needs_is_refused() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(images_registry_kind="harbor", images_repository_prefix="a/b")

    told = [line.strip().partition(":")[0] for line in str(caught.value).splitlines()[1:]]
    assert told == [
        f"SANDBOXD_IMAGES_{one}" for one in ("REGISTRY", "REGISTRY_USER", "REGISTRY_PASSWORD", "REPOSITORY_PREFIX")
    ]


async def test_with_kaniko_images_are_built_in_the_cluster(tmp_path: Path) -> None:
    settings = load_settings(
        data_dir=tmp_path,
        backend="kubernetes",
        images_registry="registry.test:5000",
        images_builder="kaniko",
        images_kaniko_namespace="builds",
        images_kaniko_image="registry.test:5000/kaniko",
        images_kaniko_agent_image="registry.test:5000/agent",
    )

    room = image_room(settings, capture=CAPTURE, cluster=FakeKube())

    assert room is not None
    assert isinstance(room.builder, KanikoImageBuilder)
    await room.close()


def test_kaniko_without_what_it_needs_is_refused() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(images_builder="kaniko", images_registry="registry.test")

    for name in ("KANIKO_NAMESPACE", "KANIKO_IMAGE", "KANIKO_AGENT_IMAGE", "BUILDER"):
        assert f"SANDBOXD_IMAGES_{name}" in str(caught.value)


def test_a_file_that_holds_no_key_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("no key")
    settings = load_settings(images_registry="registry.test:5000", images_signing_key_file=tmp_path / "key.pem")

    with pytest.raises(SettingsError, match=r"key\.pem must hold an ECDSA key on P-256"):
        image_room(settings, capture=CAPTURE)
