"""What sandboxes are made from now, as one word: members of pools that were made from another are replaced."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from sandboxd.backends.kubernetes.placed import quantities
from sandboxd.kubeapi.ports import Json, KubeApi
from sandboxd.kubeapi.reflector import Key, Reflector
from sandboxd.model.cluster import API_VERSION, TEMPLATES
from sandboxd.model.sandbox import TIER_RESOURCES

ALL_TEMPLATES: Final = f"/apis/{API_VERSION}/{TEMPLATES}"
_FOR_PEOPLE: Final = frozenset({"pidsLimit"})
"""Fields of a template that no pod is made from."""


class Recipe:
    """Follows one SandboxTemplate. `run` must run beside it."""

    def __init__(self, api: KubeApi, *, template: str) -> None:
        self._reflector = Reflector(api, ALL_TEMPLATES, field_selector=f"metadata.name={template}")
        self._reflector.listen(self._take)
        self.text = ""
        """Empty while the template is not known, or where there is none."""

    async def run(self) -> None:
        """Follow it until cancelled."""
        await self._reflector.run()

    def _take(self, _: Key, obj: Json | None) -> None:
        self.text = "" if obj is None else recipe_of(obj.get("spec") or {})


def recipe_of(template: Mapping[str, Any]) -> str:  # Any: JSON
    """Digest of what decides a pod: the template, its images among it, and what each tier has."""
    made = {
        "template": {name: value for name, value in template.items() if name not in _FOR_PEOPLE},
        "tiers": {tier.value: quantities(resources).as_mapping() for tier, resources in TIER_RESOURCES.items()},
    }
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]
