"""`sandboxctl audit`: list, verify (on the service, or an export offline), export."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandboxd.ctl.commands.usage import moment
from sandboxd.ctl.console import make_console
from sandboxd.ctl.exits import Exit
from sandboxd.ctl.jsonlines import to_line
from sandboxd.ctl.sanitize import clean, clean_line
from sandboxd.ctl.shell import Shell, UsageError, write_line
from sandboxd.ctl.tables import when
from sandboxd.v1 import audit_pb2

_STYLES = {"INTENT": "dim", "DENIED": "yellow"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOptions:
    """Which entries."""

    chain: str = ""
    since: str = ""
    until: str = ""
    actor: str = ""
    action: str = ""
    target: str = ""
    request_id: str = ""
    kinds: Sequence[str] = ()
    codes: Sequence[str] = ()
    limit: int = 50
    oldest_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What to export, and where to."""

    chain: str = ""
    file: Path | None = None
    first: int = 0
    resume: bool = False
    without_texts: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions:
    """What to verify offline."""

    file: Path
    keys: Sequence[Path] = ()
    keys_in_file: bool = False
    heads: Sequence[Path] = ()


def chain_of(client: str, *, system: bool) -> str:
    """Name the chain that options mean; empty for the caller's own."""
    if client and system:
        raise typer.BadParameter("choose one of --client and --system", param_hint="--client")
    return "system" if system else f"clients/{client}" if client else ""


async def show(shell: Shell, options: ListOptions) -> Exit:
    """List entries."""
    where = audit_pb2.AuditFilter(
        start_time=_stamp(moment(options.since)),
        end_time=_stamp(moment(options.until)),
        actor=options.actor,
        action=options.action,
        target=options.target,
        request_id=options.request_id,
        kinds=[audit_pb2.AuditKind.Value(f"AUDIT_KIND_{kind.upper()}") for kind in options.kinds],
        codes=[code.upper() for code in options.codes],
    )
    found: list[audit_pb2.AuditEntry] = []
    count = 0
    async for entry in shell.client.audit.entries(where, chain=options.chain, newest_first=not options.oldest_first):
        count += 1
        if shell.json:
            shell.emit(entry)
        else:
            found.append(entry)
        if options.limit and count >= options.limit:
            break
    if not shell.json:
        shell.out.print(entry_table(found))
    return Exit.OK


async def verify(shell: Shell, chain: str, *, first: int) -> Exit:
    """Have the service check a chain."""
    findings: list[audit_pb2.AuditFinding] = []
    async for step in shell.client.audit.verify(chain=chain, first=first):
        match step.WhichOneof("event"):
            case "finding":
                findings.append(step.finding)
                if shell.json:
                    shell.emit(step.finding)
            case "verdict":
                if shell.json:
                    shell.emit(step.verdict)
                else:
                    _tell(step.verdict, findings, shell.out)
                return Exit.OK if step.verdict.valid else Exit.FAILED
            case _:
                continue
    raise UsageError("The service ended the check without a verdict. Run it again.")


async def export(shell: Shell, options: ExportOptions) -> Exit:
    """Write an export to a file, or to stdout."""
    from sandboxd.ctl.audit_file import AuditFileError, resume_point

    first = options.first
    if options.resume:
        if options.file is None:
            raise UsageError("--resume needs the file that was interrupted: --file FILE.")
        try:
            first = resume_point(options.file) if options.file.exists() else 0
        except AuditFileError as error:
            raise UsageError(str(error)) from error
    elif options.file is not None and options.file.exists():
        raise UsageError(f"{options.file} is there already. Go on with it by --resume, or name another one.")
    count = last = 0
    records = shell.client.audit.export(chain=options.chain, first=first, without_texts=options.without_texts)
    if options.file is None:
        async for record in records:
            write_line(to_line(record))
        return Exit.OK
    with options.file.open("a", encoding="utf-8") as file:
        async for record in records:
            file.write(to_line(record) + "\n")
            if record.HasField("entry"):
                count, last = count + 1, record.entry.sequence
    shell.say(f"{count:,} entries, up to {last or first - 1}, are in {options.file}.", "green")
    return Exit.OK


def verify_file(options: FileOptions, *, as_json: bool) -> NoReturn:
    """Check an export with no server, and end the process: 0 where nothing is wrong, 1 where something is."""
    from sandboxd.ctl.audit_file import AuditFileError, keys_in, read_heads, read_keys, verify_export

    err = make_console(stderr=True)
    try:
        keys = keys_in(options.file) if options.keys_in_file else read_keys(options.keys)
        found = verify_export(options.file, keys=keys, heads=read_heads(options.heads))
    except AuditFileError as error:
        err.print(Text(f"✗ {clean(str(error))}", style="red"))
        raise typer.Exit(int(Exit.USAGE)) from None
    verdict = audit_pb2.AuditVerdict(
        chain=found.chain,
        valid=not found.findings,
        entries=found.entries,
        heads=found.heads,
        texts=found.texts,
        withheld_texts=found.withheld,
        last_sequence=found.last,
        last_hash=found.last_hash,
    )
    findings = [
        audit_pb2.AuditFinding(
            kind=audit_pb2.AuditFindingKind.Value(f"AUDIT_FINDING_KIND_{each.kind.value}"),
            sequence=each.sequence,
            until=each.until,
            detail=each.detail,
        )
        for each in found.findings
    ]
    if as_json:
        for message in (*findings, verdict):
            write_line(to_line(message))
    else:
        _tell(verdict, findings, make_console())
        if found.first > 1:
            err.print(Text(f"What is before entry {found.first} is not in this file.", style="yellow"))
        if options.keys_in_file:
            words = (
                "Signatures were checked with the keys in the file itself: whoever could write it could choose them."
            )
            err.print(Text(words, style="yellow"))
    sys.stdout.flush()
    raise typer.Exit(int(Exit.OK if verdict.valid else Exit.FAILED))


def entry_table(entries: Iterable[audit_pb2.AuditEntry]) -> Table:
    """Make the table of `audit ls`."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for column in ("#", "WHEN", "WHO", "WHAT", "ON", "HOW", "DETAILS"):
        table.add_column(column, justify="right" if column == "#" else "left", no_wrap=column != "DETAILS")
    for entry in entries:
        texts = {text.name: text.value for text in entry.texts}
        kind = audit_pb2.AuditKind.Name(entry.kind).removeprefix("AUDIT_KIND_")
        who = clean_line(texts.get("actor", "")) or (f"#{entry.intent}" if entry.intent else "(erased)")
        if entry.role in {"anonymous", "system"}:
            who = clean_line(texts.get("peer", "")) if entry.role == "anonymous" else ""
        how = " ".join(clean_line(word) for word in (kind.lower(), entry.code, entry.reason) if word)
        table.add_row(
            str(entry.sequence),
            when(entry.time),
            f"{clean_line(entry.role)} {who}".strip(),
            clean_line(entry.action),
            clean_line(entry.target),
            how + (f" ({entry.count:,} times)" if entry.count > 1 else ""),
            clean_line(texts.get("details", ""), limit=80),
            style=_STYLES.get(kind, "red" if entry.code not in {"", "OK"} else ""),
        )
    return table


def _tell(verdict: audit_pb2.AuditVerdict, findings: Sequence[audit_pb2.AuditFinding], out: Console) -> None:
    what = f"{verdict.entries:,} entries, {verdict.heads:,} signed heads"
    if verdict.valid:
        out.print(Text(f"✓ {clean_line(verdict.chain)}: all is as it was written ({what}).", style="green"))
        if verdict.withheld_texts:
            out.print(Text(f"  {verdict.withheld_texts:,} texts were erased or left out; their digests stand."))
        return
    first = min(findings, key=lambda one: one.sequence)
    out.print(
        Text(f"✗ {clean_line(verdict.chain)}: not as it was written, from entry {first.sequence} on ({what}).", "red")
    )
    for each in findings:
        kind = audit_pb2.AuditFindingKind.Name(each.kind).removeprefix("AUDIT_FINDING_KIND_")
        where = f"entry {each.sequence}" if each.until <= each.sequence else f"entries {each.sequence} to {each.until}"
        out.print(Text.assemble((f"  {kind} ", "bold red"), f"{where}: {clean_line(each.detail)}"))


def _stamp(value: datetime | None) -> Timestamp | None:
    if value is None:
        return None
    made = Timestamp()
    made.FromDatetime(value)
    return made
