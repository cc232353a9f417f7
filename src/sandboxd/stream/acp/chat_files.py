"""Makes `session/load` safe at any moment: run `argv` in the sandbox before each start of the CLI, with its HOME.

The trap, in CLI 0.61 (upstream issues 28693 and 28775): `session/load` first begins a new recording in
`chats/session-<this minute>-<first 8 of the id>.jsonl`, then looks for the session. Where the session was created in
this very minute, that is its own file, and the conversation is gone. In another minute a file without content stays
behind, which a retention sweep takes for a corrupted session and deletes together with the true one.

The way out, tried with the real CLI: the file's name is free as long as it begins with `session-` and ends with
`-<first 8>.jsonl`; the CLI looks into the files, and after a load it goes on writing to the file that it found. So
before a start the session's file gets a name that no minute has, `session-0-<id>-<first 8>.jsonl`. A new recording
cannot meet it, whatever the clock says, and it stays the truth for the rest of the session's life: everything else
under the session's short id was left behind by a load, and is removed. Resuming three times within a minute keeps the
conversation whole.

Only the given sessions are touched: the freelancer's own ones may be open in a terminal. Nothing that holds an answer
of the model is ever removed; it is kept under a name that the CLI does not read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SESSION = re.compile(r"[0-9A-Fa-f]{8}-[0-9A-Fa-f-]{1,55}")

SCRIPT = r"""
for id in "$@"; do
  short=${id%"${id#????????}"}
  for chats in "$HOME"/.gemini/tmp/*/chats; do
    [ -d "$chats" ] || continue
    truth="$chats/session-0-$id-$short.jsonl"
    # In order of the names: the oldest recording of a session is the one that loads go on writing to.
    for file in "$chats"/session-[1-9]*-"$short".jsonl; do
      [ -f "$file" ] || continue
      first=
      read -r first < "$file"
      case $first in *"\"sessionId\":\"$id\""*) ;; *) continue ;; esac
      if [ ! -e "$truth" ]; then
        mv "$file" "$truth" || exit 1
      elif grep -q '"type":"gemini"' "$file"; [ $? -eq 1 ]; then
        rm -f "$file"
      else
        mv "$file" "$file.kept"
      fi
    done
  done
done
"""
"""POSIX sh; the ids of the sessions are its arguments. Safe to repeat, and to end anywhere."""


def prepare_argv(sessions: Sequence[str]) -> Sequence[str]:
    """The command to run before the CLI is started.

    Args:
        sessions: The CLI's ids of all sessions that may be loaded; ids that are none are left out.
    """
    return ["/bin/sh", "-c", SCRIPT, "sandboxd-chat-files", *(id_ for id_ in sessions if _SESSION.fullmatch(id_))]
