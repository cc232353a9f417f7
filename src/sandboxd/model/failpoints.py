"""Named places in the code where a test can break the process. They do nothing unless a test arms them.

`SANDBOXD_FAILPOINTS` holds `name=action` pairs, separated by commas; it is read once, when the process starts.
Actions: `exit9` (SIGKILL to this process), `error` (raise `FailpointError`), `sleep:SECONDS` and `hang` (the whole
process stands still, like a stalled replica). `action@N` strikes at the N-th pass only. Where nothing is armed a place
costs one look at a module's variable. This is the one place of the model that looks at the process around it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

VARIABLE: Final = "SANDBOXD_FAILPOINTS"

POINTS: Final[Mapping[str, str]] = {
    # sandboxes
    "create.before_commit": "Create is decoded and allowed; nothing is written.",
    "create.after_commit": "The row CREATING and the request are durable; the backend knows nothing yet.",
    "create.after_start": "The agent answers; the row does not say so.",
    "create.after_token": "The agent has its token; the row does not say ACTIVE.",
    "create.after_settle": "The row says ACTIVE; the caller has no answer.",
    "claim.before_commit": "A member of a pool is taken in Create's transaction, which is not committed.",
    "claim.after_commit": "The sandbox is ACTIVE; the caller has no answer, and the backend does not know whose it is.",
    "claim.after_adopt": "The backend knows whose it is; the member's row still says CLAIMED.",
    "refill.after_plan": "A member's row says STARTING; nothing runs.",
    "refill.after_start": "The agent of a member answers; it has no token, and its row says STARTING.",
    "refill.after_token": "The agent of a member has its token; its row says STARTING.",
    "refill.after_end": "A member's row says ENDING; it still runs.",
    "refill.after_erase": "A member is gone; its row says ENDING.",
    "pause.before_commit": "Pause is allowed; nothing is written.",
    "pause.after_commit": "The row says PAUSING; everything still runs.",
    "pause.after_close": "The CLI has ended, and its turns with it; the agent still runs.",
    "pause.after_stop": "The agent has ended; the row still says PAUSING.",
    "pause.after_settle": "The row says PAUSED; the caller has no answer.",
    "resume.before_commit": "Resume is allowed; nothing is written.",
    "resume.after_commit": "The row says RESUMING and names the next life; nothing runs.",
    "resume.after_start": "The agent of the next life answers; the row does not say so.",
    "resume.after_token": "The agent has its token; the row does not say ACTIVE.",
    "resume.after_settle": "The row says ACTIVE; the caller has no answer.",
    "restore.before_commit": "Restore is allowed; nothing is written.",
    "restore.before_volumes": "The row says RESTORING and names the set; the volumes are as they were.",
    "restore.after_stage": "What comes back is beside what is there; the row does not say that it takes its place.",
    "restore.placing": "The row says that it takes its place: the restore is not cancelled any more.",
    "restore.turning_back": "What a restore that fails or was cancelled left is taken away; the row says RESTORING.",
    "restore.after_volumes": "The volumes are as they are to be; the row does not say so.",
    "restore.after_commit": "The row says that the volumes are restored and names the next life; nothing runs.",
    "restore.after_start": "A restored sandbox's agent answers; it has no token.",
    "restore.after_token": "It has its token; the row says RESTORING.",
    "restore.after_settle": "The row says ACTIVE; the caller has no answer.",
    "drill.after_commit": "A drill's row says RUNNING; nothing of an earlier attempt is left, or restored yet.",
    "drill.after_restore": "Its volumes are restored; nothing runs.",
    "drill.after_boot": "It was booted and has ended again; nothing was compared.",
    "drill.after_compare": "It was compared; its row says RUNNING, and what it made is there.",
    "start.after_commit": "A use of a stopped sandbox: the row says STARTING; nothing runs.",
    "start.after_fallback": "The image did not boot; the row names another one, and nothing runs.",
    "start.after_start": "The agent answers; the row does not say so.",
    "start.after_token": "The agent has its token; the row does not say ACTIVE.",
    "start.after_settle": "The row says ACTIVE; the use has not begun.",
    "stop.after_commit": "The row says STOPPING; everything still runs.",
    "stop.after_close": "The CLI has ended; the agent still runs.",
    "stop.after_stop": "The agent has ended; the row still says STOPPING.",
    "stop.after_settle": "The row says STOPPED.",
    "terminate.before_commit": "Terminate is allowed; nothing is written.",
    "terminate.after_commit": "The row says TERMINATING; everything still runs.",
    "terminate.after_close": "The CLI has ended; the agent still runs.",
    "terminate.after_stop": "The agent has ended; the files are where they were.",
    "terminate.after_remove": "The files are put aside; the row still says TERMINATING.",
    "terminate.after_settle": "The row says TERMINATED; the caller has no answer.",
    "commit.before_commit": "Commit is allowed; nothing is written.",
    "commit.after_commit": "The generation's row says building; nothing was captured.",
    "commit.after_build": "The registry has the image; its row says building.",
    "commit.after_push": "The row says pushed; nobody has booted it.",
    "commit.after_probe": "It was booted; its row says pushed.",
    "commit.after_verify": "The row says verified; nothing starts from it.",
    "commit.after_activate": "The sandbox's row names it; neither the backend nor the tag latest knows.",
    "commit.after_backend": "The backend's next start takes it; the tag latest names another one.",
    "commit.after_tag": "The tag and the backend know; the row does not say so.",
    "backup.after_commit": "A backup's row says creating; nothing was read.",
    "backup.before_freeze": "A running sandbox was read once, where that is as files; nothing is frozen yet.",
    "backup.after_freeze": "It stands still for its backup; nothing of it was read in this state.",
    "backup.after_cut": "It goes on; the storage has cut its snapshots, which may not be ready yet.",
    "backup.after_take": "The repository has both volumes; the row says creating.",
    "backup.after_complete": "The row says complete; what ran for it may still be there.",
    "backup.before_forget": "A backup's row says deleting; the repository has all of it.",
    "backup.after_forget": "The repository has none of it any more; the row says deleting.",
    "release.before_commit": "A set of a terminated sandbox was read, every byte; its volumes are kept.",
    "release.after_commit": "The row says that the set is all that counts; the volumes are there.",
    "release.after_volumes": "The volumes are gone; the row does not say so.",
    "abandoned.before_remove": "An abandoned thing is on record as being removed; it is there.",
    "upgrade.before_commit": "UpgradeImage is decoded; nothing is written.",
    "upgrade.after_start": "A build sandbox runs the new base; nothing is installed in it.",
    "upgrade.after_replay": "The packages are installed in the build sandbox; nothing was captured.",
    "rollback.before_commit": "RollbackImage is allowed; nothing is written.",
    "rollback.after_commit": "The sandbox's row names the older image; neither the backend nor the tag latest knows.",
    "reap.after_mark": "An image's row says deleting; the registry has it.",
    "reap.after_delete": "The registry has an image no more; its row says deleting.",
    "reap.after_row": "An image's row says deleted; when it was last seen in use is still noted.",
    "reap.after_base": "The backend's next start takes the base instead of a lost image; the rows name that image.",
    "reap.after_lost": "The rows name what a lost image was replaced by; the backend does not know.",
    "update.before_resize": "Another tier is durable; what runs has the former one.",
    "lifecycle.before_commit": "A step of the sweep is decided; nothing is written.",
    "hibernate.after_commit": "The row says HIBERNATING; nothing is frozen.",
    "hibernate.after_freeze": "The processes are frozen; the row does not say HIBERNATED.",
    "wake.after_commit": "The row says WAKING; the processes are frozen.",
    "wake.after_thaw": "The processes run; the row does not say ACTIVE.",
    # conversations
    "command.before_run": "A command of a stream is new and allowed; the owner has not seen it.",
    "command.after_commit": "The command is durable and done; the caller has no answer.",
    "conversation.after_acquire": "The conversation has a new owner, who has read nothing of it yet.",
    "conversation.process_planned": "The CLI's process is named in the journal; it was not started.",
    "conversation.process_started": "The process runs; nobody reads it.",
    "conversation.before_append": "A step of the conversation is made; nothing of it is durable.",
    "conversation.after_append": "The step is durable; no client has seen its events, and the CLI not its input.",
    # model calls
    "gateway.after_reserve": "The call's row is open; nothing was sent to the model API.",
    "gateway.mid_stream": "A piece of the answer was read and counted; the CLI does not have it.",
    "gateway.before_settle": "The answer has ended; its row is open, and the CLI waits for the end.",
    "gateway.after_settle": "The row is settled; the CLI still waits for the end.",
    # audit
    "audit.before_commit": "A group of entries is chained and written; its transaction is not committed.",
    "audit.after_commit": "The entries are durable; the calls that wait for them have not heard.",
    # clients and keys
    "erasure.after_commit": "A deletion is durable; nothing is erased.",
    "erasure.after_terminate": "One sandbox of a deleted account has ended.",
    "erasure.before_files": "The files of one sandbox are counted; all of them are there.",
    "erasure.after_files": "The files of one sandbox are destroyed; the row does not say so.",
    "erasure.after_batch": "Some rows are erased, and counted in the same transaction.",
    "erasure.before_keys": "All rows are erased; the client's keys are there.",
    "erasure.before_proof": "All is erased; the proof is signed and not committed.",
    "erasure.after_proof": "The proof is durable; nobody was told.",
    "key.after_commit": "A key's row says SETTING; the store has the old key.",
    "key.after_store": "The store has the new key; the row says SETTING.",
}
"""Every place there is, with what is true when it is passed."""

_VERBS: Final = frozenset({"exit9", "error", "sleep", "hang"})


class FailpointError(Exception):
    """A test made this place fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Action:
    """What happens at a place, and at which pass; 0 is every one."""

    verb: str
    seconds: float = 0.0
    at: int = 0


def parse(setting: str) -> Mapping[str, _Action]:
    """Read a setting.

    Raises:
        ValueError: It names a place or an action that does not exist.
    """
    actions = {}
    for pair in filter(None, (pair.strip() for pair in setting.split(","))):
        name, _, text = (part.strip() for part in pair.partition("="))
        if name not in POINTS:
            raise ValueError(f"{VARIABLE}: no failpoint is named {name}")
        word, _, at = text.partition("@")
        verb, _, seconds = word.partition(":")
        if verb not in _VERBS or not (at or "1").isdecimal():
            raise ValueError(f"{VARIABLE}: {name} has no action named {text}")
        actions[name] = _Action(verb=verb, seconds=float(seconds or 0), at=int(at or 0))
    return actions


_armed: Mapping[str, _Action] | None = parse(os.environ.get(VARIABLE, "")) or None
_passes: dict[str, int] = {}


def failpoint(name: str) -> None:
    """Pass a named place; break there if a test armed it."""
    if _armed is not None:
        _pass(name)


def armed() -> list[str]:
    """Names of the places that are armed in this process."""
    return sorted(_armed or ())


@contextmanager
def arming(setting: str) -> Iterator[None]:
    """Arm places in this process for the time of a block, instead of those that are; for tests."""
    global _armed, _passes
    before = _armed, _passes
    _armed, _passes = parse(setting), {}
    try:
        yield
    finally:
        _armed, _passes = before


def _pass(name: str) -> None:
    if name not in POINTS:
        raise ValueError(f"the failpoint {name} is not in the list of all")
    action = _armed.get(name) if _armed else None
    if action is None:
        return
    _passes[name] = _passes.get(name, 0) + 1
    if action.at in (0, _passes[name]):
        _strike(name, action)


def _strike(name: str, action: _Action) -> None:
    if action.verb == "exit9":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action.verb == "error":
        raise FailpointError(name)
    elif action.verb == "sleep":
        time.sleep(action.seconds)
    else:
        while True:
            time.sleep(3600)
