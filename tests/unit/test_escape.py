"""What PostgreSQL cannot hold is escaped without loss."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.persistence.escape import dump_json, escape, load_json, unescape

# Any character, lone surrogates and NUL among them, and often the ones that the escape itself uses.
TEXTS = st.text(st.one_of(st.sampled_from("\x00\ue000\ud800\udfff\\u0f"), st.characters(codec=None)), max_size=40)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
)


@given(TEXTS)
def test_every_text_comes_back_and_is_storable(text: str) -> None:
    stored = escape(text)

    assert unescape(stored) == text
    assert "\x00" not in stored
    stored.encode()


@given(JSON)
def test_every_json_comes_back_and_is_storable(value: Any) -> None:
    stored = dump_json(value)

    assert load_json(stored) == value
    stored.encode()


@pytest.mark.parametrize("text", ["", "plain", "ünïcödé 🦀", "\\u0000 in letters", "\x01\x1f"])
def test_what_needs_no_escape_is_left_as_it_is(text: str) -> None:
    assert escape(text) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": object()}, {1, 2}])
def test_what_is_not_json_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        dump_json(value)
