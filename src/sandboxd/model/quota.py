"""Whether something new fits into quotas. Pure: what is there now is counted by whoever asks, under a lock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sandboxd.model.client import Quotas
from sandboxd.model.errors import QuotaViolation
from sandboxd.model.sandbox import TIER_RESOURCES, Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxesInUse:
    """The sandboxes of somebody that are not terminated."""

    count: int = 0
    storage_bytes: int = 0
    """Storage of their tiers, added up."""


def check_sandbox(subject: str, quotas: Quotas, present: SandboxesInUse, *, tier: Tier) -> Sequence[QuotaViolation]:
    """Say which limits one more sandbox of that tier would break; all of them.

    Args:
        subject: Resource name of whose quotas these are.
        quotas: The limits.
        present: What is there without it.
        tier: Of the new sandbox.
    """
    found: list[QuotaViolation] = []
    if quotas.tiers and tier not in quotas.tiers:
        allowed = ", ".join(sorted(one.value for one in quotas.tiers))
        found.append(
            QuotaViolation(
                subject=subject, quota="tiers", description=f"the tier {tier.value} is not allowed, only {allowed}."
            )
        )
    if quotas.sandboxes is not None and present.count + 1 > quotas.sandboxes:
        found.append(
            QuotaViolation(
                subject=subject,
                quota="sandboxes",
                limit=quotas.sandboxes,
                value=present.count,
                description=f"at most {quotas.sandboxes} sandboxes, and there are {present.count}.",
            )
        )
    wanted = TIER_RESOURCES[tier].storage_bytes
    if quotas.storage_bytes is not None and present.storage_bytes + wanted > quotas.storage_bytes:
        found.append(
            QuotaViolation(
                subject=subject,
                quota="storage_bytes",
                limit=quotas.storage_bytes,
                value=present.storage_bytes,
                description=f"at most {quotas.storage_bytes} bytes of storage; {present.storage_bytes} are taken, "
                f"and the tier {tier.value} takes {wanted} more.",
            )
        )
    return found


def check_turn(subject: str, quotas: Quotas, running: int) -> Sequence[QuotaViolation]:
    """Say whether one more turn would break the limit, where so many run."""
    if quotas.concurrent_turns is None or running + 1 <= quotas.concurrent_turns:
        return ()
    return (
        QuotaViolation(
            subject=subject,
            quota="concurrent_turns",
            limit=quotas.concurrent_turns,
            value=running,
            description=f"at most {quotas.concurrent_turns} turns at the same time, and {running} are running.",
        ),
    )
