"""The rules by which tokens are counted."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.model.usage import (
    MAX_TOKENS,
    NO_TOKENS,
    Reservation,
    TokenCounts,
    read_usage,
    reserve,
    unwatched_end,
    watched_break,
)

WORDS = st.text(alphabet="0123456789-.aé", max_size=25)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)
NAMES = (
    "promptTokenCount",
    "cachedContentTokenCount",
    "candidatesTokenCount",
    "thoughtsTokenCount",
    "toolUsePromptTokenCount",
    "totalTokenCount",
)


def test_all_classes_are_read() -> None:
    metadata = dict(zip(NAMES, (110, 64, 4, 33, 17, 164), strict=True))

    assert read_usage(metadata) == TokenCounts(prompt=110, cached=64, output=4, thoughts=33, tool_use=17, total=164)


def test_absent_is_zero_and_the_total_is_what_is_there() -> None:
    found = read_usage({"promptTokenCount": 7, "thoughtsTokenCount": 3})

    assert found == TokenCounts(prompt=7, thoughts=3, total=10)


@pytest.mark.parametrize("nothing", [None, {}, [], "text", 5, True])
def test_where_nothing_is_reported_what_was_reported_before_stands(nothing: object) -> None:
    assert read_usage(nothing) is None


@pytest.mark.parametrize(
    ("value", "count"),
    [(5, 5), ("5", 5), (5.0, 5), (-5, 0), ("-5", 0), (10**30, MAX_TOKENS), ("9" * 30, 0), (True, 0), (None, 0),
     (float("nan"), 0), (float("inf"), 0), ([5], 0), ({"a": 5}, 0), ("\u0665", 0), ("", 0)],
)  # fmt: skip
def test_a_hostile_count_is_bounded(value: object, count: int) -> None:
    found = read_usage({"promptTokenCount": value})

    assert found is not None
    assert found.prompt == count


def test_cached_tokens_are_never_more_than_the_prompt_they_are_part_of() -> None:
    assert read_usage({"promptTokenCount": 5, "cachedContentTokenCount": 9}) == TokenCounts(prompt=5, cached=5, total=5)


@given(st.dictionaries(st.sampled_from(NAMES), JSON))
def test_no_metadata_raises_or_leaves_the_bounds(metadata: dict[str, object]) -> None:
    found = read_usage(metadata) or NO_TOKENS

    counts = (found.prompt, found.cached, found.output, found.thoughts, found.tool_use)
    assert all(0 <= count <= MAX_TOKENS for count in counts)
    assert 0 <= found.total <= 4 * MAX_TOKENS
    json.dumps(found.total)


@pytest.mark.parametrize(
    ("wished", "output"), [(None, 8192), (100, 100), (65_536, 8192), (0, 0), (-7, 0), (10**18, 8192)]
)
def test_a_reservation_is_a_quarter_of_the_bytes_and_the_smaller_of_wish_and_clamp(
    wished: int | None, output: int
) -> None:
    reserved = reserve(request_bytes=4003, max_output_tokens=wished)

    assert (reserved.prompt_tokens, reserved.output_tokens, reserved.tokens) == (1000, output, 1000 + output)


def test_a_break_that_was_watched_counts_what_was_seen_last() -> None:
    seen = TokenCounts(prompt=10, output=1, total=11)
    reserved = Reservation(prompt_tokens=1000, output_tokens=8192)

    assert watched_break(seen, reserved=reserved, sent=True) == seen
    assert watched_break(None, reserved=reserved, sent=True) == TokenCounts(prompt=1000, total=1000)
    assert watched_break(None, reserved=reserved, sent=False) == NO_TOKENS


@pytest.mark.parametrize(
    ("seen", "settled"),
    [
        (None, TokenCounts(prompt=1000, output=500, total=1500)),
        (TokenCounts(prompt=10, output=1, total=11), TokenCounts(prompt=1000, output=500, total=1500)),
        (
            TokenCounts(prompt=2000, cached=64, output=700, thoughts=50, tool_use=5, total=2755),
            TokenCounts(prompt=2000, cached=64, output=700, thoughts=50, tool_use=5, total=2755),
        ),
        (
            TokenCounts(prompt=2000, thoughts=400, total=2400),
            TokenCounts(prompt=2000, output=100, thoughts=400, total=2500),
        ),
    ],
)
def test_an_end_that_nobody_watched_counts_the_larger_class_by_class(
    seen: TokenCounts | None, settled: TokenCounts
) -> None:
    reserved = Reservation(prompt_tokens=1000, output_tokens=500)

    assert unwatched_end(seen, reserved=reserved) == settled
