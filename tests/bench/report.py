"""The tables of a run, as Markdown, between two marks of docs/benchmarks.md; what stands around them is by hand."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from tests.bench.driver import Plan, Samples
from tests.bench.figures import Use, percentile

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- measured by make bench: begin -->", "<!-- measured by make bench: end -->"
MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was measured at one number of streams."""

    cli: str
    streams: int
    starts: str
    """`spread`: turns begin at random moments; `at once`: everybody begins in the same instant."""
    samples: Samples
    uses: dict[str, Use]


def render(runs: list[Run], *, without: Samples, floors: dict[int, Samples], plan: Plan, turns: int, day: str) -> str:
    """Return the tables."""
    machine = f"{os.cpu_count()} processors ({platform.machine()}), {platform.system()} {platform.release()}"
    load = f"{turns} turns of {plan.calls} model calls and {plan.chunks} text chunks, {1 / plan.interval:g} a second"
    load += " (with the real CLI: one model call, whose answer has that many chunks)"
    baseline = "The same model calls without agent and gateway, alone on the machine: first byte "
    baseline += f"{_both(without.first_byte)}, whole call {_both(without.whole_call)}"
    heads = ["CLI", "Streams", "Turns begin", "Turns", "Failures", "Resent", "Reopened", "Events"]
    heads += ["Event P50", "P99", "max", "Calls", "First byte P50", "P99", "Whole call P50", "P99"]
    lines = [
        f"Measured {day}: {machine}, Python {platform.python_version()}. Each stream: {load}.",
        "",
        f"{baseline}.",
        "",
        f"| {' | '.join(heads)} |",
        "| --- | ---: | --- " + "| ---: " * (len(heads) - 3) + "|",
    ]
    floor = [
        Run(cli="stand-in, no sandboxd", streams=n, starts="spread", samples=one, uses={}) for n, one in floors.items()
    ]
    for run in floor + runs:
        samples = run.samples
        counts = [samples.turns, len(samples.failures), samples.resent, samples.reopened, len(samples.event)]
        cells = [run.cli, str(run.streams), run.starts, *map(str, counts)]
        cells += [_ms(samples.event, share) for share in (0.5, 0.99, 1.0)]
        cells += [str(len(samples.whole_call))]
        cells += [_ms(values, share) for values in (samples.first_byte, samples.whole_call) for share in (0.5, 0.99)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        (
            "| CLI | Streams | Turns begin | Part | Processes | CPU (cores) | Waiting for a processor (threads) "
            "| Memory, all (MB, PSS) | Largest process (MB, RSS) |"
        ),
        "| --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {run.cli} | {run.streams} | {run.starts} | {part} | {use.processes} | {use.cores:.2f} | {use.waited:.2f} "
        f"| {use.memory / MEBIBYTE:.0f} | {use.largest / MEBIBYTE:.0f} |"
        for run in runs
        for part, use in run.uses.items()
        if use.processes
    ]
    return "\n".join(lines)


def write(page: Path, tables: str, *, begin: str = BEGIN, end: str = END) -> None:
    """Put the tables between two marks of the page."""
    before, _, rest = page.read_text().partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n\n{tables}\n\n{end}{after}")


def _ms(values: list[float], share: float) -> str:
    return f"{percentile(values, share):.1f}" if values else "-"


def _both(values: list[float]) -> str:
    return f"P50 {_ms(values, 0.5)}, P99 {_ms(values, 0.99)}"
