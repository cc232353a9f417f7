"""Put the agent's file system together: interpreter, libraries, wheels and the agent's modules, compiled.

Runs inside the image's build, with that image's own Python and nothing else.
Usage: assemble.py WHEELS SOURCES OUTPUT
"""

import compileall
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

LIBRARIES = Path("usr/lib/x86_64-linux-gnu")
UNUSED = {
    "__pycache__", "_pyrepl", "curses", "dbm", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "sqlite3", "test",
    "tests", "tkinter", "turtledemo", "unittest", "venv", "wsgiref", "xmlrpc",
}  # fmt: skip
"""Parts of the standard library, and directories of wheels, that the agent never imports."""
UNUSED_FILES = re.compile(r".*\.(pyi|pxd|pyx|proto|c|h|typed)|_(curses|sqlite|dbm|gdbm|tkinter|test|xx).*\.so")
PACKAGES = (
    "sandboxd/__init__.py", "sandboxd/agent", "sandboxd/model", "sandboxd/stream/__init__.py",
    "sandboxd/stream/agent_port.py", "sandboxd/monitor/__init__.py", "sandboxd/monitor/tracebacks.py",
)  # fmt: skip
"""What of our sources the agent imports; tests/unit/test_images.py holds the list."""


def main() -> None:
    """Assemble."""
    wheels, sources, output = map(Path, sys.argv[1:])
    standard = Path(sysconfig.get_path("stdlib"))
    target = output / standard.relative_to("/")
    _copy_tree(standard, target)
    # Beside the standard library, so that Python finds them without `site`, which costs a start its time.
    for package in wheels.iterdir():
        if package.is_dir() and not package.name.endswith((".dist-info", "bin")):
            _copy_tree(package, target / package.name)
        elif package.suffix == ".py":
            shutil.copyfile(package, target / package.name)
    for name in PACKAGES:
        found = sources / name
        if found.is_dir():
            _copy_tree(found, target / name)
        else:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found, target / name)
    _copy_file(Path(sys.executable).resolve(), output / "usr/bin/python3")
    for library in _libraries([output / "usr/bin/python3", *target.rglob("*.so"), *target.rglob("*.so.*")]):
        name = library.name
        _copy_file(library.resolve(), output / ("lib64" if name.startswith("ld-linux") else LIBRARIES) / name)
    # Times play no part: whoever unpacks or copies the image may set others.
    invalidation = py_compile.PycInvalidationMode.UNCHECKED_HASH
    if not compileall.compile_dir(target, quiet=2, workers=os.cpu_count() or 1, invalidation_mode=invalidation):
        sys.exit("a module cannot be compiled")
    for directory in ("etc", "tmp", "run", "proc", "opt/agent"):
        (output / directory).mkdir(parents=True, exist_ok=True)


def _copy_tree(source: Path, target: Path) -> None:
    for directory, names, files in os.walk(source):
        names[:] = [name for name in names if name not in UNUSED and not name.startswith("config-3")]
        to = target / Path(directory).relative_to(source)
        to.mkdir(parents=True, exist_ok=True)
        for name in files:
            if not UNUSED_FILES.fullmatch(name):
                _copy_file(Path(directory, name), to / name)


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def _libraries(programs: list[Path]) -> set[Path]:
    """Return every shared library that these need, the loader among them."""
    found: set[Path] = set()
    for program in programs:
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
        found |= {Path(match) for match in re.findall(r"(?:=>\s+|^\s+)(/\S+)", listed, re.MULTILINE)}
    return found


if __name__ == "__main__":
    main()
