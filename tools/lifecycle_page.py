"""Writes the transition table of docs/lifecycle.md from the model; a test compares them."""

from __future__ import annotations

from pathlib import Path

from sandboxd.model.next_step import STEPS
from sandboxd.model.sandbox import TRANSITIONS, SandboxState

PAGE = Path(__file__).resolve().parent.parent / "docs" / "lifecycle.md"
BEGIN, END = "<!-- transitions: tools/lifecycle_page.py -->", "<!-- end of transitions -->"
CARRIES = {
    SandboxState.CREATING: "Create",
    SandboxState.HIBERNATING: "the sweep",
    SandboxState.WAKING: "any use",
    SandboxState.STOPPING: "the sweep",
    SandboxState.STARTING: "any use",
    SandboxState.PAUSING: "Pause",
    SandboxState.RESUMING: "Resume",
    SandboxState.RESTORING: "Restore, Create from a backup",
    SandboxState.TERMINATING: "Terminate, the sweep",
}
"""What begins each state that is on its way."""


def table() -> str:
    """Write the table."""
    lines = ["| State | Begun by | May be followed by | What policy does to it |", "| --- | --- | --- | --- |"]
    for state in SandboxState:
        after = ", ".join(one.value for one in SandboxState if one in TRANSITIONS[state]) or "nothing"
        steps = ", ".join(step.value.lower() for step in STEPS.get(state, ())) or "nothing"
        lines.append(f"| {state.value} | {CARRIES.get(state, '')} | {after} | {steps} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """Put the table into the page's text."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
