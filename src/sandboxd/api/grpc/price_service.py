"""PriceService: decode, call, encode."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import grpc.aio
from typing_extensions import override

from sandboxd.api.grpc.names import timestamp
from sandboxd.api.grpc.requests import request_of
from sandboxd.manager.pricing import PriceWish, Pricing
from sandboxd.model.pricing import Price, Rates
from sandboxd.v1 import price_pb2 as pb
from sandboxd.v1 import price_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
"""Any: servicers here never touch the context's own request and response types."""


class PriceServicer(price_pb2_grpc.PriceServiceServicer):
    """Serves the price book."""

    def __init__(self, *, pricing: Pricing) -> None:
        self._pricing = pricing

    @override
    async def AddPrice(self, request: pb.AddPriceRequest, context: Context) -> pb.AddPriceResponse:
        """Add a price."""
        answer = await self._pricing.add(
            request_of(request, request.request_id),
            _decode(request.price),
            encode=lambda price: pb.AddPriceResponse(price=encode_price(price)).SerializeToString(),
        )
        return pb.AddPriceResponse.FromString(answer)

    @override
    async def EndPrice(self, request: pb.EndPriceRequest, context: Context) -> pb.EndPriceResponse:
        """Let a price end."""
        answer = await self._pricing.end(
            request_of(request, request.request_id),
            request.name.removeprefix("prices/"),
            at=request.end_time.ToDatetime(tzinfo=UTC) if request.HasField("end_time") else None,
            encode=lambda price: pb.EndPriceResponse(price=encode_price(price)).SerializeToString(),
        )
        return pb.EndPriceResponse.FromString(answer)

    @override
    async def ListPrices(self, request: pb.ListPricesRequest, context: Context) -> pb.ListPricesResponse:
        """List prices."""
        page = await self._pricing.list(
            current=request.current,
            model=request.model,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return pb.ListPricesResponse(
            prices=[encode_price(price) for price in page.items], next_page_token=page.next_token
        )


def encode_price(price: Price) -> pb.Price:
    """Encode a price."""
    return pb.Price(
        name=f"prices/{price.id}",
        model=price.model,
        currency=price.currency,
        rates=[
            pb.Rates(
                above_prompt_tokens=rate.above_prompt_tokens, input=rate.input, cached=rate.cached, output=rate.output
            )
            for rate in price.rates
        ],
        valid_from=timestamp(price.valid_from),
        valid_until=timestamp(price.valid_until),
    )


def _decode(message: pb.Price) -> PriceWish:
    return PriceWish(
        model=message.model,
        currency=message.currency,
        rates=tuple(
            Rates(
                above_prompt_tokens=rate.above_prompt_tokens, input=rate.input, cached=rate.cached, output=rate.output
            )
            for rate in message.rates
        ),
        valid_from=message.valid_from.ToDatetime(tzinfo=UTC) if message.HasField("valid_from") else None,
        valid_until=message.valid_until.ToDatetime(tzinfo=UTC) if message.HasField("valid_until") else None,
    )
