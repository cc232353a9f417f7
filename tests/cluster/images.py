"""Images of a single layer, pushed to the development cluster's registry, for tests that need no real sandbox."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import aiohttp

from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.model.image_names import user_repository

HERE: Final = Path(__file__).parent
Json = dict[str, Any]  # Any: JSON
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"


async def push(registry: str, name: str, files: Mapping[str, bytes]) -> str:
    """Push an image that has these files, all of them executable; answers its name in pods, by digest."""
    layer = await asyncio.to_thread(_tar, files)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
    }
    blobs = [(_LAYER, layer), (_CONFIG, json.dumps(config).encode())]
    described = [{"mediaType": kind, "digest": _digest(blob), "size": len(blob)} for kind, blob in blobs]
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": _MANIFEST, "config": described[1], "layers": described[:1]}
    ).encode()
    async with aiohttp.ClientSession(f"http://{registry}") as session:
        for _, blob in blobs:
            await _push_blob(session, name, blob)
        tag = await _push_manifest(session, name, manifest)
    return f"localhost:{registry.rpartition(':')[2]}/{name}@{tag}"


async def push_variant(registry: str, reference: str, word: str) -> str:
    """Push an image of the same layers that no node knows; answers its name in pods, by digest."""

    def labelled(manifest: Json, config: Json) -> None:
        config.setdefault("config", {}).setdefault("Labels", {})["sandboxd.test"] = word

    return await _push_changed(registry, reference, labelled, layers=())


async def push_on_top(registry: str, reference: str, files: Mapping[str, bytes]) -> str:
    """Push an image with these files above another's, all of them executable; answers its name in pods, by digest."""
    layer = await asyncio.to_thread(_tar, files)

    def above(manifest: Json, config: Json) -> None:
        manifest["layers"].append({"mediaType": _LAYER, "digest": _digest(layer), "size": len(layer)})
        config["rootfs"]["diff_ids"].append(_digest(layer))
        config.pop("history", None)  # it would count one layer too few

    return await _push_changed(registry, reference, above, layers=[layer])


async def own_image(
    registry: str,
    base: str,
    files: Mapping[str, bytes] = MappingProxyType({}),
    *,
    gone: Iterable[str] = (),
    client: str = "acme",
    freelancer: str = "ada",
    repository: str = "",
) -> str:
    """Push an image as a commit makes one: the base's layers and one above them, in the freelancer's repository.

    Args:
        registry: Where, as this machine reaches it.
        base: The image below, in the same registry.
        files: What the layer adds or replaces, all executable.
        gone: Paths that it takes away.
        client: Whose freelancer.
        freelancer: Whose image.
        repository: Where it goes, if not where that freelancer's images are without a prefix.
    """
    whiteouts = {str(Path(path).with_name(f".wh.{Path(path).name}")): b"" for path in gone}
    layer = await asyncio.to_thread(_tar, {**files, **whiteouts})

    def above(manifest: Json, config: Json) -> None:
        manifest["layers"].append({"mediaType": _LAYER, "digest": _digest(layer), "size": len(layer)})
        config["rootfs"]["diff_ids"].append(_digest(layer))
        config.pop("history", None)

    target = repository or user_repository(ClientId(client), FreelancerId(freelancer))
    return await _push_changed(registry, base, above, layers=[layer], target=target)


async def _push_changed(
    registry: str,
    reference: str,
    change: Callable[[Json, Json], None],
    *,
    layers: Iterable[bytes],
    target: str = "",
) -> str:
    """Push what a change makes of an image's manifest and configuration, and the layers that it added.

    Into the same repository unless a target is named, which then gets the image's own layers too.
    """
    name, _, tag = reference.partition("/")[2].rpartition("@")
    async with aiohttp.ClientSession(f"http://{registry}") as session:
        async with session.get(f"/v2/{name}/manifests/{tag}", headers={"Accept": _MANIFEST}) as got:
            got.raise_for_status()
            manifest = json.loads(await got.read())
        async with session.get(f"/v2/{name}/blobs/{manifest['config']['digest']}") as found:
            found.raise_for_status()
            config = json.loads(await found.read())
        for one in manifest["layers"] if target else ():
            await _mount_blob(session, target, one["digest"], source=name)
        name = target or name
        change(manifest, config)
        blob = json.dumps(config).encode()
        for content in (*layers, blob):
            await _push_blob(session, name, content)
        manifest["config"] |= {"digest": _digest(blob), "size": len(blob)}
        made = await _push_manifest(session, name, json.dumps(manifest).encode())
    return f"localhost:{registry.rpartition(':')[2]}/{name}@{made}"


async def _mount_blob(session: aiohttp.ClientSession, name: str, digest: str, *, source: str) -> None:
    async with session.post(f"/v2/{name}/blobs/uploads/", params={"mount": digest, "from": source}) as answered:
        assert answered.status == 201, f"{source}@{digest} was not mounted: {answered.status}"


async def _push_blob(session: aiohttp.ClientSession, name: str, blob: bytes) -> None:
    async with session.post(f"/v2/{name}/blobs/uploads/") as begun:
        begun.raise_for_status()
        location = begun.headers["Location"]
    mark = "&" if "?" in location else "?"
    async with session.put(f"{location}{mark}digest={_digest(blob)}", data=blob) as done:
        done.raise_for_status()


async def _push_manifest(session: aiohttp.ClientSession, name: str, manifest: bytes) -> str:
    tag = _digest(manifest)
    async with session.put(f"/v2/{name}/manifests/{tag}", data=manifest, headers={"Content-Type": _MANIFEST}) as put:
        put.raise_for_status()
    return tag


async def push_stand_in_agent(registry: str) -> str:
    """Push what listens where the agent does, and dies as it is told: see `stand_in_agent.c`."""

    def compile_it() -> bytes:
        with tempfile.TemporaryDirectory() as directory:
            made = Path(directory) / "agent"
            subprocess.run(["cc", "-static", "-Os", "-o", made, HERE / "stand_in_agent.c"], check=True)
            return made.read_bytes()

    program = await asyncio.to_thread(compile_it)
    # In place of the agent's own loader, whose arguments it does not look at.
    return await push(registry, "tests/stand-in-agent", {"lib64/ld-linux-x86-64.so.2": program})


def _tar(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"
