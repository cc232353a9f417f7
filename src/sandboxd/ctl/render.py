"""Shows the events of a session to a person, as they come.

Every word that is not ours passes through `sanitize` and is printed as plain `Text`, never as markup.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from sandboxd.ctl.diffs import unified
from sandboxd.ctl.figures import count, money, span
from sandboxd.ctl.permissions import ALLOW, in_order
from sandboxd.ctl.sanitize import clean, clean_line
from sandboxd.ctl.tables_packages import changes_line
from sandboxd.v1 import stream_pb2

_ICONS = {
    stream_pb2.TOOL_KIND_READ: "◇",
    stream_pb2.TOOL_KIND_EDIT: "✎",
    stream_pb2.TOOL_KIND_DELETE: "✗",
    stream_pb2.TOOL_KIND_MOVE: "→",
    stream_pb2.TOOL_KIND_SEARCH: "⌕",
    stream_pb2.TOOL_KIND_EXECUTE: "$",
    stream_pb2.TOOL_KIND_THINK: "∴",
    stream_pb2.TOOL_KIND_FETCH: "↓",
    stream_pb2.TOOL_KIND_SWITCH_MODE: "⇄",
}
_STOPPED = {
    stream_pb2.STOP_REASON_END_TURN: ("done", "green"),
    stream_pb2.STOP_REASON_CANCELLED: ("cancelled", "yellow"),
    stream_pb2.STOP_REASON_MAX_TOKENS: ("cut off: the answer reached its token limit", "yellow"),
    stream_pb2.STOP_REASON_MAX_TURN_REQUESTS: ("stopped: the turn reached its limit of model calls", "yellow"),
    stream_pb2.STOP_REASON_REFUSAL: ("refused: the model gave no answer", "red"),
    stream_pb2.STOP_REASON_ERROR: ("failed", "red"),
    stream_pb2.STOP_REASON_INTERRUPTED: ("interrupted: the next prompt continues the conversation", "red"),
}
_ALL_TEXT = {"turn_started": "prompt", "text": "answer", "thought": "thoughts", "permission_request": "question"}
"""Events that say nothing without their text."""


class EventRenderer:
    """Prints events to one console. It knows where on the line the last piece of text ended, hence one per stream."""

    def __init__(
        self, console: Console, *, thoughts: bool = True, prompts: bool = True, output_lines: int = 12
    ) -> None:
        """Bind the console.

        Args:
            console: Where to print.
            thoughts: Show the model's thinking.
            prompts: Show the prompts, which the person at the keyboard has just typed.
            output_lines: Lines of a tool's output to show; the rest is counted.
        """
        self._console = console
        self._thoughts = thoughts
        self._prompts = prompts
        self._output_lines = output_lines
        self._mid_line = False
        self._thinking = False
        self._erasing = ""

    def show(self, event: stream_pb2.StreamResponse) -> None:
        """Print one event."""
        kind = event.WhichOneof("event")
        if kind is None or self._erased(event, kind):  # none: of a newer service than this client
            return
        if kind != "thought":
            self._thinking = False
        match kind:
            case "text":
                self._text(event.text)
            case "thought":
                self._thought(event.thought)
            case "turn_started":
                self._turn_started(event.turn_started)
            case "tool_call":
                self._tool_call(event.tool_call)
            case "tool_output":
                self._tool_output(event.tool_output)
            case "permission_request":
                self._permission_request(event.permission_request)
            case "permission_answered":
                self._permission_answered(event.permission_answered)
            case "usage":
                self._usage(event.usage)
            case "turn_completed":
                self._turn_completed(event.turn_completed)
            case "error":
                self._error(event.error)
            case "command_failed":
                self._command_failed(event.command_failed)
            case "unparsed":
                self._unparsed(event.unparsed)
            case _:
                self._aside(event)

    def note(self, text: str, style: str = "dim") -> None:
        """Print a line of our own between the events."""
        self._line(Text(clean(text), style=style))

    def end_line(self) -> None:
        """Go to the start of a line, where something else is to be printed."""
        if self._mid_line:
            self._console.print()
            self._mid_line = False

    def _line(self, text: Text) -> None:
        self.end_line()
        self._console.print(text)

    def _bar(self, lines: Iterable[Text], style: str = "dim") -> None:
        self.end_line()
        for line in lines:
            # A pipe gets lines as they are; at a terminal each row of a long one stands behind the bar.
            rows = line.wrap(self._console, self._console.width - 4) if self._console.is_terminal else [line]
            for row in rows or [line]:
                self._console.print(Text.assemble(("  │ ", style), row))

    def _text(self, piece: stream_pb2.Text) -> None:
        text = clean(piece.text)
        if text:
            self._console.print(Text(text), end="", soft_wrap=True)
            self._mid_line = not text.endswith("\n")

    def _erased(self, event: stream_pb2.StreamResponse, kind: str) -> bool:
        """Say once, for pieces in a row, that their text was erased; false where there is some to show."""
        if event.text_state != stream_pb2.TEXT_STATE_ERASED or kind not in _ALL_TEXT:
            self._erasing = ""
            return False
        if kind != self._erasing and (kind != "thought" or self._thoughts):
            self.note(f"({_ALL_TEXT[kind]} erased by the client's policy)")
        self._erasing = kind
        return True

    def _thought(self, thought: stream_pb2.Thought) -> None:
        if not self._thoughts:
            return
        if thought.subject:
            self._line(Text(f"∴ {clean_line(thought.subject)}", style="dim bold italic"))
        elif not self._thinking:
            self._line(Text("∴ thinking", style="dim bold italic"))
        self._thinking = True
        body = clean(thought.text).strip()
        if body:
            self._bar(Text(line, style="dim italic") for line in body.splitlines())

    def _turn_started(self, turn: stream_pb2.TurnStarted) -> None:
        if not self._prompts:
            return
        self.end_line()
        for number, line in enumerate(clean(turn.text).splitlines() or [""]):
            self._console.print(Text(f"{'»' if number == 0 else ' '} {line}", style="bold cyan"))
        for each in turn.attachments:
            self._line(
                Text(f"  + {clean_line(each.file_name)} ({clean_line(each.mime_type)}, {each.size:,} bytes)", "cyan")
            )

    def _tool_call(self, call: stream_pb2.ToolCall) -> None:
        title = clean_line(call.title or call.tool)
        line = Text.assemble((f"{_ICONS.get(call.kind, '•')} ", "bold magenta"), (title, "bold"))
        if call.tool and call.tool not in title:
            line.append(f"  {clean_line(call.tool)}", style="dim")
        self._line(line)

    def _tool_output(self, output: stream_pb2.ToolOutput) -> None:
        for diff in output.diffs:
            self._bar(unified(diff))
        lines = clean(output.text).strip("\n").splitlines()
        if lines and not (output.diffs and output.status == stream_pb2.TOOL_STATUS_COMPLETED):
            self._bar(Text(line.expandtabs(4), style="dim") for line in self._trimmed(lines))
        if output.truncated:
            self._bar([Text("the rest was too long for one event", style="dim")])
        match output.status:
            case stream_pb2.TOOL_STATUS_FAILED:
                self._line(Text(f"  ✗ {clean_line(output.tool)} could not run", style="red"))
            case stream_pb2.TOOL_STATUS_REJECTED:
                self._line(Text(f"  ✗ {clean_line(output.tool)} was not allowed", style="yellow"))
            case stream_pb2.TOOL_STATUS_CANCELLED:
                self._line(Text(f"  ✗ {clean_line(output.tool)} was cancelled", style="yellow"))
            case _ if not lines and not output.diffs:
                self._line(Text("  ✓", style="green"))

    def _trimmed(self, lines: list[str]) -> list[str]:
        if len(lines) <= self._output_lines + 1:
            return lines
        head, tail = self._output_lines - self._output_lines // 3, self._output_lines // 3
        return [*lines[:head], f"… {len(lines) - head - tail} more lines …", *lines[len(lines) - tail :]]

    def _permission_request(self, request: stream_pb2.PermissionRequest) -> None:
        self.end_line()
        body = [Text(clean_line(request.title or request.tool, limit=2000), style="bold")]
        lines = clean(request.text).strip().splitlines()
        body += [Text(line) for line in lines[:20]]
        if len(lines) > 20:
            body.append(Text(f"… {len(lines) - 20} more lines", style="yellow"))
        for diff in request.diffs:
            body += unified(diff)
        for number, option in enumerate(in_order(request), start=1):
            style = "green" if option.kind in ALLOW else "red"
            body.append(Text.assemble((f"  {number} ", f"bold {style}"), clean_line(option.label)))
        if self._console.is_terminal:
            title = Text(f"May {clean_line(request.tool) or 'a tool'} run?", style="bold yellow")
            self._console.print(Panel(Text("\n").join(body), title=title, title_align="left", border_style="yellow"))
        else:
            self._console.print(Text("? permission needed"))
            self._bar(body)

    def _permission_answered(self, answered: stream_pb2.PermissionAnswered) -> None:
        if not answered.option:
            self._line(Text("  the question was closed without an answer", style="yellow"))

    def _usage(self, usage: stream_pb2.Usage) -> None:
        parts = [
            clean_line(usage.model) or "model call",
            f"{usage.prompt_tokens:,} in" + (f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else ""),
            f"{usage.output_tokens:,} out"
            + (f" + {usage.thoughts_tokens:,} thinking" if usage.thoughts_tokens else ""),
        ]
        if usage.tool_use_tokens:
            parts.append(f"{usage.tool_use_tokens:,} for tools")
        parts.append(money(usage.cost_micros, usage.currency) if usage.HasField("cost_micros") else "no price")
        if usage.estimated:
            parts.append("estimated")
        if usage.http_status != 200:
            parts.append(f"HTTP {usage.http_status}" if usage.http_status else "no answer")
        self._line(Text("  ⋅ " + " · ".join(parts), style="dim"))

    def _turn_completed(self, done: stream_pb2.TurnCompleted) -> None:
        word, style = _STOPPED.get(done.stop_reason, ("ended", "yellow"))
        parts = [span(done.duration_ms / 1000), count(done.calls, "model call"), count(done.total_tokens, "token")]
        if done.HasField("cost_micros"):
            parts.append(money(done.cost_micros, done.currency))
        elif done.total_tokens:
            parts.append("no price")
        if not done.usage_complete:
            parts.append("more to come in the ledger")
        mark = "✓" if done.stop_reason == stream_pb2.STOP_REASON_END_TURN else "■"
        self._line(Text.assemble((f"{mark} {word}", f"bold {style}"), ("  " + " · ".join(parts), "dim")))

    def _error(self, error: stream_pb2.Error) -> None:
        line = Text.assemble(
            (f"✗ {clean_line(error.reason) or 'ERROR'}", "bold red"), "  ", (clean(error.message), "red")
        )
        if error.http_status:
            line.append(f"  (HTTP {error.http_status})", style="dim")
        self._line(line)
        if error.retryable:
            self._line(Text("  The same prompt may work later.", style="yellow"))

    def _command_failed(self, failed: stream_pb2.CommandFailed) -> None:
        self._line(Text(f"✗ {clean(failed.message)}", style="red"))
        for each in failed.violations:
            self._line(Text(f"  {clean_line(each.field)}: {clean_line(each.description)}", style="red"))

    def _unparsed(self, unparsed: stream_pb2.Unparsed) -> None:
        sample = clean_line(unparsed.data[:200].decode(errors="replace"), limit=80)
        self._line(
            Text(
                f"  ? {count(unparsed.size, 'byte')} not understood ({clean_line(unparsed.why)}): {sample}",
                style="yellow",
            )
        )

    def _aside(self, event: stream_pb2.StreamResponse) -> None:
        """Print what is worth a quiet line, and nothing of what is not."""
        match event.WhichOneof("event"):
            case "session_opened":
                title = clean_line(event.session_opened.title)
                self.note("session opened" + (f": {title}" if title else ""))
            case "waking":
                self.note(f"the sandbox is {event.waking.from_state.lower() or 'at rest'}; making it ready …", "yellow")
            case "session_ready":
                ready = event.session_ready
                words = [ready.model or "the CLI's own model", f"mode {ready.mode or 'default'}"]
                words += [f"Gemini CLI {ready.cli_version}"] if ready.cli_version else []
                self.note(("conversation resumed" if ready.resumed else "ready") + ": " + ", ".join(words))
            case "mode_changed":
                self.note(f"mode is {event.mode_changed.mode} now")
            case "model_changed":
                self.note(f"model is {event.model_changed.model} now")
            case "cancel_requested":
                why = clean_line(event.cancel_requested.reason)
                self.note("cancelling the turn …" + (f" ({why})" if why else ""), "yellow")
            case "notice":
                self.note(f"! {event.notice.message or event.notice.code}", "yellow")
            case "packages_changed":
                self.note(changes_line(event.packages_changed))
            case "pong":
                self.note("pong")
            case _:
                pass
