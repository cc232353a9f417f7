"""Generations: their statuses, tags and repositories."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId, is_name
from sandboxd.model.image import (
    MAX_NUMBER,
    STATUS_TRANSITIONS,
    CommitTrigger,
    Failure,
    Generation,
    GenerationId,
    GenerationStatus,
    GenerationStatusError,
    ImageContent,
    number_of,
    repository_of,
    tag_of,
)

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
LATER = NOON + timedelta(minutes=1)
G = GenerationStatus
# A path component and the longest name, of the OCI distribution specification and of what container runtimes take.
COMPONENT = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*")
NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9_.@]{0,61}[a-z0-9])?", fullmatch=True).filter(is_name)


def a_generation(status: GenerationStatus = G.BUILDING) -> Generation:
    return Generation(
        id=GenerationId("gen"),
        sandbox=SandboxId("sbx"),
        client=ClientId("acme"),
        freelancer=FreelancerId("ada"),
        number=7,
        incarnation=IncarnationId("inc"),
        trigger=CommitTrigger.REQUEST,
        registry="registry.test:5000",
        repository="acme/gemini-cli-user-ada",
        status=status,
        content=ImageContent(digest="sha256:" + "0" * 64),
        create_time=NOON,
        update_time=NOON,
    )


ALLOWED = """
    building -> pushed failed discarded
    pushed -> verified failed superseded
    verified -> active failed superseded
    active -> superseded failed
    superseded -> active failed deleting
    failed -> deleting
    discarded ->
    deleting -> deleted
    deleted ->
"""


def test_the_table_of_statuses_is_the_one_of_the_design() -> None:
    written = {}
    for line in ALLOWED.strip().splitlines():
        before, _, after = line.partition("->")
        written[G(before.strip())] = frozenset(map(G, after.split()))

    assert written == STATUS_TRANSITIONS


@pytest.mark.parametrize("before", list(G))
@pytest.mark.parametrize("after", list(G))
def test_a_generation_enters_what_the_table_allows_and_nothing_else(
    before: GenerationStatus, after: GenerationStatus
) -> None:
    generation = a_generation(before)

    if after in STATUS_TRANSITIONS[before]:
        entered = generation.enter(after, at=LATER)
        assert (entered.status, entered.version, entered.update_time) == (after, 2, LATER)
        assert (entered.end_time is None) == after.in_flight
    else:
        with pytest.raises(GenerationStatusError) as refused:
            generation.enter(after, at=LATER)
        assert refused.value.metadata["wanted"] == after.value


def test_each_step_has_its_moment() -> None:
    generation = a_generation()
    for minute, status in enumerate((G.PUSHED, G.VERIFIED, G.ACTIVE, G.SUPERSEDED, G.ACTIVE)):
        generation = generation.enter(status, at=NOON + timedelta(minutes=minute))

    assert generation.push_time == NOON
    assert generation.verify_time == NOON + timedelta(minutes=1)
    assert generation.activate_time == NOON + timedelta(minutes=4)
    assert generation.end_time == NOON + timedelta(minutes=2)


def test_what_becomes_active_again_has_to_be_told_again() -> None:
    told = replace(a_generation(G.SUPERSEDED), told_time=NOON)

    assert told.enter(G.ACTIVE, at=LATER).told_time is None


def test_only_what_was_booted_and_is_there_can_be_started_from() -> None:
    verified = replace(a_generation(), verify_time=NOON)

    bootable = {status for status in G if replace(verified, status=status).bootable}

    assert bootable == {G.VERIFIED, G.ACTIVE, G.SUPERSEDED}
    assert not replace(a_generation(G.SUPERSEDED), verify_time=None).bootable


def test_a_failure_keeps_its_reason() -> None:
    failure = Failure(reason="IMAGE_TOO_LARGE", message="Too large.")

    failed = a_generation().fail(failure, at=LATER)

    assert (failed.status, failed.failure, failed.end_time) == (G.FAILED, failure, LATER)


def test_a_reference_names_the_digest() -> None:
    generation = a_generation()

    assert generation.reference == "registry.test:5000/acme/gemini-cli-user-ada@sha256:" + "0" * 64
    assert replace(generation, content=ImageContent(digest="")).reference == ""
    assert replace(generation, content=None).reference == ""


@pytest.mark.parametrize(("number", "tag"), [(1, "g000001"), (42, "g000042"), (MAX_NUMBER, "g999999")])
def test_a_tag_is_g_and_six_digits(number: int, tag: str) -> None:
    assert tag_of(number) == tag
    assert number_of(tag) == number


@pytest.mark.parametrize("number", [0, -1, MAX_NUMBER + 1])
def test_there_is_no_tag_beyond_six_digits(number: int) -> None:
    with pytest.raises(ValueError, match="999999"):
        tag_of(number)


@pytest.mark.parametrize("text", ["", "g", "g1", "g000000", "g0000001", "latest", "G000001", "g00000a", "g000001\n"])
def test_what_is_no_tag_names_no_number(text: str) -> None:
    assert number_of(text) is None


@pytest.mark.parametrize(
    ("client", "freelancer", "repository"),
    [
        ("acme", "ada", "acme/gemini-cli-user-ada"),
        ("a-b--c", "x.y_z", "a-b--c/gemini-cli-user-x.y_z"),
        ("acme", "ada@acme.test", "acme/gemini-cli-user-ada__40acme.test"),
        ("acme", "a..b", "acme/gemini-cli-user-a__2e__2eb"),
        ("acme", "a__b", "acme/gemini-cli-user-a__5f__5fb"),
        ("acme", "a__40b", "acme/gemini-cli-user-a__5f__5f40b"),
        ("acme", "a-.b", "acme/gemini-cli-user-a__2d__2eb"),
    ],
)
def test_a_repository_has_the_names_of_its_owners(client: str, freelancer: str, repository: str) -> None:
    assert repository_of(ClientId(client), FreelancerId(freelancer)) == repository


@given(client=NAMES, freelancer=NAMES)
def test_every_name_makes_a_repository_that_registries_take(client: str, freelancer: str) -> None:
    repository = repository_of(ClientId(client), FreelancerId(freelancer))

    assert len(repository) <= 255 - len("a-registry-with-a-long-name.test:65535/")
    first, second = repository.split("/")
    assert COMPONENT.fullmatch(first)
    assert COMPONENT.fullmatch(second)


@given(one=NAMES, other=NAMES)
def test_two_freelancers_never_share_a_repository(one: str, other: str) -> None:
    same = repository_of(ClientId("acme"), FreelancerId(one)) == repository_of(ClientId("acme"), FreelancerId(other))

    assert same == (one == other)


def test_the_longest_names_fit() -> None:
    worst = "a" + "@" * 61 + "b"

    repository = repository_of(ClientId(worst), FreelancerId(worst))

    assert len(repository) < 200
    assert repository != repository_of(ClientId(worst), FreelancerId("a" + "@" * 60 + "_b"))
