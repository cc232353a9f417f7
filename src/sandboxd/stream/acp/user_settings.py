"""Puts our settings into the freelancer's user settings, where the CLI would skip the system ones.

CLI 0.61 reads `GEMINI_CLI_SYSTEM_SETTINGS_PATH` only where the file and every folder above it belong to root and
nobody else may write there; otherwise it says so on stderr and goes on without: sessions are deleted, shell output
stays invisible, `-p` refuses to run. An image can promise that, a backend that runs as a person on their machine
cannot. So there, before each start, our values are merged into `$HOME/.gemini/settings.json`: ours win, the
freelancer's others stay. A file that is no JSON would keep the CLI from starting; it is put aside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

SCRIPT = r"""
const fs = require("fs"), path = require("path");
const file = path.join(process.env.HOME, ".gemini", "settings.json");
const ours = JSON.parse(process.argv[1]);
const plain = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const merge = (under, over) => {
  const merged = { ...under };
  for (const [key, value] of Object.entries(over)) {
    merged[key] = plain(value) && plain(merged[key]) ? merge(merged[key], value) : value;
  }
  return merged;
};
// The CLI allows comments; outside of strings they go.
const bare = (text) => text.replace(/("(?:[^"\\]|\\.)*")|\/\/[^\n]*|\/\*[\s\S]*?\*\//g, (_, string) => string ?? " ");
let before = null, theirs = {};
try {
  before = fs.readFileSync(file, "utf8");
  theirs = JSON.parse(bare(before));
  if (!plain(theirs)) throw new SyntaxError("not an object");
} catch (error) {
  theirs = {};
  if (error.code !== "ENOENT") fs.renameSync(file, `${file}.unreadable`);
}
const after = JSON.stringify(merge(theirs, ours), null, 2) + "\n";
if (after !== before) {
  fs.mkdirSync(path.dirname(file), { recursive: true });
  fs.writeFileSync(`${file}.new`, after, { mode: 0o600 });
  fs.renameSync(`${file}.new`, file);
}
"""
"""Runs in Node, which is wherever the CLI is. Its argument is our settings; safe to repeat, and to end anywhere."""


def merge_argv(*, node: str, settings: Mapping[str, Any]) -> Sequence[str]:
    """The command to run with the freelancer's HOME before the CLI is started.

    Args:
        node: Path of the Node program.
        settings: What `launch.system_settings` says.
    """
    return [node, "-e", SCRIPT, json.dumps(settings, sort_keys=True)]
