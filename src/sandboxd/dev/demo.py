"""`sandboxd demo`: a whole session from end to end, on a stack of its own that is gone afterwards."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Final

from sandboxd.bootstrap.stopping import stop_signals
from sandboxd.dev.child import ChildFailedError
from sandboxd.dev.demo_options import DemoOptions, Ended
from sandboxd.dev.home import DevHome, HomeTakenError
from sandboxd.dev.node import ToolchainError
from sandboxd.dev.stack import DevStack, StackOptions
from sandboxd.model.errors import SandboxdError
from sandboxd.monitor.logging import configure_logging
from sandboxd.settings import Settings, SettingsError, load_settings

TURN_FAILED: Final = 1
BAD_SETTINGS: Final = 2
FAILED: Final = 3
DEFAULT_HOME: Final = "~/.local/share/sandboxd-demo"


def run_demo(options: DemoOptions) -> int:
    """Run the demo, and return the exit code."""
    configure_logging(role="demo", style="console", level="warning")
    try:
        with _home(options) as home:
            settings = load_settings(data_dir=home.path)
            return asyncio.run(_until_stopped(settings, home, options))
    except SettingsError as error:
        print(f"sandboxd demo: {error}", file=sys.stderr)
        return BAD_SETTINGS
    except (HomeTakenError, ChildFailedError, ToolchainError, SandboxdError, OSError) as error:
        print(f"sandboxd demo: {error}", file=sys.stderr)
        return FAILED


async def _until_stopped(settings: Settings, home: DevHome, options: DemoOptions) -> int:
    with stop_signals() as stop:
        running = asyncio.create_task(_run(settings, home, options), name="demo")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not running.done():
            _aside("stopping")
            running.cancel()
            await asyncio.wait({running})
            return FAILED
        return running.result()


async def _run(settings: Settings, home: DevHome, options: DemoOptions) -> int:
    _aside(f"starting PostgreSQL, gateway, API and the real Gemini CLI on this machine, in {home.path}")
    # The client side (gRPC, protobuf, rich) is imported while the stack starts.
    loading = asyncio.create_task(asyncio.to_thread(import_module, "sandboxd.dev.conduct"), name="import")
    async with DevStack(settings, StackOptions(home=home, fixed_ports=False), say=_aside) as stack:
        ended: Ended = await (await loading).conduct(stack, options)
    if ended.kept and Path(ended.kept).is_relative_to(home.path):
        shutil.rmtree(ended.kept, ignore_errors=True)
    if ended.problem:
        print(f"sandboxd demo: {ended.problem}", file=sys.stderr)
        return FAILED if ended.broken else TURN_FAILED
    return os.EX_OK


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
