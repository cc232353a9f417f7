"""The page about the lifecycle says what the model does."""

from __future__ import annotations

from tools import lifecycle_page


def test_the_table_of_states_is_the_models() -> None:
    text = lifecycle_page.PAGE.read_text()

    assert lifecycle_page.page(text) == text, "run: python -m tools.lifecycle_page"
