"""Settings of every role: environment `SANDBOXD_*`, a TOML file named by `SANDBOXD_CONFIG`, and files for secrets.

Strongest first: what the program itself passes, the environment, `SANDBOXD_…_FILE` for secrets, the TOML file, the
defaults here. Read once, in `bootstrap`; no other room sees them.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, ModelWrapValidatorHandler, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from typing_extensions import override

from sandboxd.model.pool import RefillLimits, StartLimits
from sandboxd.settings_abandoned import AbandonedSettings
from sandboxd.settings_backups import BackupSettings
from sandboxd.settings_images import ImageSettings
from sandboxd.settings_kubernetes import KubernetesSettings
from sandboxd.settings_lifecycle import LifecycleSettings
from sandboxd.settings_rules import PREFIX, Address, check_key_url, problems_between, split_names
from sandboxd.settings_sources import SecretFiles

NOT_SETTINGS: Final = frozenset({"SANDBOXD_CONFIG", "SANDBOXD_CACHE_DIR", "SANDBOXD_FAILPOINTS"})
"""Variables with our prefix that are read elsewhere."""
DEFAULT_GEMINI_URL: Final = "https://generativelanguage.googleapis.com"


class SettingsError(Exception):
    """Settings that cannot be used; the text lists every problem."""


def _check_url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", text):
        raise ValueError("must be an http or https URL without user, query and fragment")
    return text.rstrip("/")


def _check_names(text: str) -> str:
    split_names(text)
    return text


KeyUrl = Annotated[str, AfterValidator(check_key_url)]
Names = Annotated[str, AfterValidator(_check_names)]
Url = Annotated[str, AfterValidator(_check_url)]


class Settings(KubernetesSettings, LifecycleSettings, ImageSettings, BackupSettings, AbandonedSettings):
    """All settings. A role reads those that it needs. Groups of them stand in modules of their own."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        hide_input_in_errors=True,
    )

    data_dir: Path = Path("~/.local/share/sandboxd")
    """Where everything that must stay is kept on this machine: sandboxes of the local backend, keys, logs."""
    database_url: SecretStr | None = None
    """PostgreSQL, for example `postgresql://user:password@host/db`. `sandboxd dev` starts an embedded one if empty."""
    database_owner_url: SecretStr | None = None
    """The same database as the owner of its tables, for `sandboxd migrate`; `database_url` if empty."""
    database_app_role: str = Field(default="sandboxd_app", max_length=63)
    """Role that `sandboxd migrate` gives the application's rights; `serve` and gateways log in as a member of it. `-`
    for none."""
    database_pool_size: int = Field(default=15, ge=2, le=200)
    """Most connections of one process."""

    grpc_listen: Address = "127.0.0.1:50051"
    """Where the gRPC API listens. Without TLS only a loopback address is accepted."""
    grpc_platform_listen: Address | None = None
    """A second address of the same API, at which callers must have a certificate of `tls_client_authority_file`."""
    web_listen: Address = "127.0.0.1:8081"
    """Where /metrics, /healthz and /readyz are. On other addresses than loopback with TLS, by the API's certificate."""
    tls_certificate_file: Path | None = None
    """PEM chain of the API's certificate. Changed files are used from the next connection on, without a restart."""
    tls_key_file: Path | None = None
    """PEM key of the API's certificate."""
    tls_client_authority_file: Path | None = None
    """PEM authorities of client certificates. They are demanded at `grpc_platform_listen`, and if that is empty at
    `grpc_listen`, of every caller."""
    platform_certificate_names: Names = ""
    """Names (DNS names and URIs; the common name of a certificate without both) with commas between them. A client
    certificate with one of them speaks for the platform, without a token."""
    reflection: bool = True
    """Answer gRPC reflection, so that grpcurl works without the protos."""

    jwt_keys_file: Path | None = None
    """JWKS file with the public keys (EdDSA; RS256 of 2048 bits and more; ES256) of those who issue callers' tokens."""
    jwt_jwks_url: KeyUrl | None = None
    """Where the issuer of callers' tokens publishes its JWKS, instead of a file: https, or http on loopback. Fetched
    every 5 minutes and when a token names an unknown key; while it cannot be, the last keys stay good for 24 hours."""
    jwt_jwks_authority_file: Path | None = None
    """PEM authorities to trust for `jwt_jwks_url`; the system's if empty."""
    jwt_issuer: str = "https://sandboxd.dev/development"
    """`iss` of callers' tokens."""
    jwt_audience: str = "sandboxd"
    """`aud` of callers' tokens."""
    jwt_client_claim: str = Field(default="client", min_length=1, max_length=200)
    """Claim of callers' tokens that names their client."""
    jwt_role_claim: str = Field(default="role", min_length=1, max_length=200)
    """Claim of callers' tokens that holds their role: platform, client_admin, freelancer or auditor."""
    token_grace_seconds: float = Field(default=300, ge=0, le=86400)
    """How long an open stream may go on after its caller's token, or certificate, has expired."""

    registration: Literal["first_use", "explicit"] = "first_use"
    """`first_use`: a client or freelancer with a good token is registered when first needed. `explicit`: who was
    not created before is refused."""

    audit_key_file: Path | None = None
    """PEM file with the Ed25519 key that signs audit heads, the same for all replicas; made at the first start if
    empty, as `keys/audit.pem` in the data directory."""
    audit_trust_dir: Path | None = None
    """Directory with the public keys whose signatures under audit heads are trusted, `<key id>.pem` each; may be
    read-only. `keys/audit` in the data directory if empty."""
    audit_heads_dir: Path | None = None
    """Where signed audit heads are written outside the database; `audit-heads` in the data directory if empty."""
    audit_head_seconds: float = Field(default=60, gt=0, le=3600)
    """How often the ends of the audit's chains are signed."""

    default_deadline_seconds: float = Field(default=60, gt=0, le=3600)
    """Deadline of a call whose caller gave none."""
    max_concurrent_rpcs: int = Field(default=2000, ge=1)
    """Calls at the same time; more are refused."""
    max_streams: int = Field(default=1000, ge=1)
    """Open streams of this process."""
    max_streams_per_client: int = Field(default=500, ge=1)
    """Open streams of one client."""
    cold_starts: int = Field(default=16, ge=1)
    """Sandboxes that this process starts at once for Create, where no warm member is to be had."""
    cold_starts_per_client: int = Field(default=8, ge=1)
    """Those of one client. More wait, and clients take turns."""
    pool_members_per_client: int = Field(default=200, ge=0)
    """How large the warm pools of one client may be together: their maxima, added up."""
    pool_starts_at_once: int = Field(default=4, ge=1)
    """Members of warm pools that are started at a time."""
    pool_starts_per_second: float = Field(default=10, gt=0)
    """Members of warm pools whose start is begun in a second at most."""
    drain_seconds: float = Field(default=25, gt=0, le=600)
    """Grace after SIGTERM; below the 30 s after which Kubernetes kills."""

    peer_listen: Address = "127.0.0.1:0"
    """Where other replicas of `serve` reach this one, with mutual TLS by the installation's own authority. Port 0
    takes a free one."""
    peer_address: str = ""
    """The address that other replicas are told, `host` or `host:port`; empty tells where it listens. Needed where
    `peer_listen` is not an address that they can use, such as 0.0.0.0."""
    lease_seconds: float = Field(default=15, ge=1, le=300)
    """A replica without a sign of life for so long loses its conversations and operations to the others. One that died
    loses them at once."""
    stream_write_seconds: float = Field(default=60, gt=0, le=3600)
    """A stream whose client takes nothing for so long is ended; the client can come back."""
    connection_age_seconds: float = Field(default=60, ge=1, le=86_400)
    """After so long, by a tenth more or less, a client's connection takes no new calls, and open ones go on: the next
    call meets the balancer, which knows replicas that started, and those that are not ready."""

    gateway_listen: Address = "127.0.0.1:8082"
    """Where the gateway listens for agents. Without TLS only a loopback address is accepted."""
    gateway_url: Url = "http://127.0.0.1:8082"
    """How agents reach the gateway."""
    gateway_tls_certificate_file: Path | None = None
    """PEM chain of the gateway's certificate."""
    gateway_tls_key_file: Path | None = None
    """PEM key of the gateway's certificate."""
    gateway_authority_file: Path | None = None
    """PEM authorities that agents trust for an https gateway; the system's if empty."""
    gateway_web_listen: Address = "127.0.0.1:8083"
    """Where the gateway's /metrics, /healthz and /readyz are. On other addresses than loopback with TLS."""
    gemini_url: Url = DEFAULT_GEMINI_URL
    """The model API that the gateway forwards to."""
    gemini_api_key: SecretStr | None = None
    """One API key for every client; also read from GEMINI_API_KEY. For development: keys live in `gemini_keys_dir`."""
    gemini_keys_dir: Path | None = None
    """Directory with one file for each client, named by it, that holds its API key. Read again when it changes."""

    sandbox_token_key_file: Path | None = None
    """PEM file with the Ed25519 key that signs sandbox tokens, the same for all replicas; made at the first start if
    empty, as `keys/sandbox-tokens.pem` in the data directory."""
    sandbox_token_trust_dir: Path | None = None
    """Directory with the public keys of sandbox tokens that the gateway trusts, `<key id>.pem` each; may be read-only.
    `keys/sandbox-tokens` in the data directory if empty, where `serve` puts its own."""
    erasure_key_file: Path | None = None
    """PEM file with the Ed25519 key that signs proofs of erasure, the same for all replicas; made at the first start if
    empty, as `keys/erasure-proofs.pem` in the data directory."""
    key_hash_file: Path | None = None
    """File of 32 bytes, the secret of the hashes that tell API keys apart, the same for all replicas; made at the first
    start if empty, as `keys/key-hashes.secret` in the data directory."""

    node: Path | None = None
    """Node that runs the Gemini CLI in the local backend's sandboxes. `sandboxd dev` finds it if empty."""
    gemini_cli: Path | None = None
    """Entry script of the Gemini CLI in the local backend. `sandboxd dev` installs the pinned one if empty."""
    cli_dialect: Literal["acp", "headless"] = "acp"
    """How the CLI is driven: one `--acp` process per sandbox, or one `-p … -o stream-json` run per prompt."""

    otlp_endpoint: Url | None = None
    """Collector that takes traces by OTLP over HTTP, for example `http://127.0.0.1:4318`; no traces if empty. The
    standard `OTEL_EXPORTER_OTLP_ENDPOINT` and `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` are read, too."""
    trace_sampling: float | None = Field(default=None, ge=0, le=1)
    """Share of the traces that is kept where the caller did not decide; all, or what OTEL_TRACES_SAMPLER says, if
    empty."""
    trace_upstream: bool = False
    """Let the gateway send the trace context of a call to the model API."""

    replica: str = Field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}"[:63])
    """Name of this process among its like."""
    log_format: Literal["json", "console"] = "json"
    """`json` for machines, `console` for people."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged."""

    @property
    def default_deadline(self) -> timedelta:
        """Deadline of a call whose caller gave none."""
        return timedelta(seconds=self.default_deadline_seconds)

    @property
    def token_grace(self) -> timedelta:
        """How long an open stream may outlive its caller's token."""
        return timedelta(seconds=self.token_grace_seconds)

    @property
    def platform_names(self) -> frozenset[str]:
        """Names of the platform's client certificates."""
        return split_names(self.platform_certificate_names)

    @property
    def drain_grace(self) -> timedelta:
        """Grace after SIGTERM."""
        return timedelta(seconds=self.drain_seconds)

    @property
    def start_limits(self) -> StartLimits:
        """How many sandboxes this process starts at once."""
        return StartLimits(total=self.cold_starts, per_client=self.cold_starts_per_client)

    @property
    def refill_limits(self) -> RefillLimits:
        """How fast warm pools are filled."""
        return RefillLimits(at_once=self.pool_starts_at_once, per_second=self.pool_starts_per_second)

    @property
    def lease(self) -> timedelta:
        """How long a frozen replica keeps what it owns."""
        return timedelta(seconds=self.lease_seconds)

    @property
    def home(self) -> Path:
        """The data directory, absolute."""
        return self.data_dir.expanduser().absolute()

    @model_validator(mode="wrap")
    @classmethod
    def _report_everything(cls, data: dict[str, Any], handler: ModelWrapValidatorHandler[Settings]) -> Settings:
        # Rules between fields are checked on what was given, so that they are reported beside those of single fields.
        problems = problems_between({name: field.default for name, field in cls.model_fields.items()} | data)
        try:
            made = handler(data)
        except ValidationError as error:
            found = [f"{_where(one['loc'])}{one['msg'].removeprefix('Value error, ')}" for one in error.errors()]
            raise ValueError("\n".join([*found, *problems])) from None
        if problems:
            raise ValueError("\n".join(problems))
        return made

    @classmethod
    @override
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the sources in order, strongest first."""
        sources: list[PydanticBaseSettingsSource] = [init_settings, env_settings, SecretFiles(settings_cls)]
        if file := os.environ.get(f"{PREFIX}CONFIG"):
            sources.append(TomlConfigSettingsSource(settings_cls, toml_file=Path(file).expanduser()))
        return tuple(sources)


def load_settings(**given: Any) -> Settings:
    """Read the settings.

    Args:
        given: Values that outrank every other source, by field name. Any: pydantic checks them.

    Raises:
        SettingsError: With all problems at once.
    """
    file = os.environ.get(f"{PREFIX}CONFIG")
    if file and not Path(file).expanduser().is_file():
        raise SettingsError(f"The settings cannot be used:\n  SANDBOXD_CONFIG: the file {file} does not exist")
    try:
        return Settings(**given)
    except ValidationError as error:
        lines = [line for one in error.errors() for line in one["msg"].removeprefix("Value error, ").splitlines()]
        raise SettingsError("\n  ".join(["The settings cannot be used:", *lines])) from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"The settings cannot be used:\n  {error}") from error


def redact(settings: Settings) -> dict[str, str]:
    """Return what can be shown of the settings: everything but secrets, and whether those are set."""
    shown = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        shown[name] = "(set)" if isinstance(value, SecretStr) else "" if value is None else str(value)
    return shown


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return `SANDBOXD_*` variables that no setting reads: probably misspelt."""
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    known |= {f"{name}_FILE" for name in known} | NOT_SETTINGS
    return sorted(name for name in environment if name.startswith(PREFIX) and name not in known)


def _where(location: tuple[int | str, ...]) -> str:
    return f"{PREFIX}{str(location[0]).upper()}: " if location else ""
