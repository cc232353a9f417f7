"""The pod of a sandbox as docs/adr/0024 has it: what must hold in every cluster, tried in a real pod."""

from __future__ import annotations

import io
import re
import secrets
import tarfile
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from sandboxd.agent import package_wire
from sandboxd.agent.v1 import agent_pb2 as pb
from sandboxd.model.cluster import CONTAINER
from sandboxd.model.errors import SandboxdError
from sandboxd.model.packages import Package
from sandboxd.model.processes import Root, TerminalSize
from tests.cluster.pod_world import SECONDS, PodWorld, a_pod
from tests.eventually import eventually
from tests.kube import Cluster

pytestmark = pytest.mark.timeout(240)
TERMINAL = TerminalSize(rows=24, columns=80)
FIRST_OF_RESIZE = "250m"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(cluster: Cluster) -> AsyncIterator[PodWorld]:
    """One pod for all tests that leave it whole."""
    instance = f"t-{secrets.token_hex(4)}"
    try:
        async with a_pod(cluster, instance) as world:
            yield world
    finally:
        await cluster.clean(instance)


@pytest.fixture
async def world(made: PodWorld) -> AsyncIterator[PodWorld]:
    """The pod with a client of this test's loop."""
    agent = await made.connect()
    yield made
    await agent.close()
    made.agent = None


async def test_the_canary_sees_a_shifted_user_namespace(world: PodWorld) -> None:
    seen = (await world.run("cat /proc/self/uid_map")).split()

    assert int(seen[0]) == 0
    assert int(seen[1]) >= 65536, "root inside would be root outside"


async def test_the_canary_would_see_a_pod_that_shares_the_nodes_users(cluster: Cluster, instance: str) -> None:
    async with a_pod(cluster, instance, spec={"hostUsers": True}) as world:
        await world.connect()

        seen = (await world.run("cat /proc/self/uid_map")).split()

    assert seen[:2] == ["0", "0"]


async def test_programs_run_as_the_freelancer_with_his_groups_and_with_sudo(world: PodWorld) -> None:
    seen = await world.run(
        "id -un; id -u; id -g; id -Gn; sudo -n id -u; echo $HOME; pwd; echo $USER; umask; echo $TMPDIR"
    )

    assert seen.split("\n")[:3] == ["gemini", "1000", "1000"]
    assert "sudo" in seen.split("\n")[3].split()
    assert seen.split("\n")[4:9] == ["0", "/home/gemini", "/workspace", "gemini", "0022"]


async def test_fresh_volumes_belong_to_the_freelancer_and_hold_the_skeleton(world: PodWorld) -> None:
    seen = await world.run(
        "stat -c %U:%a /home/gemini /workspace; stat -c %U ~/.bashrc ~/.profile;"
        "npm config get prefix; python3 -m site --user-base"
    )

    assert seen.split() == [
        "gemini:755",
        "gemini:755",
        "gemini",
        "gemini",
        "/home/gemini/.npm-global",
        "/home/gemini/.local",
    ]


async def test_the_agent_tells_what_sudo_and_npm_install_and_where_it_lies(world: PodWorld) -> None:
    before = await _packages(world)
    seen = await world.run(
        "set -e; mkdir -p /tmp/deb/DEBIAN /tmp/tool && cd /tmp;"
        "printf 'Package: hello-test\\nVersion: 1.0-1\\nArchitecture: all\\n' > deb/DEBIAN/control;"
        "printf 'Maintainer: T <t@example.test>\\nDescription: test\\n' >> deb/DEBIAN/control;"
        "dpkg-deb --build deb hello.deb > /dev/null; sudo dpkg -i hello.deb > /dev/null;"
        'cd tool; echo \'{"name":"tool","version":"2.0.0","bin":"tool.sh"}\' > package.json;'
        "printf '#!/bin/sh\\necho here\\n' > tool.sh; npm pack --silent;"
        "npm install -g --offline --silent ./tool-2.0.0.tgz; tool"
    )
    after = await _packages(world)

    assert seen.split()[-1] == "here"
    assert (before["dpkg", "bash"].initial, before["dpkg", "bash"].unsaved) == (True, False)
    assert ("npm", "npm") in before
    assert {name: (one.version, one.unsaved) for name, one in after.items() if name not in before} == {
        ("dpkg", "hello-test"): ("1.0-1", True),
        ("npm", "tool"): ("2.0.0", False),
    }


async def _packages(world: PodWorld) -> dict[tuple[str, str], Package]:
    assert world.agent is not None
    answer = await world.agent.stub.ListPackages(pb.ListPackagesRequest(), timeout=SECONDS.total_seconds())
    installed = package_wire.snapshot_from([answer.snapshot])
    assert installed.complete
    return {(one.key.manager.value, one.key.name): one for one in installed.packages}


async def test_the_pinned_cli_and_node_are_there(world: PodWorld) -> None:
    seen = await world.run(
        "node --version; gemini --version; git --version; python3 --version; make --version; cc --version"
    )

    assert re.match(r"v24\.\d+\.\d+\n0\.61\.0\ngit version 2", seen)


async def test_there_is_no_token_no_capability_added_and_a_seccomp_filter(world: PodWorld) -> None:
    seen = await world.run(
        "ls /var/run/secrets 2>&1; sudo grep -E '^(CapBnd|Seccomp):' /proc/1/status;"
        "sudo mount -t tmpfs none /mnt 2>&1; "
        "sudo mknod /tmp/disk b 8 0 2>&1"
    )

    assert "No such file or directory" in seen.split("\n")[0]
    # The runtime's default set: no SYS_ADMIN, no NET_ADMIN, no SYS_PTRACE, no SYS_RESOURCE.
    assert "CapBnd:\t00000000a80425fb" in seen
    assert "Seccomp:\t2" in seen
    assert "permission denied" in seen.lower()
    assert "Operation not permitted" in seen


async def test_not_even_root_changes_the_agents_files(world: PodWorld) -> None:
    seen = await world.run(
        "exec 2>&1; P=/opt/agent/usr/bin/python3; sudo touch $P; sudo rm $P; sudo touch /etc/sandboxd/agent/x"
    )

    assert seen.count("Read-only file system") == 3


async def test_apt_installs_a_package_from_a_file(world: PodWorld) -> None:
    script = """
        set -e; mkdir -p /tmp/pkg/DEBIAN /tmp/pkg/usr/local/bin; cd /tmp
        printf '%s\\n' 'Package: greeter' 'Version: 1.0' 'Architecture: all' 'Maintainer: a' 'Description: greets' \\
            > pkg/DEBIAN/control
        printf '#!/bin/sh\\necho greetings\\n' > pkg/usr/local/bin/greeter; chmod 755 pkg/usr/local/bin/greeter
        dpkg-deb --build --root-owner-group pkg greeter.deb > /dev/null
        sudo DEBIAN_FRONTEND=noninteractive apt-get install -y -q ./greeter.deb
        greeter; dpkg -s greeter | grep Status; stat -c %U /usr/local/bin/greeter
    """

    seen = await world.run(script)

    assert seen.split("\n")[-4:-1] == ["greetings", "Status: install ok installed", "root"]


async def test_memory_pressure_hits_the_freelancers_processes_before_the_agent(world: PodWorld) -> None:
    seen = await world.run("cat /proc/1/oom_score_adj /proc/self/oom_score_adj")

    agent, own = map(int, seen.split())
    assert own >= 500
    assert own > agent or own == 1000


async def test_copies_have_the_freelancers_rights_and_no_others(world: PodWorld) -> None:
    assert world.agent is not None
    await world.run("sudo install -d -o root /workspace/roots; echo 0123456789 | sudo tee /workspace/roots/private")
    await world.run("sudo chmod 600 /workspace/roots/private")

    await world.agent.copy_in(Root.WORKSPACE, "mine", _archive({"a/b": b"given"}), timeout=SECONDS)
    with pytest.raises(SandboxdError):
        await world.agent.copy_in(Root.WORKSPACE, "roots", _archive({"c": b"refused"}), timeout=SECONDS)
    mine = [piece async for piece in world.agent.copy_out(Root.WORKSPACE, "mine", timeout=SECONDS)]
    roots = [piece async for piece in world.agent.copy_out(Root.WORKSPACE, "roots", timeout=SECONDS)]

    assert b"given" in b"".join(piece for piece in mine if isinstance(piece, bytes))
    assert b"0123456789" not in b"".join(piece for piece in roots if isinstance(piece, bytes))
    seen = await world.run("cd /workspace; stat -c %U:%G mine mine/a/b; cat mine/a/b; ls roots")
    assert seen == "gemini:gemini\ngemini:gemini\ngivenprivate\n"


async def test_freeze_and_thaw_go_unnoticed_under_a_shell_with_make_and_with_vim(world: PodWorld) -> None:
    assert world.agent is not None
    await world.run(r"printf 'all:\n\t@until [ -e go ]; do sleep 0.1; done; touch made\n' > /workspace/Makefile")
    shell = await world.start("/bin/bash", "-i", terminal=TERMINAL)
    editor = await world.start("/usr/bin/vim", "/workspace/text", terminal=TERMINAL)
    await world.agent.write(shell, epoch=1, offset=0, data=b"make; echo made is $?; exit\n")
    await eventually(lambda: _running(world, "make"), within=60)

    frozen = await world.agent.freeze(timeout=SECONDS)
    states = await world.exec("sh", "-c", "for p in /proc/[0-9]*; do awk '{print $2 $3}' $p/stat; done 2>/dev/null")
    thawed = await world.agent.thaw(timeout=SECONDS)
    await world.run("touch /workspace/go")
    await world.agent.write(editor, epoch=1, offset=0, data=b"iwritten after the thaw\x1b:wq\n")
    printed = await world.read(shell)
    await world.read(editor)

    assert frozen.frozen_processes == thawed >= 4
    assert re.search(r"\(make\)T", states)
    assert re.search(r"\(vim[.a-z]*\)T", states)
    assert "made is 0" in printed
    assert "Stopped" not in printed
    assert await world.run("cat /workspace/text; ls /workspace/made") == "written after the thaw\n/workspace/made\n"


async def test_a_living_pod_is_resized_in_place(world: PodWorld) -> None:
    before = await world.pod()
    patch = (
        f'{{"spec":{{"containers":[{{"name":"{CONTAINER}","resources":{{"limits":{{"cpu":"{FIRST_OF_RESIZE}"}}}}}}]}}}}'
    )
    await world.cluster.kubectl(
        "patch", "pod", "-n", world.namespace, world.pod_name, "--subresource=resize", f"--patch={patch}"
    )

    async def resized() -> bool:
        status = (await world.pod())["status"]["containerStatuses"][0]
        return bool(status["resources"]["limits"]["cpu"] == FIRST_OF_RESIZE)

    await eventually(resized, within=60, every=0.2)
    after = await world.pod()
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0


async def test_the_agent_answers_where_the_sandbox_has_lost_python_and_libc(cluster: Cluster, instance: str) -> None:
    async with a_pod(cluster, instance) as world:
        agent = await world.connect()
        gone = await world.start(
            "/bin/bash",
            "-c",
            "sudo sh -c 'rm -rf /usr/bin/python3* /usr/lib/python3* /etc/passwd /usr/lib/x86_64-linux-gnu/libc.so.6'",
        )
        await agent.wait_process(gone, timeout=SECONDS)

        description = await agent.describe(timeout=SECONDS)
        copied = await agent.copy_in(Root.WORKSPACE, "still", _archive({"works": b"yes"}), timeout=SECONDS)
        broken = await world.start("/bin/true")
        ended = await agent.wait_process(broken, timeout=SECONDS)
        statistics = await agent.get_stats(timeout=SECONDS)

    assert description.incarnation == "inc-test"
    assert copied.entries == 1
    assert ended.exit is not None
    assert ended.exit.exit_code == 127, "nothing in the sandbox runs without its libc"
    assert statistics.agent_memory_bytes <= 60 << 20


async def test_an_agent_is_not_started_twice_in_one_pod(cluster: Cluster, instance: str) -> None:
    async with a_pod(cluster, instance) as world:
        await world.connect()
        await world.exec("kill", "-TERM", "1")

        async def refused() -> bool:
            status = (await world.pod())["status"]["containerStatuses"][0]
            ended = status["lastState"].get("terminated") or status["state"].get("terminated") or {}
            return ended.get("exitCode") == 3 and "was started here before" in ended.get("message", "")

        await eventually(refused, within=120, every=0.5)


async def test_the_agent_can_be_copied_in_where_images_cannot_be_mounted(cluster: Cluster, instance: str) -> None:
    async with a_pod(cluster, instance, copied=True) as world:
        await world.connect()

        assert (
            await world.run("id -u; sudo touch /opt/agent/x 2>&1")
            == "1000\ntouch: cannot touch '/opt/agent/x': Read-only file system\n"
        )


async def _running(world: PodWorld, command: str) -> bool:
    assert world.agent is not None
    activity = await world.agent.get_activity(timeout=SECONDS)
    return any(process.foreground_command == command for process in activity.processes)


async def _archive(files: dict[str, bytes]) -> AsyncIterator[bytes]:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    yield stream.getvalue()
