"""Changes the price book. What is settled keeps its price: a call is priced once, by the moment it began."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from sandboxd.manager.once import PLATFORM, Once
from sandboxd.manager.ports import MAX_PAGE_SIZE, UnitOfWork, UnitsOfWork
from sandboxd.model.accounting_errors import PriceNotFoundError, PriceOverlapsError
from sandboxd.model.caller import Request
from sandboxd.model.errors import FieldViolation, InvalidRequestError
from sandboxd.model.paging import Page
from sandboxd.model.pricing import Price, Rates
from sandboxd.model.sources import Clock, IdSource

DEFAULT_PAGE: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceWish:
    """A price that somebody wants to add."""

    model: str
    currency: str
    rates: tuple[Rates, ...]
    valid_from: datetime | None
    valid_until: datetime | None


class Pricing:
    """The price book, as the platform manages it."""

    def __init__(self, *, units: UnitsOfWork, once: Once, clock: Clock, ids: IdSource) -> None:
        self._units = units
        self._once = once
        self._clock = clock
        self._ids = ids

    async def add(self, request: Request, wish: PriceWish, *, encode: Callable[[Price], bytes]) -> bytes:
        """Add a price.

        Raises:
            InvalidRequestError: Its rates do not ascend, or it ends before it begins.
            PriceOverlapsError: Another price of the same model holds in a part of its span.
        """
        price = self._price(wish)

        async def change(work: UnitOfWork) -> Price:
            for other in await work.prices.all(for_update=True):
                if price.overlaps(other):
                    raise PriceOverlapsError(
                        other.id, model=other.model, valid_from=other.valid_from, valid_until=other.valid_until
                    )
            await work.prices.add(price)
            return price

        return await self._once.run(request, "AddPrice", change, encode=encode, namespace=PLATFORM)

    async def end(
        self, request: Request, price: str, *, at: datetime | None, encode: Callable[[Price], bytes]
    ) -> bytes:
        """Let a price end at a moment, the present one where none is given; one that ends before it stays.

        Raises:
            PriceNotFoundError: There is no such price.
            InvalidRequestError: The moment is before the price's beginning.
        """

        async def change(work: UnitOfWork) -> Price:
            end = at or self._clock.now()
            found = next((one for one in await work.prices.all(for_update=True) if one.id == price), None)
            if found is None:
                raise PriceNotFoundError(price)
            if end < found.valid_from:
                raise _invalid("end_time", f"must not be before the price begins, {found.valid_from.isoformat()}")
            if found.valid_until is not None and found.valid_until <= end:
                return found
            await work.prices.set_end(price, at=end)
            return replace(found, valid_until=end)

        return await self._once.run(request, "EndPrice", change, encode=encode, namespace=PLATFORM)

    async def list(self, *, current: bool, model: str, page_size: int, page_token: str) -> Page[Price]:
        """Return one page of the prices, by model, beginning and id."""
        size = min(page_size or DEFAULT_PAGE, MAX_PAGE_SIZE)
        async with self._units.begin() as work:
            prices = sorted(await work.prices.all(), key=_place)
        now, after = self._clock.now(), _read_token(page_token)
        chosen = [
            price
            for price in prices
            if (not current or price.valid_until is None or price.valid_until > now)
            and (not model or price.covers(model, at=price.valid_from))
            and _place(price) > after
        ]
        last = chosen[size - 1] if len(chosen) > size else None
        return Page(items=chosen[:size], next_token=_make_token(last) if last else "")

    def _price(self, wish: PriceWish) -> Price:
        begin = wish.valid_from or self._clock.now()
        if wish.valid_until is not None and wish.valid_until <= begin:
            raise _invalid("price.valid_until", "must be after the price begins")
        try:
            return Price(
                id=self._ids.new("price"),
                model=wish.model,
                currency=wish.currency,
                rates=wish.rates,
                valid_from=begin,
                valid_until=wish.valid_until,
            )
        except ValueError as error:
            raise _invalid("price.rates", "must begin with above_prompt_tokens 0 and ascend") from error


def _invalid(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"The price cannot be like this. {field}: {description}.",
        violations=[FieldViolation(field=field, description=description)],
    )


def _place(price: Price) -> tuple[str, str, str]:
    return price.model, price.valid_from.isoformat(), price.id


def _make_token(last: Price) -> str:
    return base64.urlsafe_b64encode("\0".join(_place(last)).encode()).decode().rstrip("=")


def _read_token(token: str) -> tuple[str, str, str]:
    if not token:
        return ("", "", "")
    try:
        model, begin, price = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode().split("\0")
    except (ValueError, binascii.Error) as error:
        raise _invalid("page_token", "must come from a page of this list") from error
    return model, begin, price
