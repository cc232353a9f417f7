import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from devcluster.__main__ import other_cluster
from devcluster.builds import BUILDS, OLDEST_GO
from devcluster.pki import ensure_pki
from devcluster.places import Places
from devcluster.processes import Found, ours, running, stop


def test_a_build_is_named_by_what_goes_into_it() -> None:
    kubelab = BUILDS[0]

    assert kubelab.sources
    assert replace(kubelab, tags="other").digest != kubelab.digest
    assert len({build.digest for build in BUILDS}) == len(BUILDS)
    assert f"go {OLDEST_GO[0]}.{OLDEST_GO[1]}" in (Path("devcluster/kubelab/go.mod")).read_text()


def test_the_cache_directory_of_the_person_is_honoured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SANDBOXD_CACHE_DIR", str(tmp_path))

    assert Places.of_this_machine().bin == tmp_path / "devcluster" / "bin"


def test_a_process_is_ours_by_its_directories_and_not_by_its_name_alone(tmp_path: Path) -> None:
    script = "import time; time.sleep(60)"
    command = ["kubelab", "-c", script, "etcd"]
    with (
        subprocess.Popen([*command, f"{tmp_path}/data"], executable=sys.executable) as mine,
        subprocess.Popen([*command, "/elsewhere/data"], executable=sys.executable) as anothers,
    ):
        try:
            found = {one.pid for one in ours(Places(home=tmp_path))}
        finally:
            mine.kill()
            anothers.kill()

    assert found & {mine.pid, anothers.pid} == {mine.pid}


def test_a_process_that_took_over_a_number_is_left_alone() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        stop([Found(pid=stranger.pid, command=("kubelab", "etcd"))], gently=False)

        alive = stranger.poll() is None
        stop([one for one in running() if one.pid == stranger.pid])

    assert alive
    assert stranger.returncode is not None


def test_half_written_keys_are_made_anew_and_whole_ones_are_kept(tmp_path: Path) -> None:
    places = Places(home=tmp_path)

    assert ensure_pki(places)
    assert not ensure_pki(places)
    (places.pki / "kubelet.crt").write_text("-----BEGIN CERT")
    (places.etc / f"pki.{os.getpid()}9.new").mkdir()
    assert ensure_pki(places)
    assert not ensure_pki(places)
    assert [path.name for path in places.etc.glob("*.new")] == []
    assert (places.pki.stat().st_mode & 0o777, (places.pki / "ca.key").stat().st_mode & 0o777) == (0o700, 0o600)


def test_a_kubeconfig_of_somebody_else_is_another_cluster_and_ours_or_none_is_not(tmp_path: Path) -> None:
    places = Places(home=tmp_path)
    places.kubeconfig.parent.mkdir(parents=True)
    places.kubeconfig.write_text("")
    link = tmp_path / "link"
    link.symlink_to(places.kubeconfig)
    own = tmp_path / "own.kubeconfig"

    assert [other_cluster(str(one), places) for one in (places.kubeconfig, link)] == ["", ""]
    assert other_cluster("", places) == ""
    assert other_cluster(str(own), places) == str(own)
