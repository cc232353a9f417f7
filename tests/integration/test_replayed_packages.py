"""What real npm, gem, Go and cargo have installed is noticed, and the replay's own commands install it again elsewhere.

Their registries are this test's: npm's and gem's on loopback ports, Go's and cargo's in directories. apt and pip are
tried in a pod (`tests/cluster/test_base_upgrade.py`).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typing_extensions import override

from sandboxd.agent.package_reader import PackageReader
from sandboxd.dev.node import find_node
from sandboxd.manager.replaying import ENVIRONMENT
from sandboxd.model.packages import Package, PackageManager, PackagePlace
from sandboxd.model.replay import BasePackages, ReplayAction, install_command, plan_packages

NOTHING = BasePackages(names=frozenset())
FIRST, NEWEST, NONE = "1.0.0", "1.1.0", "9.9.9"
GO_MODULE = "example.test/tools/tiny"
GEMS_OF_ROOT = "var/lib/gems/3.1.0"


@dataclass(frozen=True, kw_only=True)
class Shop:
    """A manager, where it finds two versions of one package, and how somebody installs the first of them."""

    manager: PackageManager
    package: str
    places: Mapping[str, str]
    """Its settings, which a sandbox has in files."""
    ordinary: Sequence[str]
    """With `ROOT` where a root file system would begin."""
    version: str = "{}"
    """As it writes one."""

    def run(self, root: Path, command: Sequence[str]) -> bool:
        """Run a command as the replay does, with a root file system of its own; answers whether it says that it did."""
        places = {name: value.replace("ROOT", str(root)) for name, value in self.places.items()}
        environment = {**ENVIRONMENT, **places, "GOBIN": f"{root}/usr/local/bin"}
        words = [word.replace("ROOT", str(root)) for word in command]
        place = shutil.which(words[0], path=environment["PATH"])
        assert place is not None, f"there is no {words[0]} here"
        done = subprocess.run([place, *words[1:]], env=environment, capture_output=True, check=False, timeout=240)
        return done.returncode == 0


def tarball(entries: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


@contextmanager
def an_npm_registry(name: str) -> Iterator[str]:
    """Serve two versions of a package; answers the address."""
    packed = {
        version: tarball({"package/package.json": json.dumps({"name": name, "version": version}).encode()})
        for version in (FIRST, NEWEST)
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            version = next((each for each in packed if self.path.endswith(f"-{each}.tgz")), "")
            if version:
                self._answer(packed[version])
            elif self.path == "/" + name.replace("/", "%2f"):
                self._answer(json.dumps(self._listing()).encode())
            else:
                self.send_error(404)

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _listing(self) -> dict[str, object]:
            address = f"http://127.0.0.1:{server.server_port}"
            versions = {
                version: {
                    "name": name,
                    "version": version,
                    "dist": {"tarball": f"{address}/tiny-{version}.tgz", "shasum": hashlib.sha1(data).hexdigest()},
                }
                for version, data in packed.items()
            }
            return {"name": name, "dist-tags": {"latest": NEWEST}, "versions": versions}

        @override
        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with served(server) as address:
        yield address


@contextmanager
def served(server: ThreadingHTTPServer) -> Iterator[str]:
    """Let a server serve for a block; answers its address."""
    thread = threading.Thread(target=server.serve_forever, name="registry")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


GEMS = r"""
require "rubygems/package"
require "fileutils"
require "zlib"
specs = ARGV.map do |version|
  Gem::Specification.new do |spec|
    spec.name, spec.version, spec.summary, spec.authors = "tiny-2", version, "tiny", ["ours"]
    spec.files, spec.bindir, spec.executables = ["bin/tiny"], "bin", ["tiny"]
  end
end
%w[gems quick/Marshal.4.8 bin].each { |place| FileUtils.mkdir_p(place) }
File.write("bin/tiny", "puts :tiny\n", perm: 0o755)
specs.each do |spec|
  File.rename(Gem::Package.build(spec, true), "gems/#{spec.file_name}")
  File.binwrite("quick/Marshal.4.8/#{spec.spec_name}.rz", Zlib::Deflate.deflate(Marshal.dump(spec)))
end
rows = specs.map { |spec| [spec.name, spec.version, "ruby"] }
{"specs" => rows, "latest_specs" => rows.last(1), "prerelease_specs" => []}.each do |name, listed|
  Zlib::GzipWriter.open("#{name}.4.8.gz") { |file| file.write(Marshal.dump(listed)) }
end
"""
"""Makes what a gem server serves, in its own format of versions that Ruby alone writes."""


def a_gem_server(place: Path, ruby: str) -> ThreadingHTTPServer:
    """A server of two versions of a gem, whose name ends like a version."""
    place.mkdir()
    script = place / "make.rb"
    script.write_text(GEMS)
    subprocess.run([ruby, script, FIRST, NEWEST], cwd=place, check=True, capture_output=True, timeout=60)
    return ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(place)))


class _Quiet(SimpleHTTPRequestHandler):
    @override
    def log_message(self, *arguments: object) -> None:
        pass


def a_go_proxy(place: Path) -> str:
    """Lay out two versions of a module as a proxy serves them; answers its address."""
    listed = place / GO_MODULE / "@v"
    listed.mkdir(parents=True)
    module = f"module {GO_MODULE}\n\ngo 1.20\n"
    for version in (f"v{FIRST}", f"v{NEWEST}"):
        (listed / f"{version}.info").write_text(json.dumps({"Version": version, "Time": "2026-01-01T00:00:00Z"}))
        (listed / f"{version}.mod").write_text(module)
        with zipfile.ZipFile(listed / f"{version}.zip", "w") as archive:
            archive.writestr(f"{GO_MODULE}@{version}/go.mod", module)
            archive.writestr(f"{GO_MODULE}@{version}/main.go", 'package main\n\nfunc main() { println("tiny") }\n')
    (listed / "list").write_text(f"v{FIRST}\nv{NEWEST}\n")
    return place.as_uri()


def a_cargo_home(place: Path) -> None:
    """Make cargo's directory with a registry that is one, too, of two versions of a crate."""
    index = place / "registry-of-ours"
    (index / "index/ti/ny").mkdir(parents=True)
    lines = []
    for version in (FIRST, NEWEST):
        manifest = f'[package]\nname = "tiny"\nversion = "{version}"\nedition = "2021"\n'
        lock = f'version = 3\n\n[[package]]\nname = "tiny"\nversion = "{version}"\n'
        top = f"tiny-{version}"
        files = {"Cargo.toml": manifest, "Cargo.lock": lock, "src/main.rs": "fn main() {}\n"}
        crate = tarball({f"{top}/{name}": content.encode() for name, content in files.items()})
        (index / f"{top}.crate").write_bytes(crate)
        said = {"name": "tiny", "vers": version, "deps": [], "features": {}, "yanked": False}
        lines.append(json.dumps({**said, "cksum": hashlib.sha256(crate).hexdigest()}))
    (index / "index/ti/ny/tiny").write_text("\n".join(lines) + "\n")
    (place / "config.toml").write_text(
        f'[source.crates-io]\nreplace-with = "ours"\n\n[source.ours]\nlocal-registry = "{index}"\n'
    )


@pytest.fixture
def npm(tmp_path: Path) -> Iterator[Shop]:
    node = find_node()
    programs = tmp_path / "node"
    programs.mkdir()
    (programs / "node").symlink_to(node.binary)
    (programs / "npm").symlink_to(node.npm[-1])
    with an_npm_registry("@scope/tiny") as address:
        yield Shop(
            manager=PackageManager.NPM,
            package="@scope/tiny",
            places={
                "HOME": str(tmp_path),
                "PATH": f"{programs}:{ENVIRONMENT['PATH']}",
                "npm_config_registry": address,
                "npm_config_update_notifier": "false",
            },
            ordinary=["npm", "install", "-g", "--prefix", "ROOT/usr/local", "@scope/tiny@1.0.0"],
        )


@pytest.fixture
def gem(tmp_path: Path) -> Iterator[Shop]:
    ruby = shutil.which("ruby")
    if ruby is None or shutil.which("gem") is None:
        pytest.skip("needs Ruby with gem")
    with served(a_gem_server(tmp_path / "gem-server", ruby)) as address:
        settings = tmp_path / "gemrc"
        settings.write_text(f"---\n:sources:\n- {address}\n")
        yield Shop(
            manager=PackageManager.GEM,
            package="tiny-2",
            # Of Ruby's own the directory for gems is none that a test may write to.
            places={"HOME": str(tmp_path), "GEMRC": str(settings), "GEM_HOME": f"ROOT/{GEMS_OF_ROOT}"},
            ordinary=["gem", "install", "--no-document", "--bindir", "ROOT/usr/local/bin", f"tiny-2:{FIRST}"],
        )


@pytest.fixture
def go(tmp_path: Path) -> Shop:
    found = shutil.which("go")
    if found is None:
        pytest.skip("needs Go")
    cache = subprocess.run([found, "env", "GOCACHE"], capture_output=True, text=True, check=True, timeout=30)
    return Shop(
        manager=PackageManager.GO,
        package=GO_MODULE,
        places={
            "HOME": str(tmp_path),
            "PATH": f"{Path(found).parent}:{ENVIRONMENT['PATH']}",
            "GOPROXY": a_go_proxy(tmp_path / "proxy"),
            "GOSUMDB": "off",
            "GOTOOLCHAIN": "local",
            "GOFLAGS": "-modcacherw",
            "GOCACHE": cache.stdout.strip(),  # it has the standard library, which takes longer than all of this
        },
        ordinary=["go", "install", f"{GO_MODULE}@v{FIRST}"],
        version="v{}",
    )


@pytest.fixture
def cargo(tmp_path: Path) -> Shop:
    found = shutil.which("cargo")
    if found is None:
        pytest.skip("needs cargo")
    a_cargo_home(tmp_path / "cargo")
    return Shop(
        manager=PackageManager.CARGO,
        package="tiny",
        places={
            "HOME": str(tmp_path),
            "CARGO_HOME": str(tmp_path / "cargo"),
            "RUSTUP_HOME": os.environ.get("RUSTUP_HOME", str(Path.home() / ".rustup")),
            "PATH": f"{Path(found).parent}:{ENVIRONMENT['PATH']}",
        },
        ordinary=["cargo", "install", "--root", "ROOT/usr/local/cargo", "--version", "1.0.0", "tiny"],
    )


@pytest.fixture(params=["npm", "gem", "go", "cargo"])
def shop(request: pytest.FixtureRequest) -> Shop:
    made = request.getfixturevalue(request.param)
    assert isinstance(made, Shop)
    return made


def found(root: Path) -> list[Package]:
    reading = PackageReader(root=root, home=root / "home").read()
    assert reading.complete
    return list(reading.packages.values())


def versions(root: Path) -> dict[str, str]:
    return {one.key.name: one.version for one in found(root)}


def moved(package: Package, old: Path, new: Path) -> Package:
    """As it would be called where the other root file system is this one."""
    return replace(package, key=replace(package.key, directory=package.key.directory.replace(str(old), str(new))))


@pytest.mark.timeout(300)
def test_what_was_installed_is_noticed_and_is_there_again_on_another_root_file_system(
    shop: Shop, tmp_path: Path
) -> None:
    old, new, other = (tmp_path / name for name in ("old", "new", "other"))
    for root in (old, new, other):
        (root / "usr/local/bin").mkdir(parents=True)

    assert shop.run(old, shop.ordinary)
    (package,) = found(old)
    (planned,) = plan_packages([package], old=NOTHING, new=NOTHING)
    pinned = install_command([moved(package, old, new)], pinned=True)
    newest = install_command([moved(package, old, other)], pinned=False)
    gone = install_command([replace(moved(package, old, new), version=shop.version.format(NONE))], pinned=True)

    assert (package.key.manager, package.place) == (shop.manager, PackagePlace.ROOT)
    assert versions(old) == {shop.package: shop.version.format(FIRST)}
    assert planned.action is ReplayAction.INSTALL
    assert shop.run(new, pinned)
    assert versions(new) == {shop.package: shop.version.format(FIRST)}
    assert shop.run(other, newest)
    assert versions(other) == {shop.package: shop.version.format(NEWEST)}
    assert not shop.run(new, gone), "a version that there is not is a failure"
    assert versions(new) == {shop.package: shop.version.format(FIRST)}


@pytest.mark.parametrize(
    ("settings", "options"),
    [({"GEM_HOME": "ROOT/home/.gem"}, []), ({"HOME": "ROOT/home"}, ["--user-install"])],
    ids=["as the agent sets it", "as Ruby knows it"],
)
def test_a_gem_of_a_users_own_is_noticed_at_home_with_its_program_as_part_of_it(
    gem: Shop, tmp_path: Path, settings: Mapping[str, str], options: Sequence[str]
) -> None:
    root = tmp_path / "root"
    (root / "home").mkdir(parents=True)
    own = replace(gem, places={**gem.places, **settings})

    assert own.run(root, ["gem", "install", "--no-document", *options, gem.package])

    assert [(one.key.name, one.version, one.place) for one in found(root)] == [(gem.package, NEWEST, PackagePlace.HOME)]
    assert any(path.name == "tiny" and path.parent.name == "bin" for path in root.rglob("tiny"))
