"""The end of `sandboxd dev` on a cluster: what follows the cluster has ended before its connection is closed."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from sandboxd.bootstrap.places import end_agents
from sandboxd.settings import load_settings
from tests.certificates import Authority


@asynccontextmanager
async def a_cluster_without_sandboxes(directory: Path) -> AsyncIterator[Path]:
    """A kubeconfig of an API server that has nothing in its lists, and watches in which nothing happens."""
    authority, quiet = Authority(), asyncio.Event()
    authority.write(directory, "ca.crt")
    files = authority.issue("127.0.0.1").write(directory)
    encrypted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    encrypted.load_cert_chain(files.certificate, files.key)

    async def answer(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return web.json_response({"kind": "List", "metadata": {"resourceVersion": "1"}, "items": []})
        watch = web.StreamResponse()
        await watch.prepare(request)
        await quiet.wait()
        return watch

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=encrypted).start()
    host, port, *_ = runner.addresses[0]
    kubeconfig = directory / "kubeconfig"
    content = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "one", "user": "me"}}],
        "clusters": [
            {"name": "one", "cluster": {"server": f"https://{host}:{port}", "certificate-authority": "ca.crt"}}
        ],
        "users": [{"name": "me", "user": {"token": "mine"}}],
    }
    kubeconfig.write_text(json.dumps(content))
    try:
        yield kubeconfig
    finally:
        quiet.set()
        await runner.cleanup()


async def test_nothing_follows_the_cluster_any_more_when_its_sandboxes_have_ended(tmp_path: Path) -> None:
    async with a_cluster_without_sandboxes(tmp_path) as kubeconfig:
        settings = load_settings(
            data_dir=tmp_path, backend="kubernetes", kubeconfig=kubeconfig, gateway_url="https://10.0.0.1"
        )

        await end_agents(settings)

        left = {task.get_name() for task in asyncio.all_tasks()}
    assert left & {"placement", "backend", "pool-board", "mirror-sandboxes", "mirror-template"} == set()
