"""Tables of clients, freelancers, erasures and keys. Cells are plain text, never markup."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from sandboxd.ctl.names import bare
from sandboxd.ctl.sanitize import clean_line
from sandboxd.ctl.tables import filled, lifecycle_line, when
from sandboxd.ctl.tables_backups import wishes_line
from sandboxd.v1 import client_pb2 as pb
from sandboxd.v1 import key_pb2, sandbox_pb2

Account = pb.Client | pb.Freelancer


def account_table(accounts: Iterable[Account], console: Console) -> Table:
    """Make the table of `clients ls` and `freelancers ls`."""
    rows = [
        (
            bare(each.name),
            clean_line(each.display_name, limit=40),
            state_of(each),
            when(each.create_time),
            clean_line(each.state_reason, limit=60),
        )
        for each in accounts
    ]
    return filled(console, ("ID", "NAME", "STATE", "CREATED", "WHY"), rows, spare=("WHY", "CREATED"))


def account_facts(account: Account) -> Table:
    """Make the list of everything that is known of a client or a freelancer."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts = [
        ("name", account.name),
        ("called", clean_line(account.display_name)),
        ("state", state_of(account)),
        ("why", clean_line(account.state_reason)),
        ("created", when(account.create_time)),
        ("changed", when(account.update_time)),
    ]
    if isinstance(account, pb.Client):
        policy = account.policy
        lifetime = f"{policy.text_lifetime.seconds // 3600} h" if policy.HasField("text_lifetime") else "until deleted"
        facts += [
            ("texts", f"{pb.TextPolicy.Name(policy.text).removeprefix('TEXT_POLICY_').lower()}, {lifetime}"),
            ("models", ", ".join(clean_line(model) for model in policy.models) or "all Gemini models"),
            ("quotas", quotas_line(policy.quotas)),
            ("of each", quotas_line(policy.freelancer_quotas)),
            ("sandboxes", lifecycle_line(policy.lifecycle) or "rest when the installation says"),
            ("backups", wishes_line(policy) or "as the installation says"),
        ]
    else:
        own = quotas_line(account.quotas) if account.HasField("quotas") else "as the client gives to each"
        facts.append(("quotas", own))
    for name, value in facts:
        if value:
            table.add_row(name, value)
    return table


def quotas_line(quotas: pb.Quotas) -> str:
    """Write quotas in one line."""
    parts = []
    if quotas.HasField("sandboxes"):
        parts.append(f"{quotas.sandboxes} sandboxes")
    if quotas.HasField("concurrent_turns"):
        parts.append(f"{quotas.concurrent_turns} turns at once")
    if quotas.HasField("storage_bytes"):
        parts.append(f"{quotas.storage_bytes / 10**9:g} GB")
    if quotas.tiers:
        parts.append("/".join(sandbox_pb2.Tier.Name(tier).removeprefix("TIER_").lower() for tier in quotas.tiers))
    return ", ".join(parts) or "no limit"


def erasure_table(erasure: pb.Erasure, console: Console) -> Table:
    """Make the table of what an erasure did."""
    rows = [
        (clean_line(item.kind), f"{item.found:,}", f"{item.erased:,}", f"{item.kept:,}", clean_line(item.why))
        for item in erasure.items
    ]
    return filled(console, ("KIND", "FOUND", "ERASED", "KEPT", "WHY"), rows, spare=("WHY",))


def key_table(keys: Iterable[key_pb2.ApiKey], console: Console) -> Table:
    """Make the table of `keys ls`."""
    rows = [
        (
            each.name,
            key_pb2.KeyState.Name(each.state).removeprefix("KEY_STATE_"),
            each.fingerprint,
            when(each.set_time),
            when(each.last_use_time) if each.HasField("last_use_time") else "never",
            f"{each.previous_fingerprint} until {when(each.previous_expire_time)}" if each.previous_fingerprint else "",
        )
        for each in keys
    ]
    return filled(console, ("KEY", "STATE", "FINGERPRINT", "SET", "LAST USE", "STANDS IN"), rows, spare=("SET",))


def state_of(account: Account) -> str:
    """Return a state as people say it; a number where this client is older than the service."""
    known = pb.AccountState.values()
    state = account.state
    return pb.AccountState.Name(state).removeprefix("ACCOUNT_STATE_") if state in known else str(state)
