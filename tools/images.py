"""`make images`: build the images that have changed, push them, and write down their digests.

An image's tag is a hash of what goes into it, so a registry that has the tag has the image, whoever built it. Needs
buildah, and mmdebstrap for a base of our own (`--base debian:trixie-slim` takes a public one). Standard library alone.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("SANDBOXD_CACHE_DIR") or Path.home() / ".cache" / "sandboxd") / "images"
SUITE = "trixie"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
SECONDS = 30
SHARED = (".dockerignore", "requirements.lock", "tools/uv.lock.txt", "tools/generate_protos.py", "proto", "third_party")
UNUSED = {"__pycache__", "v1", "buf"}
"""Directories that no image takes from the checkout: caches, and what is generated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image."""

    dockerfile: str
    inputs: tuple[str, ...]
    """Files and directories that decide what it holds."""
    program: str = ""
    """Module of ours that builds a program and prints where; its image has that and is only made when it is named."""


AGENT_SOURCES = (
    "src/sandboxd/__init__.py", "src/sandboxd/agent", "src/sandboxd/model", "src/sandboxd/stream/__init__.py",
    "src/sandboxd/stream/agent_port.py", "src/sandboxd/monitor/__init__.py", "src/sandboxd/monitor/tracebacks.py",
)  # fmt: skip
IMAGES = {
    "agent": Image(dockerfile="images/agent/Dockerfile", inputs=(*SHARED, "images/agent", *AGENT_SOURCES)),
    "sandbox": Image(dockerfile="images/sandbox/Dockerfile", inputs=("images/sandbox", "src/sandboxd/dev/gemini-cli")),
    "server": Image(
        dockerfile="Dockerfile",
        inputs=(*SHARED, "Dockerfile", "requirements-server.lock", "pyproject.toml", "alembic", "alembic.ini", "src"),
    ),
    "postgres": Image(dockerfile="images/postgres/Dockerfile", inputs=("images/postgres",)),
    "kaniko": Image(
        dockerfile="images/kaniko/Dockerfile",
        inputs=("images/kaniko", "tools/kaniko.py"),
        program="tools.kaniko",
    ),
}

DEFAULT = ", ".join(name for name, image in IMAGES.items() if not image.program)


class ImagesError(Exception):
    """An image could not be made; the text says what to do about it."""


def say(text: str) -> None:
    """Print one line for the person who waits."""
    print(f"images: {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Build what has changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(IMAGES)}; {DEFAULT} if none")
    parser.add_argument("--registry", default="127.0.0.1:5000", help="where to push")
    parser.add_argument("--pull-registry", help="the same registry as nodes name it; 127.0.0.1 becomes localhost")
    parser.add_argument("--base", help="a public base, like debian:trixie-slim, in place of one made by mmdebstrap")
    parser.add_argument("--insecure", action="store_true", help="the registry has no TLS; so by itself on loopback")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build" / "images.json", help="where digests go")
    options = parser.parse_args()
    if unknown := set(options.names) - set(IMAGES):
        raise ImagesError(f"there is no image {', '.join(sorted(unknown))}; known are {', '.join(IMAGES)}")
    local = options.registry.startswith(("127.", "localhost"))
    registry = Registry(options.registry, tls=not (options.insecure or local))
    pull = options.pull_registry or options.registry.replace("127.0.0.1", "localhost")
    given = {name: IMAGES[name] for name in options.names or DEFAULT.split(", ")}
    chosen = {name: image for name, image in given.items() if (REPOSITORY / image.dockerfile).is_file()}
    began = time.monotonic()
    base = options.base or base_reference(registry)
    made: dict[str, dict[str, str]] = {}
    for name, image in chosen.items():
        made[name] = found_image(name, image, base=base, registry=registry) or make_image(
            name, image, base=base, own_base=options.base is None, registry=registry
        )
    write_digests(options.output, pull, made)
    say(f"{len(made)} images in {time.monotonic() - began:.1f} s; digests in {options.output}")


def base_reference(registry: "Registry") -> str:
    """Return what our own base is called; its tag says what goes into it."""
    return f"{registry.name}/sandboxd/base:dev-{digest_of(('images/base', SUITE))}"


def make_base(reference: str, registry: "Registry") -> None:
    """Make and push our own base where it is not there yet."""
    tag = reference.rpartition(":")[2]
    if registry.digest("sandboxd/base", tag):
        return
    lines = (REPOSITORY / "images" / "base" / "packages.txt").read_text().splitlines()
    packages = ",".join(line for line in lines if line and not line.startswith("#"))
    root = CACHE / f"base-{tag}.tar"
    if not root.exists():
        need("mmdebstrap")
        say(f"making a root file system of Debian {SUITE} (100 MB, about a minute)")
        fresh = root.with_suffix(f".{os.getpid()}.tar")
        try:
            run("base", ["mmdebstrap", "--variant=minbase", f"--include={packages}", SUITE, str(fresh)])
            fresh.replace(root)
        finally:
            fresh.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as context:
        os.link(root, Path(context) / "rootfs.tar")
        build("base", "images/base/Dockerfile", Path(context), reference, [])
    registry.push("base", reference)


def found_image(name: str, image: Image, *, base: str, registry: "Registry") -> dict[str, str] | None:
    """Return tag and digest of an image that the registry has, or None."""
    tag = f"dev-{digest_of((image.dockerfile, *image.inputs), base.rpartition('/')[2])}"
    digest = registry.digest(f"sandboxd/{name}", tag)
    return {"repository": f"sandboxd/{name}", "tag": tag, "digest": digest} if digest else None


def make_image(name: str, image: Image, *, base: str, own_base: bool, registry: "Registry") -> dict[str, str]:
    """Build and push an image, and return its tag and digest."""
    with only_one():
        if found := found_image(name, image, base=base, registry=registry):  # somebody else was quicker
            return found
        if own_base:
            make_base(base, registry)
        tag = f"dev-{digest_of((image.dockerfile, *image.inputs), base.rpartition('/')[2])}"
        reference = f"{registry.name}/sandboxd/{name}:{tag}"
        arguments = ["--layers", "--build-arg", f"BASE={base}"]
        if AUTHORITIES.is_file():  # only used while building; for networks that look into TLS
            arguments += ["--secret", f"id=certificates,src={AUTHORITIES}"]
        with context_of(name, image) as context:
            build(name, image.dockerfile, context, reference, arguments)
        registry.push(name, reference, f"{registry.name}/sandboxd/{name}:dev")
        found = found_image(name, image, base=base, registry=registry)
        if found is None:
            raise ImagesError(f"{reference} was built and pushed, and what goes into it has changed meanwhile: repeat")
        return found


@contextmanager
def context_of(name: str, image: Image) -> Iterator[Path]:
    """Give the directory that an image is built from: the checkout, or one with nothing but its program."""
    if not image.program:
        yield REPOSITORY
        return
    say(f"{name} gets its program from {image.program}: 3 minutes the first time, then from {CACHE.parent}/tools")
    command = [str(REPOSITORY / ".venv" / "bin" / "python"), "-m", image.program]
    made = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=False)
    if made.returncode != 0:
        raise ImagesError(f"{image.program} could not build it")
    program = Path(made.stdout.strip())
    with tempfile.TemporaryDirectory(dir=CACHE) as context:
        shutil.copy(program, Path(context) / program.name)
        yield Path(context)


def build(name: str, dockerfile: str, context: Path, reference: str, arguments: list[str]) -> None:
    """Build one image with buildah; its steps are shown, its whole output goes to a log."""
    need("buildah")
    command = ["buildah", "bud", "--isolation", "chroot", "--tls-verify=false", *arguments]
    run(name, [*command, "-f", str(REPOSITORY / dockerfile), "-t", reference, str(context)])


def run(name: str, command: list[str]) -> None:
    """Run one command, its steps told as they come.

    Raises:
        ImagesError: It failed; the end of its output is in the text.
    """
    log = REPOSITORY / "build" / "images" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with (
        log.open("a") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            file.write(line)
            file.flush()
            if line.startswith(("STEP ", "[", "I: ")):
                say(f"{name} {time.monotonic() - began:4.0f} s  {line.strip()[:100]}")
    if child.returncode != 0:
        end = "\n".join(log.read_text().splitlines()[-25:])
        raise ImagesError(f"{command[0]} failed for {name} (all of it: {log}):\n{end}")


class Registry:
    """Where images are kept."""

    def __init__(self, name: str, *, tls: bool) -> None:
        """Take its name, host and port."""
        self.name = name
        self._tls = tls

    def digest(self, repository: str, tag: str) -> str | None:
        """Return the digest of a tag, or None where there is none.

        Raises:
            ImagesError: The registry does not answer.
        """
        host, _, path = self.name.partition("/")
        where = f"{path}/{repository}" if path else repository
        url = f"{'https' if self._tls else 'http'}://{host}/v2/{where}/manifests/{tag}"
        request = urllib.request.Request(url, method="HEAD", headers={"Accept": MANIFESTS})  # noqa: S310 - the registry
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310 - the registry
                found: str = answer.headers["Docker-Content-Digest"]
                return found
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise ImagesError(f"{self.name} answers {error.code} to {url}") from error
        except OSError as error:
            raise ImagesError(f"no registry answers at {self.name} ({error}); `make cluster-up` has one") from error

    def push(self, name: str, reference: str, *others: str) -> None:
        """Push an image under one or more references."""
        for target in (reference, *others):
            say(f"{name} is pushed as {target}")
            check = "--tls-verify=true" if self._tls else "--tls-verify=false"
            run(name, ["buildah", "push", check, "--quiet", reference, f"docker://{target}"])


def digest_of(paths: tuple[str, ...], *facts: str) -> str:
    """Return a hash of files, directories and facts; a path that is no file counts by its name."""
    digest = hashlib.sha256("\0".join(facts).encode())
    for path in sorted({file for one in paths for file in _files(REPOSITORY / one)}):
        digest.update(str(path.relative_to(REPOSITORY)).encode() + b"\0")
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:16]


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for directory, names, files in os.walk(path):
        # Generated code is made anew in the image, from the protos. Only `proto` itself may have directories named v1.
        generated = path.is_relative_to(REPOSITORY / "src")
        names[:] = [name for name in names if name != "__pycache__" and not (generated and name in UNUSED)]
        yield from (Path(directory, name) for name in files if not name.endswith(".pyc"))


def need(program: str) -> None:
    """Check that a program is there."""
    if shutil.which(program) is None:
        raise ImagesError(f"{program} is missing (Debian, Ubuntu: apt-get install {program})")


@contextmanager
def only_one() -> Iterator[None]:
    """Let two runs on one machine follow each other."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another run to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_digests(output: Path, registry: str, made: dict[str, dict[str, str]]) -> None:
    """Write the file that tests and chart read; what this run did not touch stays in it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        kept: dict[str, dict[str, str]] = json.loads(output.read_text())["images"]
    except (OSError, ValueError, KeyError):
        kept = {}
    for name, image in made.items():
        kept[name] = {**image, "reference": f"{registry}/{image['repository']}@{image['digest']}"}
    output.write_text(json.dumps({"registry": registry, "images": kept}, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except ImagesError as error:
        sys.exit(f"images: {error}")
