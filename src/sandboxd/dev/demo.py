"""`sandboxd demo`: a whole session from end to end, on a stack of its own that is gone afterwards."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandboxd.bootstrap.stopping import stop_signals
from sandboxd.ctl.client import ApiError, connect
from sandboxd.dev.child import ChildFailedError
from sandboxd.dev.home import DevHome, HomeTakenError
from sandboxd.dev.node import ToolchainError
from sandboxd.dev.show import JsonShow, Show, TextShow
from sandboxd.dev.stack import DevStack, StackOptions
from sandboxd.dev.tour import FIRST_PROMPT, SECOND_PROMPT, Tour, TourError
from sandboxd.model.errors import SandboxdError
from sandboxd.monitor.logging import configure_logging
from sandboxd.settings import Settings, SettingsError, load_settings

TURN_FAILED: Final = 1
BAD_SETTINGS: Final = 2
FAILED: Final = 3
DEFAULT_HOME: Final = "~/.local/share/sandboxd-demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the command line asks for."""

    prompts: tuple[str, ...] = ()
    """Turns to run; empty for the demo's own, with pause and resume."""
    as_json: bool = False
    data_dir: Path | None = None
    keep: bool = False
    model: str = ""


def run_demo(options: DemoOptions) -> int:
    """Run the demo, and return the exit code."""
    configure_logging(role="demo", style="console", level="warning")
    show: Show = JsonShow() if options.as_json else TextShow()
    try:
        with _home(options) as home:
            settings = load_settings(data_dir=home.path)
            return asyncio.run(_until_stopped(settings, home, options, show))
    except SettingsError as error:
        print(f"sandboxd demo: {error}", file=sys.stderr)
        return BAD_SETTINGS
    except (TourError, ApiError, HomeTakenError, ChildFailedError, ToolchainError, SandboxdError, OSError) as error:
        print(f"sandboxd demo: {error}", file=sys.stderr)
        return FAILED
    except TimeoutError:
        print("sandboxd demo: a turn took too long", file=sys.stderr)
        return FAILED


async def _until_stopped(settings: Settings, home: DevHome, options: DemoOptions, show: Show) -> int:
    with stop_signals() as stop:
        running = asyncio.create_task(_run(settings, home, options, show), name="demo")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not running.done():
            show.say("stopping")
            running.cancel()
            await asyncio.wait({running})
            return FAILED
        return running.result()


async def _run(settings: Settings, home: DevHome, options: DemoOptions, show: Show) -> int:
    show.heading("sandboxd demo: PostgreSQL, gateway, API and the real Gemini CLI, all on this machine")
    stack = DevStack(settings, StackOptions(home=home, fixed_ports=False), say=_aside)
    async with stack:
        show.say(
            f"the stack is up after {stack.start_seconds:.1f} s: API {stack.address}, Gemini CLI {stack.cli_version}"
        )
        show.say(_who_answers(stack))
        token = stack.renew_token()
        async with connect(stack.address, token=token) as client:
            tour = Tour(client, show, model=options.model)
            kept = ""
            try:
                await _tour(tour, show, options)
            finally:
                if not options.keep:
                    kept = await tour.finish()
        if not options.as_json:
            show.heading("what to try next")
            show.say(_next_steps(home, options))
    if kept and Path(kept).is_relative_to(home.path):
        shutil.rmtree(kept, ignore_errors=True)
    if tour.problems:
        print(f"sandboxd demo: {tour.problems[-1]}", file=sys.stderr)
        return TURN_FAILED
    return os.EX_OK


async def _tour(tour: Tour, show: Show, options: DemoOptions) -> None:
    await tour.create()
    failure: Exception | None = None
    try:
        if options.prompts:
            await tour.turns(options.prompts)
        else:
            await _own_tour(tour, show)
    except (TourError, ApiError, TimeoutError) as error:
        failure = error
    # The bill comes in any case: what failed was paid, too.
    requests, total = await tour.ledger()
    show.usage(requests=requests, total=total)
    show.end({"usage": {"requests": requests, "total": total}, "sandbox": tour.sandbox, "session": tour.session})
    if failure is not None:
        raise failure


async def _own_tour(tour: Tour, show: Show) -> None:
    show.heading("a prompt: the CLI thinks, runs a command, writes a file, answers")
    await tour.turns([FIRST_PROMPT])
    if tour.problems:
        raise TourError(f"The first turn failed: {tour.problems[-1]}.")
    show.heading("pause and resume")
    await tour.pause_and_resume()
    show.heading("the same session goes on")
    (turn,) = await tour.turns([SECOND_PROMPT])
    tour.prove(turn)
    show.heading("usage and cost")


def _who_answers(stack: DevStack) -> str:
    if stack.practice:
        return (
            "Neither GEMINI_API_KEY nor SANDBOXD_GEMINI_URL is set: a PRACTICE MODEL answers. "
            "It is a script, not Gemini, and its costs are list prices that nobody pays."
        )
    return f"the model API is {stack.gemini_url}"


def _next_steps(home: DevHome, options: DemoOptions) -> str:
    lines = [
        "make run                      the same stack, staying up; then, in another terminal:",
        "  sandboxctl create           a sandbox of your own",
        "  sandboxctl chat SANDBOX     talk to it",
        "  sandboxctl usage            what it cost",
        'sandboxd demo --prompt "Write a haiku into haiku.txt" --output json',
        "GEMINI_API_KEY=… sandboxd demo    the same with the real API",
    ]
    if options.keep:
        lines.insert(0, f"sandboxd dev --data-dir {home.path}    goes on with this demo's sandbox")
    return "\n".join(lines)


@contextmanager
def _home(options: DemoOptions) -> Iterator[DevHome]:
    """Give the demo's directory: the named one, else its own, else (a demo runs there already) a temporary one."""
    named = options.data_dir or os.environ.get("SANDBOXD_DATA_DIR")
    if named:
        yield DevHome(Path(named))
        return
    own = DevHome(Path(DEFAULT_HOME))
    if options.keep or _is_free(own):
        yield own
        return
    temporary = Path(tempfile.mkdtemp(prefix="sandboxd-demo-"))
    try:
        yield DevHome(temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_free(home: DevHome) -> bool:
    with suppress(HomeTakenError, OSError):
        home.make()
        with home.held():
            return True
    return False


def _aside(text: str) -> None:
    print(f"sandboxd: {text}", file=sys.stderr, flush=True)
