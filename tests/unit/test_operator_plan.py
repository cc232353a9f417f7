from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from sandboxd.model.cluster import Mode
from sandboxd.model.cluster_status import PlacedState, Reason
from sandboxd.operator.kinds import Kind
from sandboxd.operator.observed import Desired, Observed
from sandboxd.operator.plan import Create, Delete, Patch, Resize, Step, Wave, WriteIdentity, plan
from tests.operator_world import (
    FIRST,
    NOW,
    OWN_IMAGE,
    POD_UID,
    RESOURCES,
    SANDBOX,
    SECOND,
    SETTINGS,
    THEIRS,
    a_claim,
    a_desired,
    a_namespace,
    a_pod,
    a_secret,
    a_set,
    an_observed,
    bound,
    claims,
    namespace_parts,
    running,
)


def told(waves: Sequence[Wave]) -> list[list[str]]:
    """A plan in words."""
    return [[describe(step) for step in wave] for wave in waves]


def describe(step: Step) -> str:
    match step:
        case Create():
            return f"create {step.kind.value[1]}"
        case Patch():
            what = step.body["spec"] if "spec" in step.body else step.body["metadata"]
            if step.kind is Kind.STATEFUL_SET:
                return f"scale to {what['replicas']}" if set(what) == {"replicas"} else "change statefulsets"
            return f"patch {step.kind.value[1]} {sorted(what)}"
        case Resize():
            return f"resize to {step.resources['requests']['cpu']}"
        case Delete():
            return f"delete {step.kind.value[1]}"
        case WriteIdentity():
            return f"{'rotate' if step.resource_version else 'make'} identity"


CANNOT_PULL = {"waiting": {"reason": "ImagePullBackOff"}}
LOST = bound(state=PlacedState.FAILED, reason=Reason.POD_EVICTED, message="It was evicted.")
SMALL = a_pod(mode=Mode.HIBERNATED)
WAITING_FOR_AN_IMAGE = a_pod(state={"waiting": {"reason": "ErrImagePull"}}, revision="revision-0")
FOREIGN_SET = {**a_set(), "metadata": {**a_set()["metadata"], "ownerReferences": []}}
UNLABELLED = {**a_namespace(), "metadata": {**a_namespace()["metadata"], "labels": {}}}
WITHOUT_POLICIES = {Kind.QUOTA: namespace_parts()[Kind.QUOTA], Kind.LIMITS: namespace_parts()[Kind.LIMITS]}
KEPT = {"sandboxd.dev/kept": "true"}

TABLE = {
    "from nothing, Secret and StatefulSet are made at once": (
        a_desired(),
        an_observed(),
        [["make identity", "create statefulsets"]],
    ),
    "policies come before the first pod of a namespace": (
        a_desired(),
        an_observed(namespace_objects=WITHOUT_POLICIES),
        [["create networkpolicies", "create networkpolicies"], ["make identity", "create statefulsets"]],
    ),
    "what runs as it should needs nothing": (a_desired(status=bound()), running(), []),
    "a sandbox that never ran and is to be stopped needs nothing": (a_desired(mode=Mode.STOPPED), an_observed(), []),
    "stopping scales to nothing": (a_desired(mode=Mode.STOPPED, status=bound()), running(), [["scale to 0"]]),
    "a stopped sandbox needs nothing": (
        a_desired(mode=Mode.STOPPED),
        running(stateful_set=a_set(replicas=0), pod=None),
        [],
    ),
    "a start brings a new incarnation": (
        a_desired(incarnation=SECOND),
        running(stateful_set=a_set(replicas=0), pod=None),
        [["rotate identity", "change statefulsets"]],
    ),
    "a new incarnation replaces the pod of the former": (
        a_desired(incarnation=SECOND, status=bound()),
        running(),
        [["rotate identity", "change statefulsets"], ["delete pods"]],
    ),
    "a former pod that is ending is waited for": (
        a_desired(incarnation=SECOND, status=bound()),
        running(
            stateful_set=a_set(incarnation=SECOND, last_node="node1"),
            secret=a_secret(incarnation=SECOND),
            pod=a_pod(deletionTimestamp=NOW),
        ),
        [],
    ),
    "a pod of somebody else is not replaced": (
        a_desired(incarnation=SECOND),
        running(
            stateful_set=a_set(incarnation=SECOND),
            secret=a_secret(incarnation=SECOND),
            pod=a_pod(ownerReferences=[]),
        ),
        [],
    ),
    "hibernation gives requests back in place": (
        a_desired(mode=Mode.HIBERNATED, status=bound()),
        running(),
        [["resize to 5m"]],
    ),
    "a hibernated sandbox needs nothing": (
        a_desired(mode=Mode.HIBERNATED, status=bound()),
        running(pod=SMALL),
        [],
    ),
    "waking grows in place": (a_desired(status=bound()), running(pod=SMALL), [["resize to 100m"]]),
    "another tier resizes the living pod": (
        a_desired(status=bound(), resources=replace(RESOURCES, cpu="2", memory="4G")),
        running(),
        [["change statefulsets", "resize to 200m"]],
    ),
    "a pod that has not started is not resized": (
        a_desired(mode=Mode.HIBERNATED),
        running(pod=a_pod(state={"waiting": {"reason": "ContainerCreating"}})),
        [],
    ),
    "a pod that never started goes when its template was corrected": (
        a_desired(),
        running(pod=WAITING_FOR_AN_IMAGE),
        [["delete pods"]],
    ),
    "a pod that has started stays when its template was changed": (
        a_desired(status=bound()),
        running(pod=a_pod(revision="revision-0")),
        [],
    ),
    "another image is for the next pod": (
        a_desired(status=bound(), image=OWN_IMAGE),
        running(),
        [["change statefulsets"]],
    ),
    "a pod whose image cannot be pulled goes when another one is wanted": (
        a_desired(image=OWN_IMAGE),
        running(stateful_set=a_set(image=OWN_IMAGE), pod=a_pod(state=CANNOT_PULL, revision="revision-0", ready=False)),
        [["delete pods"]],
    ),
    "nothing is made from another client's image": (a_desired(image=THEIRS), an_observed(), []),
    "another client's image changes nothing of what runs": (a_desired(image=THEIRS, status=bound()), running(), []),
    "another client's image replaces no pod of the incarnation before": (
        a_desired(image=THEIRS, incarnation=SECOND, status=bound()),
        running(),
        [],
    ),
    "a sandbox with another client's image can be stopped": (
        a_desired(image=THEIRS, mode=Mode.STOPPED, status=bound()),
        running(),
        [["scale to 0"]],
    ),
    "volumes grow where their class can": (
        a_desired(status=bound(), resources=replace(RESOURCES, workspace="40G")),
        running(expandable=True),
        [["patch persistentvolumeclaims ['resources']"]],
    ),
    "volumes stay where their class cannot": (
        a_desired(status=bound(), resources=replace(RESOURCES, workspace="40G")),
        running(),
        [],
    ),
    "volumes never shrink": (
        a_desired(status=bound(), resources=replace(RESOURCES, workspace="1G")),
        running(expandable=True),
        [],
    ),
    "a restored sandbox's claims are no longer kept ones": (
        a_desired(status=bound()),
        running(claims=claims(**KEPT)),
        [["patch persistentvolumeclaims ['labels']", "patch persistentvolumeclaims ['labels']"]],
    ),
    "a lost incarnation is not started again": (a_desired(status=LOST), running(pod=None), [["scale to 0"]]),
    "a lost incarnation is followed by the next": (
        a_desired(incarnation=SECOND, status=LOST),
        running(stateful_set=a_set(replicas=0), pod=None),
        [["rotate identity", "change statefulsets"]],
    ),
    "a restarted container is a lost incarnation": (
        a_desired(status=bound()),
        running(pod=a_pod(restarts=1)),
        [["scale to 0"]],
    ),
    "replicas that somebody changed are put right": (
        a_desired(status=bound()),
        running(stateful_set=a_set(replicas=0)),
        [["change statefulsets"]],
    ),
    "a StatefulSet that somebody deleted is made again": (
        a_desired(),
        running(stateful_set=None, pod=None),
        [["create statefulsets"]],
    ),
    "a Secret that somebody deleted is made again": (
        a_desired(status=bound()),
        running(secret=None),
        [["make identity"]],
    ),
    "a StatefulSet of another owner is left alone": (a_desired(), running(stateful_set=FOREIGN_SET, pod=None), []),
    "a StatefulSet that is going is waited for": (
        a_desired(),
        running(stateful_set=a_set(deletionTimestamp=NOW), pod=None),
        [],
    ),
    "a namespace that is not ours is left alone": (a_desired(), an_observed(namespace=UNLABELLED), []),
    "a namespace that is going is left alone": (
        a_desired(),
        an_observed(namespace=a_namespace(deletionTimestamp=NOW)),
        [],
    ),
    "nothing is made without a template": (a_desired(), an_observed(template=None), []),
    "a sandbox whose template is gone can be stopped": (
        a_desired(mode=Mode.STOPPED),
        running(template=None),
        [["scale to 0"]],
    ),
    "deletion keeps the claims first, and then lets go": (
        a_desired(deleting=True, status=bound()),
        running(),
        [
            ["patch persistentvolumeclaims ['labels']", "patch persistentvolumeclaims ['labels']"],
            ["delete statefulsets", "delete secrets"],
            ["delete pods"],
        ],
    ),
    "deletion waits for what is ending": (
        a_desired(deleting=True),
        running(stateful_set=None, secret=None, pod=a_pod(deletionTimestamp=NOW), claims=claims(**KEPT)),
        [],
    ),
    "deletion ends with the finalizer": (
        a_desired(deleting=True),
        an_observed(claims=claims(**KEPT)),
        [["patch sandboxes ['finalizers']"]],
    ),
    "deletion leaves foreign objects": (
        a_desired(deleting=True),
        an_observed(stateful_set=FOREIGN_SET, claims=claims(**KEPT)),
        [["patch sandboxes ['finalizers']"]],
    ),
    "deletion does not label claims that are not to be kept": (
        a_desired(deleting=True, kept=False),
        an_observed(claims=claims()),
        [["patch sandboxes ['finalizers']"]],
    ),
    "deletion does not need the namespace": (
        a_desired(deleting=True),
        an_observed(namespace=None),
        [["patch sandboxes ['finalizers']"]],
    ),
}


@pytest.mark.parametrize(("desired", "observed", "steps"), TABLE.values(), ids=TABLE.keys())
def test_the_plan(desired: Desired, observed: Observed, steps: list[list[str]]) -> None:
    assert told(without_empty(plan(desired, observed, SETTINGS))) == steps


def without_empty(waves: Sequence[Wave]) -> Sequence[Wave]:
    return [wave for wave in waves if wave]


def test_the_finalizer_is_put_back_where_somebody_took_it() -> None:
    desired = replace(a_desired(status=bound()), finalizers=("somebody.example/theirs",))

    (wave,) = plan(desired, running(), SETTINGS)

    assert [step.body for step in wave if isinstance(step, Patch)] == [
        {"metadata": {"finalizers": ["somebody.example/theirs", "sandboxd.dev/compute"]}}
    ]


def test_every_change_names_the_version_that_it_was_planned_for() -> None:
    worlds: list[tuple[Desired, Observed]] = [(desired, observed) for desired, observed, _ in TABLE.values()]
    steps = [step for desired, observed in worlds for wave in plan(desired, observed, SETTINGS) for step in wave]

    assert all(step.resource_version for step in steps if isinstance(step, Patch))
    assert all(step.uid for step in steps if isinstance(step, Delete))


def test_no_plan_deletes_a_claim() -> None:
    steps: list[Any] = [
        step for desired, observed, _ in TABLE.values() for wave in plan(desired, observed, SETTINGS) for step in wave
    ]

    assert Kind.CLAIM not in {step.kind for step in steps if isinstance(step, Delete)}


def test_the_pod_that_is_replaced_is_that_very_pod() -> None:
    waves = plan(a_desired(incarnation=SECOND, status=bound()), running(), SETTINGS)

    (step,) = waves[-1]
    assert isinstance(step, Delete)
    assert (step.name, step.uid) == (f"{SANDBOX}-0", POD_UID)


def test_a_plan_that_was_carried_out_leads_to_no_other() -> None:
    desired = a_desired(incarnation=FIRST, status=bound())

    assert plan(desired, running(claims={"home": a_claim("home", "2G")}), SETTINGS) == []


@pytest.mark.parametrize(
    ("desired", "found", "why"),
    [
        (a_desired(status=bound()), {**a_set(), "spec": {**a_set()["spec"], "updateStrategy": {}}}, "drift"),
        (a_desired(status=bound()), a_set(replicas=0), "drift"),
        (a_desired(), a_set(replicas=0), ""),
        (a_desired(status=bound(), resources=replace(RESOURCES, cpu="2")), a_set(), ""),
        (a_desired(incarnation=SECOND, status=bound()), a_set(), ""),
    ],
    ids=["a field was changed", "it was scaled", "it starts again", "another tier", "another incarnation"],
)
def test_only_what_somebody_else_changed_is_drift(desired: Desired, found: dict[str, Any], why: str) -> None:
    waves = plan(desired, running(stateful_set=found), SETTINGS)

    patches = [step for wave in waves for step in wave if isinstance(step, Patch)]
    assert [step.why for step in patches if step.kind is Kind.STATEFUL_SET] == [why]
