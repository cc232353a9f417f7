"""Every RPC, by every role, for things of one's own, of a neighbour, of another client and of nobody.

Whoever adds an RPC adds its case here. The roles stand here a second time on purpose: the permission table is what is
tested.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from typing_extensions import override

from sandboxd.api.grpc.permissions import PERMISSIONS, Scope
from sandboxd.model.caller import Role
from sandboxd.v1 import (
    admin_pb2,
    audit_pb2,
    backup_pb2,
    budget_pb2,
    client_pb2,
    image_pb2,
    key_pb2,
    package_pb2,
    pool_pb2,
    price_pb2,
    sandbox_pb2,
    session_pb2,
    stream_pb2,
    usage_pb2,
)
from tests.integration.access_world import (
    ABSENT,
    CALLERS,
    CLIENT,
    OWN,
    TAKEN,
    TARGETS,
    AccessWorld,
    Answer,
    Caller,
    Target,
    an_access_world,
    backup_of,
    reached,
)
from tests.postgres import PostgresServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

Outcome = tuple[str, str]
P, C, F, A = Role.PLATFORM, Role.CLIENT_ADMIN, Role.FREELANCER, Role.AUDITOR

OK: Outcome = ("OK", "")
TERMINATED: Outcome = ("FAILED_PRECONDITION", "SANDBOX_STATE_INVALID")
NO_SANDBOX: Outcome = ("NOT_FOUND", "SANDBOX_NOT_FOUND")
NO_SESSION: Outcome = ("NOT_FOUND", "SESSION_NOT_FOUND")
NO_BUDGET: Outcome = ("NOT_FOUND", "BUDGET_NOT_FOUND")
NO_POOL: Outcome = ("NOT_FOUND", "POOL_NOT_FOUND")
NO_CHAIN: Outcome = ("NOT_FOUND", "AUDIT_CHAIN_NOT_FOUND")
NO_PRICE: Outcome = ("NOT_FOUND", "PRICE_NOT_FOUND")
ROLE: Outcome = ("PERMISSION_DENIED", "ROLE_FORBIDDEN")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One RPC, or one way to call it."""

    method: str
    ask: Callable[[Target], Message]
    roles: set[Role]
    """Who is let through by the permission table."""
    seen: Outcome = OK
    """The answer about what the caller can see."""
    unseen: Outcome
    """The answer about everything else; OK is a list without it, the same as for what does not exist."""
    shows: Callable[[Target], str] | None = None
    """A name that must be in a good answer, and in no other."""
    until: str = ""
    """Of a stream that goes on: the word that ends the reading."""
    unlike: dict[Role, Outcome] | None = None
    """Roles that the middle answers otherwise, whatever it is about and whoever's it is that they can see."""
    everybody_elses: dict[Role, Outcome] | None = None
    """Roles to which all that is unseen is answered with this, or with what is seen where it makes no difference."""

    @override
    def __str__(self) -> str:
        return self.method.removeprefix("sandboxd.v1.")


def sandbox(target: Target) -> str:
    return f"sandboxes/{target.sandbox}"


def image(target: Target) -> str:
    return f"{sandbox(target)}/images/g000001"


def backup(target: Target) -> str:
    return f"{sandbox(target)}/backups/{backup_of(target.sandbox)}"


def terminated_of(target: Target) -> sandbox_pb2.SandboxFilter:
    return sandbox_pb2.SandboxFilter(freelancer=target.freelancer, states=[sandbox_pb2.SANDBOX_STATE_TERMINATED])


def client(target: Target) -> str:
    return f"clients/{target.client}"


def a_key(target: Target) -> str:
    return f"clients/{target.client}/keys/gemini"


def freelancer(target: Target) -> str:
    return f"clients/{target.client}/freelancers/{target.freelancer}"


def session(target: Target) -> str:
    return f"sandboxes/{target.sandbox}/sessions/{target.session}"


def a_budget(target: Target) -> budget_pb2.Budget:
    return budget_pb2.Budget(sandbox=sandbox(target), period=budget_pb2.BUDGET_PERIOD_DAY, tokens=10**9)


def a_price(target: Target) -> price_pb2.Price:
    return price_pb2.Price(model=target.request_id, currency="USD", rates=[price_pb2.Rates(input=1)])


D = "sandboxd.v1.AdminService"
B, R = "sandboxd.v1.BudgetService", "sandboxd.v1.PriceService"
L, W = "sandboxd.v1.AuditService", "sandboxd.v1.PoolService"
S, N, U = "sandboxd.v1.SandboxService", "sandboxd.v1.SessionService", "sandboxd.v1.UsageService"
G, V = "sandboxd.v1.PackageService", "sandboxd.v1.ImageService"
X = "sandboxd.v1.BackupService"
BACKUPS_OFF: Outcome = ("FAILED_PRECONDITION", "BACKUPS_OFF")
K, Y = "sandboxd.v1.ClientService", "sandboxd.v1.KeyService"
NO_CLIENT: Outcome = ("NOT_FOUND", "CLIENT_NOT_FOUND")
NO_FREELANCER: Outcome = ("NOT_FOUND", "FREELANCER_NOT_FOUND")
STALE: Outcome = ("ABORTED", "ETAG_STALE")
REUSED: Outcome = ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
EVERYBODY = {P, C, F, A}
WRITERS = {P, C, F}

CASES = [
    Case(method=f"{D}/GetStatus", ask=lambda _: admin_pb2.GetStatusRequest(), roles={P}, unseen=OK),
    Case(method=f"{D}/ListReplicas", ask=lambda _: admin_pb2.ListReplicasRequest(), roles={P}, unseen=OK),
    Case(
        method=f"{D}/SweepNow",
        ask=lambda t: admin_pb2.SweepNowRequest(request_id=t.request_id, sweeps=[admin_pb2.SWEEP_RETENTION]),
        roles={P},
        unseen=OK,
    ),
    Case(
        method=f"{D}/DrainReplica",
        ask=lambda t: admin_pb2.DrainReplicaRequest(request_id=t.request_id),
        roles={P},
        unseen=OK,
    ),
    Case(  # after the drain, for the cases that follow
        method=f"{D}/UndrainReplica",
        ask=lambda t: admin_pb2.UndrainReplicaRequest(request_id=t.request_id),
        roles={P},
        unseen=OK,
    ),
    Case(
        method=f"{D}/HoldPushes",
        ask=lambda t: admin_pb2.HoldPushesRequest(request_id=t.request_id, holder="h", span=Duration(seconds=60)),
        roles={P},
        unseen=OK,
    ),
    Case(
        method=f"{D}/ReleasePushes",
        ask=lambda t: admin_pb2.ReleasePushesRequest(request_id=t.request_id, holder="h"),
        roles={P},
        unseen=OK,
    ),
    Case(method=f"{D}/ListAbandoned", ask=lambda _: admin_pb2.ListAbandonedRequest(), roles={P}, unseen=OK),
    Case(
        method=f"{D}/RemoveAbandoned",
        ask=lambda t: admin_pb2.RemoveAbandonedRequest(
            request_id=t.request_id, kind=admin_pb2.ABANDONED_KIND_VOLUME, name="none"
        ),
        roles={P},
        seen=("NOT_FOUND", "NOT_ABANDONED"),
        unseen=("NOT_FOUND", "NOT_ABANDONED"),
    ),
    Case(
        method=f"{D}/ResetCircuit",
        ask=lambda t: admin_pb2.ResetCircuitRequest(request_id=t.request_id),
        roles={P},
        unseen=OK,
    ),
    Case(
        method=f"{S}/Create",
        # Whoever creates names a freelancer; a freelancer only itself. The id was used before, so nothing is made.
        ask=lambda t: sandbox_pb2.CreateRequest(request_id=TAKEN, sandbox=sandbox_pb2.Sandbox(freelancer=t.freelancer)),
        roles=WRITERS,
        seen=("INVALID_ARGUMENT", "REQUEST_ID_REUSED"),
        unseen=("INVALID_ARGUMENT", "REQUEST_ID_REUSED"),
        everybody_elses={F: ("PERMISSION_DENIED", "FORBIDDEN")},
    ),
    Case(
        method=f"{S}/Get",
        ask=lambda t: sandbox_pb2.GetRequest(name=sandbox(t)),
        roles=EVERYBODY,
        unseen=NO_SANDBOX,
        shows=lambda t: t.sandbox,
    ),
    Case(
        method=f"{G}/ListPackages",
        ask=lambda t: package_pb2.ListPackagesRequest(sandbox=sandbox(t)),
        roles=EVERYBODY,
        seen=("FAILED_PRECONDITION", "SANDBOX_NOT_RUNNING"),
        unseen=NO_SANDBOX,
    ),
    Case(
        method=f"{G}/ListPackageChanges",
        ask=lambda t: package_pb2.ListPackageChangesRequest(sandbox=sandbox(t)),
        roles=EVERYBODY,
        unseen=NO_SANDBOX,
    ),
    Case(
        method=f"{V}/ListImages",
        ask=lambda t: image_pb2.ListImagesRequest(sandbox=sandbox(t)),
        roles=EVERYBODY,
        unseen=NO_SANDBOX,
        shows=image,
    ),
    Case(
        method=f"{V}/GetImage",
        ask=lambda t: image_pb2.GetImageRequest(name=image(t)),
        roles=EVERYBODY,
        unseen=NO_SANDBOX,
        shows=image,
    ),
    Case(
        method=f"{V}/WatchCommit",  # of one that has ended: one message
        ask=lambda t: image_pb2.WatchCommitRequest(name=image(t)),
        roles=EVERYBODY,
        unseen=NO_SANDBOX,
        shows=image,
    ),
    Case(
        method=f"{V}/GetImageSbom",
        ask=lambda t: image_pb2.GetImageSbomRequest(name=image(t)),
        roles=EVERYBODY,
        seen=("FAILED_PRECONDITION", "CAPTURE_UNSUPPORTED"),
        unseen=NO_SANDBOX,
    ),
    Case(
        method=f"{V}/CancelCommit",
        ask=lambda t: image_pb2.CancelCommitRequest(request_id=t.request_id, name=image(t)),
        roles=WRITERS,
        seen=("FAILED_PRECONDITION", "COMMIT_ENDED"),
        unseen=NO_SANDBOX,
    ),
    Case(
        method=f"{V}/RollbackImage",
        ask=lambda t: image_pb2.RollbackImageRequest(request_id=t.request_id, name=image(t)),
        roles=WRITERS,
        seen=("FAILED_PRECONDITION", "CAPTURE_UNSUPPORTED"),
        unseen=NO_SANDBOX,
    ),
    Case(
        method=f"{V}/UpgradeImage",
        ask=lambda t: image_pb2.UpgradeImageRequest(request_id=t.request_id, sandbox=sandbox(t)),
        roles=WRITERS,
        seen=("FAILED_PRECONDITION", "CAPTURE_UNSUPPORTED"),
        unseen=NO_SANDBOX,
    ),
    Case(
        method=f"{V}/PlanImageUpgrade",
        ask=lambda t: image_pb2.PlanImageUpgradeRequest(sandbox=sandbox(t)),
        roles=EVERYBODY,
        seen=("FAILED_PRECONDITION", "CAPTURE_UNSUPPORTED"),
        unseen=NO_SANDBOX,
    ),
    Case(
        method=f"{S}/List",
        ask=lambda t: sandbox_pb2.ListRequest(filter=terminated_of(t)),
        roles=EVERYBODY,
        unseen=OK,
        shows=lambda t: t.sandbox,
    ),
    Case(
        method=f"{S}/Watch",
        ask=lambda t: sandbox_pb2.WatchRequest(filter=terminated_of(t)),
        roles=EVERYBODY,
        unseen=OK,
        shows=lambda t: t.sandbox,
        until="CHANGE_SYNCED",
    ),
    Case(
        method=f"{S}/Update",
        ask=lambda t: sandbox_pb2.UpdateRequest(
            request_id=t.request_id,
            sandbox=sandbox_pb2.Sandbox(name=sandbox(t), display_name="new"),
            update_mask=FieldMask(paths=["display_name"]),
        ),
        roles=WRITERS,
        seen=TERMINATED,
        unseen=NO_SANDBOX,
    ),
    *[
        Case(
            method=f"{S}/{name}",
            ask=lambda t, kind=kind: kind(request_id=t.request_id, name=sandbox(t)),  # type: ignore[misc]  # of a loop
            roles=WRITERS,
            seen=seen,
            unseen=NO_SANDBOX,
        )
        for name, kind, seen in (
            ("Pause", sandbox_pb2.PauseRequest, TERMINATED),
            ("Resume", sandbox_pb2.ResumeRequest, TERMINATED),
            ("Terminate", sandbox_pb2.TerminateRequest, TERMINATED),
            ("Commit", sandbox_pb2.CommitRequest, ("FAILED_PRECONDITION", "CAPTURE_UNSUPPORTED")),
            ("Restore", sandbox_pb2.RestoreRequest, BACKUPS_OFF),
        )
    ],
    Case(
        method=f"{S}/Stream",  # a new session
        ask=lambda t: stream_pb2.StreamRequest(request_id=t.request_id, open=stream_pb2.Open(sandbox=sandbox(t))),
        roles=EVERYBODY,
        seen=TERMINATED,
        unseen=NO_SANDBOX,
        unlike={A: ("PERMISSION_DENIED", "FORBIDDEN")},
    ),
    Case(
        method=f"{S}/Stream",  # a session that is there
        ask=lambda t: stream_pb2.StreamRequest(open=stream_pb2.Open(sandbox=sandbox(t), session=session(t))),
        roles=EVERYBODY,
        unseen=NO_SANDBOX,
        shows=lambda t: t.session,
        until="streamReady",
        unlike={A: ("PERMISSION_DENIED", "FORBIDDEN")},
    ),
    Case(
        method=f"{S}/Stream",  # watching one
        ask=lambda t: stream_pb2.StreamRequest(
            open=stream_pb2.Open(sandbox=sandbox(t), session=session(t), watch_only=True)
        ),
        roles=EVERYBODY,
        unseen=NO_SANDBOX,
        shows=lambda t: t.session,
        until="streamReady",
    ),
    Case(
        method=f"{N}/ListSessions",
        ask=lambda t: session_pb2.ListSessionsRequest(sandbox=sandbox(t), page_size=1000),
        roles=EVERYBODY,
        unseen=NO_SANDBOX,
        shows=lambda t: t.session,
    ),
    Case(
        method=f"{N}/GetSession",
        ask=lambda t: session_pb2.GetSessionRequest(name=session(t)),
        roles=EVERYBODY,
        unseen=NO_SESSION,
        shows=lambda t: t.session,
    ),
    Case(
        method=f"{N}/GetHistory",
        ask=lambda t: session_pb2.GetHistoryRequest(name=session(t)),
        roles=EVERYBODY,
        unseen=NO_SESSION,
        shows=lambda t: f"title of {t.session}",
    ),
    Case(
        method=f"{N}/DeleteSession",
        ask=lambda t: session_pb2.DeleteSessionRequest(request_id=t.request_id, name=session(t)),
        roles=WRITERS,
        unseen=NO_SESSION,
    ),
    Case(
        method=f"{B}/SetBudget",
        ask=lambda t: budget_pb2.SetBudgetRequest(request_id=t.request_id, budget=a_budget(t)),
        roles={P, C},
        unseen=NO_SANDBOX,
        shows=lambda t: t.budget,
    ),
    Case(
        method=f"{B}/GetBudget",
        ask=lambda t: budget_pb2.GetBudgetRequest(name=f"budgets/{t.budget}"),
        roles=EVERYBODY,
        unseen=NO_BUDGET,
        shows=lambda t: t.budget,
    ),
    Case(
        method=f"{B}/ListBudgets",
        ask=lambda t: budget_pb2.ListBudgetsRequest(sandbox=sandbox(t)),
        roles=EVERYBODY,
        unseen=OK,
        shows=lambda t: t.budget,
    ),
    Case(
        method=f"{B}/DeleteBudget",
        ask=lambda t: budget_pb2.DeleteBudgetRequest(request_id=t.request_id, name=f"budgets/{t.budget}"),
        roles={P, C},
        unseen=NO_BUDGET,
    ),
    Case(
        method=f"{B}/RebuildBudgets",  # of the caller's own client, whatever the target
        ask=lambda t: budget_pb2.RebuildBudgetsRequest(request_id=t.request_id),
        roles={P},
        unseen=OK,
    ),
    Case(
        method=f"{W}/CreatePool",  # of the caller's own client, whatever the target
        ask=lambda _: pool_pb2.CreatePoolRequest(request_id=TAKEN, pool=pool_pb2.Pool(target=0)),
        roles={P, C},
        seen=REUSED,
        unseen=REUSED,
    ),
    Case(
        method=f"{W}/GetPool",
        ask=lambda t: pool_pb2.GetPoolRequest(name=f"pools/{t.pool}"),
        roles={P, C, A},
        unseen=NO_POOL,
        shows=lambda t: t.pool,
    ),
    Case(
        method=f"{W}/ListPools",  # of the caller's own client, whatever the target
        ask=lambda _: pool_pb2.ListPoolsRequest(),
        roles={P, C, A},
        unseen=OK,
    ),
    Case(
        method=f"{W}/UpdatePool",
        ask=lambda t: pool_pb2.UpdatePoolRequest(
            request_id=t.request_id,
            pool=pool_pb2.Pool(name=f"pools/{t.pool}", max=0),
            update_mask=FieldMask(paths=["max"]),
        ),
        roles={P, C},
        unseen=NO_POOL,
        shows=lambda t: t.pool,
    ),
    Case(
        method=f"{W}/DeletePool",
        ask=lambda t: pool_pb2.DeletePoolRequest(request_id=t.request_id, name=f"pools/{t.pool}"),
        roles={P, C},
        unseen=NO_POOL,
    ),
    Case(
        method=f"{R}/AddPrice",
        ask=lambda t: price_pb2.AddPriceRequest(request_id=t.request_id, price=a_price(t)),
        roles={P},
        unseen=OK,
    ),
    Case(
        method=f"{R}/EndPrice",
        ask=lambda t: price_pb2.EndPriceRequest(request_id=t.request_id, name="prices/none"),
        roles={P},
        seen=NO_PRICE,
        unseen=NO_PRICE,
    ),
    Case(
        method=f"{L}/ListAuditEntries",
        ask=lambda t: audit_pb2.ListAuditEntriesRequest(chain=f"clients/{t.client}"),
        roles={P, C, A},
        unseen=NO_CHAIN,
        everybody_elses={P: OK},  # the chain of a client that did nothing is empty
    ),
    Case(
        method=f"{L}/VerifyAudit",
        ask=lambda t: audit_pb2.VerifyAuditRequest(chain=f"clients/{t.client}"),
        roles={P, C, A},
        unseen=NO_CHAIN,
        everybody_elses={P: OK},  # the chain of a client that did nothing is empty
    ),
    Case(
        method=f"{L}/ExportAudit",
        ask=lambda t: audit_pb2.ExportAuditRequest(chain=f"clients/{t.client}"),
        roles={P, C, A},
        unseen=NO_CHAIN,
        everybody_elses={P: OK},  # the chain of a client that did nothing is empty
    ),
    Case(method=f"{R}/ListPrices", ask=lambda t: price_pb2.ListPricesRequest(), roles={P}, unseen=OK),
    Case(
        method=f"{U}/ListUsageEvents",
        ask=lambda t: usage_pb2.ListUsageEventsRequest(filter=usage_pb2.UsageFilter(sandbox=sandbox(t))),
        roles=EVERYBODY,
        unseen=OK,
        shows=lambda t: t.sandbox,
    ),
    Case(
        method=f"{U}/SummarizeUsage",
        ask=lambda t: usage_pb2.SummarizeUsageRequest(
            filter=usage_pb2.UsageFilter(freelancer=t.freelancer), group_by=[usage_pb2.USAGE_DIMENSION_SANDBOX]
        ),
        roles=EVERYBODY,
        unseen=OK,
        shows=lambda t: t.sandbox,
    ),
    Case(
        method=f"{K}/CreateClient",
        ask=lambda t: client_pb2.CreateClientRequest(request_id=TAKEN, client_id=t.client),
        roles={P},
        seen=REUSED,
        unseen=REUSED,
    ),
    Case(
        method=f"{K}/GetClient",
        ask=lambda t: client_pb2.GetClientRequest(name=client(t)),
        roles={P, C, A},
        unseen=NO_CLIENT,
        shows=client,
    ),
    Case(
        method=f"{K}/ListClients",
        ask=lambda t: client_pb2.ListClientsRequest(),
        roles={P},
        unseen=OK,
        shows=client,
    ),
    Case(
        method=f"{K}/UpdateClient",
        ask=lambda t: client_pb2.UpdateClientRequest(
            request_id=t.request_id,
            client=client_pb2.Client(name=client(t), etag="stale"),
            update_mask=FieldMask(paths=["display_name"]),
        ),
        roles={P},
        seen=STALE,
        unseen=NO_CLIENT,
    ),
    *[
        Case(
            method=f"{K}/{name}",
            ask=lambda t, kind=kind: kind(request_id=t.request_id, name=client(t), etag="stale"),  # type: ignore[misc]
            roles={P},
            seen=STALE,
            unseen=NO_CLIENT,
        )
        for name, kind in (
            ("SuspendClient", client_pb2.SuspendClientRequest),
            ("ReinstateClient", client_pb2.ReinstateClientRequest),
        )
    ],
    Case(
        method=f"{K}/CreateFreelancer",
        ask=lambda t: client_pb2.CreateFreelancerRequest(
            request_id=TAKEN, parent=client(t), freelancer_id=t.freelancer
        ),
        roles={P, C},
        seen=REUSED,
        unseen=NO_CLIENT,
        everybody_elses={P: REUSED},
    ),
    Case(
        method=f"{K}/GetFreelancer",
        ask=lambda t: client_pb2.GetFreelancerRequest(name=freelancer(t)),
        roles={P, C, A},
        unseen=NO_CLIENT,
        everybody_elses={P: NO_FREELANCER},
        shows=freelancer,
    ),
    Case(
        method=f"{K}/ListFreelancers",
        ask=lambda t: client_pb2.ListFreelancersRequest(parent=client(t)),
        roles={P, C, A},
        unseen=NO_CLIENT,
        shows=freelancer,
    ),
    Case(
        method=f"{K}/UpdateFreelancer",
        ask=lambda t: client_pb2.UpdateFreelancerRequest(
            request_id=t.request_id,
            freelancer=client_pb2.Freelancer(name=freelancer(t), etag="stale"),
            update_mask=FieldMask(paths=["display_name"]),
        ),
        roles={P, C},
        seen=STALE,
        unseen=NO_CLIENT,
        everybody_elses={P: NO_FREELANCER},
    ),
    Case(
        method=f"{K}/DeleteClient",
        ask=lambda t: client_pb2.DeleteClientRequest(request_id=t.request_id, name=client(t), etag="stale"),
        roles={P},
        seen=STALE,
        unseen=NO_CLIENT,
    ),
    Case(
        method=f"{K}/GetErasure",
        ask=lambda t: client_pb2.GetErasureRequest(name=f"{client(t)}/erasures/era-that-is-not-there"),
        roles={P, C, A},
        seen=("NOT_FOUND", "ERASURE_NOT_FOUND"),
        unseen=("NOT_FOUND", "ERASURE_NOT_FOUND"),
    ),
    Case(
        method=f"{K}/ListErasures",
        ask=lambda t: client_pb2.ListErasuresRequest(parent=client(t)),
        roles={P, C, A},
        unseen=NO_CLIENT,
    ),
    *[
        Case(
            method=f"{Y}/{name}",
            ask=lambda t, ask=ask: ask(t),  # type: ignore[misc]  # of a loop
            roles={P, C},
            seen=REUSED,
            unseen=NO_CLIENT,
            everybody_elses={P: REUSED},
        )
        for name, ask in (
            ("SetKey", lambda t: key_pb2.SetKeyRequest(request_id=TAKEN, name=a_key(t), key="a-key-of-tests")),
            ("RotateKey", lambda t: key_pb2.RotateKeyRequest(request_id=TAKEN, name=a_key(t), key="a-key-of-tests")),
            ("RevokeKey", lambda t: key_pb2.RevokeKeyRequest(request_id=TAKEN, name=a_key(t))),
        )
    ],
    Case(
        method=f"{Y}/ListKeys",
        ask=lambda t: key_pb2.ListKeysRequest(parent=client(t)),
        roles={P, C, A},
        unseen=NO_CLIENT,
    ),
    *[
        Case(
            method=f"{K}/{name}",
            ask=lambda t, kind=kind: kind(request_id=t.request_id, name=freelancer(t), etag="stale"),  # type: ignore[misc]
            roles={P, C},
            seen=STALE,
            unseen=NO_CLIENT,
            everybody_elses={P: NO_FREELANCER},
        )
        for name, kind in (
            ("SuspendFreelancer", client_pb2.SuspendFreelancerRequest),
            ("ReinstateFreelancer", client_pb2.ReinstateFreelancerRequest),
            ("DeleteFreelancer", client_pb2.DeleteFreelancerRequest),
        )
    ],
]


CASES += [
    Case(
        method=f"{X}/CreateBackup",
        ask=lambda t: backup_pb2.CreateBackupRequest(request_id=t.request_id, sandbox=sandbox(t)),
        roles=WRITERS,
        seen=BACKUPS_OFF,
        unseen=NO_SANDBOX,
    ),
    Case(
        method=f"{X}/GetBackup",
        ask=lambda t: backup_pb2.GetBackupRequest(name=backup(t)),
        roles=EVERYBODY,
        unseen=NO_SANDBOX,
        shows=backup,
    ),
    Case(
        method=f"{X}/ListBackups",
        ask=lambda t: backup_pb2.ListBackupsRequest(sandbox=sandbox(t)),
        roles=EVERYBODY,
        unseen=NO_SANDBOX,
        shows=backup,
    ),
    Case(
        method=f"{X}/WatchBackup",  # of one that has ended: one message
        ask=lambda t: backup_pb2.WatchBackupRequest(name=backup(t)),
        roles=EVERYBODY,
        unseen=NO_SANDBOX,
        shows=backup,
    ),
    Case(
        method=f"{X}/WatchRestore",
        ask=lambda t: backup_pb2.WatchRestoreRequest(sandbox=sandbox(t)),
        roles=EVERYBODY,
        seen=("FAILED_PRECONDITION", "RESTORE_NOT_RUNNING"),
        unseen=NO_SANDBOX,
    ),
    Case(
        method=f"{X}/CancelRestore",
        ask=lambda t: backup_pb2.CancelRestoreRequest(request_id=t.request_id, sandbox=sandbox(t)),
        roles=WRITERS,
        seen=("FAILED_PRECONDITION", "RESTORE_NOT_RUNNING"),
        unseen=NO_SANDBOX,
    ),
    Case(
        method=f"{X}/CancelBackup",
        ask=lambda t: backup_pb2.CancelBackupRequest(request_id=t.request_id, name=backup(t)),
        roles=WRITERS,
        seen=("FAILED_PRECONDITION", "BACKUP_ENDED"),
        unseen=NO_SANDBOX,
    ),
    Case(
        method=f"{X}/DeleteBackup",
        ask=lambda t: backup_pb2.DeleteBackupRequest(request_id=t.request_id, name=backup(t)),
        roles=WRITERS,
        seen=BACKUPS_OFF,
        unseen=NO_SANDBOX,
    ),
    Case(
        method=f"{X}/RunDrill",
        ask=lambda t: backup_pb2.RunDrillRequest(request_id=t.request_id),
        roles={P},
        seen=BACKUPS_OFF,
        unseen=BACKUPS_OFF,
    ),
    Case(method=f"{X}/ListDrills", ask=lambda _: backup_pb2.ListDrillsRequest(), roles={P, C, A}, unseen=OK),
    Case(
        method=f"{U}/WatchUsage",
        ask=lambda t: usage_pb2.WatchUsageRequest(filter=usage_pb2.UsageFilter(sandbox=sandbox(t)), cursor="1.1."),
        roles=EVERYBODY,
        unseen=OK,
        shows=lambda t: t.sandbox,
        until="totals",
    ),
    Case(
        method=f"{U}/SummarizeResources",
        ask=lambda t: usage_pb2.SummarizeResourcesRequest(
            kind=usage_pb2.RESOURCE_KIND_STORAGE,
            freelancer=t.freelancer,
            group_by=[usage_pb2.RESOURCE_DIMENSION_SANDBOX],
        ),
        roles=EVERYBODY,
        unseen=OK,
        shows=lambda t: t.sandbox,
    ),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[AccessWorld]:
    name = await postgres_server.clone()
    async with an_access_world(tmp_path_factory.mktemp("access"), postgres_server.url(name)) as made:
        yield made
    await postgres_server.drop(name)


async def test_every_rpc_has_a_case() -> None:
    missing = set(PERMISSIONS) - {case.method for case in CASES}

    assert not missing, "add a case for each of them to tests/integration/test_access_matrix.py"


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_each_role_reaches_what_it_may_and_nothing_else(world: AccessWorld, case: Case) -> None:
    wrong = []
    for caller in CALLERS:
        unseen: dict[str, str] = {}
        for name in TARGETS:
            target = await world.target(name)
            answer = await world.ask(case.method, case.ask(target), caller, until=case.until)
            expected = expect(case, caller, name)
            if answer.outcome != expected:
                wrong.append(f"{caller.name} asks for {name}: {answer.outcome}, not {expected} ({answer.shown})")
            wrong += wrongly_shown(case, caller, name, target, answer)
            if caller.role not in case.roles or not reached(case.method, caller, name):
                unseen[name] = target.without_names(answer.shown)
        # What is somebody else's looks like what does not exist, to the letter.
        wrong += [
            f"{caller.name} can tell {name} from what does not exist: {shown} / {unseen[ABSENT]}"
            for name, shown in unseen.items()
            if shown != unseen[ABSENT]
        ]

    assert wrong == []


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_who_proves_nothing_or_acts_for_nobody_reaches_nothing(world: AccessWorld, case: Case) -> None:
    request = case.ask(await world.target(OWN))
    for_nobody = Caller(name="platform for nobody", role=P, claims={"sub": "svc"})
    of_another = Caller(
        name="admin", role=C, claims={"sub": "boss", "client": CLIENT}, metadata=_for_client("other-inc")
    )

    assert (await world.ask(case.method, request, None)).outcome == ("UNAUTHENTICATED", "TOKEN_MISSING")
    assert (await world.ask(case.method, request, of_another)).outcome == ("PERMISSION_DENIED", "CLIENT_MISMATCH")
    if PERMISSIONS[case.method].scope is not Scope.PLATFORM:
        assert (await world.ask(case.method, request, for_nobody)).outcome == ("PERMISSION_DENIED", "CLIENT_MISSING")


def expect(case: Case, caller: Caller, target: str) -> Outcome:
    if caller.role not in case.roles:
        return ROLE
    if reached(case.method, caller, target):
        return (case.unlike or {}).get(caller.role, case.seen)
    return (case.everybody_elses or {}).get(caller.role, case.unseen)


def wrongly_shown(case: Case, caller: Caller, name: str, target: Target, answer: Answer) -> list[str]:
    if case.shows is None or answer.outcome != OK:
        return []
    shown = case.shows(target) in answer.shown
    may = reached(case.method, caller, name)
    return [f"{caller.name} asks for {name}: shown {shown}, not {may} ({answer.shown})"] if shown != may else []


def _for_client(name: str) -> tuple[tuple[str, str], ...]:
    return (("x-sandboxd-client", name),)
