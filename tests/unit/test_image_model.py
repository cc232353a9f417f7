"""Generations: their statuses and tags."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from sandboxd.model.errors import ErrorKind
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId
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
    tag_of,
)

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
LATER = NOON + timedelta(minutes=1)
G = GenerationStatus


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
    failure = Failure(kind=ErrorKind.CONFLICT, reason="COMMIT_OVERTAKEN", message="Overtaken.")
    told = replace(a_generation(G.SUPERSEDED), told_time=NOON, given_up=IncarnationId("inc"), failure=failure)

    active = told.enter(G.ACTIVE, at=LATER)

    assert (active.told_time, active.given_up, active.failure) == (None, None, None)


def test_only_what_was_booted_and_is_there_can_be_started_from() -> None:
    verified = replace(a_generation(), verify_time=NOON)

    bootable = {status for status in G if replace(verified, status=status).bootable}

    assert bootable == {G.VERIFIED, G.ACTIVE, G.SUPERSEDED}
    assert not replace(a_generation(G.SUPERSEDED), verify_time=None).bootable


def test_a_failure_keeps_its_reason() -> None:
    failure = Failure(kind=ErrorKind.EXHAUSTED, reason="IMAGE_TOO_LARGE", message="Too large.")

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
