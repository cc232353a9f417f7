"""The whole stack on one machine: PostgreSQL, practice model, gateway and API, started side by side, ended in order."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final, Self

import asyncpg

from sandboxd.bootstrap.keys import KeyFiles
from sandboxd.bootstrap.schema import read_revision
from sandboxd.dev.child import Child, child_environment
from sandboxd.dev.gemini_cli import GeminiCli, ensure_gemini_cli
from sandboxd.dev.home import DevHome, write_private
from sandboxd.persistence.scripts import newest_revision
from sandboxd.settings import DEFAULT_GEMINI_URL, Settings, SettingsError
from sandboxd.settings_rules import PREFIX, is_loopback

if TYPE_CHECKING:
    from sandboxd.dev.cluster import DevCluster

READY_SECONDS: Final = 60.0
TOKEN_SECONDS: Final = 24 * 3600.0
DEV_CLIENT: Final = "dev"
DEV_SUBJECT: Final = "dev"
DEV_ROLE: Final = "client_admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class StackOptions:
    """How a stack is started."""

    home: DevHome
    fixed_ports: bool = True
    """Take the settings' ports where they are free; else any free ones."""
    keep_agents: bool = False
    """Leave the sandboxes' agents running at the end."""
    console_logs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where the parts listen, all on 127.0.0.1; the gateway on another address where sandboxes are pods."""

    grpc: int
    web: int
    gateway: int
    gateway_web: int
    practice: int
    operator_web: int


class DevStack:
    """A running stack, as a context."""

    def __init__(self, settings: Settings, options: StackOptions, *, say: Callable[[str], None]) -> None:
        _require_loopback(settings)
        self._settings = settings
        self._options = options
        self.home = options.home
        self._say = say
        self._stack = AsyncExitStack()
        self.practice = settings.gemini_api_key is None and settings.gemini_url == DEFAULT_GEMINI_URL
        """True where the practice model answers, because there is neither a key nor another API."""
        self.ports = _choose_ports(settings, fixed=options.fixed_ports)
        self.gemini_url = f"http://127.0.0.1:{self.ports.practice}" if self.practice else settings.gemini_url
        self.cluster: DevCluster | None = None
        """Set where sandboxes are pods."""
        self.cli_version = ""
        self.database = ""
        self.start_seconds = 0.0

    @property
    def address(self) -> str:
        """Where the API is."""
        return f"127.0.0.1:{self.ports.grpc}"

    async def __aenter__(self) -> Self:
        """Start everything; what failed on the way is taken down again."""
        async with AsyncExitStack() as stack:
            self.home.make()
            stack.enter_context(self.home.held())
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End everything in order: API, agents, gateway, practice model, PostgreSQL."""
        await self._stack.aclose()

    def renew_token(self) -> str:
        """Write a fresh token beside the data, and return it."""
        from sandboxd.dev.identity import DevIssuer  # noqa: PLC0415  slow to import, and needed later than the children

        token = DevIssuer.open(self._settings).mint(
            client=DEV_CLIENT, subject=DEV_SUBJECT, role=DEV_ROLE, seconds=TOKEN_SECONDS
        )
        write_private(self.home.token, token + "\n")
        return token

    async def _start(self, stack: AsyncExitStack) -> None:
        began = time.monotonic()
        cli = asyncio.create_task(asyncio.to_thread(ensure_gemini_cli, self._say), name="gemini-cli")
        try:
            database = await self._start_database(stack)
            if not KeyFiles(home=self.home.path).caller_keys.exists():
                self.renew_token()  # serve reads the public key when it starts
            found = await cli
        finally:
            cli.cancel()
        self.cli_version = found.version
        variables = self._variables(found, database.url)
        if self._settings.backend == "kubernetes":
            variables |= await self._prepare_cluster(stack, variables)
        gateway = self._child("gateway", child_environment(variables, with_api_key=True))
        serve = self._child("serve", child_environment(variables, with_api_key=False))
        # In this order on the way down: serve, agents, gateway.
        stack.push_async_callback(gateway.stop, grace=30)
        stack.push_async_callback(self._end_agents, found)
        stack.push_async_callback(serve.stop, grace=self._settings.drain_seconds + 5)
        # The children import and wait for the schema while PostgreSQL starts, and the rest is made ready here.
        await serve.start()
        await gateway.start()
        await self._start_practice(stack)
        await asyncio.to_thread(self.renew_token)
        await database.ready
        await gateway.wait_ready(self.ports.gateway_web, seconds=READY_SECONDS)
        await serve.wait_ready(self.ports.web, seconds=READY_SECONDS)
        self.home.announce(
            {
                "address": self.address,
                "token_file": self.home.token.name,
                "web": f"http://127.0.0.1:{self.ports.web}",
                "gateway": variables["SANDBOXD_GATEWAY_URL"],
                "gateway_web": f"http://127.0.0.1:{self.ports.gateway_web}",
                "database_url": database.url,
                "gemini_url": self.gemini_url,
            }
        )
        self.database = database.url
        self.start_seconds = time.monotonic() - began

    async def _prepare_cluster(self, stack: AsyncExitStack, variables: dict[str, str]) -> dict[str, str]:
        """Make the cluster ready and start the operator; answers the settings of all roles."""
        from sandboxd.dev.cluster import prepare_cluster  # noqa: PLC0415  slow to import, and not always needed

        self.cluster = await prepare_cluster(self._settings, self.home.path)
        more = self.cluster.variables(
            self._settings, gateway_port=self.ports.gateway, operator_port=self.ports.operator_web
        )
        operator = self._child("operator", child_environment(variables | more, with_api_key=False))
        stack.push_async_callback(operator.stop, grace=15)  # after the sandboxes, which it ends
        await operator.start()
        return more

    async def _start_database(self, stack: AsyncExitStack) -> _Database:
        from sandboxd.persistence.embedded import (  # noqa: PLC0415  slow to import, and not always needed
            APPLICATION,
            EmbeddedPostgres,
        )

        if self._settings.database_url is not None:
            url = self._settings.database_url.get_secret_value()
            owner = (self._settings.database_owner_url or self._settings.database_url).get_secret_value()
            role, start = self._settings.database_app_role, None
        else:
            embedded = EmbeddedPostgres(self.home.postgres)
            # The roles own nothing: what protects the audit from them holds here, too.
            url, owner, role = embedded.url(user=APPLICATION), embedded.url(), APPLICATION
            stack.push_async_callback(embedded.stop)
            start = embedded.start
        ready = asyncio.create_task(_prepare(url, start, owner=owner, role=role), name="database")
        stack.push_async_callback(_ended, ready)
        return _Database(url=url, ready=ready)

    async def _start_practice(self, stack: AsyncExitStack) -> None:
        if not self.practice:
            return
        practice = await asyncio.to_thread(import_module, "sandboxd.practice.server")
        await stack.enter_async_context(practice.PracticeServer(port=self.ports.practice))

    def _child(self, name: str, environment: dict[str, str]) -> Child:
        return Child(name, [name], environment=environment, log=self.home.logs / f"{name}.log", say=self._say)

    def _variables(self, cli: GeminiCli, database_url: str) -> dict[str, str]:
        local = "127.0.0.1"
        return {
            "SANDBOXD_DATA_DIR": str(self.home.path),
            "SANDBOXD_DATABASE_URL": database_url,
            "SANDBOXD_GRPC_LISTEN": f"{local}:{self.ports.grpc}",
            "SANDBOXD_WEB_LISTEN": f"{local}:{self.ports.web}",
            "SANDBOXD_GATEWAY_LISTEN": f"{local}:{self.ports.gateway}",
            "SANDBOXD_GATEWAY_URL": f"http://{local}:{self.ports.gateway}",
            "SANDBOXD_GATEWAY_WEB_LISTEN": f"{local}:{self.ports.gateway_web}",
            "SANDBOXD_GEMINI_URL": self.gemini_url,
            "SANDBOXD_NODE": str(self._settings.node or cli.node),
            "SANDBOXD_GEMINI_CLI": str(self._settings.gemini_cli or cli.entry),
            "PYTHONUNBUFFERED": "1",
        }

    async def _end_agents(self, cli: GeminiCli) -> None:
        if self._options.keep_agents:
            return
        from sandboxd.bootstrap.places import end_agents  # noqa: PLC0415  only at the end

        settings = self._settings.model_copy(
            update={
                "data_dir": self.home.path,
                "node": self._settings.node or cli.node,
                "gemini_cli": self._settings.gemini_cli or cli.entry,
                # Not for agents, which know it already; but a loopback address would be refused.
                **({"gateway_url": f"https://{self.cluster.host}"} if self.cluster is not None else {}),
            }
        )
        await end_agents(settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Database:
    url: str
    ready: asyncio.Task[None]


async def _prepare(url: str, start: Callable[[], Awaitable[object]] | None, *, owner: str, role: str) -> None:
    if start is not None:
        await start()
    try:
        found = await read_revision(url)
    except asyncpg.InsufficientPrivilegeError:
        found = ""  # an earlier migration ended before it gave the role its rights
    if found != newest_revision():
        migrate = await asyncio.to_thread(import_module, "sandboxd.bootstrap.migrate")
        await migrate.migrate_database(owner, role=role)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _require_loopback(settings: Settings) -> None:
    """Refuse to serve other machines: this stack has no TLS, isolates nothing and gives everybody here a token."""
    listeners = {
        "grpc_listen": settings.grpc_listen,
        "grpc_platform_listen": settings.grpc_platform_listen,
        "web_listen": settings.web_listen,
        "peer_listen": settings.peer_listen,
        "gateway_listen": settings.gateway_listen,
        "gateway_web_listen": settings.gateway_web_listen,
    }
    far = [
        f"{PREFIX}{name.upper()}: {address} can be reached from other machines, and a development stack serves this "
        "one only; take it out, or start `sandboxd serve` and `sandboxd gateway` with TLS"
        for name, address in listeners.items()
        if address is not None and not is_loopback(address)
    ]
    if far:
        raise SettingsError("\n  ".join(["The settings cannot be used:", *far]))


def _choose_ports(settings: Settings, *, fixed: bool) -> Ports:
    wanted = [
        int(address.rpartition(":")[2]) if fixed else 0
        for address in (
            settings.grpc_listen,
            settings.web_listen,
            settings.gateway_listen,
            settings.gateway_web_listen,
        )
    ]
    grpc, web, gateway, gateway_web, practice, operator_web = _free_ports([*wanted, 0, 0])
    return Ports(
        grpc=grpc, web=web, gateway=gateway, gateway_web=gateway_web, practice=practice, operator_web=operator_web
    )


def _free_ports(wanted: list[int]) -> list[int]:
    """Return the wanted ports where they are free, and free ones for the rest. All are held until all are chosen."""
    with closing(_Sockets()) as sockets:
        return [sockets.take(port) for port in wanted]


class _Sockets:
    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def take(self, wanted: int) -> int:
        for port in (wanted, 0):
            one = socket.socket()
            self._sockets.append(one)
            # As the servers do: a port in TIME_WAIT of an earlier stack is free.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            number: int = one.getsockname()[1]
            return number
        raise OSError("no port is free on 127.0.0.1")

    def close(self) -> None:
        for one in self._sockets:
            one.close()
