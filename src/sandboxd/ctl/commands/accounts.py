"""`sandboxctl clients` and `sandboxctl freelancers`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from rich.text import Text

from sandboxd.ctl.connection import WORK_SECONDS, new_request_id
from sandboxd.ctl.exits import Exit
from sandboxd.ctl.names import bare
from sandboxd.ctl.prompting import confirmed
from sandboxd.ctl.shell import Shell, UsageError, write_line
from sandboxd.ctl.tables_accounts import account_facts, account_table, erasure_table, state_of
from sandboxd.v1 import client_pb2 as pb
from sandboxd.v1 import client_pb2_grpc, sandbox_pb2

NO_LIMIT: Final = "none"
_GB: Final = 10**9
_PAGE: Final = 200
Account = pb.Client | pb.Freelancer


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaOptions:
    """Limits as they were said: a number, `none`, or nothing where they stay as they are."""

    sandboxes: str = ""
    turns: str = ""
    storage_gb: str = ""
    tiers: Sequence[str] = ()
    """Names of tiers; `none` alone allows all."""

    @property
    def said(self) -> bool:
        """True where anything was said."""
        return bool(self.sandboxes or self.turns or self.storage_gb or self.tiers)

    def apply(self, quotas: pb.Quotas) -> pb.Quotas:
        """Return quotas with what was said.

        Raises:
            UsageError: It is no number.
        """
        changed = pb.Quotas()
        changed.CopyFrom(quotas)
        for said, field, unit in (
            (self.sandboxes, "sandboxes", 1),
            (self.turns, "concurrent_turns", 1),
            (self.storage_gb, "storage_bytes", _GB),
        ):
            if said == NO_LIMIT:
                changed.ClearField(field)  # type: ignore[arg-type]  # the names are literals above
            elif said:
                setattr(changed, field, _number(said) * unit)
        if self.tiers:
            named = [] if list(self.tiers) == [NO_LIMIT] else [f"TIER_{tier.upper()}" for tier in self.tiers]
            del changed.tiers[:]
            changed.tiers.extend(sandbox_pb2.Tier.Value(name) for name in named)
        return changed


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """What a client shall be; None and empty leave things as they are."""

    name: str | None = None
    text: str = ""
    text_days: str = ""
    models: Sequence[str] = ()
    quotas: QuotaOptions = QuotaOptions()
    each: QuotaOptions = QuotaOptions()
    """Of each freelancer."""

    def apply(self, client: pb.Client) -> list[str]:
        """Write what was said into a client, and return the paths that changed."""
        paths = list[str]()
        policy = client.policy
        if self.name is not None:
            client.display_name = self.name
            paths.append("display_name")
        if self.text:
            policy.text = pb.TextPolicy.Value(f"TEXT_POLICY_{self.text.upper()}")
            paths.append("policy.text")
        if self.text_days:
            policy.ClearField("text_lifetime")
            if self.text_days != NO_LIMIT:
                policy.text_lifetime.CopyFrom(Duration(seconds=86_400 * _number(self.text_days)))
            paths.append("policy.text_lifetime")
        if self.models:
            del policy.models[:]
            policy.models.extend([] if list(self.models) == [NO_LIMIT] else self.models)
            paths.append("policy.models")
        for options, quotas, path in (
            (self.quotas, policy.quotas, "policy.quotas"),
            (self.each, policy.freelancer_quotas, "policy.freelancer_quotas"),
        ):
            if options.said:
                quotas.CopyFrom(options.apply(quotas))
                paths.append(path)
        return paths


def client_name(said: str) -> str:
    """Return the resource name of a client that was named by its id or its name."""
    return said if said.startswith("clients/") else f"clients/{said}"


def freelancer_name(client: str, said: str) -> str:
    """Return the resource name of a freelancer."""
    return said if said.startswith("clients/") else f"{client_name(client)}/freelancers/{said}"


def stub(shell: Shell) -> client_pb2_grpc.ClientServiceAsyncStub:
    """Return the service on this shell's channel."""
    return client_pb2_grpc.ClientServiceStub(shell.client.connection.channel)


async def create_client(shell: Shell, said: str, options: ClientOptions) -> Exit:
    """Create a client."""
    client = pb.Client()
    options.apply(client)
    request = pb.CreateClientRequest(request_id=new_request_id(), client_id=bare(client_name(said)), client=client)
    return _told(shell, (await shell.client.connection.call(stub(shell).CreateClient, request)).client)


async def update_client(shell: Shell, said: str, options: ClientOptions) -> Exit:
    """Change a client."""
    return _told(shell, await change_client(shell, said, options.apply, example="--name or --max-sandboxes"))


async def change_client(
    shell: Shell, said: str, apply: Callable[[pb.Client], Sequence[str]], *, example: str
) -> pb.Client:
    """Read a client, write what `apply` changed, whose paths it answers; refused where somebody else was faster."""
    call = shell.client.connection.call
    client = (await call(stub(shell).GetClient, pb.GetClientRequest(name=client_name(said)))).client
    paths = apply(client)
    if not paths:
        raise UsageError(f"Say what shall change: for example {example}.")
    request = pb.UpdateClientRequest(request_id=new_request_id(), client=client, update_mask=FieldMask(paths=paths))
    return (await call(stub(shell).UpdateClient, request)).client


def tell_changed(shell: Shell, client: pb.Client) -> Exit:
    """Tell what a client is now."""
    if shell.json:
        shell.emit(client)
    else:
        shell.say(f"✓ {bare(client.name)} is changed", "green")
        shell.out.print(account_facts(client))
    return Exit.OK


async def list_clients(shell: Shell, *, everything: bool, quiet: bool) -> Exit:
    """List clients."""
    request = pb.ListClientsRequest(page_size=_PAGE, states=list(pb.AccountState.values())[1:] if everything else [])
    found = list[Account]()
    while True:
        page = await shell.client.connection.call(stub(shell).ListClients, request)
        found.extend(page.clients)
        if not page.next_page_token:
            return _listed(shell, found, quiet=quiet, what="clients")
        request.page_token = page.next_page_token


async def show_client(shell: Shell, said: str) -> Exit:
    """Show one client."""
    request = pb.GetClientRequest(name=client_name(said))
    return _shown(shell, (await shell.client.connection.call(stub(shell).GetClient, request)).client)


async def suspend_client(shell: Shell, said: str, *, reason: str) -> Exit:
    """Suspend a client."""
    request = pb.SuspendClientRequest(request_id=new_request_id(), name=client_name(said), reason=reason)
    return _told(shell, (await shell.client.connection.call(stub(shell).SuspendClient, request)).client)


async def reinstate_client(shell: Shell, said: str) -> Exit:
    """Bring a suspended client back."""
    request = pb.ReinstateClientRequest(request_id=new_request_id(), name=client_name(said))
    return _told(shell, (await shell.client.connection.call(stub(shell).ReinstateClient, request)).client)


async def delete_client(shell: Shell, said: str, *, yes: bool, proof: Path | None) -> Exit:
    """Erase a client, and write its proof."""
    name = client_name(said)
    if not yes and not await confirmed(shell, f"Erase {name} with everything of it, for good? [y/N] "):
        shell.err.print(Text(f"{name} stays.", style="yellow"))
        return Exit.OK
    request = pb.DeleteClientRequest(request_id=new_request_id(), name=name)
    answer = await shell.client.connection.call(stub(shell).DeleteClient, request, timeout=WORK_SECONDS)
    return _erased(shell, answer.erasure, proof)


async def create_freelancer(shell: Shell, client: str, said: str, *, name: str, quotas: QuotaOptions) -> Exit:
    """Create a freelancer."""
    wished = pb.Freelancer(display_name=name, quotas=quotas.apply(pb.Quotas()) if quotas.said else None)
    request = pb.CreateFreelancerRequest(
        request_id=new_request_id(), parent=client_name(client), freelancer_id=said, freelancer=wished
    )
    return _told(shell, (await shell.client.connection.call(stub(shell).CreateFreelancer, request)).freelancer)


async def update_freelancer(
    shell: Shell, client: str, said: str, *, name: str | None, quotas: QuotaOptions, as_each: bool
) -> Exit:
    """Change a freelancer."""
    call = shell.client.connection.call
    wanted = pb.GetFreelancerRequest(name=freelancer_name(client, said))
    freelancer = (await call(stub(shell).GetFreelancer, wanted)).freelancer
    paths = list[str]()
    if name is not None:
        freelancer.display_name = name
        paths.append("display_name")
    if as_each:
        freelancer.ClearField("quotas")
        paths.append("quotas")
    elif quotas.said:
        freelancer.quotas.CopyFrom(quotas.apply(freelancer.quotas))
        paths.append("quotas")
    if not paths:
        raise UsageError("Say what shall change: for example --name or --max-sandboxes.")
    request = pb.UpdateFreelancerRequest(
        request_id=new_request_id(), freelancer=freelancer, update_mask=FieldMask(paths=paths)
    )
    return _told(shell, (await call(stub(shell).UpdateFreelancer, request)).freelancer)


async def list_freelancers(shell: Shell, client: str, *, everything: bool, quiet: bool) -> Exit:
    """List the freelancers of a client."""
    states = list(pb.AccountState.values())[1:] if everything else []
    request = pb.ListFreelancersRequest(parent=client_name(client), page_size=_PAGE, states=states)
    found = list[Account]()
    while True:
        page = await shell.client.connection.call(stub(shell).ListFreelancers, request)
        found.extend(page.freelancers)
        if not page.next_page_token:
            return _listed(shell, found, quiet=quiet, what="freelancers")
        request.page_token = page.next_page_token


async def show_freelancer(shell: Shell, client: str, said: str) -> Exit:
    """Show one freelancer."""
    request = pb.GetFreelancerRequest(name=freelancer_name(client, said))
    return _shown(shell, (await shell.client.connection.call(stub(shell).GetFreelancer, request)).freelancer)


async def suspend_freelancer(shell: Shell, client: str, said: str, *, reason: str) -> Exit:
    """Suspend a freelancer."""
    name = freelancer_name(client, said)
    request = pb.SuspendFreelancerRequest(request_id=new_request_id(), name=name, reason=reason)
    return _told(shell, (await shell.client.connection.call(stub(shell).SuspendFreelancer, request)).freelancer)


async def reinstate_freelancer(shell: Shell, client: str, said: str) -> Exit:
    """Bring a suspended freelancer back."""
    request = pb.ReinstateFreelancerRequest(request_id=new_request_id(), name=freelancer_name(client, said))
    return _told(shell, (await shell.client.connection.call(stub(shell).ReinstateFreelancer, request)).freelancer)


async def delete_freelancer(shell: Shell, client: str, said: str, *, yes: bool, proof: Path | None) -> Exit:
    """Erase a freelancer, and write the proof."""
    name = freelancer_name(client, said)
    if not yes and not await confirmed(shell, f"Erase {name} with everything of it, for good? [y/N] "):
        shell.err.print(Text(f"{name} stays.", style="yellow"))
        return Exit.OK
    request = pb.DeleteFreelancerRequest(request_id=new_request_id(), name=name)
    answer = await shell.client.connection.call(stub(shell).DeleteFreelancer, request, timeout=WORK_SECONDS)
    return _erased(shell, answer.erasure, proof)


async def erasures(shell: Shell, client: str) -> Exit:
    """List the erasures of a client."""
    request = pb.ListErasuresRequest(parent=client_name(client), page_size=_PAGE)
    while True:
        page = await shell.client.connection.call(stub(shell).ListErasures, request)
        for each in page.erasures:
            if shell.json:
                shell.emit(each)
            else:
                write_line(f"{each.name}  {each.account}  {'complete' if each.document else 'goes on'}")
        if not page.next_page_token:
            return Exit.OK
        request.page_token = page.next_page_token


async def erasure(shell: Shell, name: str, *, proof: Path | None) -> Exit:
    """Show one erasure."""
    found = await shell.client.connection.call(stub(shell).GetErasure, pb.GetErasureRequest(name=name))
    return _erased(shell, found.erasure, proof)


def _erased(shell: Shell, found: pb.Erasure, proof: Path | None) -> Exit:
    if proof is not None:
        if not found.document:
            raise UsageError("The erasure goes on: there is no proof yet.")
        for path, content in ((proof, found.document), (proof.with_name(f"{proof.name}.sig"), found.signature)):
            try:
                path.write_bytes(content)
            except OSError as error:
                raise UsageError(f"The proof cannot be written to {path}: {error.strerror}.") from error
        shell.say(f"✓ the proof is in {proof}, its signature beside it", "green")
    if shell.json:
        shell.emit(found)
        return Exit.OK
    shell.out.print(erasure_table(found, shell.out))
    state = f"complete, signed by key {found.key_id}" if found.document else "goes on"
    shell.say(f"{found.name}: {state}", "dim")
    return Exit.OK


def _listed(shell: Shell, found: Sequence[Account], *, quiet: bool, what: str) -> Exit:
    for each in found:
        if shell.json:
            shell.emit(each)
        elif quiet:
            write_line(bare(each.name))
    if shell.json or quiet:
        return Exit.OK
    if found:
        shell.out.print(account_table(found, shell.out))
    else:
        shell.err.print(Text(f"There are no {what} here.", style="dim"))
    return Exit.OK


def _shown(shell: Shell, account: Account) -> Exit:
    if shell.json:
        shell.emit(account)
    else:
        shell.out.print(account_facts(account))
    return Exit.OK


def _told(shell: Shell, account: Account) -> Exit:
    if shell.json:
        shell.emit(account)
    else:
        shell.say(f"✓ {account.name} is {state_of(account)}", "green")
    return Exit.OK


def _number(said: str) -> int:
    try:
        number = int(said)
    except ValueError:
        number = -1
    if number < 0:
        raise UsageError(f"{said!r} is no limit: give a number, or `{NO_LIMIT}`.")
    return number


def read_key(from_file: Path | None, *, stdin: bool) -> str:
    """Read a key from where it was said to be; never from the command line.

    Raises:
        UsageError: It is not there, or is no key.
    """
    if (from_file is None) == (not stdin):
        raise UsageError("Say where the key is: --from-file FILE or --from-stdin. It is never an argument.")
    try:
        text = sys.stdin.read() if from_file is None else from_file.expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The key cannot be read: {getattr(error, 'strerror', None) or 'no text'}.") from None
    key = text.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError("There is no key in it: it must be one word of printable ASCII.")
    return key
