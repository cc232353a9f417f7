"""A real agent as a process of its own, with keys made for the occasion, and the service's client of it."""

import asyncio
import datetime as dt
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sandboxd.agent.client import GrpcAgentConnector
from sandboxd.model.sandbox import AgentEndpoint
from tests.eventually import eventually

AGENT_NAME = "inc-test.agent.sandboxd.internal"
SERVICE_NAME = "service.sandboxd.internal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """Signs certificates for tests."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        builder = self._builder(self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.certificate = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def issue(self, dns_name: str) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, dns_name)])
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            self._builder(subject, key.public_key())
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(dns_name)]), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        )
        certificate = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Identity(certificate=certificate, key=pem)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(days=1))
        )


@dataclass(slots=True, kw_only=True)
class AgentProcess:
    """A running agent."""

    directory: Path
    process: subprocess.Popen[bytes]
    port: int
    model_port: int
    authority: Authority
    service: Identity

    @property
    def home(self) -> Path:
        return self.directory / "home"

    @property
    def workspace(self) -> Path:
        return self.directory / "workspace"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def endpoint(self) -> AgentEndpoint:
        return AgentEndpoint(host="127.0.0.1", port=self.port, server_name=AGENT_NAME)

    @property
    def connector(self) -> GrpcAgentConnector:
        return GrpcAgentConnector(
            certificate=self.service.certificate, key=self.service.key, agent_authority=self.authority.certificate
        )

    @property
    def resident_bytes(self) -> int:
        """Memory of the agent itself, as the kernel counts it."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("the agent is gone")

    async def wait(self, *, within: float = 15.0) -> int:
        return await asyncio.wait_for(asyncio.to_thread(self.process.wait), within)

    async def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                await self.wait()
            except TimeoutError:
                self.process.kill()
                await self.wait()


async def start_agent(directory: Path, *, environment: dict[str, str] | None = None, **config: object) -> AgentProcess:
    """Start an agent whose home, workspace and keys lie below a directory."""
    authority = Authority()
    agent, service = authority.issue(AGENT_NAME), authority.issue(SERVICE_NAME)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in {
        "agent.pem": agent.certificate,
        "agent.key": agent.key,
        "authority.pem": authority.certificate,
    }.items():
        (directory / name).write_bytes(content)
    ready = directory / "ready.json"
    settings = {
        "sandbox": "sbx-test",
        "incarnation": "inc-test",
        "home": str(directory / "home"),
        "workspace": str(directory / "workspace"),
        "spool_directory": str(directory / "spools"),
        "ready_file": str(ready),
        "tls_certificate": str(directory / "agent.pem"),
        "tls_key": str(directory / "agent.key"),
        "tls_client_authority": str(directory / "authority.pem"),
        "shutdown_grace_seconds": 2.0,
        **config,
    }
    (directory / "agent.json").write_text(json.dumps(settings))
    with (directory / "agent.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - a test may wait for a fork
            [sys.executable, "-m", "sandboxd.agent", "--config", str(directory / "agent.json")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )

    def answered() -> bool:
        if process.poll() is not None:
            raise RuntimeError((directory / "agent.log").read_text())
        return ready.exists()

    await eventually(answered, within=20)
    told = json.loads(ready.read_text())
    assert told["pid"] == process.pid
    return AgentProcess(
        directory=directory,
        process=process,
        port=told["port"],
        model_port=told["model_port"],
        authority=authority,
        service=service,
    )
