"""One agent from its first moment to its last: parts joined, served, and ended without leaving a process behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
from functools import partial
from pathlib import Path

import grpc

from sandboxd import __version__
from sandboxd.agent.activity import ActivityReporter
from sandboxd.agent.capturing import Capturing, RootfsSource
from sandboxd.agent.clock import now
from sandboxd.agent.config import AgentConfig, ConfigError
from sandboxd.agent.freezer import Freezer
from sandboxd.agent.furnishing import claim_start, make_directories
from sandboxd.agent.interceptor import Guard
from sandboxd.agent.model_endpoint import ModelEndpoint
from sandboxd.agent.package_reader import PackageReader
from sandboxd.agent.package_requester import requester
from sandboxd.agent.package_watch import PackageWatch
from sandboxd.agent.reaper import Reaper
from sandboxd.agent.service import AgentService
from sandboxd.agent.start_marker import StartMarker, mark_start
from sandboxd.agent.supervisor import Supervisor
from sandboxd.agent.user import User
from sandboxd.agent.v1 import agent_pb2_grpc

OPEN_FILES = 65_536
"""Open files that the agent allows itself: pipes and spools of every process, and connections."""
ANSWER_GRACE_SECONDS = 1.0
"""How long running answers may take to go out when the agent ends."""
OPTIONS = (
    ("grpc.so_reuseport", 0),  # or a second agent could take half of this one's connections
    # A sandbox that stands still for longer than gRPC's 30 s (frozen, starved) ends no call that was not taken up yet.
    ("grpc.server_max_unrequested_time_in_server", 3600),
    ("grpc.max_receive_message_length", 4 << 20),
    # Or the window of a large upload grows to what the memory limit cannot hold. 256 KiB are enough for a cluster.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 18),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)
CONCURRENT_RPCS = 2_000

log = logging.getLogger(__name__)


async def run(config: AgentConfig) -> None:
    """Serve until SIGTERM, SIGINT or the Shutdown RPC.

    Raises:
        ConfigError: A directory, key or address in the configuration cannot be used.
        StartedBeforeError: An agent ran in this place before.
    """
    _allow_open_files()
    start_time = now()
    claim_start(config)
    user = User(user_id=config.user_id, group_id=config.group_id) if config.user_id else None
    make_directories(config, user)
    marker = _mark(config)
    marker.watch()
    reaper, freezer = Reaper(), Freezer()
    reaper.install()
    supervisor = Supervisor(config=config, reaper=reaper, freezer=freezer, user=user)
    reporter = ActivityReporter(config=config, supervisor=supervisor, freezer=freezer, reaper=reaper)
    model_endpoint = ModelEndpoint()
    packages = _packages(config, supervisor, user)
    await packages.begin()
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    server = grpc.aio.server(
        options=OPTIONS, interceptors=(Guard(client_name=config.client_name),), maximum_concurrent_rpcs=CONCURRENT_RPCS
    )
    service = AgentService(
        config=config,
        version=__version__,
        start_time=start_time,
        supervisor=supervisor,
        freezer=freezer,
        reporter=reporter,
        model_endpoint=model_endpoint,
        packages=packages,
        capturing=Capturing(RootfsSource(root=_capture_root(config), incarnation=config.incarnation, marker=marker)),
        end=end.set,
        user=user,
    )
    agent_pb2_grpc.add_AgentServiceServicer_to_server(service, server)
    try:
        port = _listen(server, config)
        await _start_model_endpoint(model_endpoint, config)
        await server.start()
        ready = {
            "port": port,
            "pid": os.getpid(),
            "model_port": model_endpoint.port,
            "start_time": start_time.isoformat(),
        }
        _write_ready_file(config, ready)
        log.info("agent.ready", extra={"fields": {**ready, "incarnation": config.incarnation}})
        await end.wait()
    finally:
        with contextlib.suppress(OSError):
            config.ready_file.unlink()
        result = await supervisor.shutdown(grace=config.shutdown_grace)
        await model_endpoint.close()
        await server.stop(ANSWER_GRACE_SECONDS)
        marker.close()
        killed = result.killed_processes
        log.info("agent.ended", extra={"fields": {"killed": killed, "terminated": result.terminated_processes}})


def _packages(config: AgentConfig, supervisor: Supervisor, user: User | None) -> PackageWatch:
    # Process 1 of a container has a root file system of its own; elsewhere it is the machine's.
    reader = PackageReader(root=Path("/") if os.getpid() == 1 else None, home=config.home)
    read = reader.read if user is None else user.acting(reader.read)
    return PackageWatch(read=read, requester=partial(requester, supervisor))


def _mark(config: AgentConfig) -> StartMarker:
    try:
        return mark_start(config.spool_directory)
    except OSError as error:
        raise ConfigError(f"cannot write to {config.spool_directory}: {error.strerror}") from error


def _capture_root(config: AgentConfig) -> Path | None:
    if config.capture_root is not None:
        return config.capture_root
    return Path("/") if os.getpid() == 1 else None


def _listen(server: grpc.aio.Server, config: AgentConfig) -> int:
    try:
        pair = (config.tls_key.read_bytes(), config.tls_certificate.read_bytes())
        authority = config.tls_client_authority.read_bytes()
        credentials = grpc.ssl_server_credentials([pair], root_certificates=authority, require_client_auth=True)
        port: int = server.add_secure_port(config.listen, credentials)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"cannot listen on {config.listen} with these keys: {error}") from error
    if port == 0:
        raise ConfigError(f"cannot listen on {config.listen} with these keys")
    return port


async def _start_model_endpoint(model_endpoint: ModelEndpoint, config: AgentConfig) -> None:
    try:
        await model_endpoint.start(config.model_port)
    except OSError as error:
        raise ConfigError(f"cannot listen on port {config.model_port}: {error}") from error


def _write_ready_file(config: AgentConfig, ready: dict[str, object]) -> None:
    temporary = config.ready_file.with_name(f".{config.ready_file.name}.{os.getpid()}")
    temporary.write_text(json.dumps(ready), encoding="utf-8")
    temporary.replace(config.ready_file)


def _allow_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
