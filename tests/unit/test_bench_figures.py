import math
from pathlib import Path

import pytest

from tests.bench.figures import percentile
from tests.bench.pod_memory import OTHER, PodMemory, add, measure


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([1.0], 0.5, 1.0),
        ([1.0, 2.0], 0.5, 1.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([float(number) for number in range(1, 101)], 0.99, 99.0),
        ([float(number) for number in range(1, 101)], 1.0, 100.0),
        ([float(number) for number in range(1, 11)], 0.99, 10.0),
    ],
)
def test_a_percentile_is_the_least_value_that_covers_the_share(
    values: list[float], share: float, expected: float
) -> None:
    assert percentile(values, share) == expected


def test_no_value_has_no_percentile() -> None:
    assert math.isnan(percentile([], 0.5))


def test_memory_is_taken_from_the_processes_of_the_pods_that_were_named_and_from_no_other() -> None:
    assert measure({"00000000-0000-0000-0000-000000000000"}) == PodMemory()


def test_a_process_counts_to_the_part_that_its_command_line_names() -> None:
    found = PodMemory()

    for command in ("/opt/agent/python3 -m sandboxd.agent --config x", "node /opt/gemini.js --acp", "/pause", "vim"):
        add(found, Path("/proc/self"), command)

    assert {name: part.processes for name, part in found.parts.items()} == {
        "agent": 1,
        "CLI, real": 1,
        "pause": 1,
        OTHER: 1,
    }
    agent = found.parts["agent"]
    assert 0 < agent.private <= agent.proportional == agent.largest
