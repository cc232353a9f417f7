"""The agent's configuration: one JSON file, named on the command line.

Not environment variables: inside pods those names belong to another program, and the freelancer's processes could read
them. The file names key files; it holds no secret itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """How this agent is set up. The JSON file has these names; paths are absolute."""

    sandbox: str
    """Id of the sandbox."""
    incarnation: str
    """Id of the incarnation."""
    home: Path
    """The home directory; made where it does not exist."""
    workspace: Path
    """The workspace; made where it does not exist."""
    spool_directory: Path
    """Directory for output spools; made where it does not exist. Nothing in it outlives the agent."""
    ready_file: Path
    """Written in one step when the agent answers: `{port, pid, model_port, start_time}`."""
    tls_certificate: Path
    """The agent's certificate chain, PEM."""
    tls_key: Path
    """Its key, PEM."""
    tls_client_authority: Path
    """Certificates that sign the service's certificate, PEM."""
    client_name: str = "service.sandboxd.internal"
    """DNS name that the service's certificate must carry."""
    listen: str = "127.0.0.1:0"
    """Address of the gRPC server; port 0 takes a free one."""
    model_port: int = 0
    """Port of the model endpoint on 127.0.0.1; 0 takes a free one."""
    shutdown_grace_seconds: float = 5.0
    """How long processes have between TERM and KILL when the agent itself gets TERM."""
    max_processes: int = 256
    """Most processes kept at once."""
    user_id: int = 0
    """User of the freelancer's processes and files; 0 is whoever the agent itself is."""
    group_id: int = 0
    """Its group; taken with `user_id`."""
    run_directory: Path | None = None
    """Where the agent leaves a mark that it was started, and refuses a second start; none refuses nothing. It must live
    as long as the incarnation: in a pod, an emptyDir."""

    capture_root: Path | None = None
    """Root file system that a capture walks. None is `/` where the agent is process 1 of a container, which has one of
    its own, and refuses captures elsewhere: there it is the machine's."""

    @property
    def shutdown_grace(self) -> timedelta:
        """The grace as a span."""
        return timedelta(seconds=self.shutdown_grace_seconds)


class ConfigError(Exception):
    """The configuration file cannot be used."""


_PATHS = frozenset(
    {
        "home",
        "workspace",
        "spool_directory",
        "ready_file",
        "tls_certificate",
        "tls_key",
        "tls_client_authority",
        "run_directory",
        "capture_root",
    }
)


def load_config(path: Path) -> AgentConfig:
    """Read the file.

    Raises:
        ConfigError: It is absent, not JSON, or a name in it is missing, unknown or of the wrong kind.
    """
    try:
        given: Any = json.loads(path.read_text(encoding="utf-8"))  # Any: JSON is checked below
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    known = {field.name: field for field in fields(AgentConfig)}
    if unknown := sorted(given.keys() - known.keys()):
        raise ConfigError(f"{path} has unknown names: {', '.join(unknown)}")
    values = {name: _convert(path, name, value) for name, value in given.items()}
    try:
        return AgentConfig(**values)
    except TypeError as error:
        raise ConfigError(f"{path}: {error}") from error


def _convert(path: Path, name: str, value: object) -> Any:  # Any: the kinds of the dataclass's fields
    match name:
        case _ if name in _PATHS:
            if not isinstance(value, str) or not Path(value).is_absolute():
                raise ConfigError(f"{path}: {name} must be an absolute path")
            return Path(value)
        case "model_port" | "max_processes" | "user_id" | "group_id":
            if not isinstance(value, int) or value < 0:
                raise ConfigError(f"{path}: {name} must be a whole number")
        case "shutdown_grace_seconds":
            if not isinstance(value, int | float):
                raise ConfigError(f"{path}: {name} must be a number")
        case _:
            if not isinstance(value, str):
                raise ConfigError(f"{path}: {name} must be a text")
    return value
