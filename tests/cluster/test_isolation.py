"""What a sandbox reaches, found out by root inside one. Only traffic within one node is proven: there is no other."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator

import pytest

from devcluster.places import REGISTRY
from tests.cluster.neighbourhood import AGENT_IMAGE, ALLOWED, FORBIDDEN, SANDBOX_IMAGE, Neighbourhood, a_neighbourhood
from tests.kube import Cluster

pytestmark = pytest.mark.timeout(400)

SEARCH = """
import json, os, pathlib, subprocess, sys, time

# Reversed, so that the words searched for stand in no command line and no memory of ours.
wanted = {name: word[::-1].encode() for name, word in json.loads(sys.argv[1]).items()}
planted = wanted["planted"].decode()
pathlib.Path("/workspace/planted").write_text(planted)
keep = "import os, time; word = os.environ['PLANTED'] + '!'; print('up', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", keep], env={"PLANTED": planted}, stdout=subprocess.PIPE)
child.stdout.readline()
hits = {name: set() for name in wanted}

def look(what, data):
    for name, word in wanted.items():
        if word in data:
            hits[name].add(what)

def read(path, what):
    try:
        with open(path, "rb") as file:
            before = b""
            while block := file.read(1 << 20):
                look(what, before + block)
                before = block[-200:]
    except OSError:
        pass

for folder, folders, files in os.walk("/"):
    folders[:] = [one for one in folders if os.path.join(folder, one) not in ("/proc", "/sys", "/dev")]
    for one in files:
        path = os.path.join(folder, one)
        if os.path.isfile(path) and not os.path.islink(path):
            read(path, "files")
for entry in os.listdir("/proc"):
    if not entry.isdigit() or int(entry) == os.getpid():
        continue
    read(f"/proc/{entry}/environ", "environments")
    read(f"/proc/{entry}/cmdline", "command lines")
    try:
        maps = open(f"/proc/{entry}/maps").read().splitlines()
        memory = open(f"/proc/{entry}/mem", "rb", 0)
    except OSError:
        continue
    for line in maps:
        span, rights = line.split()[:2]
        begin, end = (int(part, 16) for part in span.split("-"))
        if "rw" not in rights or end - begin > 1 << 28:
            continue
        try:
            memory.seek(begin)
            look("memory", memory.read(end - begin))
        except (OSError, ValueError):
            pass
for path in ("/proc/kcore", "/proc/keys", "/dev/mem", "/dev/kmsg"):
    try:
        with open(path, "rb") as file:
            look(path, file.read(1 << 20))
    except OSError:
        pass
child.kill()
os.unlink("/workspace/planted")
tokens = [str(path) for path in pathlib.Path("/var/run/secrets").glob("**/*")]
print(json.dumps({"hits": {name: sorted(found) for name, found in hits.items()}, "tokens": tokens}))
"""
ASK_THE_API = """
import json, ssl, sys, urllib.error, urllib.request
context = ssl._create_unverified_context()
try:
    with urllib.request.urlopen(sys.argv[1], timeout=5, context=context) as answer:
        print(json.dumps([answer.status, answer.read().decode()]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, error.read().decode()]))
except OSError:
    print(json.dumps([0, ""]))
"""


def _need(image: str) -> None:
    found = subprocess.run(
        ["skopeo", "inspect", "--tls-verify=false", f"docker://{image}"], capture_output=True, check=False
    )
    if found.returncode != 0 and "CI" in os.environ:
        pytest.fail(f"{image} is not in the registry: `make images`")
    if found.returncode != 0:
        pytest.skip(f"{image} is not in the registry: `make images`")


@pytest.fixture(scope="module")
def around(cluster: Cluster) -> Iterator[Neighbourhood]:
    if cluster.places is None:
        pytest.skip("only on the development cluster do we know the node's addresses and may we add some")
    for image in (SANDBOX_IMAGE, AGENT_IMAGE):
        _need(image.replace("localhost:5000", REGISTRY))
    with a_neighbourhood(cluster) as made:
        yield made


@pytest.mark.parametrize("target", FORBIDDEN)
def test_a_sandbox_does_not_reach_what_it_would_reach_without_policies(around: Neighbourhood, target: str) -> None:
    assert around.before[target] is not None, "the control: without policies it is reached"
    assert around.after[target] is None


@pytest.mark.parametrize("target", ALLOWED)
def test_a_sandbox_reaches_what_it_may(around: Neighbourhood, target: str) -> None:
    assert around.after[target]


@pytest.mark.parametrize("who", ["gateway", "database", "second", "stranger"])
def test_nobody_but_the_service_reaches_an_agent(around: Neighbourhood, who: str) -> None:
    assert around.to_the_agent_before[who] is not None, "the control: without policies it is reached"
    assert around.to_the_agent_after[who] is None


def test_the_service_reaches_an_agent(around: Neighbourhood) -> None:
    assert around.to_the_agent_after["serve"] is not None


def test_without_policies_the_network_would_give_the_key_away(around: Neighbourhood) -> None:
    telling = ("the metadata address", "the database", "the gateway's administration", "the service", "a node port")

    assert {around.before[target] for target in telling} == {around.key}
    assert around.key not in {around.after[target] for target in FORBIDDEN}


async def test_root_finds_no_key_in_files_environments_and_memory(cluster: Cluster, around: Neighbourhood) -> None:
    words = json.dumps({"key": around.key[::-1], "planted": "detnalp-drow-a-si-siht"})
    home = around.homes["first"]

    found = json.loads(await cluster.run_in(home.namespace, home.pod, "python3", "-c", SEARCH, words, within=300))

    assert found["hits"]["planted"] == ["environments", "files", "memory"], "the control: what is there is found"
    assert found["hits"]["key"] == []
    assert found["tokens"] == []


async def test_the_api_server_tells_a_sandbox_no_key_even_where_it_is_reached(
    cluster: Cluster, around: Neighbourhood
) -> None:
    path = f"/api/v1/namespaces/{around.system}/secrets/api-keys"
    told = await cluster.get("secret", "api-keys", "-n", around.system)
    home = around.homes["database"]  # no policy of sandboxes holds here, and it has no token either

    status, body = json.loads(
        await cluster.run_in(home.namespace, home.pod, "python3", "-c", ASK_THE_API, f"https://10.96.0.1{path}")
    )

    assert told["data"], "the control: it is there for who may read it"
    assert status in {401, 403}
    assert around.key not in body
    sandbox = around.homes["first"]
    url = f"https://10.96.0.1{path}"
    assert json.loads(await cluster.run_in(sandbox.namespace, sandbox.pod, "python3", "-c", ASK_THE_API, url)) == [
        0,
        "",
    ]


async def test_root_inside_is_nobody_outside(cluster: Cluster, around: Neighbourhood) -> None:
    home = around.homes["first"]

    inside, outside, length = map(
        int, (await cluster.run_in(home.namespace, home.pod, "cat", "/proc/self/uid_map")).split()
    )
    control = (await cluster.run_in(around.system, "database", "cat", "/proc/self/uid_map")).split()

    assert inside == 0
    assert outside >= 65536
    assert length <= 65536
    assert control[1] == "0", "the control: a pod without user namespaces is root outside"
