"""The allow list, and the only way a request's address becomes an upstream address.

A request target is accepted when the whole of it, as it came over the wire, has the one form below; nothing is decoded,
joined or normalised. The upstream's path is built anew from the parts that the form names, so no byte of a request can
reach another host, another path or another query.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from sandboxd.model.accounts import ClientPolicies
from sandboxd.model.ids import ClientId
from sandboxd.model.usage import ModelMethod

_TARGET: Final = re.compile(
    r"/v1beta/models/(?P<model>[A-Za-z0-9][A-Za-z0-9._-]{0,127}):(?P<method>[A-Za-z]{1,40})"
    r"(?:\?(?P<query>[!-~]{0,2048}))?",
    re.ASCII,
)
_METHODS: Final = {method.value: method for method in ModelMethod}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCall:
    """A request target that has the one accepted form."""

    model: str
    method: ModelMethod
    sse: bool
    """True where the query asks for server-sent events (`alt=sse`); every other query is dropped."""

    @property
    def upstream_path(self) -> str:
        """Path and query of the same call at the model API."""
        query = "?alt=sse" if self.sse else ""
        return f"/v1beta/models/{self.model}:{self.method.value}{query}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPolicy:
    """What one client may call."""

    models: tuple[str, ...] = ("gemini-*",)
    """Model names or shell patterns."""
    methods: frozenset[ModelMethod] = frozenset(ModelMethod)
    """Methods; all that the gateway knows by default."""

    def allows_model(self, model: str) -> bool:
        """Tell whether a model is on the list."""
        return any(fnmatch.fnmatchcase(model, pattern) for pattern in self.models)


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticModelPolicies:
    """Policies that are known at start."""

    standard: ModelPolicy = ModelPolicy()
    by_client: Mapping[ClientId, ModelPolicy] = field(default_factory=dict)

    async def policy_for(self, client: ClientId) -> ModelPolicy:
        """Return the client's own policy, or the standard one."""
        return self.by_client.get(client, self.standard)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientModelPolicies:
    """What the clients' own policies say, seconds old at most."""

    policies: ClientPolicies

    async def policy_for(self, client: ClientId) -> ModelPolicy:
        """Return the client's own policy, or the standard one where it names no models."""
        models = (await self.policies.policy(client)).models
        return ModelPolicy(models=models) if models else ModelPolicy()


def parse_target(target: str, *, prefix: str = "") -> ModelCall | None:
    """Read a raw request target.

    Args:
        target: Path and query exactly as they came.
        prefix: A path that the gateway is mounted under, for example `/gemini`.

    Returns:
        None where it is anything but a call of an allowed method.
    """
    if not target.startswith(prefix):
        return None
    found = _TARGET.fullmatch(target, len(prefix))
    if found is None or found["method"] not in _METHODS:
        return None
    sse = "alt=sse" in (found["query"] or "").split("&")
    return ModelCall(model=found["model"], method=_METHODS[found["method"]], sse=sse)
