"""Clients work while everything around them breaks; afterwards one small model must explain all that they were told.

The same for as long as one likes: `python -m tests.history --minutes 30 --seed 7`.
"""

import pytest

from tests.history.record import Outcome
from tests.history.run import run

SEED = 20261128


@pytest.mark.timeout(400)
async def test_a_recorded_history_under_faults_can_be_explained() -> None:
    result = await run(seconds=22, seed=SEED)

    history = result.history
    assert list(result.wrong) == [], "\n".join([*result.wrong, result.summary, result.logs])
    assert len({what for _, what in history.faults}) >= 4, "hardly anything broke: the run shows nothing"
    assert sum(one.outcome is Outcome.OK for one in history.operations) >= 20, result.summary
    assert len(history.calls) >= 3, result.summary
