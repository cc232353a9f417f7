"""The files of local sandboxes: what a freelancer makes of them is measured and erased all the same."""

from __future__ import annotations

from pathlib import Path

from sandboxd.backends.local.layout import Layout
from sandboxd.model.ids import SandboxId
from tests.backup_trees import a_deep_tree

BOX = SandboxId("sbx-1")


def test_files_of_any_depth_and_in_closed_directories_are_measured_and_erased(tmp_path: Path) -> None:
    layout, outside = Layout(data=tmp_path), tmp_path / "outside"
    files = layout.sandbox(BOX)
    files.make()
    outside.write_text("stays")
    (files.home / "link").symlink_to(outside)
    (files.home / "closed").mkdir(mode=0o000)
    (files.workspace / "file").write_text("12345")
    a_deep_tree(files.workspace / "deep")

    found, size = layout.measure(BOX)
    layout.erase(BOX)
    layout.erase(BOX)

    assert (found, size) == (2, 5 + len(str(outside))), "what lies deeper than any path is not counted"
    assert not files.directory.exists()
    assert outside.read_text() == "stays"
