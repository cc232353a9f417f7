"""`sandboxd dev`: the stack for a person at a terminal."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from sandboxd.bootstrap.stopping import stop_signals
from sandboxd.dev.child import ChildFailedError
from sandboxd.dev.home import DevHome, HomeTakenError
from sandboxd.dev.node import ToolchainError
from sandboxd.dev.stack import TOKEN_SECONDS, DevStack, StackOptions
from sandboxd.model.errors import SandboxdError
from sandboxd.monitor.logging import configure_logging
from sandboxd.settings import Settings, SettingsError, load_settings

BAD_SETTINGS: Final = 2
FAILED: Final = 3
DEFAULT_HOME: Final = "~/.local/share/sandboxd"


def run_dev(*, data_dir: Path | None, keep: bool, verbose: bool, backend: str = "") -> int:
    """Run the stack until a signal, and return the exit code."""
    try:
        given = {"data_dir": data_dir, "backend": backend}
        settings = load_settings(**{name: value for name, value in given.items() if value})
        configure_logging(role="dev", style="console", level="info" if verbose else "warning")
        asyncio.run(_run(settings, keep=keep, verbose=verbose))
    except SettingsError as error:
        print(f"sandboxd dev: {error}", file=sys.stderr)
        return BAD_SETTINGS
    except (HomeTakenError, ChildFailedError, ToolchainError, SandboxdError, OSError) as error:
        print(f"sandboxd dev: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return FAILED
    return 0


async def _run(settings: Settings, *, keep: bool, verbose: bool) -> None:
    home = DevHome(settings.home)
    with stop_signals() as stop:
        running = asyncio.create_task(_stay_up(settings, home, keep=keep, verbose=verbose), name="stack")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if running.done():
            running.result()
        # Also in the middle of a start: what has started is taken down in order.
        _say("stopping; the agents stay" if keep else "stopping: API, agents, gateway, PostgreSQL")
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        _say("stopped")


async def _stay_up(settings: Settings, home: DevHome, *, keep: bool, verbose: bool) -> None:
    _say(f"starting in {home.path}")
    stack = DevStack(settings, StackOptions(home=home, keep_agents=keep), say=_say)
    async with stack, asyncio.TaskGroup() as tasks:
        print(_welcome(stack, home), flush=True)
        if verbose:
            tasks.create_task(_follow(home), name="follow")
        while True:
            await asyncio.sleep(TOKEN_SECONDS / 2)
            stack.renew_token()


def _welcome(stack: DevStack, home: DevHome) -> str:
    if stack.practice:
        model = (
            "a practice model, which answers from a script and costs nothing.\n"
            "              Set GEMINI_API_KEY for the real API, or SANDBOXD_GEMINI_URL for another one"
        )
    else:
        model = stack.gemini_url
    elsewhere = "" if home.path == Path(DEFAULT_HOME).expanduser() else f"\n  export SANDBOXD_DATA_DIR={home.path}"
    token = f'"$(cat {home.token})"'
    grpcurl = f"grpcurl -plaintext -H 'authorization: Bearer '{token}"
    if stack.cluster is None:
        warning = "The local backend isolates nothing: sandboxes are plain processes of this machine."
        gateway = f"http://127.0.0.1:{stack.ports.gateway}"
    else:
        warning = f"Sandboxes are pods; `kubectl get sandboxes -A` shows them (template {stack.cluster.template})."
        gateway = f"https://{stack.cluster.host}:{stack.ports.gateway}"
    return f"""
sandboxd is up ({stack.start_seconds:.1f} s), with Gemini CLI {stack.cli_version}.

  gRPC API    {stack.address}   (plain text, this machine only; reflection and health are on)
  metrics     http://127.0.0.1:{stack.ports.web}/metrics  /healthz  /readyz
  gateway     {gateway}   (metrics on port {stack.ports.gateway_web})
  PostgreSQL  {stack.database}
  model       {model}
  token       {home.token}   (client dev, role client_admin; `sandboxd token` makes others)
  logs        {home.logs}

{warning} For development only.

Try, in another terminal:{elsewhere}
  sandboxctl create                 then, with the name that it prints:
  sandboxctl chat SANDBOX
  sandboxctl prompt SANDBOX "List the files here and say what they are"
  {grpcurl} {stack.address} list
  {grpcurl} -d '{{}}' {stack.address} sandboxd.v1.SandboxService/List

Ctrl-C stops everything in order.
"""


async def _follow(home: DevHome) -> None:
    """Copy what is appended to the logs to standard error."""
    positions = {log: log.stat().st_size for log in home.logs.glob("*.log")}
    while True:
        for log, position in positions.items():
            with log.open("rb") as file:
                file.seek(position)
                data = file.read()
            sys.stderr.buffer.write(data)
            positions[log] = position + len(data)
        sys.stderr.flush()
        await asyncio.sleep(0.2)


def _say(text: str) -> None:
    print(f"sandboxd: {text}", file=sys.stderr, flush=True)
