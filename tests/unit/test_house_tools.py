"""The tools of the house: generation, the contract of our own for imports, the search for what has landed."""

import subprocess
from pathlib import Path

import grimp
import pytest

from tools.generate_protos import generate
from tools.import_contracts import StandardLibraryOnly
from tools.lint import landed

PROTO = """
syntax = "proto3";
package house.v1;
import "buf/validate/validate.proto";
message Thing { string name = 1 [(buf.validate.field).string.min_len = 1]; }
service ThingService { rpc Make(Thing) returns (Thing); }
"""


@pytest.fixture
def protos(tmp_path: Path) -> Path:
    root = tmp_path / "proto"
    (root / "house" / "v1").mkdir(parents=True)
    (root / "house" / "v1" / "thing.proto").write_text(PROTO)
    return root


def test_generation_makes_typed_modules_and_what_they_import(protos: Path, tmp_path: Path) -> None:
    generate(protos, tmp_path / "out")

    made = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.py*")}
    assert made == {
        *(f"house/v1/thing_{name}" for name in ("pb2.py", "pb2.pyi", "pb2_grpc.py", "pb2_grpc.pyi")),
        "house/v1/__init__.py",
        *(f"buf/validate/{name}" for name in ("__init__.py", "validate_pb2.py", "validate_pb2.pyi")),
    }


def test_generation_again_touches_only_what_changed_and_removes_what_is_gone(protos: Path, tmp_path: Path) -> None:
    other = protos / "house" / "v1" / "other.proto"
    other.write_text(PROTO.replace("Thing", "Other"))
    generate(protos, tmp_path / "out")
    package = tmp_path / "out" / "house" / "v1"
    before = (package / "thing_pb2.py").stat().st_ino

    other.unlink()
    generate(protos, tmp_path / "out")

    assert (package / "thing_pb2.py").stat().st_ino == before
    assert sorted(path.name for path in package.glob("other*")) == []


def test_generation_says_when_a_proto_is_refused(protos: Path, tmp_path: Path) -> None:
    (protos / "house" / "v1" / "thing.proto").write_text('syntax = "proto3"; message {')

    with pytest.raises(RuntimeError, match="refused"):
        generate(protos, tmp_path / "out")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("imported", "kept"), [("json", True), ("pure.other", True), ("structlog", False), ("room", False)]
)
def test_the_contract_lets_only_the_standard_library_in(imported: str, kept: bool) -> None:
    graph = grimp.ImportGraph()
    for module in ("pure", "pure.rule", imported):
        graph.add_module(module)
    graph.add_import(importer="pure.rule", imported=imported)
    options = {"name": "pure", "modules": ["pure"]}

    contract = StandardLibraryOnly(name="pure", session_options={}, contract_options=options)

    assert contract.check(graph, verbose=False).kept is kept


def test_landed_is_what_is_older_than_one_session_of_work(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "--initial-branch", "main")
    commit(tmp_path, "2026-01-01T10:00:00Z")
    assert landed(tmp_path) is None

    commit(tmp_path, "2026-01-01T12:30:00Z")
    assert landed(tmp_path) is None

    older = git(tmp_path, "rev-parse", "HEAD")
    commit(tmp_path, "2026-01-01T19:00:00Z")
    assert landed(tmp_path) == older


def test_landed_is_where_a_branch_left_the_remote_main(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "--initial-branch", "main")
    commit(tmp_path, "2026-01-01T10:00:00Z")
    git(tmp_path, "update-ref", "refs/remotes/origin/main", "HEAD")
    fork = git(tmp_path, "rev-parse", "HEAD")

    commit(tmp_path, "2026-01-01T10:01:00Z")

    assert landed(tmp_path) == fork


def git(directory: Path, *arguments: str, time: str = "2026-01-01T10:00:00Z") -> str:
    environment = {"GIT_AUTHOR_DATE": time, "GIT_COMMITTER_DATE": time, "PATH": "/usr/local/bin:/usr/bin:/bin"}
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@b", *arguments]
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def commit(directory: Path, time: str) -> None:
    git(directory, "commit", "--quiet", "--allow-empty", "--message", "change", time=time)
