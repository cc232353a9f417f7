"""Sums of usage split by class of tokens: five sums of each, the empty ones left out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from sandboxd.model.usage import TokenCounts
from sandboxd.monitor.ports import UsageDimension, UsageFilter, UsageLedger, UsageSummary, UsageSummaryRow

_ONLY: Final[Mapping[str, Callable[[TokenCounts], TokenCounts]]] = {
    "prompt": lambda tokens: TokenCounts(prompt=_fresh(tokens), total=_fresh(tokens)),
    "cached": lambda tokens: TokenCounts(cached=tokens.cached, total=tokens.cached),
    "output": lambda tokens: TokenCounts(output=tokens.output, total=tokens.output),
    "thoughts": lambda tokens: TokenCounts(thoughts=tokens.thoughts, total=tokens.thoughts),
    "tool_use": lambda tokens: TokenCounts(tool_use=tokens.tool_use, total=tokens.tool_use),
}


async def summarise_usage(ledger: UsageLedger, where: UsageFilter, *, by: Sequence[UsageDimension]) -> UsageSummary:
    """Sum the ledger by dimensions, the class of tokens among them or not."""
    if UsageDimension.CLASS not in by:
        return await ledger.summarise(where, by=by)
    place = by.index(UsageDimension.CLASS)
    summary = await ledger.summarise(where, by=[one for one in by if one is not UsageDimension.CLASS])
    return replace(summary, rows=[part for row in summary.rows for part in split(row, place=place)])


def split(row: UsageSummaryRow, *, place: int) -> Iterator[UsageSummaryRow]:
    """Split one sum; the class stands at a place of the key. What the calls cost belongs to no class."""
    for name, only in _ONLY.items():
        tokens = only(row.tokens)
        if tokens.total:
            yield replace(row, key=(*row.key[:place], name, *row.key[place:]), tokens=tokens, costs=())


def _fresh(tokens: TokenCounts) -> int:
    return max(0, tokens.prompt - tokens.cached)
