"""Who may call which RPC: one row for every RPC of `sandboxd.v1`, and nothing else decides about roles.

Whoever adds an RPC adds its row; a test, and the start of the server, fail where one is missing. What the row cannot
know is whether a thing is the caller's own: that stays in the middle, and somebody else's thing does not exist.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from google.protobuf.descriptor import ServiceDescriptor

from sandboxd.model.caller import Caller, Role
from sandboxd.model.errors import ForbiddenError


class Scope(enum.Enum):
    """Whose things an RPC touches."""

    OWN = "own"
    """Things that belong to one freelancer: a freelancer reaches its own, everybody else all of their client's."""
    CLIENT = "client"
    """Things of the caller's client as a whole."""
    PLATFORM = "platform"
    """Things beside or above clients, or a client that the request names: a platform caller needs no client of its own,
    and reaches all; callers of other roles, where the row has any, reach their own client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """The row of one RPC."""

    roles: frozenset[Role]
    """Who may call it."""
    mutating: bool
    """True where one request changes something: it is audited, and idempotent by its request id."""
    scope: Scope


class RoleForbiddenError(ForbiddenError):
    """The caller's role may not call this RPC."""

    reason = "ROLE_FORBIDDEN"

    def __init__(self, method: str, *, role: Role, allowed: Iterable[Role]) -> None:
        names = ", ".join(one.value for one in Role if one in set(allowed))
        super().__init__(
            f"A caller with the role {role.value} may not call {method}. "
            f"Call it with a token of one of these roles: {names}.",
            method=method,
            role=role.value,
            allowed_roles=names,
        )


class ClientMissingError(ForbiddenError):
    """A platform caller asked for a client's things and said no client."""

    reason = "CLIENT_MISSING"

    def __init__(self, method: str) -> None:
        super().__init__(
            f"{method} works on the things of one client, and this call is for none. "
            "Use a token with the claim `client`, or name the client in metadata `x-sandboxd-client`.",
            method=method,
        )


EVERYONE: Final = frozenset(Role)
WRITERS: Final = EVERYONE - {Role.AUDITOR}
ADMINS: Final = frozenset({Role.PLATFORM, Role.CLIENT_ADMIN})
AUDITORS: Final = frozenset({Role.PLATFORM, Role.CLIENT_ADMIN, Role.AUDITOR})
PLATFORM_ONLY: Final = frozenset({Role.PLATFORM})
OVERSEERS: Final = ADMINS | {Role.AUDITOR}


def reads(scope: Scope, roles: frozenset[Role] = EVERYONE) -> Permission:
    """Make the row of an RPC that only reads."""
    return Permission(roles=roles, mutating=False, scope=scope)


def changes(scope: Scope, roles: frozenset[Role] = WRITERS) -> Permission:
    """Make the row of an RPC that changes something."""
    return Permission(roles=roles, mutating=True, scope=scope)


_ADMIN: Final = "sandboxd.v1.AdminService"
_SANDBOXES: Final = "sandboxd.v1.SandboxService"
_CLIENTS: Final = "sandboxd.v1.ClientService"
_KEYS: Final = "sandboxd.v1.KeyService"
_SESSIONS: Final = "sandboxd.v1.SessionService"
_BUDGETS: Final = "sandboxd.v1.BudgetService"
_PRICES: Final = "sandboxd.v1.PriceService"
_POOLS: Final = "sandboxd.v1.PoolService"
_PACKAGES: Final = "sandboxd.v1.PackageService"
_IMAGES: Final = "sandboxd.v1.ImageService"
_BACKUPS: Final = "sandboxd.v1.BackupService"
_AUDIT: Final = "sandboxd.v1.AuditService"
_USAGE: Final = "sandboxd.v1.UsageService"

PERMISSIONS: Final[Mapping[str, Permission]] = {
    f"{_ADMIN}/GetStatus": reads(Scope.PLATFORM, PLATFORM_ONLY),
    f"{_ADMIN}/ListReplicas": reads(Scope.PLATFORM, PLATFORM_ONLY),
    f"{_ADMIN}/SweepNow": changes(Scope.PLATFORM, PLATFORM_ONLY),
    f"{_ADMIN}/DrainReplica": changes(Scope.PLATFORM, PLATFORM_ONLY),
    f"{_ADMIN}/UndrainReplica": changes(Scope.PLATFORM, PLATFORM_ONLY),
    f"{_ADMIN}/ResetCircuit": changes(Scope.PLATFORM, PLATFORM_ONLY),
    f"{_ADMIN}/HoldPushes": changes(Scope.PLATFORM, PLATFORM_ONLY),
    f"{_ADMIN}/ReleasePushes": changes(Scope.PLATFORM, PLATFORM_ONLY),
    f"{_ADMIN}/ListAbandoned": reads(Scope.PLATFORM, PLATFORM_ONLY),
    f"{_ADMIN}/RemoveAbandoned": changes(Scope.PLATFORM, PLATFORM_ONLY),
    f"{_SANDBOXES}/Create": changes(Scope.OWN),
    f"{_SANDBOXES}/Get": reads(Scope.OWN),
    f"{_SANDBOXES}/List": reads(Scope.OWN),
    f"{_SANDBOXES}/Watch": reads(Scope.OWN),
    f"{_SANDBOXES}/Update": changes(Scope.OWN),
    f"{_SANDBOXES}/Pause": changes(Scope.OWN),
    f"{_SANDBOXES}/Resume": changes(Scope.OWN),
    f"{_SANDBOXES}/Commit": changes(Scope.OWN),
    f"{_SANDBOXES}/Terminate": changes(Scope.OWN),
    f"{_SANDBOXES}/Restore": changes(Scope.OWN),
    # The call itself changes nothing; its commands do, one by one, and an auditor may watch only (stream/hub.py).
    f"{_SANDBOXES}/Stream": reads(Scope.OWN),
    f"{_SESSIONS}/ListSessions": reads(Scope.OWN),
    f"{_SESSIONS}/GetSession": reads(Scope.OWN),
    f"{_SESSIONS}/GetHistory": reads(Scope.OWN),
    f"{_SESSIONS}/DeleteSession": changes(Scope.OWN),
    # A client's own budget is set by the platform alone (manager/budgets.py).
    f"{_BUDGETS}/SetBudget": changes(Scope.CLIENT, ADMINS),
    f"{_BUDGETS}/GetBudget": reads(Scope.OWN),
    f"{_BUDGETS}/ListBudgets": reads(Scope.OWN),
    f"{_BUDGETS}/DeleteBudget": changes(Scope.CLIENT, ADMINS),
    f"{_BUDGETS}/RebuildBudgets": changes(Scope.CLIENT, PLATFORM_ONLY),
    f"{_PRICES}/AddPrice": changes(Scope.PLATFORM, PLATFORM_ONLY),
    f"{_PRICES}/EndPrice": changes(Scope.PLATFORM, PLATFORM_ONLY),
    f"{_PRICES}/ListPrices": reads(Scope.PLATFORM, PLATFORM_ONLY),
    f"{_POOLS}/CreatePool": changes(Scope.CLIENT, ADMINS),
    f"{_POOLS}/GetPool": reads(Scope.CLIENT, OVERSEERS),
    f"{_POOLS}/ListPools": reads(Scope.CLIENT, OVERSEERS),
    f"{_POOLS}/UpdatePool": changes(Scope.CLIENT, ADMINS),
    f"{_POOLS}/DeletePool": changes(Scope.CLIENT, ADMINS),
    f"{_PACKAGES}/ListPackages": reads(Scope.OWN),
    f"{_PACKAGES}/ListPackageChanges": reads(Scope.OWN),
    f"{_IMAGES}/ListImages": reads(Scope.OWN),
    f"{_IMAGES}/GetImage": reads(Scope.OWN),
    f"{_IMAGES}/WatchCommit": reads(Scope.OWN),
    f"{_IMAGES}/GetImageSbom": reads(Scope.OWN),
    f"{_IMAGES}/CancelCommit": changes(Scope.OWN),
    f"{_IMAGES}/RollbackImage": changes(Scope.OWN),
    f"{_BACKUPS}/CreateBackup": changes(Scope.OWN),
    f"{_BACKUPS}/GetBackup": reads(Scope.OWN),
    f"{_BACKUPS}/ListBackups": reads(Scope.OWN),
    f"{_BACKUPS}/WatchBackup": reads(Scope.OWN),
    f"{_BACKUPS}/WatchRestore": reads(Scope.OWN),
    f"{_BACKUPS}/CancelRestore": changes(Scope.OWN),
    f"{_BACKUPS}/CancelBackup": changes(Scope.OWN),
    f"{_BACKUPS}/DeleteBackup": changes(Scope.OWN),
    # A drill takes what sandboxes have of nobody's quota; what it says of a client's backups its overseers may read.
    f"{_BACKUPS}/RunDrill": changes(Scope.PLATFORM, PLATFORM_ONLY),
    f"{_BACKUPS}/ListDrills": reads(Scope.PLATFORM, OVERSEERS),
    f"{_IMAGES}/UpgradeImage": changes(Scope.OWN),
    f"{_IMAGES}/PlanImageUpgrade": reads(Scope.OWN),
    f"{_AUDIT}/ListAuditEntries": reads(Scope.PLATFORM, AUDITORS),
    f"{_AUDIT}/VerifyAudit": reads(Scope.PLATFORM, AUDITORS),
    f"{_AUDIT}/ExportAudit": reads(Scope.PLATFORM, AUDITORS),
    f"{_USAGE}/ListUsageEvents": reads(Scope.OWN),
    f"{_USAGE}/SummarizeUsage": reads(Scope.OWN),
    f"{_USAGE}/WatchUsage": reads(Scope.OWN),
    f"{_USAGE}/SummarizeResources": reads(Scope.OWN),
    f"{_CLIENTS}/CreateClient": changes(Scope.PLATFORM, PLATFORM_ONLY),
    f"{_CLIENTS}/GetClient": reads(Scope.PLATFORM, OVERSEERS),
    f"{_CLIENTS}/ListClients": reads(Scope.PLATFORM, PLATFORM_ONLY),
    f"{_CLIENTS}/UpdateClient": changes(Scope.PLATFORM, PLATFORM_ONLY),
    f"{_CLIENTS}/SuspendClient": changes(Scope.PLATFORM, PLATFORM_ONLY),
    f"{_CLIENTS}/ReinstateClient": changes(Scope.PLATFORM, PLATFORM_ONLY),
    f"{_CLIENTS}/CreateFreelancer": changes(Scope.PLATFORM, ADMINS),
    f"{_CLIENTS}/GetFreelancer": reads(Scope.PLATFORM, OVERSEERS),
    f"{_CLIENTS}/ListFreelancers": reads(Scope.PLATFORM, OVERSEERS),
    f"{_CLIENTS}/UpdateFreelancer": changes(Scope.PLATFORM, ADMINS),
    f"{_CLIENTS}/SuspendFreelancer": changes(Scope.PLATFORM, ADMINS),
    f"{_CLIENTS}/ReinstateFreelancer": changes(Scope.PLATFORM, ADMINS),
    f"{_CLIENTS}/DeleteClient": changes(Scope.PLATFORM, PLATFORM_ONLY),
    f"{_CLIENTS}/DeleteFreelancer": changes(Scope.PLATFORM, ADMINS),
    f"{_CLIENTS}/GetErasure": reads(Scope.PLATFORM, OVERSEERS),
    f"{_CLIENTS}/ListErasures": reads(Scope.PLATFORM, OVERSEERS),
    f"{_KEYS}/SetKey": changes(Scope.PLATFORM, ADMINS),
    f"{_KEYS}/RotateKey": changes(Scope.PLATFORM, ADMINS),
    f"{_KEYS}/RevokeKey": changes(Scope.PLATFORM, ADMINS),
    f"{_KEYS}/ListKeys": reads(Scope.PLATFORM, OVERSEERS),
}
"""Full method name, without the leading slash, to its row."""


def permit(method: str, caller: Caller, *, table: Mapping[str, Permission] = PERMISSIONS) -> Permission:
    """Return the row of an RPC, if the caller may call it.

    Raises:
        RoleForbiddenError: Its role may not, or the RPC has no row.
        ClientMissingError: It must act for a client, and names none.
    """
    row = table.get(method)
    if row is None or caller.role not in row.roles:
        raise RoleForbiddenError(method, role=caller.role, allowed=row.roles if row else ())
    if not caller.client and (row.scope is not Scope.PLATFORM or caller.role is not Role.PLATFORM):
        raise ClientMissingError(method)
    return row


def without_row(services: Iterable[ServiceDescriptor]) -> list[str]:
    """Return the RPCs of these services that have no row."""
    return sorted(
        name
        for service in services
        for method in service.methods
        if (name := f"{service.full_name}/{method.name}") not in PERMISSIONS
    )
