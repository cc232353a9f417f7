"""A gateway in a process of its own, on a real ledger, for tests that kill it. Prints its address, then serves."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry

from sandboxd.gateway.config import GatewayConfig
from sandboxd.gateway.key_files import DirectoryVerifyingKeys, StaticApiKeys
from sandboxd.gateway.secret import Secret
from sandboxd.gateway.server import Gateway, run_gateway
from sandboxd.gateway.tokens import SandboxTokenVerifier
from sandboxd.persistence.engine import Database, DatabaseSettings, make_engine
from sandboxd.persistence.ledger import PostgresUsageLedger
from sandboxd.persistence.prices import PostgresPriceBookStore
from tests.gateway_world import CANARY, RealClock


async def main(settings: dict[str, str]) -> None:
    database = Database(make_engine(DatabaseSettings(url=settings["database"], application_name="gateway child")))
    clock = RealClock()
    started: asyncio.Future[Gateway] = asyncio.get_running_loop().create_future()
    started.add_done_callback(_print_address)
    await run_gateway(
        config=GatewayConfig(
            upstream_url=settings["upstream"],
            spool_directory=Path(settings["spool"]),
            beat_seconds=0.2,
            dead_after_seconds=1.0,
        ),
        ledger=PostgresUsageLedger(database),
        prices=PostgresPriceBookStore(database),
        keys=StaticApiKeys(Secret(CANARY)),
        verifier=SandboxTokenVerifier(keys=DirectoryVerifyingKeys(Path(settings["keys"])), clock=clock),
        clock=clock,
        registry=CollectorRegistry(),
        stop=asyncio.Event(),
        started=started,
    )


def _print_address(started: asyncio.Future[Gateway]) -> None:
    sys.stdout.write(json.dumps({"url": started.result().url}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
