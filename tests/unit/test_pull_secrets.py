"""How a client's account to pull its images with comes from `serve` into the client's namespace, and into its pods."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest

from sandboxd.backends.kubernetes.pull_accounts import SecretPullAccounts
from sandboxd.images.projects import PullAccount
from sandboxd.kubeapi.errors import KubeError, KubeUnavailableError
from sandboxd.model.cluster import Mode, sandbox_resource
from sandboxd.model.errors import UnavailableError
from sandboxd.model.ids import ClientId
from sandboxd.operator.kinds import Kind
from sandboxd.operator.leader import Leadership, LeaseSettings
from sandboxd.operator.mirrors import Mirrors, WorkKey
from sandboxd.operator.pod_shape import pull_secrets
from sandboxd.operator.pull_secrets import FRESH_SECONDS, KEPT_SECONDS, PULL_SECRET, PullSecrets
from tests.eventually import eventually
from tests.fakes.kube import FakeKube
from tests.fakes.manager import FakeClock
from tests.operator_world import INSTANCE, NAMESPACE, OWN_IMAGE, SANDBOX, SETTINGS, a_namespace, a_spec

SOURCE = "sandboxd-image-pulls-of-all"
KEY = WorkKey(namespace=NAMESPACE, sandbox=SANDBOX)
FIRST, SECOND = (PullAccount(name=f"robot$p+sandboxd-pull-{n}", password=f"secret {n}") for n in (1, 2))
ACME, ODD = ClientId("acme"), ClientId("user@example.com")


@dataclass(kw_only=True)
class Scene:
    api: FakeKube
    accounts: SecretPullAccounts
    mirrors: Mirrors
    secrets: PullSecrets
    clock: FakeClock

    def given_sandbox(self, **spec: Any) -> None:
        resource = sandbox_resource(SANDBOX, a_spec(**spec), namespace=NAMESPACE, instance=INSTANCE)
        self.mirrors.remember(Kind.SANDBOX, resource)

    def given_probe(self) -> None:
        metadata = {"name": "prb-1", "namespace": NAMESPACE}
        self.mirrors.remember(Kind.PROBE, {"metadata": metadata, "spec": {"sandbox": SANDBOX, "image": OWN_IMAGE}})

    def pulled_with(self) -> PullAccount | None:
        """What a node finds in the client's namespace."""
        found = self.api.objects.get(("secrets", NAMESPACE, PULL_SECRET))
        if found is None:
            return None
        assert found["type"] == "kubernetes.io/dockerconfigjson"
        said = json.loads(base64.b64decode(found["data"][".dockerconfigjson"]))["auths"]["registry.test:5000"]
        assert base64.b64decode(said["auth"]).decode() == f"{said['username']}:{said['password']}"
        return PullAccount(name=said["username"], password=said["password"])


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    api, clock = FakeKube(), FakeClock()
    await api.put("namespaces", {"metadata": {"name": "own"}})
    await api.put("namespaces", a_namespace())
    await api.put("secrets", {"metadata": {"name": SOURCE, "namespace": "own"}, "type": "Opaque"})
    lease = LeaseSettings(namespace="own", instance=INSTANCE, identity="one", duration=timedelta(hours=1))
    leadership = Leadership(api, lease, clock=clock)
    mirrors = Mirrors(api, instance=INSTANCE, namespace="own", wake=lambda _: None)
    leading = asyncio.create_task(leadership.run())
    await eventually(lambda: leadership.leads)
    yield Scene(
        api=api,
        accounts=SecretPullAccounts(api, namespace="own", secret=SOURCE, registry="registry.test:5000"),
        mirrors=mirrors,
        secrets=PullSecrets(
            api,
            mirrors=mirrors,
            leadership=leadership,
            instance=INSTANCE,
            namespace="own",
            source=SOURCE,
            clock=clock,
        ),
        clock=clock,
    )
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)


async def test_an_account_is_kept_as_it_was_given_until_it_is_removed(scene: Scene) -> None:
    await scene.accounts.put(ACME, FIRST)
    await scene.accounts.put(ODD, SECOND)

    assert (await scene.accounts.get(ACME), await scene.accounts.get(ODD)) == (FIRST, SECOND)
    for _ in range(2):
        await scene.accounts.remove(ACME)
    assert (await scene.accounts.get(ACME), await scene.accounts.get(ODD)) == (None, SECOND)


async def test_a_secret_that_is_missing_is_named_and_no_password_is_told(scene: Scene) -> None:
    del scene.api.objects["secrets", "own", SOURCE]

    for use in (scene.accounts.get(ACME), scene.accounts.put(ACME, FIRST)):
        with pytest.raises(UnavailableError, match=rf"own/{SOURCE}.*does not exist") as caught:
            await use
        assert "secret 1" not in repr(caught.value)
    assert "secret 1" not in repr(FIRST)


async def test_the_namespace_has_the_account_before_a_pod_of_an_own_image_is_made(scene: Scene) -> None:
    await scene.accounts.put(ACME, FIRST)
    scene.given_sandbox()
    await scene.secrets.prepare(KEY)
    assert scene.pulled_with() is None, "it is made from the base"

    scene.given_sandbox(image=OWN_IMAGE, mode=Mode.STOPPED)
    await scene.secrets.prepare(KEY)
    assert scene.pulled_with() is None

    scene.given_sandbox(image=OWN_IMAGE)
    await scene.secrets.prepare(KEY)
    assert scene.pulled_with() == FIRST


async def test_a_probe_has_it_too_also_of_an_account_that_was_made_a_moment_ago(scene: Scene) -> None:
    scene.given_sandbox()
    scene.given_probe()
    probe = WorkKey(namespace=NAMESPACE, probe="prb-1")
    await scene.secrets.prepare(probe)
    assert scene.pulled_with() is None

    await scene.accounts.put(ACME, FIRST)
    await scene.secrets.prepare(probe)

    assert scene.pulled_with() == FIRST


async def test_a_new_account_takes_the_place_of_the_old_one_and_what_was_removed_comes_back(scene: Scene) -> None:
    scene.given_sandbox(image=OWN_IMAGE)
    await scene.accounts.put(ACME, FIRST)
    await scene.secrets.prepare(KEY)

    await scene.accounts.put(ACME, SECOND)
    scene.clock.advance(FRESH_SECONDS)
    await scene.secrets.prepare(KEY)
    assert scene.pulled_with() == SECOND

    del scene.api.objects["secrets", NAMESPACE, PULL_SECRET]
    scene.clock.advance(KEPT_SECONDS)
    await scene.secrets.prepare(KEY)
    assert scene.pulled_with() == SECOND


async def test_passes_in_between_ask_the_cluster_for_nothing(scene: Scene) -> None:
    scene.given_sandbox(image=OWN_IMAGE)
    await scene.accounts.put(ACME, FIRST)
    await scene.secrets.prepare(KEY)
    scene.api.requests.clear()

    for _ in range(5):
        await scene.secrets.prepare(KEY)

    assert [one for one in scene.api.requests if "secrets" in one[1]] == []


async def test_a_secret_of_somebody_else_is_left_alone(scene: Scene) -> None:
    theirs = {"metadata": {"name": PULL_SECRET, "namespace": NAMESPACE}, "data": {"x": "eA=="}, "type": "Opaque"}
    await scene.api.put("secrets", theirs)
    scene.given_sandbox(image=OWN_IMAGE)
    await scene.accounts.put(ACME, FIRST)

    await scene.secrets.prepare(KEY)

    assert scene.api.objects["secrets", NAMESPACE, PULL_SECRET]["data"] == {"x": "eA=="}


async def test_a_refusal_ends_no_start_and_silence_is_waited_for(scene: Scene) -> None:
    scene.given_sandbox(image=OWN_IMAGE)
    scene.api.refuse = lambda _, path: KubeError("no", status=403) if "secrets" in path else None
    await scene.secrets.prepare(KEY)

    scene.api.refuse = lambda _, path: KubeUnavailableError("away") if "secrets" in path else None
    with pytest.raises(KubeUnavailableError):
        await scene.secrets.prepare(KEY)


def test_only_pods_of_own_images_pull_with_it() -> None:
    settings = replace(SETTINGS, own_pull_secret=PULL_SECRET)
    spec = {
        "image": "r/base@sha256:1",
        "agentImage": "r/agent",
        "imagePullSecrets": ["a"],
        "userImagePullSecrets": ["b"],
    }

    template = settings.read_template(spec)

    assert pull_secrets(template, own=True) == ("a", "b", PULL_SECRET)
    assert pull_secrets(template, own=False) == ("a",)
    assert pull_secrets(SETTINGS.read_template(spec), own=True) == ("a", "b")
