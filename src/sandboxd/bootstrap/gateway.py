"""The role `gateway`: the holder of the API keys, a process of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry

from sandboxd import __version__
from sandboxd.bootstrap.keys import KeyFiles
from sandboxd.bootstrap.schema import wait_for_schema, while_away
from sandboxd.bootstrap.sources import NoWakeups, SystemClock
from sandboxd.bootstrap.stopping import stop_signals, unless_stopped
from sandboxd.bootstrap.tracing import make_tracer
from sandboxd.gateway.config import GatewayConfig
from sandboxd.gateway.key_files import DirectoryApiKeys, DirectoryVerifyingKeys, LayeredApiKeys, StaticApiKeys
from sandboxd.gateway.policy import ClientModelPolicies
from sandboxd.gateway.ports import ApiKeys
from sandboxd.gateway.secret import Secret
from sandboxd.gateway.server import run_gateway
from sandboxd.gateway.tokens import SandboxTokenVerifier
from sandboxd.manager.account_cache import AccountCache
from sandboxd.monitor.list_prices import list_prices
from sandboxd.monitor.process_metrics import ProcessMetrics
from sandboxd.persistence.engine import Database, DatabaseSettings, make_engine
from sandboxd.persistence.installation import PostgresGatewayReports
from sandboxd.persistence.ledger import PostgresUsageLedger
from sandboxd.persistence.metrics import DatabaseMetrics
from sandboxd.persistence.prices import PostgresPriceBookStore
from sandboxd.persistence.unit_of_work import PostgresUnitsOfWork
from sandboxd.settings import DEFAULT_GEMINI_URL, Settings, SettingsError, redact
from sandboxd.settings_rules import is_loopback
from sandboxd.tls.files import TlsFiles, TlsFilesError

log = structlog.get_logger("sandboxd.bootstrap")

PLACEHOLDER_KEY = "no-key"
"""Sent to an upstream of one's own that needs none; never to the real API."""


async def gateway(settings: Settings) -> None:
    """Run until a signal says stop, then let running calls end within the grace.

    Raises:
        SettingsError: Something that this role needs is missing.
        UnavailableError: The database cannot be used.
        OSError: An address is taken.
    """
    if settings.database_url is None:
        raise SettingsError("The settings cannot be used:\n  SANDBOXD_DATABASE_URL: the gateway needs a PostgreSQL")
    url = settings.database_url.get_secret_value()
    clock = SystemClock()
    registry = CollectorRegistry()
    process = ProcessMetrics(registry, role="gateway", version=__version__)
    keys = KeyFiles.of(settings)
    config, api_keys = _config(settings), choose_api_keys(settings, keys)
    keys.sandbox_token_public.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = Database(
        make_engine(
            DatabaseSettings(url=url, application_name="sandboxd gateway", pool_size=settings.database_pool_size)
        )
    )
    database.waited = DatabaseMetrics(registry, database.engine).waited
    tracer, send_traces = make_tracer(settings, role="gateway")
    measuring = asyncio.create_task(process.run(), name="loop-lag")
    with stop_signals() as stop:
        log.info("role.settings", **redact(settings))
        try:
            if not await unless_stopped(stop, wait_for_schema(url)):
                return
            prices = PostgresPriceBookStore(database)
            if not await unless_stopped(stop, while_away(lambda: prices.add(list_prices()))):
                return
            await run_gateway(
                config=config,
                ledger=PostgresUsageLedger(database),
                prices=prices,
                keys=api_keys,
                policies=ClientModelPolicies(
                    policies=AccountCache(units=PostgresUnitsOfWork(database), wakeups=NoWakeups(), clock=clock)
                ),
                verifier=SandboxTokenVerifier(keys=DirectoryVerifyingKeys(keys.sandbox_token_public), clock=clock),
                clock=clock,
                registry=registry,
                stop=stop,
                tracer=tracer,
                reports=PostgresGatewayReports(database),
            )
        except TlsFilesError as error:
            raise SettingsError(
                f"The settings cannot be used:\n  SANDBOXD_GATEWAY_TLS_CERTIFICATE_FILE: {error}"
            ) from error
        finally:
            measuring.cancel()
            await database.close()
            await asyncio.to_thread(send_traces)


def _config(settings: Settings) -> GatewayConfig:
    host, _, port = settings.gateway_listen.rpartition(":")
    admin_host, _, admin_port = settings.gateway_web_listen.rpartition(":")
    certificate, key = settings.gateway_tls_certificate_file, settings.gateway_tls_key_file
    tls = TlsFiles(certificate=certificate, key=key) if certificate and key else None
    return GatewayConfig(
        host=host.strip("[]"),
        port=int(port),
        admin_host=admin_host.strip("[]"),
        admin_port=int(admin_port),
        upstream_url=settings.gemini_url,
        spool_directory=_spool(settings.home),
        trace_upstream=settings.trace_upstream,
        tls=tls,
        admin_tls=None if is_loopback(settings.gateway_web_listen) else tls,
    )


def choose_api_keys(settings: Settings, files: KeyFiles) -> ApiKeys:
    """Where the clients' keys come from: their own, then the installation's where there is one."""
    if settings.gemini_keys_dir is not None:
        return DirectoryApiKeys(settings.gemini_keys_dir)
    own = DirectoryApiKeys(files.gemini_keys)
    if settings.gemini_api_key is not None:
        return LayeredApiKeys(own, rest=StaticApiKeys(Secret(settings.gemini_api_key.get_secret_value())))
    if settings.gemini_url != DEFAULT_GEMINI_URL:
        return LayeredApiKeys(own, rest=StaticApiKeys(Secret(PLACEHOLDER_KEY)))
    # Clients without a key of theirs are refused (KEY_MISSING). `serve` writes them there, and may have to do so yet.
    log.info("gateway.no_installation_key", keys_dir=str(files.gemini_keys))
    return own


def _spool(home: Path) -> Path:
    directory = home / "gateway-spool"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory
