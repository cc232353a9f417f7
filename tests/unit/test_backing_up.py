"""The operator's part of a backup: which pod and where, when the next one, and what their ends say of the work."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sandboxd.model.backup import BackupSetId, SnapshotId, Volume
from sandboxd.model.cluster import KEPT_LABEL, SANDBOX_LABEL, Mode, claims_of, sandbox_resource
from sandboxd.model.cluster_backup import (
    ATTEMPTS,
    BACKUP_CONTAINER,
    BACKUP_LABEL,
    KEPT,
    VERDICT_STATUS,
    BackupAction,
    BackupState,
    BackupWorkStatus,
    PlacedBackup,
    backup_resource,
)
from sandboxd.model.cluster_status import Reason
from sandboxd.operator.backing_up import (
    OUT_OF_TIME,
    UNSET,
    BackupWorld,
    conclude_backup,
    plan_backup,
    wants_attempt,
)
from sandboxd.operator.backup_shape import BackupAccess, BackupMeans, backup_pod
from sandboxd.operator.builders import Json
from sandboxd.operator.kinds import Kind
from sandboxd.operator.observed import Refusal
from sandboxd.operator.plan import Create, Delete, Wave
from sandboxd.operator.template import AgentDelivery
from sandboxd.operator.tenancy import Allowed, Network, namespace_objects
from tests.operator_world import INSTANCE, NAMESPACE, SANDBOX, SETTINGS, TEMPLATE, UID, a_namespace, a_spec, bound, seen
from tests.operator_world import a_pod as a_sandbox_pod

S, R = BackupState, Reason
NAME = "backup-bak-01jd0000000000000000000009"
WORK_UID, POD_UID = "uid-work", "uid-work-pod"
MADE = datetime(2026, 1, 1, tzinfo=UTC)
SOON = MADE + timedelta(seconds=10)
HOUR = timedelta(hours=1)
TAKE = PlacedBackup(
    action=BackupAction.TAKE,
    deadline=HOUR,
    template="default",
    sandbox=SANDBOX,
    backup=BackupSetId("bak-01jd0000000000000000000009"),
)
RESTORE = PlacedBackup(
    action=BackupAction.RESTORE,
    deadline=HOUR,
    template="default",
    sandbox=SANDBOX,
    snapshots={Volume.HOME: SnapshotId("a" * 64)},
    paths={Volume.HOME: (b"notes/\xff", b"src")},
    sizes={Volume.HOME: "2G", Volume.WORKSPACE: "8G"},
)
COMPARE = PlacedBackup(
    action=BackupAction.COMPARE,
    deadline=HOUR,
    template="default",
    sandbox=SANDBOX,
    snapshots={Volume.HOME: SnapshotId("a" * 64), Volume.WORKSPACE: SnapshotId("b" * 64)},
)
FORGET = PlacedBackup(action=BackupAction.FORGET, deadline=HOUR, template="default", sets=(TAKE.backup,), prune=True)
VERIFY = PlacedBackup(action=BackupAction.VERIFY, deadline=HOUR, template="default", content=True)
DESTROY = PlacedBackup(action=BackupAction.DESTROY, deadline=HOUR, template="default")
MEANS = BackupMeans(
    image="registry.example/server@sha256:3",
    location="s3:http://10.0.0.9:9000/backups/all",
    credentials=lambda: b"keys",
    upload_kibibytes=512,
)
ACCESS = BackupAccess(location="s3:http://10.0.0.9:9000/backups/all/acme", password=b"secret", credentials=b"keys")
WITH_BACKUPS = replace(SETTINGS, backups=MEANS)


def a_work(work: PlacedBackup = TAKE, *, status: BackupWorkStatus | None = None, **metadata: Any) -> Json:
    made = backup_resource(NAME, work, namespace=NAMESPACE, instance=INSTANCE)
    found = seen(made, uid=WORK_UID, creationTimestamp="2026-01-01T00:00:00Z", **metadata)
    return found if status is None else {**found, "status": status.as_mapping()}


def a_sandbox(*, mode: Mode = Mode.RUNNING) -> Json:
    made = seen(sandbox_resource(SANDBOX, a_spec(mode=mode), namespace=NAMESPACE, instance=INSTANCE), uid=UID)
    return {**made, "status": bound(node="node7").as_mapping()}


def a_claim(volume: Volume, **metadata: Any) -> Json:
    name = claims_of(SANDBOX)[volume.value]
    return {"metadata": {"name": name, "namespace": NAMESPACE, **metadata}, "status": {"phase": "Bound"}}


CLAIMS = {volume: a_claim(volume) for volume in Volume}


def a_world(work: PlacedBackup = TAKE, *, status: BackupWorkStatus | None = None, **changes: Any) -> BackupWorld:
    made = BackupWorld(
        resource=a_work(work, status=status),
        template=TEMPLATE,
        sandbox=a_sandbox(),
        sandbox_pod=a_sandbox_pod(),
        claims=CLAIMS,
        attempt=0 if status is None else status.attempts,
    )
    return replace(made, **changes)


def the_pod(work: PlacedBackup = TAKE, *, attempt: int = 1, node: str = "node1") -> Json:
    return backup_pod(
        NAME,
        attempt,
        work,
        TEMPLATE,
        MEANS,
        namespace=NAMESPACE,
        uid=WORK_UID,
        instance=INSTANCE,
        node=node,
        last_node="node7",
        left=HOUR,
    )


def a_pod(state: Mapping[str, Any] | None = None, *, status: Mapping[str, Any] | None = None, **metadata: Any) -> Json:
    made = seen(the_pod(), uid=POD_UID, **metadata)
    container = {"name": BACKUP_CONTAINER, "state": dict(state or {}), "restartCount": 0}
    conditions = [{"type": "PodScheduled", "status": "True"}]
    whole = {"phase": "Running", "conditions": conditions, "containerStatuses": [container], **(status or {})}
    return {**made, "status": whole}


def ends(code: int, message: str = "", reason: str = "Error", **changes: Any) -> Json:
    return a_pod({"terminated": {"exitCode": code, "reason": reason, "message": message}}, **changes)


def waits(reason: str, message: str = "") -> Json:
    return a_pod({"waiting": {"reason": reason, "message": message}})


def at(pod: Json, *, attempt: int = 1, **status: Any) -> BackupWorld:
    return a_world(pod=pod, attempt=attempt, status=BackupWorkStatus(attempts=attempt, pod_uid=POD_UID, **status))


def steps(waves: Sequence[Wave]) -> list[Any]:
    return [step for wave in waves for step in wave]


def planned(world: BackupWorld, *, now: datetime = SOON, access: BackupAccess | None = ACCESS) -> list[Any]:
    return steps(plan_backup(world, WITH_BACKUPS, access, now=now))


VERDICT = json.dumps({"reason": "BACKUP_STORAGE_FULL", "message": "There is no room."})
RESULT = json.dumps({"entries": 1, "bytes": 2})
UNPLACED = a_pod(
    status={"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes"}]}
)
NOBODYS = a_pod()
NOBODYS["metadata"]["ownerReferences"] = []
TABLE = {
    "nothing is there": (a_world(), S.WAITING, R.NOT_CREATED.value),
    "the quota is spent": (
        a_world(refusals=[Refusal(kind=Kind.POD, status=403, message="exceeded quota: sandboxd")]),
        S.WAITING,
        R.QUOTA_EXCEEDED.value,
    ),
    "there is no template": (a_world(template=None), S.WAITING, R.TEMPLATE_MISSING.value),
    "a volume is not there": (a_world(claims={}), S.WAITING, R.VOLUME_LOST.value),
    "a claim is being deleted": (
        a_world(claims={**CLAIMS, Volume.HOME: a_claim(Volume.HOME, deletionTimestamp="2026-01-01T00:00:00Z")}),
        S.WAITING,
        R.VOLUME_PENDING.value,
    ),
    "a volume behind its claim is gone": (
        a_world(RESTORE, claims={**CLAIMS, Volume.HOME: {**a_claim(Volume.HOME), "status": {"phase": "Lost"}}}),
        S.WAITING,
        R.VOLUME_LOST.value,
    ),
    "it is to be restored and runs": (a_world(RESTORE), S.WAITING, R.STOPPING.value),
    "it is to be compared and runs": (a_world(COMPARE), S.WAITING, R.STOPPING.value),
    "what is to be compared is not there": (
        a_world(COMPARE, sandbox=None, sandbox_pod=None, claims={}),
        S.WAITING,
        R.VOLUME_LOST.value,
    ),
    "it is to be restored and its pod ends": (
        a_world(RESTORE, sandbox=a_sandbox(mode=Mode.STOPPED)),
        S.WAITING,
        R.STOPPING.value,
    ),
    "the client has no repository": (a_world(VERIFY, nothing_there=True), S.DONE, R.AS_DESIRED.value),
    "no node has room": (at(UNPLACED), S.WAITING, R.UNSCHEDULABLE.value),
    "the container is being made": (at(waits("ContainerCreating")), S.WAITING, R.STARTING.value),
    "its image is not there": (at(waits("ErrImagePull", "not found")), S.WAITING, R.IMAGE_MISSING.value),
    "its registry is away": (
        at(waits("ImagePullBackOff", "dial tcp: connection refused")),
        S.WAITING,
        R.REGISTRY_UNAVAILABLE.value,
    ),
    "its Secret is gone": (at(waits("CreateContainerConfigError", "no secret")), S.WAITING, R.CONTAINER_FAILED.value),
    "it runs": (at(a_pod({"running": {}})), S.RUNNING, R.STARTING.value),
    "it is done": (at(ends(0, RESULT, "Completed")), S.DONE, R.AS_DESIRED.value),
    "it ends without a result": (at(ends(0, "", "Completed")), S.WAITING, R.CONTAINER_FAILED.value),
    "it cannot be done": (at(ends(VERDICT_STATUS, VERDICT)), S.FAILED, "BACKUP_STORAGE_FULL"),
    "a verdict that is none": (at(ends(VERDICT_STATUS, "Traceback")), S.WAITING, R.CONTAINER_FAILED.value),
    "a verdict with a word of its own": (
        at(ends(VERDICT_STATUS, json.dumps({"reason": "<b>", "message": ""}))),
        S.WAITING,
        R.CONTAINER_FAILED.value,
    ),
    "it ran out of memory": (at(ends(137, "", "OOMKilled")), S.WAITING, R.OUT_OF_MEMORY.value),
    "it was interrupted": (at(ends(143)), S.WAITING, R.CONTAINER_FAILED.value),
    "the node took it away": (
        at(a_pod(status={"phase": "Failed", "reason": "Evicted", "message": "disk", "containerStatuses": []})),
        S.WAITING,
        R.POD_EVICTED.value,
    ),
    "somebody deletes it": (
        at(a_pod({"running": {}}, deletionTimestamp="2026-01-01T00:00:00Z")),
        S.WAITING,
        R.POD_DELETED.value,
    ),
    "it was deleted": (a_world(status=BackupWorkStatus(state=S.RUNNING, attempts=1)), S.WAITING, R.POD_DELETED.value),
    "the last one was lost": (at(ends(137, "", "OOMKilled"), attempt=ATTEMPTS), S.FAILED, R.OUT_OF_MEMORY.value),
    "the last one was deleted": (
        a_world(status=BackupWorkStatus(state=S.WAITING, attempts=ATTEMPTS)),
        S.FAILED,
        R.POD_DELETED.value,
    ),
    "a pod of somebody else has its name": (at(NOBODYS), S.FAILED, R.OBJECT_FOREIGN.value),
}


@pytest.mark.parametrize("case", TABLE)
def test_what_is_there_says_how_far_it_is(case: str) -> None:
    world, state, reason = TABLE[case]

    status = conclude_backup(world, WITH_BACKUPS, now=SOON)

    assert (status.state, status.reason) == (state, reason), status.message
    assert BackupWorkStatus.from_mapping(status.as_mapping()) == status


def test_an_end_stays_and_carries_what_the_worker_said() -> None:
    done = conclude_backup(at(ends(0, RESULT, "Completed")), WITH_BACKUPS, now=SOON)

    assert (done.result, done.attempts, done.pod_uid) == (RESULT, 1, POD_UID)
    assert conclude_backup(at(ends(1), **vars_of(done)), WITH_BACKUPS, now=SOON) == done


def vars_of(status: BackupWorkStatus) -> dict[str, Any]:
    return {name: getattr(status, name) for name in ("state", "reason", "message", "result")}


def test_the_words_of_a_worker_are_bounded_and_legible() -> None:
    hostile = json.dumps({"reason": "BACKUP_INCOMPLETE", "message": "\x1b[31m" + "x" * 3000})

    status = conclude_backup(at(ends(VERDICT_STATUS, hostile)), WITH_BACKUPS, now=SOON)

    assert len(status.message) <= 1200
    assert status.message.isprintable()


def test_time_that_is_over_is_the_end_and_an_hour_later_all_goes() -> None:
    late, last = MADE + HOUR, MADE + HOUR + KEPT
    running = at(a_pod({"running": {}}))

    status = conclude_backup(running, WITH_BACKUPS, now=late)

    assert (status.state, status.reason) == (S.FAILED, OUT_OF_TIME)
    assert [(step.kind, step.name) for step in planned(running, now=late)] == [(Kind.POD, f"{NAME}-1")]
    assert [(step.kind, step.uid) for step in planned(running, now=last)] == [(Kind.BACKUP, WORK_UID)]


def test_an_operator_that_was_told_nothing_of_backups_says_so() -> None:
    status = conclude_backup(a_world(), SETTINGS, now=SOON)

    assert (status.state, status.reason) == (S.FAILED, UNSET)
    assert not wants_attempt(a_world(), SETTINGS, now=SOON)


def test_a_backup_is_a_secret_and_a_pod_where_the_sandbox_runs() -> None:
    secret, pod = planned(a_world())

    assert isinstance(secret, Create)
    assert isinstance(pod, Create)
    assert (secret.kind, secret.name, pod.kind, pod.name) == (Kind.SECRET, NAME, Kind.POD, f"{NAME}-1")
    order = json.loads(base64.b64decode(secret.body["data"]["order.json"]))
    assert PlacedBackup.from_mapping(order["work"]) == TAKE
    assert (order["location"], order["uploadKibibytes"]) == (ACCESS.location, 512)
    node = pod.body["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert node["nodeSelectorTerms"] == [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node1"]}]}
    ]
    assert pod.body["spec"]["activeDeadlineSeconds"] == 3590


def test_of_a_stopped_sandbox_the_last_node_is_preferred_and_none_required() -> None:
    (_, pod) = planned(a_world(sandbox=a_sandbox(mode=Mode.STOPPED), sandbox_pod=None))

    affinity = pod.body["spec"]["affinity"]["nodeAffinity"]
    assert "requiredDuringSchedulingIgnoredDuringExecution" not in affinity
    assert "node7" in json.dumps(affinity)


def test_a_terminated_sandbox_has_its_kept_volumes_backed_up() -> None:
    assert len(planned(a_world(sandbox=None, sandbox_pod=None))) == 2


@pytest.mark.parametrize("kept", [False, True])
def test_a_restore_makes_the_volumes_that_are_not_there(kept: bool) -> None:
    stopped = None if kept else a_sandbox(mode=Mode.STOPPED)

    _, claim, pod = planned(
        a_world(RESTORE, sandbox=stopped, sandbox_pod=None, claims={Volume.HOME: a_claim(Volume.HOME)})
    )

    assert (claim.kind, claim.name) == (Kind.CLAIM, claims_of(SANDBOX)["workspace"])
    assert claim.body["spec"]["resources"]["requests"]["storage"] == "8G"
    assert claim.body["metadata"]["labels"][SANDBOX_LABEL] == SANDBOX
    assert claim.body["metadata"]["labels"].get(KEPT_LABEL) == ("true" if kept else None)
    assert pod.kind is Kind.POD


@pytest.mark.parametrize("work", [FORGET, VERIFY, DESTROY])
def test_care_of_the_repository_has_no_volumes(work: PlacedBackup) -> None:
    _, pod = planned(a_world(work, sandbox=None, sandbox_pod=None, claims={}))

    assert not [one for one in pod.body["spec"]["volumes"] if "persistentVolumeClaim" in one]


def test_a_lost_pod_goes_and_the_next_one_is_where_the_volumes_are_then() -> None:
    lost = at(ends(137, "", "OOMKilled"))
    assert planned(lost) == [], "first it is counted"
    told = conclude_backup(lost, WITH_BACKUPS, now=SOON)
    (gone,) = planned(at(ends(137, "", "OOMKilled"), **vars_of(told)))
    assert isinstance(gone, Delete)
    assert (gone.kind, gone.uid) == (Kind.POD, POD_UID)
    terminating = at(ends(137, "", "OOMKilled", deletionTimestamp="2026-01-01T00:00:00Z"))
    assert planned(terminating) == [], "two at once would hold the same lock"

    moved = a_sandbox_pod()
    moved["spec"]["nodeName"] = "node2"
    _, pod = planned(a_world(status=BackupWorkStatus(attempts=1), sandbox_pod=moved))

    assert pod.name == f"{NAME}-2"
    assert "node2" in json.dumps(pod.body["spec"]["affinity"])
    assert pod.body["spec"]["containers"][0]["args"][:3] == ["backup-worker", "--attempt", "2"]


@pytest.mark.parametrize(
    "world",
    [
        a_world(namespace_ready=False),
        a_world(resource=a_work(deletionTimestamp="2026-01-01T00:00:00Z")),
        a_world(claims={}),
        a_world(RESTORE),
        a_world(template=None),
        a_world(nothing_there=True),
        a_world(status=BackupWorkStatus(attempts=ATTEMPTS)),
        at(a_pod({"running": {}})),
    ],
)
def test_nothing_is_made_while_it_cannot_work(world: BackupWorld) -> None:
    assert planned(world) == []
    assert not wants_attempt(world, WITH_BACKUPS, now=SOON)


def test_a_pod_is_taken_away_with_its_verdict() -> None:
    (step,) = planned(at(ends(0, RESULT), state=S.DONE))

    assert (step.kind, step.uid) == (Kind.POD, POD_UID)


def test_the_pod_is_nobody_and_may_little() -> None:
    spec = the_pod()["spec"]
    (container,) = spec["containers"]

    assert spec["automountServiceAccountToken"] is False
    assert spec["hostUsers"] is False
    assert SANDBOX_LABEL not in the_pod()["metadata"]["labels"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert container["resources"]["limits"].keys() == {"cpu", "memory", "ephemeral-storage"}
    assert "password" not in json.dumps(the_pod()).replace('"password"', "")
    assert [one["readOnly"] for one in container["volumeMounts"][:2]] == [True, True]
    comparing = the_pod(COMPARE)["spec"]["containers"][0]["volumeMounts"]
    assert [one["readOnly"] for one in comparing[:2]] == [True, True]
    writing = the_pod(RESTORE)["spec"]["containers"][0]["volumeMounts"]
    assert [one["readOnly"] for one in writing[:2]] == [False, False]


def test_where_the_agent_is_copied_a_backup_copies_none() -> None:
    copied = replace(TEMPLATE, agent_delivery=AgentDelivery.INIT_COPY)
    _, pod = planned(a_world(template=copied))

    assert "initContainers" not in pod.body["spec"]


@pytest.mark.parametrize("named", [False, True])
def test_a_policy_lets_it_reach_the_storage_and_nothing_else(named: bool) -> None:
    network = Network(
        own_namespace="sandboxd-system",
        gateway_port=8082,
        storage=(Allowed(range="10.0.0.9/32", port=9000),),
        storage_named=named,
    )

    policies = {
        one["metadata"]["name"]: one["spec"]
        for one in namespace_objects(a_namespace(), instance=INSTANCE, network=network)[Kind.POLICY]
    }

    policy = policies["sandboxd-backup"]
    assert policy["podSelector"] == {"matchExpressions": [{"key": BACKUP_LABEL, "operator": "Exists"}]}
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policy
    storage, *more = policy["egress"]
    assert storage == {"to": [{"ipBlock": {"cidr": "10.0.0.9/32"}}], "ports": [{"port": 9000, "protocol": "TCP"}]}
    assert ["kube-dns" in json.dumps(one) for one in more] == ([True] if named else [])


def test_where_nothing_is_backed_up_there_is_no_such_policy() -> None:
    made = namespace_objects(a_namespace(), instance=INSTANCE, network=SETTINGS.network)

    assert "sandboxd-backup" not in [one["metadata"]["name"] for one in made[Kind.POLICY]]


@pytest.mark.parametrize("work", [TAKE, RESTORE, COMPARE, FORGET, VERIFY, DESTROY])
def test_a_spec_is_read_as_it_was_written(work: PlacedBackup) -> None:
    assert PlacedBackup.from_mapping(json.loads(json.dumps(work.as_mapping()))) == work
