"""What the practice model does for a prompt: a plan of tool calls, then an answer made from what they gave.

Deterministic: the same request gives the same reply. The plan follows from the prompt alone and the step from the tool
results that are there, so a conversation that is resumed goes on where it was.

    run: COMMAND              runs just that
    write FILE: TEXT          writes just that
    … remember, first, earlier …   answers from the conversation; a file that the prompt names is read again
    … read, show, list …      reads the files that the prompt names, or lists the workspace
    the first prompt          runs `uname -sr && date`, writes hello.md, and tells what came back
    anything else             says what was said, and what it can do
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sandboxd.practice.conversation import Conversation, Exchange, ToolResult

SHELL: Final = "run_shell_command"
WRITE: Final = "write_file"
READ: Final = "read_file"
WHAT_I_AM: Final = "I am sandboxd's practice model, a script and not Gemini."
_RUN: Final = re.compile(r"^\s*run:\s*(?P<command>.+)", re.IGNORECASE | re.DOTALL)
_WRITE: Final = re.compile(r"^\s*write\s+(?P<file>[^\s:]+):\s?(?P<text>.*)", re.IGNORECASE | re.DOTALL)
_MEMORY: Final = re.compile(
    r"\b(remember|recall|earlier|before|previous|previously|so far|again|still|first (thing|prompt|question|message)"
    r"|did (i|we|you)|have (i|we|you)|last time)\b",
    re.IGNORECASE,
)
_FILE: Final = re.compile(r"(?<![\w/.-])(?P<file>[\w/-][\w./-]*\.[A-Za-z]\w{0,7})\b")
_READING: Final = re.compile(r"\b(read|show|list|print|cat|ls|look|open|check)\b", re.IGNORECASE)
_TOUR_COMMAND: Final = "uname -sr && date"
_TOUR_FILE: Final = "hello.md"
_QUOTED: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A tool that the plan uses."""

    name: str
    args: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the model says next: a thought, a text, and perhaps a call."""

    subject: str
    thought: str
    text: str
    call: Call | None = None


def reply_to(conversation: Conversation) -> Reply:
    """Decide the next reply of a conversation."""
    prompt, results = conversation.now.prompt, conversation.now.results
    run, write = _RUN.match(prompt), _WRITE.match(prompt)
    if run:
        plan = [_shell(run["command"].strip(), "The command you asked for")]
    elif write:
        plan = [_write(conversation, write["file"], write["text"].replace("\\n", "\n"))]
    elif conversation.earlier and _MEMORY.search(prompt):
        plan = [_read(conversation, found["file"]) for found in _FILE.finditer(prompt)][:1]
    elif not conversation.earlier:
        plan = [
            _shell(_TOUR_COMMAND, "Show the system and the date"),
            _write(conversation, _TOUR_FILE, _hello(prompt, results)),
        ]
    elif _READING.search(prompt):
        plan = [_read(conversation, found["file"]) for found in _FILE.finditer(prompt)][:3]
        plan = plan or [_shell("ls -la", "List the workspace")]
    else:
        plan = []
    plan = [call for call in plan if call.name in conversation.tools]
    if len(results) < len(plan):
        return _step(plan[len(results)], number=len(results), of=len(plan))
    return _answer(conversation)


def title_for(prompt: str) -> str:
    """Return a short title, for the CLI's own summaries."""
    return _quote(prompt, 60) or "Practice"


def _step(call: Call, *, number: int, of: int) -> Reply:
    what = {
        SHELL: f"run `{call.args.get('command')}`",
        WRITE: f"write {posixpath.basename(str(call.args.get('file_path')))}",
        READ: f"read {posixpath.basename(str(call.args.get('file_path')))}",
    }[call.name]
    opening = f"{WHAT_I_AM} Following my script, I will " if number == 0 else "Next I will "
    return Reply(
        subject=f"Step {number + 1} of {of}",
        thought=f"The script says to {what} now, and to look at what comes back.",
        text=f"{opening}{what}.",
        call=call,
    )


def _answer(conversation: Conversation) -> Reply:
    prompt, results = conversation.now.prompt, conversation.now.results
    lines = [line for result in results if (line := _told(result))]
    if conversation.earlier and _MEMORY.search(prompt):
        lines = [*_memory(conversation), *lines]
        subject, thought = "Looking back", "The conversation so far holds the answer."
    elif results:
        subject, thought = "Summing up", "All steps of the script are done; the results go into the answer."
    else:
        subject, thought = "Answering", "The script has no tool for this prompt, so words must do."
        lines = [
            f'You said: "{_quote(prompt)}".',
            "Try `run: COMMAND`, `write FILE: TEXT`, or ask what I remember. With GEMINI_API_KEY set, Gemini answers.",
        ]
    opening = "Done. " if results and not conversation.earlier else f"{WHAT_I_AM} "
    closing = f"\n\n{WHAT_I_AM}" if opening == "Done. " else ""
    return Reply(subject=subject, thought=thought, text=opening + "\n\n".join(lines) + closing)


def _memory(conversation: Conversation) -> list[str]:
    earlier = conversation.earlier
    files, commands = _done(earlier, WRITE, "file_path"), _done(earlier, SHELL, "command")
    count = f"{len(earlier)} earlier prompt{'s' if len(earlier) > 1 else ''}"
    lines = [f'I remember {count} in this session. The first one was: "{_quote(earlier[0].prompt)}".']
    if files:
        lines.append(f"Files written: {', '.join(posixpath.basename(file) for file in files)}.")
    if commands:
        lines.append(f"Commands run: {', '.join(f'`{command}`' for command in commands)}.")
    return lines


def _done(exchanges: Sequence[Exchange], name: str, argument: str) -> list[str]:
    used = [
        str(result.args[argument])
        for exchange in exchanges
        for result in exchange.results
        if result.name == name and not result.failed and argument in result.args
    ]
    return list(dict.fromkeys(used))


def _told(result: ToolResult) -> str:
    file = posixpath.basename(str(result.args.get("file_path", "")))
    if result.failed:
        return f"{result.name} did not work: {_quote(result.output)}"
    if result.name == SHELL:
        return f"`{result.args.get('command')}` gave:\n\n```\n{result.output[:2000]}\n```"
    if result.name == WRITE:
        return f"I wrote {file} into the workspace."
    if result.name == READ:
        return f"{file} is there and says:\n\n```\n{result.output[:2000]}\n```"
    return f"{result.name} gave: {_quote(result.output)}"


def _hello(prompt: str, results: Sequence[ToolResult]) -> str:
    system = next((result.output for result in results if result.name == SHELL and not result.failed), "")
    seen = f"\nSystem and date:\n\n    {system.replace(chr(10), chr(10) + '    ')}\n" if system else ""
    return (
        f"# Hello from a sandbox\n\nThe first prompt was: {_quote(prompt)}\n{seen}\n(written by the practice model)\n"
    )


def _shell(command: str, description: str) -> Call:
    return Call(name=SHELL, args={"command": command, "description": description})


def _write(conversation: Conversation, file: str, text: str) -> Call:
    path = posixpath.join(conversation.workspace, file)
    return Call(name=WRITE, args={"file_path": path, "content": text if text.endswith("\n") else f"{text}\n"})


def _read(conversation: Conversation, file: str) -> Call:
    return Call(name=READ, args={"file_path": posixpath.join(conversation.workspace, file)})


def _quote(text: str, limit: int = _QUOTED) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]}…"
