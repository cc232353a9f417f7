import asyncio
import base64
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import uvloop

from sandboxd.model.cluster import Mode
from sandboxd.model.ids import make_id, time_of_id
from sandboxd.model.quantity import parse_quantity
from sandboxd.operator.comparing import Whole, merging, says
from sandboxd.operator.kinds import Kind
from sandboxd.operator.pod_shape import AGENT_COMMAND, pod_template, resources_of
from sandboxd.operator.queue import WorkQueue
from sandboxd.operator.template import Template
from sandboxd.operator.tenancy import DEFAULT_QUOTA, Allowed, Network, namespace_objects, read_allowed, read_quota
from tests.operator_world import (
    FIRST,
    INSTANCE,
    NETWORK,
    RESOURCES,
    SANDBOX,
    TEMPLATE,
    a_namespace,
    a_secret,
    a_set,
    a_spec,
)


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": {"b": [1, {"c": "x", "d": "default"}]}}, {"a": {"b": [1, {"c": "x"}]}}, True),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({"cpu": "2"}, {"cpu": "2000m"}, True),
        ({"cpu": "2"}, {"cpu": "1"}, False),
        ({"text": "a"}, {"text": "b"}, False),
        ({}, {"privileged": False}, True),
        ({}, {"replicas": 0}, True),
        ({}, {"replicas": 1}, False),
        ({"a": "1"}, {"a": None}, False),
        ({}, {"a": None}, True),
        ({"a": "x"}, {"a": ["x"]}, False),
        ({"a": {"b": "1"}}, {"a": Whole({"b": "1"})}, True),
        ({"a": {"b": "1", "c": "2"}}, {"a": Whole({"b": "1"})}, False),
        ({"a": {"c": "1"}}, {"a": Whole({"b": "1"})}, False),
        ({}, {"a": Whole({"b": "1"})}, False),
    ],
)
def test_an_object_says_what_is_wanted(found: Any, wanted: Any, same: bool) -> None:
    assert says(found, wanted) is same


@pytest.mark.parametrize(
    ("found", "wanted", "patch"),
    [
        ({"a": {"x": "1"}}, {"a": {"b": "1"}}, {"a": {"b": "1"}}),
        ({"a": {"x": "1", "b": "2"}}, {"a": Whole({"b": "1"})}, {"a": {"b": "1", "x": None}}),
        ({}, {"a": Whole({"b": "1"})}, {"a": {"b": "1"}}),
        ({"a": {"x": "1"}}, {"a": None}, {"a": None}),
        ({"a": [{"x": "1"}]}, {"a": [{"b": "1"}]}, {"a": [{"b": "1"}]}),
    ],
)
def test_a_merge_names_what_a_whole_map_has_no_more(found: Any, wanted: Any, patch: Any) -> None:
    assert merging(found, wanted) == patch


def pod(template: Template = TEMPLATE, **spec: Any) -> dict[str, Any]:
    made: dict[str, Any] = pod_template(SANDBOX, a_spec(**spec), template, labels={})["spec"]
    return made


def test_a_pod_has_no_token_no_added_rights_and_a_user_namespace_of_its_own() -> None:
    made = pod()

    (container,) = made["containers"]
    assert (made["automountServiceAccountToken"], made["hostUsers"]) == (False, False)
    assert made["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "capabilities" not in container["securityContext"]
    assert container["securityContext"]["privileged"] is False


def test_the_agent_runs_with_its_own_interpreter_from_a_read_only_mount() -> None:
    (container,) = pod()["containers"]

    assert container["command"] == list(AGENT_COMMAND)
    mounts = {one["mountPath"]: one.get("readOnly", False) for one in container["volumeMounts"]}
    assert mounts == {
        "/home/gemini": False,
        "/workspace": False,
        "/opt/agent": True,
        "/etc/sandboxd/agent": True,
        "/run/sandboxd": False,
    }


def test_the_agent_comes_by_a_copy_where_the_cluster_has_no_image_volumes() -> None:
    made = pod(Template.from_mapping({"image": "i", "agentImage": "a", "agentDelivery": "InitCopy"}))

    assert [one["image"] for one in made["initContainers"]] == ["a"]
    assert made["volumes"][0] == {"name": "agent", "emptyDir": {}}


def test_a_template_decides_where_pods_run() -> None:
    made = pod(
        Template.from_mapping(
            {
                "image": "i",
                "agentImage": "a",
                "runtimeClassName": "gvisor",
                "nodeSelector": {"pool": "sandboxes"},
                "tolerations": [{"key": "sandboxes", "operator": "Exists"}],
                "priorityClassName": "low",
                "topologySpreadConstraints": [{"maxSkew": 1}],
            }
        )
    )

    assert (made["runtimeClassName"], made["nodeSelector"]) == ("gvisor", {"pool": "sandboxes"})
    assert (made["priorityClassName"], len(made["tolerations"])) == ("low", 1)
    assert made["topologySpreadConstraints"] == [{"maxSkew": 1}]


def test_requests_are_a_share_of_limits_and_a_hibernated_pod_gives_them_back() -> None:
    awake = resources_of(RESOURCES, TEMPLATE, mode=Mode.RUNNING)
    asleep = resources_of(RESOURCES, TEMPLATE, mode=Mode.HIBERNATED)

    assert awake["limits"] == asleep["limits"] == {"cpu": "1", "memory": "2G", "ephemeral-storage": "10G"}
    for name, asked in awake["requests"].items():
        assert parse_quantity(asleep["requests"][name]) <= parse_quantity(asked) < parse_quantity(awake["limits"][name])


def test_gpus_are_asked_for_by_the_template_s_name() -> None:
    template = Template.from_mapping({"image": "i", "agentImage": "a", "gpuResource": "gpu.example/small"})

    (container,) = pod(template, resources=replace(RESOURCES, gpu=1))["containers"]

    assert container["resources"]["limits"]["gpu.example/small"] == "1"
    assert container["resources"]["requests"]["gpu.example/small"] == "1"


def test_a_stateful_set_replaces_no_living_pod_and_keeps_its_claims() -> None:
    spec = a_set()["spec"]

    assert spec["updateStrategy"] == {"type": "OnDelete"}
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    assert [one["metadata"]["name"] for one in spec["volumeClaimTemplates"]] == ["home", "workspace"]


def test_a_secret_names_its_incarnation_and_holds_what_the_agent_reads() -> None:
    secret = a_secret()

    config = json.loads(base64.b64decode(secret["data"]["agent.json"]))
    assert (config["incarnation"], config["listen"]) == (FIRST, "0.0.0.0:7443")
    assert set(secret["data"]) == {"agent.json", "tls.crt", "tls.key", "ca.crt"}
    assert secret["metadata"]["annotations"] == {"sandboxd.dev/incarnation": FIRST}


def test_a_namespace_is_closed_first_and_opened_for_what_is_needed() -> None:
    network = Network(
        own_namespace="own", gateway_port=8082, blocked=["203.0.113.0/24"], allowed=read_allowed("10.0.0.10/32:53")
    )

    deny, allow = namespace_objects(a_namespace(), instance=INSTANCE, network=network)[Kind.POLICY]

    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    dns, gateway, internet, more = allow["spec"]["egress"]
    assert dns["ports"] == [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
    assert gateway["to"][0]["podSelector"] == {"matchLabels": {"app.kubernetes.io/component": "gateway"}}
    excluded = internet["to"][0]["ipBlock"]["except"]
    assert {"10.0.0.0/8", "169.254.0.0/16", "203.0.113.0/24"} <= set(excluded)
    assert more["to"] == [{"ipBlock": {"cidr": "10.0.0.10/32"}}]
    (ingress,) = allow["spec"]["ingress"]
    assert ingress["ports"] == [{"port": 7443, "protocol": "TCP"}]


def test_a_namespace_s_quota_has_its_own_numbers_where_it_says_so() -> None:
    namespace = a_namespace(annotations={"sandboxd.dev/quota": "pods=3, requests.storage=1T"})

    (quota,) = namespace_objects(namespace, instance=INSTANCE, network=NETWORK)[Kind.QUOTA]

    assert (quota["spec"]["hard"]["pods"], quota["spec"]["hard"]["requests.storage"]) == ("3", "1T")
    assert quota["spec"]["hard"]["services.nodeports"] == "0"


def test_a_number_that_is_limited_no_more_is_taken_out_of_the_quota() -> None:
    (wanted,) = [
        one["spec"] for one in namespace_objects(a_namespace(), instance=INSTANCE, network=NETWORK)[Kind.QUOTA]
    ]
    found = {"hard": {**DEFAULT_QUOTA, "requests.cpu": "1"}}

    assert not says(found, wanted)
    assert merging(found, wanted)["hard"]["requests.cpu"] is None
    assert says({"hard": dict(DEFAULT_QUOTA)}, wanted)


def test_lists_of_addresses_are_read() -> None:
    assert read_allowed(" 10.0.0.0/8:80,fd00::/8:53 ,") == (
        Allowed(range="10.0.0.0/8", port=80),
        Allowed(range="fd00::/8", port=53),
    )
    assert read_quota("pods=1,nonsense, secrets = 2") == {"pods": "1", "secrets": "2"}
    with pytest.raises(ValueError, match="invalid literal"):
        read_allowed("10.0.0.0/8")


def test_an_id_tells_when_it_was_born() -> None:
    born = datetime(2026, 5, 6, 7, 8, 9, 123000, tzinfo=UTC)

    assert time_of_id(make_id("inc", at=born, entropy=bytes(10))) == born
    with pytest.raises(ValueError, match="no id"):
        time_of_id("inc-1")


async def test_a_key_waits_once_however_often_it_is_added() -> None:
    queue: WorkQueue[str] = WorkQueue()

    for _ in range(3):
        queue.add("a")
    queue.add("b")

    assert [await queue.take(), await queue.take()] == ["a", "b"]
    assert len(queue) == 0


async def test_a_key_has_one_worker_and_comes_back_when_it_was_added_meanwhile() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    taken = await queue.take()

    queue.add("a")
    waiting = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.done(taken)

    assert await waiting == "a"


async def test_a_key_that_fails_comes_back_slower_each_time_and_fast_again_after_success() -> None:
    queue: WorkQueue[str] = WorkQueue(first_delay=0.01, longest_delay=0.05)

    delays = [queue.retry("a") for _ in range(6)]

    assert delays[0] <= 0.01 < delays[2] <= 0.05
    assert max(delays) <= 0.05
    assert await queue.take() == "a"
    queue.done("a")
    queue.forget("a")
    assert queue.retry("a") <= 0.01


async def test_the_sooner_of_two_times_counts() -> None:
    queue: WorkQueue[str] = WorkQueue()

    queue.add_later("a", 60)
    queue.add_later("a", 0.001)
    queue.add_later("a", 120)

    async with asyncio.timeout(5):
        assert await queue.take() == "a"


async def test_a_queue_that_is_cleared_forgets_what_was_to_come() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.add_later("b", 0.001)

    queue.clear()
    queue.add_later("c", 0.002)

    assert await queue.take() == "c"
    assert len(queue) == 0


def test_a_key_that_is_due_within_a_millisecond_may_be_named_again_on_the_loop_that_the_service_runs_on() -> None:
    async def named_twice() -> str:
        queue: WorkQueue[str] = WorkQueue()
        queue.add_later("a", 0.0001)
        queue.add_later("a", 0.0001)
        return await queue.take()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(named_twice()) == "a"
