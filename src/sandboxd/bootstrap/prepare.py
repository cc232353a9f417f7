"""The role `prepare`: makes what an installation in a cluster needs once, before its parts are installed or upgraded.

The chart runs it as a hook, by a plan in JSON. What is there already is completed and never replaced, so it is safe to
repeat; only certificates of the installation's own authority are made anew, when a third of their life is left.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog
import yaml

from sandboxd.bootstrap.installation_keys import (
    AgentAuthority,
    CallerKeys,
    Certificate,
    DatabasePasswords,
    EmptySecret,
    Entries,
    Maker,
    ServerAuthority,
    SigningKeys,
    Trust,
)
from sandboxd.bootstrap.sources import SystemClock
from sandboxd.kubeapi.client import KubeClient
from sandboxd.kubeapi.errors import KubeConflictError, KubeError, KubeNotFoundError
from sandboxd.kubeapi.ports import APPLY_PATCH, Json, KubeApi
from sandboxd.model.errors import UnavailableError

log = structlog.get_logger("sandboxd.bootstrap")

MANAGER: Final = "sandboxd-prepare"
DEFINITIONS: Final = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
TRIES: Final = 5


class PlanError(Exception):
    """The plan, or a Secret that somebody gave, cannot be used; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the chart asks for."""

    namespace: str
    labels: dict[str, str] = field(default_factory=dict)
    agent_authority: Place
    signing: Place
    token_trust: Place
    audit_trust: Place
    api_keys: Place
    callers: Place
    tls_authority: Place
    postgresql: Place
    certificates: list[ServerPlace]
    image_pulls: Place | None = None
    """None where no accounts are made that pull images."""

    @classmethod
    def read(cls, text: str) -> Plan:
        """Read it.

        Raises:
            PlanError: It is no plan.
        """
        try:
            given: dict[str, Any] = json.loads(text)  # Any: JSON
            return cls(
                namespace=given["namespace"],
                labels=given["labels"],
                agent_authority=Place.of(given["agentAuthority"]),
                signing=Place.of(given["signing"]),
                token_trust=Place.of(given["tokenTrust"]),
                audit_trust=Place.of(given["auditTrust"]),
                api_keys=Place.of(given["apiKeys"]),
                image_pulls=Place.of(given["imagePulls"]) if "imagePulls" in given else None,
                callers=Place.of(given["callers"]),
                tls_authority=Place.of(given["tlsAuthority"]),
                postgresql=Place.of(given["postgresql"]),
                certificates=[
                    ServerPlace(place=Place.of(one), names=list(one["names"])) for one in given["certificates"]
                ],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise PlanError(f"the plan cannot be read: {error!r}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A Secret."""

    secret: str
    given: bool
    """True: somebody else keeps it, and nothing in it may change."""
    host: str = ""
    """Where its service answers, of those that have one."""

    @classmethod
    def of(cls, given: dict[str, Any]) -> Place:  # Any: JSON
        """Read it from a plan."""
        return cls(secret=given["secret"], given=bool(given["given"]), host=given.get("host", ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPlace:
    """The Secret of a server's certificate."""

    place: Place
    names: list[str]


async def prepare(plan_file: Path, definitions: Path | None) -> None:
    """Do what a plan asks for, in the cluster that this pod is in, or that KUBECONFIG names.

    Raises:
        PlanError: Something that somebody gave cannot be used.
        UnavailableError: The API server refuses, or does not answer.
    """
    plan = Plan.read(plan_file.read_text())
    try:
        async with KubeClient() as api:
            if definitions is not None:
                await apply_definitions(api, definitions)
            await Preparation(api, plan).run()
    except KubeError as error:
        raise UnavailableError(f"The cluster's API: {error.message}") from error


async def apply_definitions(api: KubeApi, directory: Path) -> None:
    """Bring the custom resource definitions to this version."""
    for file in sorted(directory.glob("*.yaml")):
        for definition in filter(None, yaml.safe_load_all(file.read_text())):
            name = definition["metadata"]["name"]
            await api.patch(f"{DEFINITIONS}/{name}", definition, kind=APPLY_PATCH, field_manager=MANAGER, force=True)
            log.info("prepare.definition_applied", name=name)


class Preparation:
    """One run."""

    def __init__(self, api: KubeApi, plan: Plan) -> None:
        self._api = api
        self._plan = plan

    async def run(self) -> None:
        """Make what is missing."""
        plan, clock = self._plan, SystemClock()
        await self._ensure(plan.agent_authority, AgentAuthority(clock))
        signing = await self._ensure(plan.signing, SigningKeys())
        await self._ensure(plan.token_trust, Trust(signing["sandbox-tokens.pem"]))
        await self._ensure(plan.audit_trust, Trust(signing["audit.pem"]))
        await self._ensure(plan.api_keys, EmptySecret())
        if plan.image_pulls is not None:
            await self._ensure(plan.image_pulls, EmptySecret())
        if not plan.callers.given:
            await self._ensure(plan.callers, CallerKeys())
        if not plan.tls_authority.given:
            authority = await self._ensure(plan.tls_authority, ServerAuthority(clock))
            for one in plan.certificates:
                if not one.place.given:
                    await self._ensure(one.place, Certificate(authority, names=one.names, clock=clock))
        if not plan.postgresql.given:
            await self._ensure(plan.postgresql, DatabasePasswords(host=plan.postgresql.host))

    async def _ensure(self, place: Place, maker: Maker) -> Entries:
        """Complete a Secret and answer its entries."""
        path = f"/api/v1/namespaces/{self._plan.namespace}/secrets"
        for _ in range(TRIES):
            found = await self._find(f"{path}/{place.secret}")
            there = {} if found is None else _decoded(found.get("data") or {})
            missing = maker.missing(there)
            if place.given and (found is None or missing):
                wanted = "it does not exist" if found is None else f"it lacks {', '.join(sorted(missing))}"
                raise PlanError(f"the Secret {self._plan.namespace}/{place.secret}, which the values name: {wanted}")
            if found is not None and not missing:
                return there
            try:
                if found is None:
                    await self._api.create(path, self._secret(place, maker, missing), field_manager=MANAGER)
                else:
                    version = found["metadata"]["resourceVersion"]
                    body = {"metadata": {"resourceVersion": version}, "data": _encoded(missing)}
                    await self._api.patch(f"{path}/{place.secret}", body, field_manager=MANAGER)
            except KubeConflictError:
                continue  # another run came between: look again at what it made
            log.info("prepare.secret_made", secret=place.secret, entries=sorted(missing), new=found is None)
            return {**there, **missing}
        raise UnavailableError(f"The Secret {place.secret} is changed by somebody else again and again.")

    async def _find(self, path: str) -> Json | None:
        try:
            return await self._api.get(path)
        except KubeNotFoundError:
            return None

    def _secret(self, place: Place, maker: Maker, entries: Entries) -> Json:
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": maker.type,
            "metadata": {"name": place.secret, "namespace": self._plan.namespace, "labels": self._plan.labels},
            "data": _encoded(entries),
        }


def _encoded(entries: Entries) -> dict[str, str]:
    return {name: b64encode(value).decode() for name, value in entries.items()}


def _decoded(data: dict[str, str]) -> Entries:
    return {name: b64decode(value) for name, value in data.items()}
