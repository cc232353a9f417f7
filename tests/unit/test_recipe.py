"""What members of pools are made from, as one word, and what a change of it does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sandboxd.backends.kubernetes.recipe import Recipe, recipe_of
from sandboxd.model.pool import MemberState, plan_pool
from sandboxd.model.sandbox import TIER_RESOURCES
from tests.eventually import eventually
from tests.fakes.kube import FakeKube
from tests.fakes.manager import NOON
from tests.unit.test_pools import a_member, a_pool

SPEC = {"image": "r/sandbox@sha256:1", "agentImage": "r/agent@sha256:1", "nodeSelector": {"a": "b", "c": "d"}}


def a_template(name: str, **changes: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {**SPEC, **changes}}


@pytest.mark.parametrize(
    "changed",
    [{"image": "r/sandbox@sha256:2"}, {"agentImage": "r/agent@sha256:2"}, {"runtimeClassName": "gvisor"}],
    ids=["image", "agent", "runtime"],
)
def test_whatever_decides_a_pod_is_in_the_recipe(changed: dict[str, str]) -> None:
    assert recipe_of({**SPEC, **changed}) != recipe_of(SPEC)


def test_neither_order_nor_what_is_for_people_is_in_the_recipe() -> None:
    reordered = {**dict(reversed(SPEC.items())), "nodeSelector": {"c": "d", "a": "b"}, "pidsLimit": 100}

    assert recipe_of(reordered) == recipe_of(SPEC)
    assert TIER_RESOURCES, "what tiers have is in it, too"


def test_gpus_of_the_premium_tier_are_in_the_recipe() -> None:
    assert len({recipe_of(SPEC), recipe_of(SPEC, premium_gpus=1), recipe_of(SPEC, premium_gpus=2)}) == 3


async def test_the_recipe_follows_its_own_template_and_is_unknown_without_one() -> None:
    kube = FakeKube()
    recipe = Recipe(kube, template="mine", premium_gpus=1)
    following = asyncio.create_task(recipe.run())
    await kube.put("sandboxtemplates", a_template("other"))
    await kube.put("sandboxtemplates", a_template("mine"))
    await eventually(lambda: recipe.text == recipe_of(SPEC, premium_gpus=1))

    await kube.put("sandboxtemplates", a_template("mine", image="r/sandbox@sha256:2"))
    moved = recipe_of({**SPEC, "image": "r/sandbox@sha256:2"}, premium_gpus=1)
    await eventually(lambda: recipe.text == moved)
    await kube.drop("sandboxtemplates", "", "mine")

    await eventually(lambda: recipe.text == "")
    following.cancel()


def test_while_the_recipe_is_not_known_nothing_is_made_and_nothing_is_stale() -> None:
    members = [a_member(recipe="new"), a_member(MemberState.STARTING, recipe="old")]

    plan = plan_pool(a_pool(target=4, most=8), members, recipe="", may_act=True, at=NOON)

    assert (plan.make, list(plan.end)) == (0, [])
