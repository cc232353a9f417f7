"""Clients and freelancers between the model and the contract."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from sandboxd.api.grpc.codec_backup_policy import decode_retention, encode_retention
from sandboxd.api.grpc.codec_lifecycle import decode_lifecycle, encode_lifecycle
from sandboxd.api.grpc.codec_sandbox import TIERS
from sandboxd.api.grpc.names import client_name, freelancer_name, timestamp
from sandboxd.api.grpc.validation import refusal
from sandboxd.manager.clients import KEEP, ClientEdit, PolicyEdit
from sandboxd.manager.freelancers import FreelancerEdit
from sandboxd.model.client import AccountState, Client, ClientPolicy, Freelancer, Quotas, TextPolicy
from sandboxd.model.erasure import Erasure
from sandboxd.model.errors import FieldViolation
from sandboxd.v1 import client_pb2 as pb

STATES: Final[Mapping[AccountState, pb.AccountState.ValueType]] = {
    AccountState.ACTIVE: pb.ACCOUNT_STATE_ACTIVE,
    AccountState.SUSPENDED: pb.ACCOUNT_STATE_SUSPENDED,
    AccountState.DELETING: pb.ACCOUNT_STATE_DELETING,
    AccountState.DELETED: pb.ACCOUNT_STATE_DELETED,
}
TEXTS: Final[Mapping[TextPolicy, pb.TextPolicy.ValueType]] = {
    TextPolicy.FULL: pb.TEXT_POLICY_FULL,
    TextPolicy.REDACTED: pb.TEXT_POLICY_REDACTED,
    TextPolicy.NONE: pb.TEXT_POLICY_NONE,
}
_STATES_BACK: Final = {number: state for state, number in STATES.items()}
_TEXTS_BACK: Final = {number: text for text, number in TEXTS.items()}
_TIERS_BACK: Final = {number: tier for tier, number in TIERS.items()}
_POLICY_PARTS: Final = (
    "text",
    "text_lifetime",
    "models",
    "quotas",
    "freelancer_quotas",
    "lifecycle",
    "backup_every",
    "backup_retention",
)
CLIENT_PATHS: Final = frozenset({"display_name", "policy", *(f"policy.{part}" for part in _POLICY_PARTS)})
"""What the mask of UpdateClient may name."""
FREELANCER_PATHS: Final = frozenset({"display_name", "quotas"})
"""What the mask of UpdateFreelancer may name."""


def encode_client(client: Client) -> pb.Client:
    """Encode a client."""
    return pb.Client(
        name=client_name(client.id),
        display_name=client.display_name,
        state=STATES[client.state],
        state_reason=client.state_reason,
        policy=encode_policy(client.policy),
        create_time=timestamp(client.create_time),
        update_time=timestamp(client.update_time),
        delete_time=timestamp(client.delete_time),
        etag=str(client.version),
    )


def encode_freelancer(freelancer: Freelancer) -> pb.Freelancer:
    """Encode a freelancer."""
    return pb.Freelancer(
        name=freelancer_name(freelancer.client, freelancer.id),
        display_name=freelancer.display_name,
        state=STATES[freelancer.state],
        state_reason=freelancer.state_reason,
        quotas=None if freelancer.quotas is None else encode_quotas(freelancer.quotas),
        create_time=timestamp(freelancer.create_time),
        update_time=timestamp(freelancer.update_time),
        delete_time=timestamp(freelancer.delete_time),
        etag=str(freelancer.version),
    )


def encode_policy(policy: ClientPolicy) -> pb.ClientPolicy:
    """Encode a policy."""
    return pb.ClientPolicy(
        text=TEXTS[policy.text],
        text_lifetime=_duration(policy.text_lifetime),
        models=policy.models,
        quotas=encode_quotas(policy.quotas),
        freelancer_quotas=encode_quotas(policy.freelancer_quotas),
        lifecycle=encode_lifecycle(policy.lifecycle),
        backup_every=_duration(policy.backup_every),
        backup_retention=encode_retention(policy.backup_retention),
    )


def _duration(span: timedelta | None) -> Duration | None:
    if span is None:
        return None
    encoded = Duration()
    encoded.FromTimedelta(span)
    return encoded


def encode_quotas(quotas: Quotas) -> pb.Quotas:
    """Encode quotas; what has no limit stays unset."""
    return pb.Quotas(
        sandboxes=quotas.sandboxes,
        tiers=sorted(TIERS[tier] for tier in quotas.tiers),
        concurrent_turns=quotas.concurrent_turns,
        storage_bytes=quotas.storage_bytes,
    )


def decode_policy(message: pb.ClientPolicy) -> ClientPolicy:
    """Decode a policy."""
    return ClientPolicy(
        text=_TEXTS_BACK.get(message.text, TextPolicy.FULL),
        text_lifetime=message.text_lifetime.ToTimedelta() if message.HasField("text_lifetime") else None,
        models=tuple(message.models),
        quotas=decode_quotas(message.quotas),
        freelancer_quotas=decode_quotas(message.freelancer_quotas),
        lifecycle=decode_lifecycle(message.lifecycle),
        backup_every=message.backup_every.ToTimedelta() if message.HasField("backup_every") else None,
        backup_retention=decode_retention(message.backup_retention),
    )


def decode_quotas(message: pb.Quotas) -> Quotas:
    """Decode quotas."""
    return Quotas(
        sandboxes=message.sandboxes if message.HasField("sandboxes") else None,
        tiers=frozenset(_TIERS_BACK[tier] for tier in message.tiers),
        concurrent_turns=message.concurrent_turns if message.HasField("concurrent_turns") else None,
        storage_bytes=message.storage_bytes if message.HasField("storage_bytes") else None,
    )


def decode_client_edit(message: pb.UpdateClientRequest) -> ClientEdit:
    """Decode what shall change: the fields that the mask names.

    Raises:
        InvalidRequestError: The mask names another field, or the client has no usable name.
    """
    paths = _paths(message.update_mask, CLIENT_PATHS)
    if "policy" in paths:
        paths |= {f"policy.{part}" for part in _POLICY_PARTS}
    wished = decode_policy(message.client.policy)
    return ClientEdit(
        display_name=message.client.display_name if "display_name" in paths else None,
        policy=PolicyEdit(
            text=wished.text if "policy.text" in paths else None,
            text_lifetime=wished.text_lifetime if "policy.text_lifetime" in paths else KEEP,
            models=wished.models if "policy.models" in paths else None,
            quotas=wished.quotas if "policy.quotas" in paths else None,
            freelancer_quotas=wished.freelancer_quotas if "policy.freelancer_quotas" in paths else None,
            lifecycle=wished.lifecycle if "policy.lifecycle" in paths else None,
            backup_every=wished.backup_every if "policy.backup_every" in paths else KEEP,
            backup_retention=wished.backup_retention if "policy.backup_retention" in paths else None,
        ),
    )


def decode_freelancer_edit(message: pb.UpdateFreelancerRequest) -> FreelancerEdit:
    """Decode what shall change: the fields that the mask names.

    Raises:
        InvalidRequestError: The mask names another field.
    """
    paths = _paths(message.update_mask, FREELANCER_PATHS)
    wished = message.freelancer
    own = decode_quotas(wished.quotas) if wished.HasField("quotas") else None
    return FreelancerEdit(
        display_name=wished.display_name if "display_name" in paths else None,
        quotas=own if "quotas" in paths else KEEP,
    )


def encode_erasure(erasure: Erasure) -> pb.Erasure:
    """Encode an erasure; the counts of one that goes on are those so far."""
    signature = erasure.signature
    return pb.Erasure(
        name=erasure.name,
        account=erasure.account,
        begin_time=timestamp(erasure.begin_time),
        end_time=timestamp(erasure.end_time),
        items=[
            pb.ErasureItem(kind=kind, found=item.found, erased=item.erased, kept=item.kept, why=item.why)
            for kind, item in sorted(erasure.items.items())
        ],
        document=erasure.document,
        signature=signature.signature if signature else b"",
        key_id=signature.key_id if signature else "",
        public_key=signature.public_key if signature else "",
    )


def decode_states(states: Iterable[pb.AccountState.ValueType]) -> frozenset[AccountState]:
    """Decode which states are meant."""
    return frozenset(_STATES_BACK[state] for state in states)


def _paths(mask: FieldMask, known: frozenset[str]) -> set[str]:
    if unknown := sorted(set(mask.paths) - known):
        allowed = ", ".join(sorted(known))
        raise refusal([FieldViolation(field="update_mask", description=f"names {unknown[0]!r}; it may name {allowed}")])
    return set(mask.paths)
