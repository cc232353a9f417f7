"""`sandboxd`: one command with roles. Imports what a role needs when the role is started, so that help is quick."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandboxd import __version__

if TYPE_CHECKING:
    pass

app = typer.Typer(
    name="sandboxd",
    help="Persistent sandboxes with Gemini CLI in them, behind one gRPC service.",
    epilog="Settings are SANDBOXD_* variables, or a TOML file named by SANDBOXD_CONFIG. Begin with: sandboxd demo",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

BAD_SETTINGS = 2
UNAVAILABLE = 3

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where its state is kept.", envvar="SANDBOXD_DATA_DIR")
]
WithParent = Annotated[bool, typer.Option("--with-parent", hidden=True, help="End when the parent process ends.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sandboxd {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


@app.command()
def serve(with_parent: WithParent = False) -> None:
    """Serve the API: gRPC, streams and the sandbox manager.

    Example: SANDBOXD_DATABASE_URL=postgresql://… SANDBOXD_GATEWAY_URL=http://127.0.0.1:8082 sandboxd serve
    """
    _run_role("serve", with_parent=with_parent)


@app.command()
def gateway(with_parent: WithParent = False) -> None:
    """Hold the API keys: forward sandboxes' model calls and write the ledger.

    Example: SANDBOXD_DATABASE_URL=postgresql://… SANDBOXD_GEMINI_KEYS_DIR=/run/keys sandboxd gateway
    """
    _run_role("gateway", with_parent=with_parent)


@app.command()
def operator(with_parent: WithParent = False) -> None:
    """Converge the Sandbox resources of a cluster. Several may run: one of them is active.

    Example: KUBECONFIG=… SANDBOXD_KUBERNETES_NAMESPACE=sandboxd-system sandboxd operator
    """
    _run_role("operator", with_parent=with_parent)


@app.command()
def sweep(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; tell what would be done.")] = False,
    wait: Annotated[
        float, typer.Option("--wait", min=0, max=3600, help="Seconds for which the database may still be away.")
    ] = 20,
) -> None:
    """Put idle sandboxes to rest once, as `serve` does by itself, and print what was done as one JSON object.

    Exit codes: 0 done, 1 some sandboxes failed, 2 bad settings, 3 the database cannot be used.

    Example: SANDBOXD_DATABASE_URL=postgresql://… sandboxd sweep --dry-run | jq .plans
    """
    _run_role("sweep", options={"dry_run": dry_run, "wait_seconds": wait})


@app.command()
def migrate(
    wait: Annotated[
        float, typer.Option("--wait", min=0, max=3600, help="Seconds for which the database may still be away.")
    ] = 0,
) -> None:
    """Bring the database to the schema of this version. Safe to repeat, and by two at once.

    Exit codes: 0 done, 2 bad settings, 3 the database cannot be used.

    Example: SANDBOXD_DATABASE_URL=postgresql://… sandboxd migrate --wait 60
    """
    _run_role("migrate", options={"wait_seconds": wait})


@app.command()
def prepare(
    plan: Annotated[Path, typer.Option("--plan", help="What to make, in JSON; the chart writes it.")],
    crds: Annotated[Path | None, typer.Option("--crds", help="Directory of the definitions to apply.")] = None,
) -> None:
    """Make the keys that an installation in a cluster lacks, and apply its definitions. The chart's hook; repeatable.

    Example: sandboxd prepare --plan plan.json --crds helm/sandboxd/crds
    """
    from sandboxd.bootstrap import prepare as role  # noqa: PLC0415  only this role needs it
    from sandboxd.model.errors import SandboxdError  # noqa: PLC0415
    from sandboxd.monitor.logging import configure_logging  # noqa: PLC0415

    configure_logging(role="prepare", style="json", level="info")
    try:
        asyncio.run(role.prepare(plan, crds))
    except role.PlanError as error:
        typer.echo(f"sandboxd prepare: {error}", err=True)
        raise typer.Exit(BAD_SETTINGS) from None
    except (SandboxdError, OSError) as error:
        typer.echo(f"sandboxd prepare: {error}", err=True)
        raise typer.Exit(UNAVAILABLE) from None


@app.command(name="backup-worker", hidden=True)
def backup_worker(
    attempt: Annotated[int, typer.Option("--attempt", min=1, help="Above 1 another one was lost before.")] = 1,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="For all of it.")] = 3600,
) -> None:
    """Do one piece of work on a repository of backups: the operator's pods run it. Its exit status is its verdict."""
    from sandboxd.bootstrap import backup_worker as role  # noqa: PLC0415  only this role needs it
    from sandboxd.monitor.logging import configure_logging  # noqa: PLC0415

    configure_logging(role="backup-worker", style="json", level="info")
    timeout = timedelta(seconds=seconds)
    raise typer.Exit(asyncio.run(role.backup_worker(attempt=attempt, timeout=timeout)))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def agent(context: typer.Context) -> None:
    """Run the process supervisor of one sandbox. Backends start it; `sandboxd agent --help` has its options."""
    # A fresh process image: nothing that was imported here may weigh on every sandbox.
    os.execv(sys.executable, [sys.executable, "-s", "-m", "sandboxd.agent", *context.args])  # noqa: S606  no shell


@app.command()
def dev(
    data_dir: DataDir = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the sandboxes' agents running at the end.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the roles' logs here, too.")] = False,
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            help="local, or kubernetes: the cluster of KUBECONFIG, with an operator here. Without it: "
            "$SANDBOXD_BACKEND, else local.",
        ),
    ] = "",
) -> None:
    """Run the whole stack on this machine until Ctrl-C: PostgreSQL, gateway, API, and a practice model without a key.

    Examples:
      sandboxd dev
      GEMINI_API_KEY=… sandboxd dev
      SANDBOXD_GEMINI_URL=http://127.0.0.1:9000 sandboxd dev --data-dir /tmp/try
      KUBECONFIG=… sandboxd dev --backend kubernetes
    """
    from sandboxd.dev.command import run_dev  # noqa: PLC0415  only this role needs it

    raise typer.Exit(run_dev(data_dir=data_dir, keep=keep, verbose=verbose, backend=backend))


@app.command()
def demo(
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="A turn of the session; repeat it for more turns.")
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="text for people, json for programs.")] = "text",
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Keep the state here. Default: a directory of the demo's own.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the sandbox for later.")] = False,
    model: Annotated[str, typer.Option("--model", "-m", help="Model of the session.")] = "",
) -> None:
    """Show a whole session from end to end, with the real Gemini CLI, on a stack of its own.

    Without GEMINI_API_KEY a built-in practice model answers, and says so. SANDBOXD_GEMINI_URL names another API.

    Examples:
      sandboxd demo
      sandboxd demo --prompt "Write hello.py and run it" --prompt "Now in Rust"
      sandboxd demo --prompt "What is 2+2?" --output json | jq .
    """
    if output not in {"text", "json"}:
        raise typer.BadParameter("must be text or json", param_hint="--output")
    from sandboxd.dev.demo import run_demo  # noqa: PLC0415  only this role needs it
    from sandboxd.dev.demo_options import DemoOptions  # noqa: PLC0415

    options = DemoOptions(
        prompts=tuple(prompt or ()), as_json=output == "json", data_dir=data_dir, keep=keep, model=model
    )
    raise typer.Exit(run_demo(options))


@app.command()
def token(
    data_dir: DataDir = None,
    client: Annotated[str, typer.Option(help="Client that the token is for.")] = "dev",
    subject: Annotated[str, typer.Option(help="Who it is; for a freelancer its id.")] = "dev",
    role: Annotated[str, typer.Option(help="platform, client_admin, freelancer or auditor.")] = "client_admin",
    hours: Annotated[float, typer.Option(min=0.01, max=24 * 30, help="How long it is good.")] = 24,
) -> None:
    """Print a token for the API of `sandboxd dev`, signed by the key in its data directory.

    Example: sandboxd token --client acme --subject ada --role freelancer
    """
    from sandboxd.dev.identity import mint_token  # noqa: PLC0415  only this role needs it

    raise typer.Exit(mint_token(data_dir=data_dir, client=client, subject=subject, role=role, hours=hours))


def _run_role(name: str, *, with_parent: bool = False, options: Mapping[str, Any] | None = None) -> None:
    from sandboxd.bootstrap.failpoint_guard import guard_failpoints  # noqa: PLC0415  only roles need it
    from sandboxd.bootstrap.stopping import end_with_parent  # noqa: PLC0415
    from sandboxd.model.errors import SandboxdError  # noqa: PLC0415
    from sandboxd.monitor.logging import configure_logging, log_unhandled  # noqa: PLC0415
    from sandboxd.settings import SettingsError, load_settings  # noqa: PLC0415

    if with_parent:
        end_with_parent()
    try:
        settings = load_settings()
        configure_logging(role=name, style=settings.log_format, level=settings.log_level)
        guard_failpoints(settings, role=name)
        # After the settings: a bad one is told at once, and not after seconds of imports. What is imported stays: to
        # look through it for garbage again and again is a tenth of those seconds.
        gc.disable()
        role: Callable[..., Coroutine[Any, Any, object]] = getattr(import_module(f"sandboxd.bootstrap.{name}"), name)
        uvloop = import_module("uvloop")
        # And to look through it later would stop everything for a tenth of a second.
        gc.collect()
        gc.freeze()
        gc.enable()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.get_loop().set_exception_handler(log_unhandled)
            runner.run(role(settings, **(options or {})))
    except SettingsError as error:
        typer.echo(f"sandboxd {name}: {error}", err=True)
        raise typer.Exit(BAD_SETTINGS) from None
    except (SandboxdError, OSError) as error:
        typer.echo(f"sandboxd {name}: {error}", err=True)
        raise typer.Exit(UNAVAILABLE) from None


def main() -> None:
    """Run the command."""
    app()


if __name__ == "__main__":
    main()
