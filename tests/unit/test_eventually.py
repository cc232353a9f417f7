import itertools

import pytest

from tests.eventually import eventually


async def test_it_returns_the_first_truthy_result() -> None:
    results = itertools.chain([0, None, "", "here"])

    assert await eventually(lambda: next(results)) == "here"


async def test_a_failed_assertion_counts_as_not_yet_and_is_shown_at_the_end() -> None:
    def never() -> bool:
        raise AssertionError("the reason")

    with pytest.raises(AssertionError, match="not within 0.02 s") as raised:
        await eventually(never, within=0.02)

    assert str(raised.value.__cause__) == "the reason"


async def test_it_awaits_what_the_check_returns() -> None:
    async def check() -> int:
        return 7

    assert await eventually(check) == 7
