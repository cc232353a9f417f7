import math

import pytest

from tests.bench.figures import percentile


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
