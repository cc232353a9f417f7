"""`sandboxctl budgets` and `sandboxctl prices`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from sandboxd.ctl.commands.usage import moment
from sandboxd.ctl.exits import Exit
from sandboxd.ctl.names import find_sandbox
from sandboxd.ctl.sanitize import clean_line
from sandboxd.ctl.shell import Shell, UsageError
from sandboxd.ctl.tables_accounting import budget_table, limit_text, price_table
from sandboxd.v1 import budget_pb2, price_pb2, usage_pb2

_LIMIT: Final = re.compile(r"(?P<number>[0-9][0-9_,]*(\.[0-9]{1,6})?)\s*(?P<scale>[kKmM]?)\s*(?P<unit>[A-Za-z]+)?")
_SCALES: Final = {"": 1, "k": 1_000, "m": 1_000_000}
_MICRO: Final = 1_000_000
_RATE: Final = re.compile(r"(?:(?P<above>[0-9]+):)?(?P<input>[0-9.]+)/(?P<cached>[0-9.]+)/(?P<output>[0-9.]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetOptions:
    """A budget that shall be set."""

    limit: str
    per: str
    freelancer: str = ""
    sandbox: str = ""
    warn: Sequence[int] = ()


async def set_budget(shell: Shell, options: BudgetOptions) -> Exit:
    """Set a budget."""
    budget = read_limit(options.limit)
    budget.freelancer = options.freelancer
    budget.sandbox = await find_sandbox(shell.client, options.sandbox) if options.sandbox else ""
    budget.period = budget_pb2.BudgetPeriod.Value(f"BUDGET_PERIOD_{options.per.upper()}")
    budget.warn_percents.extend(options.warn)
    made = await shell.client.accounting.set_budget(budget)
    if shell.json:
        shell.emit(made)
    else:
        whose = clean_line(made.freelancer or made.sandbox or f"client {made.client}")
        shell.say(f"{whose} may spend {limit_text(made)} a {options.per}.", "green")
        shell.out.print(budget_table([made], shell.out))
    return Exit.OK


async def list_budgets(shell: Shell, *, freelancer: str, sandbox: str) -> Exit:
    """List budgets."""
    name = await find_sandbox(shell.client, sandbox, ended=True) if sandbox else ""
    found = [each async for each in shell.client.accounting.budgets(freelancer=freelancer, sandbox=name)]
    if shell.json:
        for each in found:
            shell.emit(each)
    else:
        shell.out.print(budget_table(found, shell.out))
    return Exit.OK


async def remove_budget(shell: Shell, name: str) -> Exit:
    """Remove a budget."""
    full = name if name.startswith("budgets/") else f"budgets/{name}"
    await shell.client.accounting.delete_budget(full)
    shell.say(f"{full} is removed.", "green")
    return Exit.OK


async def rebuild_budgets(shell: Shell) -> Exit:
    """Count budgets anew."""
    answer = await shell.client.accounting.rebuild_budgets()
    if shell.json:
        shell.emit(answer)
    else:
        shell.say(f"{answer.budgets} budgets counted anew; {answer.corrected} sums were wrong.")
    return Exit.OK


async def add_price(shell: Shell, model: str, *, currency: str, rates: Sequence[str], begin: str, end: str) -> Exit:
    """Add a price."""
    made = await shell.client.accounting.add_price(
        model,
        currency=currency.upper(),
        rates=[read_rate(rate) for rate in rates],
        valid_from=moment(begin),
        valid_until=moment(end),
    )
    return _show(shell, made)


async def end_price(shell: Shell, name: str, *, at: str) -> Exit:
    """Let a price end."""
    full = name if name.startswith("prices/") else f"prices/{name}"
    return _show(shell, await shell.client.accounting.end_price(full, at=moment(at)))


async def list_prices(shell: Shell, *, every: bool, model: str) -> Exit:
    """List prices."""
    found = [each async for each in shell.client.accounting.prices(current=not every, model=model)]
    if shell.json:
        for each in found:
            shell.emit(each)
    else:
        shell.out.print(price_table(found, shell.out))
    return Exit.OK


def read_limit(said: str) -> budget_pb2.Budget:
    """Read a limit: `25USD`, `12.50 EUR`, `500000 tokens`, `2M tokens`.

    Raises:
        UsageError: It is none of these.
    """
    matched = _LIMIT.fullmatch(said.strip())
    unit = (matched["unit"] or "") if matched else ""
    if matched is None or not unit:
        raise UsageError(f"{said!r} is no limit. Say an amount with its currency or tokens: 25USD, 12.50EUR, 2Mtokens.")
    amount = Decimal(re.sub("[_,]", "", matched["number"])) * _SCALES[matched["scale"].lower()]
    if unit.lower() in {"token", "tokens"}:
        return budget_pb2.Budget(tokens=int(amount))
    if re.fullmatch("[A-Za-z]{3}", unit) is None:
        raise UsageError(f"{unit!r} is no currency. Say its code, such as USD, or tokens.")
    return budget_pb2.Budget(money=usage_pb2.Money(micros=int(amount * _MICRO), currency=unit.upper()))


def read_rate(said: str) -> price_pb2.Rates:
    """Read rates in units of the currency for a million tokens: `0.30/0.03/2.50`, or `200000:0.60/0.06/5`.

    Raises:
        UsageError: It is neither.
    """
    matched = _RATE.fullmatch(said.strip())
    try:
        if matched is None:
            raise ValueError(said)
        return price_pb2.Rates(
            above_prompt_tokens=int(matched["above"] or 0),
            **{name: int(Decimal(matched[name]) * _MICRO) for name in ("input", "cached", "output")},
        )
    except (ValueError, ArithmeticError) as error:
        raise UsageError(
            f"{said!r} is no rate. Say INPUT/CACHED/OUTPUT for a million tokens, such as 0.30/0.03/2.50, with the "
            "prompt's length in front for longer ones: 200000:0.60/0.06/5.00."
        ) from error


def _show(shell: Shell, price: price_pb2.Price) -> Exit:
    if shell.json:
        shell.emit(price)
    else:
        shell.out.print(price_table([price], shell.out))
        shell.say("Calls that are settled already keep their price.", "dim")
    return Exit.OK
