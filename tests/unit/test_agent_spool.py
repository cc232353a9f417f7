"""The agent's spool against the plainest model of it: all bytes ever written, and where the kept ones begin."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxd.agent import spool as spool_module
from sandboxd.agent.spool import Spool
from sandboxd.model.processes import SpoolPolicy

CAPACITY = 64
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.binary(min_size=1, max_size=CAPACITY)),
        st.tuples(st.just("acknowledge"), st.integers(0, 400)),
        st.tuples(st.just("read"), st.integers(0, 400)),
    ),
    max_size=60,
)


@pytest.mark.parametrize("policy", SpoolPolicy)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(steps=STEPS)
def test_a_spool_keeps_the_newest_bytes_at_their_offsets(
    tmp_path: Path, policy: SpoolPolicy, steps: list[tuple[str, bytes | int]]
) -> None:
    spool = Spool(directory=tmp_path, capacity=CAPACITY, policy=policy)
    written, start = b"", 0
    spool_module.TRUNCATE_BYTES, before = 40, spool_module.TRUNCATE_BYTES
    try:
        for step, value in steps:
            if isinstance(value, bytes):
                data = value[: spool.room]
                if data:
                    spool.append(data)
                written += data
                start = max(start, len(written) - CAPACITY)
            elif step == "acknowledge":
                offset = min(value, len(written))
                spool.acknowledge(offset)
                start = max(start, offset)
            else:
                offset = min(max(value, start), len(written))
                assert spool.read(offset, 50) == written[offset : offset + 50]

            assert (spool.start, spool.end) == (start, len(written))
            assert spool.read(start, CAPACITY) == written[start:]
            kept = len(written) - start
            assert spool.room == (CAPACITY if policy is SpoolPolicy.DROP_OLDEST else CAPACITY - kept)
    finally:
        spool_module.TRUNCATE_BYTES = before
        spool.close()


def test_a_spool_leaves_no_name_in_its_directory(tmp_path: Path) -> None:
    spool = Spool(directory=tmp_path, capacity=CAPACITY, policy=SpoolPolicy.BLOCK)

    spool.append(b"hello")

    assert list(tmp_path.iterdir()) == []
    spool.close()
