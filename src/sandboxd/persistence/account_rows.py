"""Clients and freelancers: from what the database holds to the model, and back. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sandboxd.model.backup_retention import RetentionOverrides
from sandboxd.model.client import AccountState, Client, ClientPolicy, Freelancer, Quotas, TextPolicy
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.model.sandbox import Tier
from sandboxd.persistence.lifecycle_rows import overrides_json, read_overrides
from sandboxd.persistence.sandbox_rows import Row, Values


def client_values(client: Client) -> Values:
    """A client by columns."""
    return {
        "id": client.id,
        "display_name": client.display_name,
        "state": client.state.value,
        "state_reason": client.state_reason,
        "policy": policy_json(client.policy),
        "create_time": client.create_time,
        "update_time": client.update_time,
        "delete_time": client.delete_time,
        "version": client.version,
    }


def read_client(row: Row) -> Client:
    """A client from its columns."""
    return Client(
        id=ClientId(row["id"]),
        display_name=row["display_name"],
        state=AccountState(row["state"]),
        state_reason=row["state_reason"],
        policy=read_policy(row["policy"]),
        create_time=row["create_time"],
        update_time=row["update_time"],
        delete_time=row["delete_time"],
        version=row["version"],
    )


def freelancer_values(freelancer: Freelancer) -> Values:
    """A freelancer by columns."""
    return {
        "client": freelancer.client,
        "id": freelancer.id,
        "display_name": freelancer.display_name,
        "state": freelancer.state.value,
        "state_reason": freelancer.state_reason,
        "quotas": None if freelancer.quotas is None else quotas_json(freelancer.quotas),
        "create_time": freelancer.create_time,
        "update_time": freelancer.update_time,
        "delete_time": freelancer.delete_time,
        "version": freelancer.version,
    }


def read_freelancer(row: Row) -> Freelancer:
    """A freelancer from its columns."""
    return Freelancer(
        client=ClientId(row["client"]),
        id=FreelancerId(row["id"]),
        display_name=row["display_name"],
        state=AccountState(row["state"]),
        state_reason=row["state_reason"],
        quotas=None if row["quotas"] is None else read_quotas(row["quotas"]),
        create_time=row["create_time"],
        update_time=row["update_time"],
        delete_time=row["delete_time"],
        version=row["version"],
    )


def policy_json(policy: ClientPolicy) -> Values:
    """A policy as JSON: what is as in the standard one is left out, so that the standard may change."""
    written: Values = {}
    if policy.text is not TextPolicy.FULL:
        written["text"] = policy.text.value
    if policy.text_lifetime is not None:
        written["text_lifetime_seconds"] = policy.text_lifetime.total_seconds()
    if policy.models:
        written["models"] = list(policy.models)
    for name, quotas in (("quotas", policy.quotas), ("freelancer_quotas", policy.freelancer_quotas)):
        if found := quotas_json(quotas):
            written[name] = found
    if wished := overrides_json(policy.lifecycle):
        written["lifecycle"] = wished
    if policy.backup_every is not None:
        written["backup_every_seconds"] = policy.backup_every.total_seconds()
    if kept := _retention_json(policy.backup_retention):
        written["backup_retention"] = kept
    return written


def read_policy(written: Mapping[str, Any]) -> ClientPolicy:
    """A policy from its JSON."""
    lifetime, every = written.get("text_lifetime_seconds"), written.get("backup_every_seconds")
    return ClientPolicy(
        text=TextPolicy(written.get("text", TextPolicy.FULL.value)),
        text_lifetime=None if lifetime is None else timedelta(seconds=lifetime),
        models=tuple(written.get("models", ())),
        quotas=read_quotas(written.get("quotas", {})),
        freelancer_quotas=read_quotas(written.get("freelancer_quotas", {})),
        lifecycle=read_overrides(written.get("lifecycle")),
        backup_every=None if every is None else timedelta(seconds=every),
        backup_retention=_read_retention(written.get("backup_retention", {})),
    )


def _retention_json(wishes: RetentionOverrides) -> Values:
    written: Values = {
        name: value
        for name, value in (
            ("keep_last", wishes.keep_last),
            ("keep_daily", wishes.keep_daily),
            ("keep_weekly", wishes.keep_weekly),
        )
        if value is not None
    }
    if wishes.immutable_for is not None:
        written["immutable_seconds"] = wishes.immutable_for.total_seconds()
    return written


def _read_retention(written: Mapping[str, Any]) -> RetentionOverrides:  # Any: JSON
    seconds = written.get("immutable_seconds")
    return RetentionOverrides(
        keep_last=written.get("keep_last"),
        keep_daily=written.get("keep_daily"),
        keep_weekly=written.get("keep_weekly"),
        immutable_for=None if seconds is None else timedelta(seconds=seconds),
    )


def quotas_json(quotas: Quotas) -> Values:
    """Quotas as JSON: what has no limit is left out."""
    written: Values = {
        name: value
        for name, value in (
            ("sandboxes", quotas.sandboxes),
            ("concurrent_turns", quotas.concurrent_turns),
            ("storage_bytes", quotas.storage_bytes),
        )
        if value is not None
    }
    if quotas.tiers:
        written["tiers"] = sorted(tier.value for tier in quotas.tiers)
    return written


def read_quotas(written: Mapping[str, Any]) -> Quotas:
    """Quotas from their JSON."""
    return Quotas(
        sandboxes=written.get("sandboxes"),
        tiers=frozenset(Tier(tier) for tier in written.get("tiers", ())),
        concurrent_turns=written.get("concurrent_turns"),
        storage_bytes=written.get("storage_bytes"),
    )
