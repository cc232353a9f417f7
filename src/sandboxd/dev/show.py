"""How the demo tells what happens: in colour for people, as JSON lines for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from rich.table import Table
from rich.text import Text

from sandboxd.ctl.console import make_console
from sandboxd.ctl.figures import money
from sandboxd.ctl.jsonlines import to_line
from sandboxd.ctl.render import EventRenderer

Json = dict[str, Any]
"""An object as `json.dumps` takes it; Any: it is JSON."""


class Show(Protocol):
    """What the demo says to whoever looks on."""

    def heading(self, text: str) -> None:
        """A new part begins."""
        ...

    def say(self, text: str) -> None:
        """A line between the events."""
        ...

    def event(self, event: Any) -> None:
        """One response of the stream. Any: generated code is not for this room."""
        ...

    def usage(self, *, requests: Sequence[Json], total: Json) -> None:
        """The ledger after a turn."""
        ...

    def end(self, facts: Json) -> None:
        """The last word: the ledger, the sandbox and the session."""
        ...


class TextShow:
    """For people, on standard output."""

    def __init__(self) -> None:
        self._console = make_console()
        self._events = EventRenderer(self._console)

    def heading(self, text: str) -> None:
        """A new part begins."""
        self._events.end_line()
        self._console.print()
        self._console.print(Text(f"── {text} ", style="bold blue"))

    def say(self, text: str) -> None:
        """A line between the events."""
        self._events.note(text, style="default")

    def event(self, event: Any) -> None:
        """One response of the stream."""
        self._events.show(event)

    def usage(self, *, requests: Sequence[Json], total: Json) -> None:
        """The ledger after a turn."""
        self._events.end_line()
        table = Table(title="the ledger, as the gateway wrote it", title_justify="left", title_style="dim")
        for name in ("model", "status", "prompt", "cached", "output", "thoughts", "total", "cost"):
            table.add_column(name, justify="left" if name == "model" else "right")
        for row in requests:
            tokens = row["tokens"]
            table.add_row(
                row["model"],
                str(row["http_status"]) + ("" if row["state"] == "USAGE_STATE_SETTLED" else " ~"),
                *(f"{tokens[name]:,}" for name in ("prompt", "cached", "output", "thoughts", "total")),
                money(row["cost_micros"], row["currency"]) if "cost_micros" in row else "no price",
            )
        tokens = total["tokens"]
        costs = " + ".join(money(cost["micros"], cost["currency"]) for cost in total["costs"]) or "no price"
        table.add_section()
        table.add_row(
            f"{total['calls']} calls",
            "",
            *(f"{tokens[name]:,}" for name in ("prompt", "cached", "output", "thoughts", "total")),
            costs,
            style="bold",
        )
        self._console.print(table)

    def end(self, facts: Json) -> None:
        """Nothing more: people have seen it."""


class JsonShow:
    """For programs: nothing but JSON lines on standard output; what is for people goes to standard error."""

    def heading(self, text: str) -> None:
        """A new part begins."""
        self.say(text)

    def say(self, text: str) -> None:
        """A line between the events."""
        print(text, file=sys.stderr, flush=True)

    def event(self, event: Any) -> None:
        """One response of the stream."""
        print(to_line(event), flush=True)

    def usage(self, *, requests: Sequence[Json], total: Json) -> None:
        """It is all in the last object."""

    def end(self, facts: Json) -> None:
        """The last object."""
        print(json.dumps(facts, separators=(",", ":")), flush=True)
