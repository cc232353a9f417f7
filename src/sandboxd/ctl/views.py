"""Two ways to show a conversation: for people and for programs."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.text import Text
from typing_extensions import override

from sandboxd.ctl.client import Link
from sandboxd.ctl.conversation import View
from sandboxd.ctl.jsonlines import to_line
from sandboxd.ctl.render import EventRenderer
from sandboxd.ctl.shell import write_line
from sandboxd.v1 import stream_pb2


class JsonView(View):
    """One JSON object a line."""

    @override
    def show(self, event: stream_pb2.StreamResponse) -> None:
        write_line(to_line(event))


class TextView(View):
    """Words and colours; leaves out what the person has just typed."""

    def __init__(self, renderer: EventRenderer, *, is_mine: Callable[[str], bool] = lambda _: False) -> None:
        self.is_mine = is_mine
        """Tells by its request id whether a prompt or a cancel was typed here."""
        self._renderer = renderer

    @override
    def show(self, event: stream_pb2.StreamResponse) -> None:
        match event.WhichOneof("event"):
            case "turn_started" if self.is_mine(event.turn_started.request_id):
                return
            case "cancel_requested" if self.is_mine(event.cancel_requested.request_id):
                return
            case _:
                self._renderer.show(event)


def link_notes(err: Console, renderer: EventRenderer | None) -> Callable[[Link], None]:
    """Make the teller of lost and found connections: on stderr, in a line of its own."""

    def tell(link: Link) -> None:
        if renderer is not None:
            renderer.end_line()
        words = "connection lost; trying again …" if link is Link.LOST else "connected again; nothing was missed"
        err.print(Text(f"⚠ {words}", style="yellow"))

    return tell
