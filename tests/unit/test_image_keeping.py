"""Which images stay and why: the decision alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId
from sandboxd.model.image import CommitTrigger, Generation, GenerationId, GenerationStatus, ImageContent
from sandboxd.model.image_keeping import KeepingFacts, KeepingPolicy, Stay, judge

G = GenerationStatus
NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
OLD = NOW - timedelta(days=30)
REGISTRY, REPOSITORY = "registry.test", "acme/gemini-cli-user-ada"
WAYS = {
    G.BUILDING: (),
    G.PUSHED: (G.PUSHED,),
    G.VERIFIED: (G.PUSHED, G.VERIFIED),
    G.ACTIVE: (G.PUSHED, G.VERIFIED, G.ACTIVE),
    G.SUPERSEDED: (G.PUSHED, G.VERIFIED, G.ACTIVE, G.SUPERSEDED),
    G.FAILED: (G.PUSHED, G.FAILED),
    G.DELETING: (G.PUSHED, G.VERIFIED, G.ACTIVE, G.SUPERSEDED, G.DELETING),
    G.DELETED: (G.PUSHED, G.VERIFIED, G.ACTIVE, G.SUPERSEDED, G.DELETING, G.DELETED),
    G.DISCARDED: (G.DISCARDED,),
}


def an_image(
    number: int,
    status: GenerationStatus,
    *,
    digest: str = "",
    at: datetime = OLD,
    sandbox: str = "sbx-1",
    registry: str = REGISTRY,
) -> Generation:
    made = Generation(
        id=GenerationId(f"gen-{number}"),
        sandbox=SandboxId(sandbox),
        client=ClientId("acme"),
        freelancer=FreelancerId("ada"),
        number=number,
        incarnation=IncarnationId("inc"),
        trigger=CommitTrigger.REQUEST,
        registry=registry,
        repository=REPOSITORY,
        content=ImageContent(digest=digest or f"sha256:{number:064}"),
        create_time=at,
        update_time=at,
    )
    for step in WAYS[status]:
        made = made.enter(step, at=at + timedelta(seconds=number))
    return made


def judged(
    *images: Generation,
    names: Mapping[str, str] | None = None,
    last_use: Mapping[str, datetime] | None = None,
    ended: frozenset[SandboxId] = frozenset(),
    previous: int = 2,
) -> dict[int, Stay | None]:
    facts = KeepingFacts(
        registry=REGISTRY, repository=REPOSITORY, names=names or {}, last_use=last_use or {}, ended=ended
    )
    verdicts = judge(images, facts, policy=KeepingPolicy(previous=previous), now=NOW)
    return {one.generation.number: one.stay for one in verdicts}


def test_the_active_one_and_the_last_two_before_it_stay_and_older_ones_go() -> None:
    images = [an_image(number, G.SUPERSEDED) for number in (1, 2, 3, 4)]

    assert judged(*images, an_image(5, G.ACTIVE)) == {
        1: None,
        2: None,
        3: Stay.PREVIOUS,
        4: Stay.PREVIOUS,
        5: Stay.ACTIVE,
    }
    assert judged(*images, previous=0) == dict.fromkeys((1, 2, 3, 4))


def test_each_sandbox_of_a_freelancer_keeps_its_own_previous_ones() -> None:
    images = [an_image(n, G.SUPERSEDED, sandbox=f"sbx-{1 + n % 2}") for n in range(1, 7)]

    stay = judged(*images, previous=1)

    assert [number for number, why in stay.items() if why is Stay.PREVIOUS] == [5, 6]


def test_what_booted_before_a_rollback_counts_by_when_it_was_active_last() -> None:
    older = replace(an_image(1, G.SUPERSEDED), activate_time=NOW - timedelta(days=2))

    assert judged(older, an_image(2, G.SUPERSEDED), an_image(3, G.SUPERSEDED), previous=1)[1] is Stay.PREVIOUS


def test_what_never_booted_is_no_previous_one_and_a_failed_one_goes() -> None:
    unproven = replace(an_image(1, G.SUPERSEDED), verify_time=None)

    assert judged(unproven, an_image(2, G.FAILED)) == {1: None, 2: None}


@pytest.mark.parametrize("status", [G.SUPERSEDED, G.FAILED, G.DELETING])
def test_whatever_is_named_stays_and_says_by_whom(status: GenerationStatus) -> None:
    image = an_image(1, status)
    digest = f"sha256:{1:064}"
    facts = KeepingFacts(
        registry=REGISTRY, repository=REPOSITORY, names={digest: "Pod acme/sbx-1-0"}, last_use={}, ended=frozenset()
    )

    (verdict,) = judge([image], facts, policy=KeepingPolicy(previous=0), now=NOW)

    assert (verdict.stay, verdict.by) == (Stay.NAMED, "Pod acme/sbx-1-0")


def test_the_grace_counts_from_the_last_use_and_not_from_when_another_took_its_place() -> None:
    image, digest = an_image(1, G.SUPERSEDED), f"sha256:{1:064}"
    day = timedelta(hours=24)

    assert judged(image, last_use={digest: NOW - day + timedelta(seconds=1)}, previous=0) == {1: Stay.GRACE}
    assert judged(image, last_use={digest: NOW - day}, previous=0) == {1: None}
    assert judged(an_image(1, G.FAILED, at=NOW - timedelta(hours=1))) == {1: Stay.GRACE}


def test_a_digest_that_another_image_holds_stays_for_that_one_and_two_that_go_go_together() -> None:
    twin = an_image(1, G.SUPERSEDED, digest="sha256:same")

    assert judged(twin, an_image(2, G.ACTIVE, digest="sha256:same")) == {1: Stay.SHARED, 2: Stay.ACTIVE}
    assert judged(twin, an_image(2, G.FAILED, digest="sha256:same"), previous=0) == {1: None, 2: None}


def test_twins_count_as_one_previous_image() -> None:
    images = [an_image(1, G.SUPERSEDED), *(an_image(n, G.SUPERSEDED, digest="sha256:same") for n in (2, 3))]

    assert judged(*images) == {1: Stay.PREVIOUS, 2: Stay.SHARED, 3: Stay.PREVIOUS}


@pytest.mark.parametrize("status", [G.BUILDING, G.PUSHED, G.VERIFIED])
def test_nothing_goes_from_a_repository_in_which_a_commit_is_in_flight(status: GenerationStatus) -> None:
    stay = judged(an_image(1, G.FAILED), an_image(2, status, sandbox="sbx-2"))

    assert stay == {1: Stay.COMMITTING, 2: Stay.IN_FLIGHT}


def test_of_a_sandbox_that_has_ended_no_previous_one_is_kept() -> None:
    images = an_image(1, G.SUPERSEDED), an_image(2, G.ACTIVE)

    assert judged(*images, ended=frozenset({SandboxId("sbx-1")})) == {1: None, 2: Stay.ACTIVE}


def test_another_registry_or_prefix_is_left_alone() -> None:
    moved = replace(an_image(2, G.FAILED), repository="old/acme/gemini-cli-user-ada")

    assert judged(an_image(1, G.FAILED, registry="old.test"), moved) == {1: Stay.ELSEWHERE, 2: Stay.ELSEWHERE}


def test_what_has_no_image_of_its_own_gets_no_verdict() -> None:
    never_pushed = replace(an_image(3, G.FAILED), push_time=None)

    assert judged(an_image(1, G.DISCARDED), an_image(2, G.DELETED), never_pushed) == {}
