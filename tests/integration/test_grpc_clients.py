"""ClientService over a real gRPC server: who may do what, what is answered, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from sandboxd.model.client import AccountState, TextPolicy
from sandboxd.v1 import backup_pb2, sandbox_pb2, stream_pb2
from sandboxd.v1 import client_pb2 as pb
from tests.fakes.api import a_sandbox
from tests.integration.api_world import World, a_world, next_event, refused

_numbers = count(1)
S = grpc.StatusCode


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as made:
        yield made


def rid() -> str:
    return f"request-{next(_numbers)}"


def platform(world: World) -> Any:
    return world.metadata(role="platform", client=None)


def a_policy() -> pb.ClientPolicy:
    return pb.ClientPolicy(
        text=pb.TEXT_POLICY_NONE,
        text_lifetime=Duration(seconds=86400),
        backup_every=Duration(seconds=0),
        backup_retention=backup_pb2.BackupRetention(keep_daily=0, immutable_for=Duration(seconds=60)),
        models=["gemini-2.5-*"],
        quotas=pb.Quotas(sandboxes=0, tiers=[sandbox_pb2.TIER_BASIC], storage_bytes=10**12),
    )


async def created(world: World, name: str = "acme", **fields: Any) -> pb.Client:
    request = pb.CreateClientRequest(request_id=rid(), client_id=name, client=pb.Client(**fields))
    answer = await world.clients.CreateClient(request, metadata=platform(world))
    found: pb.Client = answer.client
    return found


async def hired(world: World, name: str = "ada", client: str = "acme") -> pb.Freelancer:
    request = pb.CreateFreelancerRequest(request_id=rid(), parent=f"clients/{client}", freelancer_id=name)
    answer = await world.clients.CreateFreelancer(request, metadata=platform(world))
    found: pb.Freelancer = answer.freelancer
    return found


async def test_a_client_is_made_as_it_was_asked_for_and_found_again(world: World) -> None:
    made = await created(world, display_name="Acme & Söhne", policy=a_policy())

    got = await world.clients.GetClient(pb.GetClientRequest(name="clients/acme"), metadata=world.metadata())

    assert got.client == made
    assert (made.name, made.display_name, made.state) == ("clients/acme", "Acme & Söhne", pb.ACCOUNT_STATE_ACTIVE)
    assert made.policy.quotas == a_policy().quotas
    assert (made.policy.text, list(made.policy.models)) == (pb.TEXT_POLICY_NONE, ["gemini-2.5-*"])
    assert made.policy.text_lifetime.seconds == 86400
    assert (made.policy.HasField("backup_every"), made.policy.backup_every.seconds) == (True, 0)
    assert made.policy.backup_retention == a_policy().backup_retention
    assert not made.policy.backup_retention.HasField("keep_last")
    assert not made.policy.quotas.HasField("concurrent_turns")
    assert world.units.rows.clients["acme"].policy.text is TextPolicy.NONE  # type: ignore[index]  # an id is a string


async def test_a_repeated_creation_makes_one_client_and_answers_the_same(world: World) -> None:
    request = pb.CreateClientRequest(request_id="the-same-id", client_id="acme")
    first, second = await asyncio.gather(
        *(world.clients.CreateClient(request, metadata=platform(world)) for _ in range(2))
    )
    another = pb.CreateClientRequest(request_id="the-same-id", client_id="other")

    error = await refused(world.clients.CreateClient(another, metadata=platform(world)))

    assert first == second
    assert (error.code, error.reason, error.fields) == (S.INVALID_ARGUMENT, "REQUEST_ID_REUSED", ["request_id"])


async def test_a_name_is_taken_once(world: World) -> None:
    await created(world)

    error = await refused(
        world.clients.CreateClient(pb.CreateClientRequest(request_id=rid(), client_id="acme"), metadata=platform(world))
    )

    assert (error.code, error.reason) == (S.ALREADY_EXISTS, "ACCOUNT_EXISTS")


@pytest.mark.parametrize("name", ["", "Acme", "a" * 64, "-a", "a/b", "a\n", "ü", "a b", "clients/a"])
async def test_odd_names_are_refused(world: World, name: str) -> None:
    error = await refused(
        world.clients.CreateClient(pb.CreateClientRequest(request_id=rid(), client_id=name), metadata=platform(world))
    )

    assert (error.code, error.fields) == (S.INVALID_ARGUMENT, ["client_id"])


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (pb.ClientPolicy(models=[f"gemini-{n}" for n in range(101)]), "client.policy.models"),
        (pb.ClientPolicy(models=["gemini-1/../x"]), "client.policy.models[0]"),
        (pb.ClientPolicy(text_lifetime=Duration(seconds=10)), "client.policy.text_lifetime"),
        (pb.ClientPolicy(backup_every=Duration(seconds=60, nanos=2**31 - 1)), "client.policy.backup_every"),
        (pb.ClientPolicy(backup_every=Duration(seconds=60, nanos=-1)), "client.policy.backup_every"),
        (pb.ClientPolicy(quotas=pb.Quotas(sandboxes=-1)), "client.policy.quotas.sandboxes"),
        (
            pb.ClientPolicy(backup_retention=backup_pb2.BackupRetention(keep_last=10_001)),
            "client.policy.backup_retention.keep_last",
        ),
        (
            pb.ClientPolicy(backup_retention=backup_pb2.BackupRetention(immutable_for=Duration(seconds=315_360_001))),
            "client.policy.backup_retention.immutable_for",
        ),
        (pb.ClientPolicy(text=77), "client.policy.text"),  # type: ignore[arg-type]  # a number that is no item
    ],
)
async def test_policies_that_cannot_be_are_refused(world: World, policy: pb.ClientPolicy, field: str) -> None:
    request = pb.CreateClientRequest(request_id=rid(), client_id="acme", client=pb.Client(policy=policy))

    error = await refused(world.clients.CreateClient(request, metadata=platform(world)))

    assert (error.code, error.fields) == (S.INVALID_ARGUMENT, [field])


async def test_update_changes_what_the_mask_names_and_nothing_else(world: World) -> None:
    made = await created(world, display_name="Acme", policy=a_policy())
    wished = pb.Client(name=made.name, etag=made.etag, policy=pb.ClientPolicy(quotas=pb.Quotas(concurrent_turns=3)))
    paths = ["policy.quotas", "policy.text_lifetime"]

    answer = await world.clients.UpdateClient(
        pb.UpdateClientRequest(request_id=rid(), client=wished, update_mask=FieldMask(paths=paths)),
        metadata=platform(world),
    )
    stale = await refused(
        world.clients.UpdateClient(
            pb.UpdateClientRequest(request_id=rid(), client=wished, update_mask=FieldMask(paths=["display_name"])),
            metadata=platform(world),
        )
    )

    policy = answer.client.policy
    assert policy.quotas == pb.Quotas(concurrent_turns=3)
    assert not policy.HasField("text_lifetime")
    assert policy.HasField("backup_every")
    assert policy.backup_retention == a_policy().backup_retention
    assert (policy.text, answer.client.display_name) == (pb.TEXT_POLICY_NONE, "Acme")
    assert list(policy.models) == ["gemini-2.5-*"]
    assert (stale.code, stale.reason) == (S.ABORTED, "ETAG_STALE")


@pytest.mark.parametrize(
    ("name", "path", "field"),
    [("clients/acme", "state", "update_mask"), ("acme", "display_name", "client.name"), ("", "policy", "client.name")],
)
async def test_update_refuses_what_it_cannot_change(world: World, name: str, path: str, field: str) -> None:
    await created(world)
    request = pb.UpdateClientRequest(request_id=rid(), client=pb.Client(name=name), update_mask=FieldMask(paths=[path]))

    error = await refused(world.clients.UpdateClient(request, metadata=platform(world)))

    assert (error.code, error.fields) == (S.INVALID_ARGUMENT, [field])


async def test_clients_are_listed_page_by_page(world: World) -> None:
    for number in range(5):
        await created(world, f"client-{number}")
    names, token = list[str](), ""
    while True:
        page = await world.clients.ListClients(
            pb.ListClientsRequest(page_size=2, page_token=token), metadata=platform(world)
        )
        names += [client.name for client in page.clients]
        token = page.next_page_token
        if not token:
            break

    bad = await refused(world.clients.ListClients(pb.ListClientsRequest(page_token="x"), metadata=platform(world)))

    assert names == [f"clients/client-{number}" for number in range(5)]
    assert (bad.code, bad.fields) == (S.INVALID_ARGUMENT, ["page_token"])


async def test_a_suspended_client_is_refused_at_once_until_it_is_reinstated(world: World) -> None:
    await created(world)

    def sandboxes() -> Any:
        return world.sandboxes.List(sandbox_pb2.ListRequest(), metadata=world.metadata())

    await sandboxes()

    suspend = pb.SuspendClientRequest(request_id=rid(), name="clients/acme", reason="unpaid")
    suspended = (await world.clients.SuspendClient(suspend, metadata=platform(world))).client
    error = await refused(sandboxes())
    again = await refused(
        world.clients.SuspendClient(
            pb.SuspendClientRequest(request_id=rid(), name="clients/acme"), metadata=platform(world)
        )
    )
    reinstate = pb.ReinstateClientRequest(request_id=rid(), name="clients/acme")
    back = (await world.clients.ReinstateClient(reinstate, metadata=platform(world))).client
    await sandboxes()

    assert (suspended.state, suspended.state_reason) == (pb.ACCOUNT_STATE_SUSPENDED, "unpaid")
    assert (error.code, error.reason) == (S.PERMISSION_DENIED, "CLIENT_SUSPENDED")
    assert (again.code, again.reason) == (S.FAILED_PRECONDITION, "ACCOUNT_STATE_INVALID")
    assert (back.state, back.state_reason) == (pb.ACCOUNT_STATE_ACTIVE, "")


async def test_the_open_streams_of_a_suspended_freelancer_end_at_once_and_no_others(world: World) -> None:
    await created(world)
    await hired(world)
    world.manager.sandboxes[a_sandbox().id] = a_sandbox()
    ada = world.sandboxes.Watch(sandbox_pb2.WatchRequest(), metadata=world.metadata(sub="ada", role="freelancer"))
    admin = world.stream()
    await admin.write(
        stream_pb2.StreamRequest(request_id=rid(), open=stream_pb2.Open(sandbox=f"sandboxes/{a_sandbox().id}"))
    )
    await ada.read()
    await next_event(admin, "stream_ready")

    name = "clients/acme/freelancers/ada"
    await world.clients.SuspendFreelancer(
        pb.SuspendFreelancerRequest(request_id=rid(), name=name), metadata=world.metadata()
    )
    async with asyncio.timeout(4):  # below the five seconds after which streams ask by themselves
        error = await refused(ada)
    await admin.write(stream_pb2.StreamRequest(ping=stream_pb2.Ping(payload="still here")))
    await next_event(admin, "pong")

    assert (error.code, error.reason) == (S.PERMISSION_DENIED, "FREELANCER_SUSPENDED")


async def test_a_client_admin_manages_its_own_freelancers_and_nobody_elses(world: World) -> None:
    await created(world)
    await created(world, "other")
    await hired(world, "bob", client="other")
    admin = world.metadata()
    own = pb.CreateFreelancerRequest(
        request_id=rid(), parent="clients/acme", freelancer_id="ada", freelancer=pb.Freelancer(display_name="Ada")
    )

    made = (await world.clients.CreateFreelancer(own, metadata=admin)).freelancer
    wished = pb.Freelancer(name=made.name, quotas=pb.Quotas(sandboxes=2))
    edited = await world.clients.UpdateFreelancer(
        pb.UpdateFreelancerRequest(request_id=rid(), freelancer=wished, update_mask=FieldMask(paths=["quotas"])),
        metadata=admin,
    )
    listed = await world.clients.ListFreelancers(pb.ListFreelancersRequest(parent="clients/acme"), metadata=admin)
    bob = "clients/other/freelancers/bob"
    foreign = [
        await refused(world.clients.GetClient(pb.GetClientRequest(name="clients/other"), metadata=admin)),
        await refused(world.clients.GetFreelancer(pb.GetFreelancerRequest(name=bob), metadata=admin)),
        await refused(world.clients.ListFreelancers(pb.ListFreelancersRequest(parent="clients/other"), metadata=admin)),
        await refused(
            world.clients.SuspendFreelancer(pb.SuspendFreelancerRequest(request_id=rid(), name=bob), metadata=admin)
        ),
        await refused(
            world.clients.CreateFreelancer(
                pb.CreateFreelancerRequest(request_id=rid(), parent="clients/other", freelancer_id="eve"),
                metadata=admin,
            )
        ),
    ]
    absent = await refused(world.clients.GetClient(pb.GetClientRequest(name="clients/none"), metadata=admin))

    assert edited.freelancer.quotas == pb.Quotas(sandboxes=2)
    assert [one.display_name for one in listed.freelancers] == ["Ada"]
    assert {(error.code, error.reason) for error in (*foreign, absent)} == {(S.NOT_FOUND, "CLIENT_NOT_FOUND")}
    assert foreign[0].message.replace("other", "none") == absent.message


async def test_the_same_request_id_of_two_clients_is_two_requests(world: World) -> None:
    await created(world)
    await created(world, "other")

    def hire(client: str) -> Any:
        return world.clients.CreateFreelancer(
            pb.CreateFreelancerRequest(request_id="request-of-both", parent=f"clients/{client}", freelancer_id="ada"),
            metadata=world.metadata(client=client),
        )

    answers = [await hire("acme"), await hire("other")]

    assert [answer.freelancer.name for answer in answers] == [
        "clients/acme/freelancers/ada",
        "clients/other/freelancers/ada",
    ]


async def test_a_freelancer_of_a_client_that_is_deleted_is_not_made(world: World) -> None:
    await created(world)
    rows = world.units.rows.clients
    (found,) = rows.values()
    rows[found.id] = found.enter(AccountState.DELETING, at=found.create_time + timedelta(seconds=1))

    error = await refused(
        world.clients.CreateFreelancer(
            pb.CreateFreelancerRequest(request_id=rid(), parent="clients/acme", freelancer_id="ada"),
            metadata=platform(world),
        )
    )

    assert (error.code, error.reason) == (S.FAILED_PRECONDITION, "ACCOUNT_STATE_INVALID")
