"""What a killed run leaves behind, and that the next start heals it. Breaks the development cluster for a minute."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devcluster.leftovers import ADDRESSES, NAMESPACES, contained, shims
from devcluster.places import BRIDGE, KUBELET_PORT, NODE_STATE, Places
from devcluster.processes import SHIM, Found, name_of, ours
from tests.kube import Cluster

pytestmark = [pytest.mark.soak, pytest.mark.timeout(400)]


@pytest.fixture
def places(cluster: Cluster) -> Places:
    if cluster.places is None:
        pytest.skip("only the development cluster may be broken")
    return cluster.places


def devcluster(verb: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "devcluster", verb]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def up() -> None:
    done = devcluster("up")
    assert done.returncode == 0, done.stderr


def kill(found: list[Found]) -> None:
    for one in found:
        os.kill(one.pid, signal.SIGKILL)


def parts(places: Places) -> list[Found]:
    return [found for found in ours(places) if found.program != SHIM]


def taken(port: int) -> socket.socket:
    """Listen where a process that was just killed did: its socket goes a moment after it."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_server(("0.0.0.0", port), reuse_port=False)
        except OSError:
            assert time.monotonic() < deadline, f"port {port} is not let go"
            time.sleep(0.05)


def test_running_pods_outlive_the_death_of_every_component(places: Places) -> None:
    before = {one.pid for one in contained()}
    kill(parts(places))

    up()

    assert before & {one.pid for one in contained()} == before


def test_what_died_with_its_holders_is_started_anew(places: Places) -> None:
    kill([*parts(places), *shims(places)])

    up()

    assert len({name_of(found) for found in parts(places)}) == 9
    assert len(list(NAMESPACES.glob("cni-*"))) <= len(shims(places))


def test_a_start_that_was_killed_is_finished_by_the_next(places: Places) -> None:
    kill(parts(places))
    with subprocess.Popen([sys.executable, "-m", "devcluster", "up"], stderr=subprocess.DEVNULL) as half:
        deadline = time.monotonic() + 60
        while "kube-apiserver" not in {name_of(found) for found in parts(places)}:
            assert time.monotonic() < deadline
        half.kill()

    up()

    assert len({name_of(found) for found in parts(places)}) == 9


def test_a_port_of_somebody_else_is_named_and_nobody_is_ended(places: Places) -> None:
    kill([found for found in parts(places) if name_of(found) == "kubelet"])
    with taken(KUBELET_PORT):
        done = devcluster("up")

    assert done.returncode == 1
    assert f"port {KUBELET_PORT}, which kubelet needs, is taken by process {os.getpid()} (" in done.stderr
    up()


def test_down_leaves_no_process_mount_interface_or_rule(places: Places) -> None:
    assert devcluster("down").returncode == 0

    try:
        assert (ours(places), contained()) == ([], [])
        assert str(NODE_STATE) not in Path("/proc/self/mountinfo").read_text()
        assert not Path(f"/sys/class/net/{BRIDGE}").exists()
        assert list(ADDRESSES.glob("*")) == []
        saved = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
        assert "sandboxd-devcluster" not in saved
        assert "KUBE-ROUTER" not in saved
    finally:
        up()


def test_an_etcd_that_cannot_read_its_state_begins_anew_and_keeps_what_was(places: Places) -> None:
    devcluster("down")
    state = places.data / "etcd" / "member" / "snap" / "db"
    kept = state.with_suffix(".kept")
    state.rename(kept)
    state.write_bytes(b"no database" * 1000)

    up()

    aside = max(places.data.glob("etcd.unreadable.*"))
    assert (aside / "member" / "snap" / "db").read_bytes().startswith(b"no database")
    devcluster("down")
    subprocess.run(["rm", "-rf", places.data / "etcd"], check=True)
    aside.rename(places.data / "etcd")
    kept.replace(state)
    up()
