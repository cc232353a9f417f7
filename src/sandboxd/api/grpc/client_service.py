"""ClientService: decode, call, encode."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeVar

import grpc.aio
from google.protobuf.message import Message
from typing_extensions import override

from sandboxd.api.grpc.codec_client import (
    decode_client_edit,
    decode_freelancer_edit,
    decode_policy,
    decode_quotas,
    decode_states,
    encode_client,
    encode_erasure,
    encode_freelancer,
)
from sandboxd.api.grpc.names import client_id, erasure_id, freelancer_id
from sandboxd.api.grpc.requests import request_of
from sandboxd.api.grpc.rpc import current_rpc
from sandboxd.api.grpc.validation import refusal
from sandboxd.manager.tenancy import Tenancy
from sandboxd.model.client import Client, Freelancer
from sandboxd.model.errors import FieldViolation
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.v1 import client_pb2 as pb
from sandboxd.v1 import client_pb2_grpc

MAX_WORK: Final = timedelta(minutes=10)
"""Longest wait for one erasure, whatever deadline the caller gave."""
_ID: Final = "[a-z0-9](?:[-a-z0-9_.@]{0,61}[a-z0-9])?"
_CLIENT: Final = re.compile(f"clients/{_ID}")
_FREELANCER: Final = re.compile(f"clients/{_ID}/freelancers/{_ID}")

Context = grpc.aio.ServicerContext[Any, Any]
"""Any: servicers here never touch the context's own request and response types."""
Shown = TypeVar("Shown", Client, Freelancer)


class ClientServicer(client_pb2_grpc.ClientServiceServicer):
    """Serves clients and freelancers."""

    def __init__(self, *, tenancy: Tenancy) -> None:
        self._clients = tenancy.clients
        self._freelancers = tenancy.freelancers
        self._erasures = tenancy.erasures

    @override
    async def CreateClient(self, request: pb.CreateClientRequest, context: Context) -> pb.CreateClientResponse:
        """Make a client."""
        answer = await self._clients.create(
            request_of(request, request.request_id),
            ClientId(request.client_id),
            display_name=request.client.display_name,
            policy=decode_policy(request.client.policy),
            encode=_encoder(lambda client: pb.CreateClientResponse(client=encode_client(client))),
        )
        return pb.CreateClientResponse.FromString(answer)

    @override
    async def GetClient(self, request: pb.GetClientRequest, context: Context) -> pb.GetClientResponse:
        """Return one client."""
        found = await self._clients.get(current_rpc().caller, client_id(request.name))
        return pb.GetClientResponse(client=encode_client(found))

    @override
    async def ListClients(self, request: pb.ListClientsRequest, context: Context) -> pb.ListClientsResponse:
        """List clients."""
        page = await self._clients.list(
            states=decode_states(request.states), page_size=request.page_size, page_token=request.page_token
        )
        return pb.ListClientsResponse(
            clients=[encode_client(client) for client in page.items], next_page_token=page.next_token
        )

    @override
    async def UpdateClient(self, request: pb.UpdateClientRequest, context: Context) -> pb.UpdateClientResponse:
        """Change a client."""
        _require_name(request.client.name, _CLIENT, field="client.name", form="clients/{client}")
        answer = await self._clients.update(
            request_of(request, request.request_id),
            client_id(request.client.name),
            decode_client_edit(request),
            etag=request.client.etag,
            encode=_encoder(lambda client: pb.UpdateClientResponse(client=encode_client(client))),
        )
        return pb.UpdateClientResponse.FromString(answer)

    @override
    async def SuspendClient(self, request: pb.SuspendClientRequest, context: Context) -> pb.SuspendClientResponse:
        """Suspend a client."""
        answer = await self._clients.suspend(
            request_of(request, request.request_id),
            client_id(request.name),
            reason=request.reason,
            etag=request.etag,
            encode=_encoder(lambda client: pb.SuspendClientResponse(client=encode_client(client))),
        )
        return pb.SuspendClientResponse.FromString(answer)

    @override
    async def ReinstateClient(self, request: pb.ReinstateClientRequest, context: Context) -> pb.ReinstateClientResponse:
        """Bring a suspended client back."""
        answer = await self._clients.reinstate(
            request_of(request, request.request_id),
            client_id(request.name),
            etag=request.etag,
            encode=_encoder(lambda client: pb.ReinstateClientResponse(client=encode_client(client))),
        )
        return pb.ReinstateClientResponse.FromString(answer)

    @override
    async def CreateFreelancer(
        self, request: pb.CreateFreelancerRequest, context: Context
    ) -> pb.CreateFreelancerResponse:
        """Make a freelancer."""
        wished = request.freelancer
        answer = await self._freelancers.create(
            request_of(request, request.request_id),
            client_id(request.parent),
            FreelancerId(request.freelancer_id),
            display_name=wished.display_name,
            quotas=decode_quotas(wished.quotas) if wished.HasField("quotas") else None,
            encode=_encoder(lambda made: pb.CreateFreelancerResponse(freelancer=encode_freelancer(made))),
        )
        return pb.CreateFreelancerResponse.FromString(answer)

    @override
    async def GetFreelancer(self, request: pb.GetFreelancerRequest, context: Context) -> pb.GetFreelancerResponse:
        """Return one freelancer."""
        found = await self._freelancers.get(current_rpc().caller, client_id(request.name), freelancer_id(request.name))
        return pb.GetFreelancerResponse(freelancer=encode_freelancer(found))

    @override
    async def ListFreelancers(self, request: pb.ListFreelancersRequest, context: Context) -> pb.ListFreelancersResponse:
        """List the freelancers of a client."""
        page = await self._freelancers.list(
            current_rpc().caller,
            client_id(request.parent),
            states=decode_states(request.states),
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return pb.ListFreelancersResponse(
            freelancers=[encode_freelancer(one) for one in page.items], next_page_token=page.next_token
        )

    @override
    async def UpdateFreelancer(
        self, request: pb.UpdateFreelancerRequest, context: Context
    ) -> pb.UpdateFreelancerResponse:
        """Change a freelancer."""
        name = request.freelancer.name
        _require_name(name, _FREELANCER, field="freelancer.name", form="clients/{client}/freelancers/{freelancer}")
        answer = await self._freelancers.update(
            request_of(request, request.request_id),
            client_id(name),
            freelancer_id(name),
            decode_freelancer_edit(request),
            etag=request.freelancer.etag,
            encode=_encoder(lambda one: pb.UpdateFreelancerResponse(freelancer=encode_freelancer(one))),
        )
        return pb.UpdateFreelancerResponse.FromString(answer)

    @override
    async def SuspendFreelancer(
        self, request: pb.SuspendFreelancerRequest, context: Context
    ) -> pb.SuspendFreelancerResponse:
        """Suspend a freelancer."""
        answer = await self._freelancers.suspend(
            request_of(request, request.request_id),
            client_id(request.name),
            freelancer_id(request.name),
            reason=request.reason,
            etag=request.etag,
            encode=_encoder(lambda one: pb.SuspendFreelancerResponse(freelancer=encode_freelancer(one))),
        )
        return pb.SuspendFreelancerResponse.FromString(answer)

    @override
    async def ReinstateFreelancer(
        self, request: pb.ReinstateFreelancerRequest, context: Context
    ) -> pb.ReinstateFreelancerResponse:
        """Bring a suspended freelancer back."""
        answer = await self._freelancers.reinstate(
            request_of(request, request.request_id),
            client_id(request.name),
            freelancer_id(request.name),
            etag=request.etag,
            encode=_encoder(lambda one: pb.ReinstateFreelancerResponse(freelancer=encode_freelancer(one))),
        )
        return pb.ReinstateFreelancerResponse.FromString(answer)

    @override
    async def DeleteClient(self, request: pb.DeleteClientRequest, context: Context) -> pb.DeleteClientResponse:
        """Erase a client."""
        client, erasure = await self._erasures.delete_client(
            request_of(request, request.request_id),
            client_id(request.name),
            etag=request.etag,
            timeout=current_rpc().remaining(at_most=MAX_WORK),
        )
        return pb.DeleteClientResponse(client=encode_client(client), erasure=encode_erasure(erasure))

    @override
    async def DeleteFreelancer(
        self, request: pb.DeleteFreelancerRequest, context: Context
    ) -> pb.DeleteFreelancerResponse:
        """Erase a freelancer."""
        freelancer, erasure = await self._erasures.delete_freelancer(
            request_of(request, request.request_id),
            client_id(request.name),
            freelancer_id(request.name),
            etag=request.etag,
            timeout=current_rpc().remaining(at_most=MAX_WORK),
        )
        return pb.DeleteFreelancerResponse(freelancer=encode_freelancer(freelancer), erasure=encode_erasure(erasure))

    @override
    async def GetErasure(self, request: pb.GetErasureRequest, context: Context) -> pb.GetErasureResponse:
        """Return an erasure with its proof."""
        found = await self._erasures.get(current_rpc().caller, client_id(request.name), erasure_id(request.name))
        return pb.GetErasureResponse(erasure=encode_erasure(found))

    @override
    async def ListErasures(self, request: pb.ListErasuresRequest, context: Context) -> pb.ListErasuresResponse:
        """List the erasures of a client."""
        page = await self._erasures.list(
            current_rpc().caller,
            client_id(request.parent),
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return pb.ListErasuresResponse(
            erasures=[encode_erasure(one) for one in page.items], next_page_token=page.next_token
        )


def _encoder(respond: Callable[[Shown], Message]) -> Callable[[Shown], bytes]:
    return lambda shown: respond(shown).SerializeToString()


def _require_name(name: str, form_of: re.Pattern[str], *, field: str, form: str) -> None:
    # The message is also what is answered and created, where it has another name or none: no rule of the contract.
    if not form_of.fullmatch(name):
        raise refusal([FieldViolation(field=field, description=f"must be `{form}`")])
