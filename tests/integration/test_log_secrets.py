"""No secret in any log line: canaries go through the edges, the gateway and the database, and into errors."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from sandboxd.model.errors import SandboxNotFoundError
from sandboxd.model.ids import SandboxId
from sandboxd.monitor.logging import configure_logging, log_places, log_unhandled
from sandboxd.monitor.tracebacks import render
from sandboxd.persistence.engine import Database, DatabaseSettings, make_engine
from sandboxd.v1 import sandbox_pb2, stream_pb2
from tests.fake_gemini import FakeGemini
from tests.gateway_world import CANARY, GatewayWorld, config_for
from tests.integration.api_world import a_world, next_event, refused
from tests.traces import GIVEN_TRACE, Traces

SECRET = "canary-4711-never-to-be-logged"


@pytest.fixture(params=["json", "console"])
def lines(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """What a role logs at debug level, in either style."""
    root, ours = logging.getLogger(), logging.getLogger("sandboxd")
    before, levels = root.handlers[:], (root.level, ours.level)
    stream = io.StringIO()
    configure_logging(role="test", style=request.param, level="debug", stream=stream)
    structlog.configure(cache_logger_on_first_use=False)  # the loggers of modules outlive this test
    yield stream
    structlog.reset_defaults()
    root.handlers[:] = before
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def fail(secret: str) -> None:
    held = {"secret": secret}
    try:
        int(held["secret"])
    except ValueError as error:
        raise KeyError(secret) from error


def test_a_traceback_names_places_and_kinds_and_nothing_that_was_held(lines: io.StringIO) -> None:
    log = structlog.get_logger("sandboxd.test")
    try:
        fail(SECRET)
    except KeyError:
        log.exception("it.failed")
        logging.getLogger("some.library").exception("it failed, too")
    try:
        raise ExceptionGroup(SECRET, [ValueError(SECRET), SandboxNotFoundError(SandboxId("sbx-1"))])
    except ExceptionGroup:
        log.exception("they.failed")

    text = lines.getvalue()
    assert SECRET not in text
    assert text.count("in fail") >= 2
    assert all(word in text for word in ("KeyError", "ValueError", "Sandbox sbx-1 does not exist", "which led to"))


def test_what_libraries_say_at_debug_level_is_not_shown(lines: io.StringIO) -> None:
    logging.getLogger("some.library").debug("sending header authorization: %s", SECRET)
    logging.getLogger("some.library").info("parameters: %s", SECRET)
    structlog.get_logger("sandboxd.test").debug("ours.is_shown", token=SECRET, authorization=SECRET)

    assert SECRET not in lines.getvalue()
    assert "ours.is_shown" in lines.getvalue()


async def test_a_task_that_nobody_awaited_is_logged_without_its_error_s_text(lines: io.StringIO) -> None:
    asyncio.get_running_loop().set_exception_handler(log_unhandled)
    task = asyncio.create_task(asyncio.to_thread(fail, SECRET), name="forgotten")
    await asyncio.wait([task])
    del task
    await asyncio.sleep(0)

    assert "loop.unhandled" in lines.getvalue()
    assert "forgotten" in lines.getvalue()
    assert SECRET not in lines.getvalue()


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO clients (id, create_time) SELECT $1, NULL",
        "INSERT INTO sandboxes (id, client) VALUES ($1, $1)",
        "SELECT $1::int",
        "SELECT * FROM nothing WHERE name = $1",
    ],
)
async def test_the_database_s_errors_quote_no_row_and_no_parameter(
    lines: io.StringIO, postgres_url: str, statement: str
) -> None:
    database = Database(make_engine(DatabaseSettings(url=postgres_url)))
    log = structlog.get_logger("sandboxd.test")
    for numbered in (True, False):
        try:
            if numbered:
                async with database.raw() as connection:
                    await connection.execute(statement, SECRET)
            else:
                async with database.begin() as bound:
                    await bound.exec_driver_sql(statement, (SECRET,))
        except Exception:
            log.exception("statement.failed")
    await database.close()

    assert lines.getvalue().count("statement.failed") == 2
    assert SECRET not in lines.getvalue()


async def test_the_edge_logs_no_token_and_no_prompt_also_when_it_breaks(lines: io.StringIO, tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        created = await world.sandboxes.Create(
            sandbox_pb2.CreateRequest(request_id="request-0"), metadata=world.metadata()
        )
        call = world.stream()
        opening = stream_pb2.Open(sandbox=created.sandbox.name)
        await call.write(stream_pb2.StreamRequest(request_id="request-1", open=opening))
        await next_event(call, "stream_ready")
        prompt = stream_pb2.Prompt(text=SECRET)
        await call.write(stream_pb2.StreamRequest(request_id="request-2", prompt=prompt))
        await next_event(call, "acknowledged")
        call.cancel()
        world.manager.failure = RuntimeError(f"it broke with {SECRET}")
        error = await refused(world.sandboxes.List(sandbox_pb2.ListRequest(), metadata=world.metadata()))
        bad = f"Bearer {world.token}x"
        await refused(world.sandboxes.List(sandbox_pb2.ListRequest(), metadata=(("authorization", bad),)))

    text = lines.getvalue()
    assert error.code.name == "INTERNAL"
    assert "rpc.failed_unexpectedly" in text
    assert SECRET not in text
    assert world.token not in text
    assert world.token.rpartition(".")[2] not in text, "not the signature either"


async def test_the_gateway_logs_no_key_no_token_and_no_text(lines: io.StringIO, tmp_path: Path) -> None:
    with FakeGemini(key=CANARY) as fake:
        world = GatewayWorld(fake=fake, config=config_for(fake, tmp_path))
        async with world.running():
            token = world.token()
            headers = {"authorization": f"Bearer {token}", "x-goog-api-key": SECRET}
            for script in ("say(text=hi)", "400", "reset", "leakerror", "malformed"):
                await world.ask(f"fake:{script} {SECRET}", headers=headers)
            await world.ask(SECRET, headers={"authorization": f"Bearer {token}x"})
            world.ledger.down = True
            await world.ask(SECRET, headers=headers)

    text = lines.getvalue()
    assert "gateway.call" in text
    assert not [word for word in (CANARY, SECRET, token, token.rpartition(".")[2]) if word in text]


def test_lines_name_the_trace_that_they_were_written_in(lines: io.StringIO) -> None:
    traces = Traces()
    log_places(traces.tracer.current)
    try:
        with traces.tracer.span("work") as span:
            structlog.get_logger("sandboxd.test").info("inside")
        structlog.get_logger("sandboxd.test").info("outside")
    finally:
        log_places(lambda: None)

    inside, outside = lines.getvalue().splitlines()
    assert span.context is not None
    assert span.context.trace_id in inside
    assert span.context.span_id in inside
    assert GIVEN_TRACE not in inside
    assert "trace_id" not in outside
    if inside.startswith("{"):
        assert json.loads(inside)["trace_id"] == span.context.trace_id


def test_a_long_chain_of_causes_has_an_end() -> None:
    error: Exception = ValueError(SECRET)
    for _ in range(100):
        after = ValueError(SECRET)
        after.__cause__ = error
        error = after

    assert len(render(error)) < 5000
    assert SECRET not in render(error)
