"""What failed is tried again after waits that double, each key for itself."""

from __future__ import annotations

from sandboxd.manager.patience import Patience
from tests.fakes.manager import FakeClock


def test_each_failure_doubles_the_wait_up_to_the_longest_and_success_begins_anew() -> None:
    clock = FakeClock()
    patience = Patience[str](clock, first=1, longest=3)
    assert not patience.waits("a")

    for wait in (1, 2, 3, 3):
        patience.failed("a")
        clock.advance(wait - 0.1)
        assert patience.waits("a")
        assert not patience.waits("b")
        clock.advance(0.2)
        assert not patience.waits("a")

    patience.forget("a")
    patience.failed("a")
    clock.advance(1.1)
    assert not patience.waits("a")


def test_keys_that_are_gone_are_forgotten() -> None:
    patience = Patience[str](FakeClock(), first=1, longest=3)
    patience.failed("here")
    patience.failed("gone")

    patience.keep({"here"})

    assert patience.waits("here")
    assert not patience.waits("gone")
