"""The role `serve`: API, stream and manager in one process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.bootstrap.audit import warn_of_bypass
from sandboxd.bootstrap.callers import listen, web_tls
from sandboxd.bootstrap.chores import forget_old_commands, usage_hints
from sandboxd.bootstrap.rooms import Rooms, build_rooms
from sandboxd.bootstrap.schema import wait_for_schema, while_away
from sandboxd.bootstrap.stopping import stop_signals, unless_stopped
from sandboxd.settings import Settings, SettingsError, redact, unknown_variables

log = structlog.get_logger("sandboxd.bootstrap")

MIN_GRACE: Final = timedelta(seconds=1)


async def serve(settings: Settings) -> None:
    """Run until a signal says stop, then hand everything over within the grace.

    Raises:
        SettingsError: Something that this role needs is missing.
        UnavailableError: The database cannot be used.
        OSError: An address is taken.
    """
    if settings.database_url is None:
        raise SettingsError("The settings cannot be used:\n  SANDBOXD_DATABASE_URL: serve needs a PostgreSQL")
    with stop_signals() as stop:
        log.info("role.settings", **redact(settings))
        if unknown := unknown_variables(os.environ):
            log.warning("role.unknown_settings", names=unknown)
        await _run(settings, settings.database_url.get_secret_value(), stop)


async def _run(settings: Settings, url: str, stop: asyncio.Event) -> None:
    rooms = build_rooms(settings, url)
    async with AsyncExitStack() as cleanup:
        cleanup.push_async_callback(asyncio.to_thread, rooms.seen.send_traces)
        cleanup.push_async_callback(rooms.database.close)
        await rooms.placement.open()
        cleanup.push_async_callback(rooms.placement.close)
        if rooms.kept is not None:
            cleanup.push_async_callback(rooms.kept.close)
        # Bind first: a taken port is known at once, and not after the database was awaited.
        listen(rooms.api, settings)
        web_port = await rooms.web.start(settings.web_listen, tls=web_tls(settings))
        cleanup.push_async_callback(rooms.web.stop)
        rooms.presence.address = rooms.peers.listen()
        if not await unless_stopped(stop, wait_for_schema(url)):
            return
        if not await unless_stopped(stop, while_away(lambda: warn_of_bypass(rooms.database))):
            return
        if warning := rooms.manager.backend().warning:
            log.warning("backend.warning", backend=rooms.manager.backend().name, warning=warning)
        running = asyncio.create_task(_background(rooms), name="rooms")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        holding = asyncio.create_task(rooms.presence.wait_held(), name="presence-held")
        try:
            await asyncio.wait({running, stopping, holding}, return_when=asyncio.FIRST_COMPLETED)
            if holding.done() and not stop.is_set():
                await rooms.peers.server.start()
                await rooms.api.start()
                rooms.web.set_ready(ready=True)
                log.info("role.serving", grpc=settings.grpc_listen, web_port=web_port, replica=settings.replica)
                await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if running.done() and not running.cancelled() and (failure := running.exception()):
                log.error("role.room_failed", exc_info=failure)  # before the hand-over, which may take its time
                raise failure
        finally:
            await _drain(rooms, grace=settings.drain_grace)
            for task in (running, stopping, holding):
                task.cancel()
            await asyncio.gather(running, stopping, holding, return_exceptions=True)
    log.info("role.stopped")


async def _background(rooms: Rooms) -> None:
    """Everything that runs beside the API. If one part fails, the process ends and is started anew."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(rooms.presence.run(), name="presence")
        if rooms.callers.issuer_keys is not None:
            tasks.create_task(rooms.callers.issuer_keys.run(), name="issuer-keys")
        # Before the lock is held this replica must own nothing.
        await rooms.presence.wait_held()
        if rooms.placement.run is not None:
            tasks.create_task(rooms.placement.run(), name="placement")
        tasks.create_task(rooms.seen.run(rooms.database), name="observation")
        tasks.create_task(rooms.audit.run(), name="audit")
        tasks.create_task(rooms.commit.run(), name="group-commit")
        tasks.create_task(rooms.hints.run(), name="hints")
        tasks.create_task(rooms.custody.run(), name="custody")
        tasks.create_task(rooms.suspensions.run(), name="suspensions")
        tasks.create_task(rooms.eraser.run(), name="eraser")
        tasks.create_task(rooms.manager.run(), name="manager")
        tasks.create_task(usage_hints(rooms.presence, rooms.bills), name="usage-hints")
        tasks.create_task(forget_old_commands(rooms.database), name="retention")
        tasks.create_task(rooms.texts.run(), name="texts")
        tasks.create_task(rooms.abandoned.run(), name="abandoned")
        if rooms.image_care is not None:
            tasks.create_task(rooms.image_care.run(), name="image-care")


async def _drain(rooms: Rooms, *, grace: timedelta) -> None:
    """Tell callers, then hand over. Turns go on in their sandboxes; whoever comes next continues them."""
    rooms.web.set_ready(ready=False)
    rooms.custody.adopt_no_more()
    deadline = asyncio.get_running_loop().time() + grace.total_seconds()

    def left() -> timedelta:
        return max(MIN_GRACE, timedelta(seconds=deadline - asyncio.get_running_loop().time()))

    steps: dict[str, Callable[[], Awaitable[None]]] = {
        "api": lambda: rooms.api.drain(grace=left() * 0.6),
        "manager": lambda: rooms.manager.drain(grace=left() * 0.5),
        "conversations": rooms.hub.drain,
        # Until here: who waits for one of our conversations was answered, or told to look for its next owner.
        "peers": rooms.peers.stop,
        "agents": rooms.launcher.close,
        "audit": lambda: rooms.audit.close(timeout=left()),
    }
    for name, step in steps.items():
        try:
            async with asyncio.timeout(left().total_seconds()):
                await step()
        except Exception:  # the next step must be taken in any case
            log.exception("role.drain_step_failed", step=name)
    rooms.commit.close()
