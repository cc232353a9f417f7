"""A fake of Harbor before a real docker-registry: its API, its token server, and how it lets callers in.

It was written from the sources of Harbor 2.16, as Harbor itself does not run where the tests do. Each exchange with its
API is held against its own description (`tests/data/harbor/api-v2.0.json`, an excerpt).
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web

from tests.harbor_api import HarborOperations
from tests.harbor_state import HarborState, Json, RefusedError, Robot
from tests.ports import a_free_port
from tests.registry_front import RealRegistry, a_registry
from tests.swagger import Swagger, SwaggerError

DESCRIPTION: Final = Path(__file__).parent / "data" / "harbor" / "api-v2.0.json"
BASE: Final = "/api/v2.0"
_ACTIONS: Final = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}
_V2: Final = re.compile(r"/v2/(?P<repository>.+?)/(?P<kind>manifests|blobs|tags|referrers)/(?P<rest>.*)")
_OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"


class Harbor:
    """One that runs."""

    def __init__(self, registry: RealRegistry) -> None:
        self.registry = registry
        self.address = f"127.0.0.1:{a_free_port()}"
        self.state = HarborState()
        self.seen: list[str] = []
        """Calls of the API, in order: method and path."""
        self.slips: list[str] = []
        """Exchanges that were not as the description has it."""
        self.lacking = ""
        """Of all answers of the API that are one object."""
        self.let_in: set[str] = set()
        """Accounts that were let into a repository."""
        self._operations = HarborOperations(self.state)
        self._tokens: dict[str, tuple[Robot, frozenset[str]]] = {}
        self._uploads: dict[str, int] = {}
        self._accessories: dict[str, list[Json]] = {}
        self._swagger = Swagger(DESCRIPTION)
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen."""
        application = web.Application(client_max_size=64 << 20)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        host, _, port = self.address.rpartition(":")
        await web.TCPSite(self._runner, host, int(port)).start()

    async def stop(self) -> None:
        """End."""
        assert self._runner is not None
        await self._runner.cleanup()

    def expire_tokens(self) -> None:
        """Let none of those that were given out be good any more."""
        self._tokens.clear()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            if request.path.startswith("/v2/"):
                return await self._distribution(request)
            if request.path == "/service/token":
                return self._token(request)
            if request.path.startswith(f"{BASE}/"):
                return await self._api(request)
        except RefusedError as refused:
            return refused.answer()
        return web.Response(status=404)

    def _token(self, request: web.Request) -> web.Response:
        who = self.state.who(request)
        if who is None or request.query["service"] != "harbor-registry":
            return web.Response(status=401)
        token = secrets.token_hex(16)
        self._tokens[token] = (who, frozenset(request.query.getall("scope", [])))
        return web.json_response({"token": token, "expires_in": 1800, "issued_at": "2026-01-01T00:00:00Z"})

    def _let_in(self, request: web.Request, repository: str, action: str) -> None:
        authorization = request.headers.get("Authorization", "")
        project = self.state.projects.get(repository.partition("/")[0])
        realm = f'Bearer realm="http://{self.address}/service/token",service="harbor-registry"'
        challenge = 'Basic realm="harbor"' if authorization else f'{realm},scope="repository:{repository}:{action}"'
        if not authorization and request.method in {"GET", "HEAD"}:
            raise RefusedError(401, "UNAUTHORIZED", **{"WWW-Authenticate": challenge})
        if project is None:
            raise RefusedError(401, "UNAUTHORIZED", "project not found", **{"WWW-Authenticate": ""})
        who = self.state.who(request)
        if authorization.startswith("Bearer "):
            who, scopes = self._tokens.get(authorization.removeprefix("Bearer "), (None, frozenset[str]()))
            who = who if any(one.startswith(f"repository:{repository}:") for one in scopes) else None
        public = project.metadata["public"] == "true" and action == "pull"
        if not public and (who is None or not who.may(project.name, "repository", action)):
            text = f"unauthorized to access repository: {repository}, action: {action}"
            raise RefusedError(401, "UNAUTHORIZED", text, **{"WWW-Authenticate": challenge})
        if who is not None:
            self.let_in.add(who.name)

    async def _distribution(self, request: web.Request) -> web.Response:
        found = _V2.fullmatch(request.path)
        assert found is not None, request.path
        repository, kind, rest = found["repository"], found["kind"], found["rest"]
        self._let_in(request, repository, _ACTIONS.get(request.method, "push"))
        if source := request.query.get("from"):
            self._let_in(request, source, "pull")
        project = self.state.projects[repository.partition("/")[0]]
        if kind == "tags" and repository not in project.repositories:
            raise RefusedError(404, "NOT_FOUND", f"repository {repository} not found")
        if kind == "referrers":
            listed = [one["descriptor"] for one in self._accessories.get(repository, []) if one["subject"] == rest]
            index = {"schemaVersion": 2, "mediaType": _OCI_INDEX, "manifests": listed}
            return web.json_response(index, content_type=_OCI_INDEX)
        if (kind, request.method) == ("manifests", "DELETE") and not rest.startswith("sha256:"):
            raise RefusedError(400, "UNSUPPORTED", f"unsupported digest {rest}")
        body = await request.read()
        self.state.spend(project, self._wanted(request, kind, rest, body))
        answer = await self._pass_on(request, body)
        if (kind, request.method, answer.status) == ("manifests", "PUT", 201):
            project.repositories.add(repository)
            self._note_subject(repository, request, json.loads(body), answer)
        if (kind, request.method) == ("manifests", "DELETE"):
            kept = [one for one in self._accessories.get(repository, []) if one["descriptor"]["digest"] != rest]
            self._accessories[repository] = kept
        return answer

    def _wanted(self, request: web.Request, kind: str, rest: str, body: bytes) -> dict[str, int]:
        """What a request would count in the quota."""
        session = rest.partition("/")[2]
        if (kind, request.method) == ("manifests", "PUT"):
            text = json.loads(body)
            parts = [*text.get("layers", []), *([text["config"]] if "config" in text else [])]
            return {one["digest"]: one["size"] for one in parts}
        if (kind, request.method) == ("blobs", "PATCH"):
            self._uploads[session] = self._uploads.get(session, 0) + len(body)
        if (kind, request.method) == ("blobs", "PUT"):
            return {request.query["digest"]: self._uploads.get(session, 0) + len(body)}
        return {}

    def _note_subject(self, repository: str, request: web.Request, text: Json, answer: web.Response) -> None:
        if "subject" not in text:
            return
        subject = text["subject"]["digest"]
        descriptor = {
            "mediaType": request.headers["Content-Type"],
            "digest": answer.headers["Docker-Content-Digest"],
            "size": int(request.headers["Content-Length"]),
            "artifactType": text.get("artifactType") or text["config"]["mediaType"],
        }
        there = self._accessories.setdefault(repository, [])
        if not any(one["descriptor"] == descriptor for one in there):
            there.append({"subject": subject, "descriptor": descriptor})
        answer.headers["OCI-Subject"] = subject

    async def _pass_on(self, request: web.Request, body: bytes) -> web.Response:
        skipped = {"transfer-encoding", "authorization", "host"}
        headers = {name: value for name, value in request.headers.items() if name.lower() not in skipped}
        url = f"http://{self.registry.address}{request.raw_path}"
        async with (
            aiohttp.ClientSession(auto_decompress=False) as http,
            http.request(request.method, url, data=body, headers=headers, allow_redirects=False) as answer,
        ):
            content = await answer.read()
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in {"content-length", "date"}}
            if "Location" in kept:
                kept["Location"] = kept["Location"].replace(self.registry.address, self.address)
            return web.Response(status=answer.status, headers=kept, body=content)

    async def _api(self, request: web.Request) -> web.Response:
        path = request.raw_path.partition("?")[0].removeprefix(BASE)
        self.seen.append(f"{request.method} {path}")
        raw = await request.read()
        try:
            operation = self._swagger.operation(request.method, path)
            body = json.loads(raw) if raw else None
            self._swagger.check_request(operation, query=request.query, body=body)
        except SwaggerError as slip:
            self.slips.append(str(slip))
            raise RefusedError(422, "UNPROCESSABLE_ENTITY", str(slip)) from slip
        if "sid" in request.cookies and request.method not in {"GET", "HEAD"}:
            raise RefusedError(403, "FORBIDDEN", "CSRF token not found in request")
        told = self._operations.answer(operation.name, request, path, body)
        try:
            if not told.empty:
                self._swagger.check_answer(operation, told.status, told.body, head=request.method == "HEAD")
        except SwaggerError as slip:
            self.slips.append(str(slip))
        if isinstance(told.body, dict):
            told.body.pop(self.lacking, None)
        answer = web.Response(status=told.status, headers=told.headers)
        if told.body is not None:
            answer = web.json_response(told.body, status=told.status, headers=told.headers)
        answer.set_cookie("sid", secrets.token_hex(8))  # and whoever sends it back must prove to be no other page
        return answer


@asynccontextmanager
async def a_harbor(directory: Path) -> AsyncIterator[Harbor]:
    """Start one on a free port; at the end nothing was asked of it that its description does not have."""
    async with a_registry(directory) as registry:
        harbor = Harbor(registry)
        await harbor.start()
        try:
            yield harbor
        finally:
            await harbor.stop()
        assert harbor.slips == [], harbor.slips
