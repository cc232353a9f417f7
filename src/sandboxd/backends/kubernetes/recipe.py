"""What sandboxes are made from now, as one word: members of pools that were made from another are replaced."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from sandboxd.backends.kubernetes.placed import gpus_of, quantities
from sandboxd.kubeapi.ports import Json, KubeApi
from sandboxd.kubeapi.reflector import Key, Reflector
from sandboxd.model.cluster import API_VERSION, TEMPLATES
from sandboxd.model.sandbox import TIER_RESOURCES

ALL_TEMPLATES: Final = f"/apis/{API_VERSION}/{TEMPLATES}"
_APART: Final = frozenset({"pidsLimit", "userImagePullSecrets"})
"""Fields of a template that no pod of a pool is made from."""


class Recipe:
    """Follows one SandboxTemplate. `run` must run beside it."""

    def __init__(self, api: KubeApi, *, template: str, premium_gpus: int = 0) -> None:
        self._reflector = Reflector(api, ALL_TEMPLATES, field_selector=f"metadata.name={template}")
        self._reflector.listen(self._take)
        self._premium_gpus = premium_gpus
        self.text = ""
        """Empty while the template is not known, or where there is none."""
        self.image = ""
        """What the template names as the image of sandboxes; empty likewise."""

    async def run(self) -> None:
        """Follow it until cancelled."""
        await self._reflector.run()

    def _take(self, _: Key, obj: Json | None) -> None:
        template = {} if obj is None else obj.get("spec") or {}
        self.text = "" if obj is None else recipe_of(template, premium_gpus=self._premium_gpus)
        self.image = str(template.get("image", ""))


def recipe_of(template: Mapping[str, Any], *, premium_gpus: int = 0) -> str:  # Any: JSON
    """Digest of what decides a pod: the template, its images among it, and what each tier has.

    Images are taken by their names. A tag that was moved to another image is no change of a template: name by digest.
    """
    made = {
        "template": {name: value for name, value in template.items() if name not in _APART},
        "tiers": {
            tier.value: quantities(resources, gpus=gpus_of(tier, premium_gpus=premium_gpus)).as_mapping()
            for tier, resources in TIER_RESOURCES.items()
        },
    }
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]
