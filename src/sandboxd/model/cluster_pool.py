"""A `SandboxPool` as `serve` and the operator agree on it: what a pool should be, and what the cluster has of it.

The rows of the database decide what a pool is; the resource shows it to people. `serve` writes the spec, the operator
the status; what is wanted is changed by `PoolService` alone.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandboxd.model.cluster import API_VERSION, INSTANCE_LABEL, POOL_LABEL
from sandboxd.model.conditions import condition_mapping
from sandboxd.model.ids import ClientId
from sandboxd.model.pool import PoolId
from sandboxd.model.sandbox import Tier


class PoolReason(enum.Enum):
    """Why a pool is as it is: of its status, of its conditions and of the Events on it. A closed set."""

    OFF = "Off"
    """Nothing is to wait: its target is 0."""
    IDLE = "Idle"
    """Fewer than its target are to wait: no Create has asked for a while, or its client is suspended."""
    FULL = "Full"
    FILLING = "Filling"
    MEMBERS_PENDING = "MembersPending"
    """Members do not come up; the message says why the first does not."""
    ALL_CURRENT = "AllCurrent"
    REPLACING = "Replacing"
    """Members of a former template wait, and are being replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedPool:
    """The spec of a `SandboxPool`."""

    pool: PoolId
    client: ClientId
    template: str
    """Name of the SandboxTemplate."""
    tier: Tier
    min: int
    target: int
    max: int
    wanted: int
    """How many should wait now."""
    recipe: str = ""
    """What members are made from now; empty while that is not known."""

    def as_mapping(self) -> dict[str, Any]:  # Any: JSON
        """Return it as the resource has it."""
        return {
            "client": self.client,
            "template": self.template,
            "tier": self.tier.value,
            "min": self.min,
            "target": self.target,
            "max": self.max,
            "wanted": self.wanted,
            "recipe": self.recipe,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolMember:
    """What a pool's status counts of one `Sandbox` that waits in it, or comes."""

    ready: bool
    current: bool
    """Made from what members are made from now."""
    trouble: str = ""
    """Why it does not come up."""


def pool_resource(placed: PlacedPool, *, namespace: str, instance: str) -> dict[str, Any]:  # Any: JSON
    """Return the `SandboxPool` that `serve` writes."""
    return {
        "apiVersion": API_VERSION,
        "kind": "SandboxPool",
        "metadata": {"name": placed.pool, "namespace": namespace, "labels": {INSTANCE_LABEL: instance}},
        "spec": placed.as_mapping(),
    }


def pool_status(
    spec: Mapping[str, Any],  # Any: JSON
    members: Sequence[PoolMember],
    before: Mapping[str, Any],
    *,
    claimed: int,
    name: str,
    generation: int,
    now: str,
) -> dict[str, Any]:
    """Say what the cluster has of a pool.

    Args:
        spec: What is wanted.
        members: Those that nobody has claimed, without those that are leaving.
        before: The status so far: a condition that stays keeps its time.
        claimed: How many sandboxes of today were its members.
        name: The pool's name.
        generation: Of the spec.
        now: RFC 3339.
    """
    ready = sum(one.ready for one in members)
    outdated = sum(not one.current for one in members)
    wanted, target = int(spec.get("wanted", spec.get("target", 0))), int(spec.get("target", 0))
    trouble = next((one.trouble for one in members if one.trouble and not one.ready), "")
    reason, message = _reason(wanted=wanted, target=target, ready=ready, trouble=trouble)
    made = [
        ("Ready", ready >= wanted, reason, message),
        (
            "Current",
            not outdated,
            PoolReason.REPLACING if outdated else PoolReason.ALL_CURRENT,
            f"{outdated} were made from a former template." if outdated else "",
        ),
    ]
    return {
        "observedGeneration": generation,
        "replicas": len(members),
        "ready": ready,
        "starting": len(members) - ready,
        "claimed": claimed,
        "outdated": outdated,
        "selector": f"{POOL_LABEL}={name}",
        "reason": reason.value,
        "message": message,
        "conditions": [
            condition_mapping(kind, str(true), why.value, text, before=before, generation=generation, now=now)
            for kind, true, why, text in made
        ],
    }


def _reason(*, wanted: int, target: int, ready: int, trouble: str) -> tuple[PoolReason, str]:
    if ready < wanted:
        if trouble:
            return PoolReason.MEMBERS_PENDING, trouble
        return PoolReason.FILLING, f"{ready} of {wanted} wait."
    if wanted < target:
        text = f"{wanted} wait instead of {target}: no Create has asked for a while, or its client is suspended."
        return PoolReason.IDLE, text
    return (PoolReason.FULL, f"{ready} wait.") if wanted else (PoolReason.OFF, "Its target is 0.")
