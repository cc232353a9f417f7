import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.model.cluster import (
    Mode,
    PlacedResources,
    PlacedSpec,
    claims_of,
    namespace_of,
    sandbox_resource,
)
from sandboxd.model.cluster_status import Condition, ConditionType, PlacedState, PlacedStatus, Reason
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId
from sandboxd.model.quantity import parse_quantity, scale_bytes, scale_cpu
from sandboxd.model.sandbox import Tier

SANDBOX = SandboxId("sbx-01jd0000000000000000000000")
SPEC = PlacedSpec(
    client=ClientId("acme"),
    freelancer=FreelancerId("ada@example.org"),
    incarnation=IncarnationId("inc-01jd0000000000000000000000"),
    tier=Tier.PREMIUM,
    mode=Mode.HIBERNATED,
    template="gpu",
    image=f"registry.example/acme/gemini-cli-user-ada@sha256:{'0' * 64}",
    resources=PlacedResources(cpu="4", memory="8G", home="20G", workspace="80G", ephemeral_storage="10G", gpu=1),
    kept=False,
)
NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9_.@]{0,61}[a-z0-9])?", fullmatch=True).map(ClientId)


def test_a_plain_client_has_its_name_in_its_namespace() -> None:
    assert namespace_of(ClientId("acme-2"), prefix="client-") == "client-acme-2"


@pytest.mark.parametrize("name", ["a.b", "a_b", "a@b", "x" * 63, "a-x0123456789ab"])
def test_a_name_that_no_namespace_can_have_ends_in_its_hash(name: str) -> None:
    assert re.fullmatch(r"client-[a-z0-9-]+-x[0-9a-f]{12}", namespace_of(ClientId(name), prefix="client-"))


@given(one=NAMES, other=NAMES)
def test_no_two_clients_share_a_namespace(one: ClientId, other: ClientId) -> None:
    first, second = (namespace_of(name, prefix="client-") for name in (one, other))

    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", first)
    assert (first == second) == (one == other)


def test_clients_that_differ_in_one_sign_do_not_share_a_namespace() -> None:
    names = [ClientId(name) for name in ("a-b", "a_b", "a.b", "a@b")]

    assert len({namespace_of(name, prefix="client-") for name in names}) == len(names)


def test_a_spec_survives_the_way_through_a_resource() -> None:
    made = json.loads(json.dumps(sandbox_resource(SANDBOX, SPEC, namespace="client-acme", instance="test")))

    assert PlacedSpec.from_mapping(made["spec"]) == SPEC
    assert made["metadata"]["labels"] == {"sandboxd.dev/instance": "test", "sandboxd.dev/sandbox": SANDBOX}


def test_a_status_survives_the_way_through_a_resource() -> None:
    status = PlacedStatus(
        state=PlacedState.FAILED,
        observed_generation=3,
        incarnation=SPEC.incarnation,
        pod_uid="uid",
        pod_ip="10.0.0.1",
        pod_name=f"{SANDBOX}-0",
        node="node",
        start_time="2026-01-01T00:00:00Z",
        restarts=1,
        image="registry.example/acme/gemini-cli-user-ada@sha256:0",
        next_image="registry.example/sandbox@sha256:1",
        reason=Reason.OUT_OF_MEMORY,
        message="It had no memory left.",
        conditions=(
            Condition(type=ConditionType.READY, status=False, reason=Reason.OUT_OF_MEMORY, message="It had"),
            Condition(type=ConditionType.SCHEDULED, status=None, reason=Reason.NODE_LOST),
        ),
    )

    assert PlacedStatus.from_mapping(json.loads(json.dumps(status.as_mapping()))) == status


def test_a_resource_that_the_operator_has_not_seen_is_pending() -> None:
    assert PlacedStatus.from_mapping({}) == PlacedStatus()


def test_the_claims_have_the_names_that_a_stateful_set_gives_them() -> None:
    assert claims_of(SANDBOX) == {"home": f"home-{SANDBOX}-0", "workspace": f"workspace-{SANDBOX}-0"}


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), ("500m", "0.5"), ("2G", 2 * 10**9), ("1Gi", 2**30), ("1.5k", 1500), ("1e3", 1000), ("2E", 2 * 10**18)],
)
def test_a_quantity_is_the_number_that_kubernetes_reads(text: str, number: int | str) -> None:
    assert parse_quantity(text) == parse_quantity(str(number))


@pytest.mark.parametrize("text", ["", "G", "1 G", "1GB", "one", "1e"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        parse_quantity(text)


def test_a_share_of_a_quantity_is_never_nothing() -> None:
    assert (scale_cpu("2", "0.1"), scale_cpu("1m", "0.1")) == ("200m", "1m")
    assert (scale_bytes("2G", "0.25"), scale_bytes("1", "0.1")) == ("500000000", "1")
