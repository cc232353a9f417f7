"""Harbor's own API (`/api/v2.0`), as far as projects need it: exchanges, and what its refusals mean for us.

Its description is `api/v2.0/swagger.yaml` of https://github.com/goharbor/harbor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp
from yarl import URL

from sandboxd.backends.registry.access import RegistryAccess, RegistryAccount
from sandboxd.backends.registry.transport import Answer, Call, Transport, open_session
from sandboxd.model.errors import NotFoundError, SandboxdError, UnavailableError

OLDEST: Final = (2, 12)
"""The first version in which a robot account may make robot accounts and change quotas."""
PAGE_SIZE: Final = 100
"""Of lists; Harbor gives no more at once."""
PAGES: Final = 100
_BYTES: Final = 8 << 20
_VERSION: Final = re.compile(r"v?(\d+)\.(\d+)\.")

Json = Any
"""What an answer has: JSON of somebody else."""
Verb = Literal["GET", "HEAD", "POST", "PUT", "DELETE"]


class HarborApi:
    """One Harbor by its address."""

    def __init__(self, address: str, *, plain: bool, authority: Path | None, account: RegistryAccount) -> None:
        self._base = URL(f"{'http' if plain else 'https'}://{address}")
        self._authority = authority
        self._access = RegistryAccess(self._base, account, basic=True)
        self._who = account.name
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Give up its connections."""
        if self._http is not None:
            await self._http.close()

    async def check_version(self) -> None:
        """See that this is a Harbor that can do what is asked of it.

        Raises:
            UnavailableError: It is none, does not know our account, or is too old.
        """
        answer = await self.ask("GET", "systeminfo", 200, 404, right="")
        said = "" if answer.status == 404 else str(self.read(answer, dict).get("harbor_version") or "")
        if answer.status == 404:
            raise UnavailableError(
                f"{self._base.authority} is no Harbor: it has no /api/v2.0. Look at SANDBOXD_IMAGES_REGISTRY_KIND.",
                registry=self._base.authority,
            )
        if not said:  # Harbor tells its version to those it knows
            raise UnavailableError(
                f"Harbor does not know the account {self._who}, or its password. Look at the account.",
                account=self._who,
            )
        found = _VERSION.match(said)
        if found is not None and (int(found[1]), int(found[2])) < OLDEST:
            raise UnavailableError(
                f"Harbor is of the version {said}; from {OLDEST[0]}.{OLDEST[1]} on a robot account can do what is "
                "needed. Upgrade Harbor, or set SANDBOXD_IMAGES_REGISTRY_KIND to distribution.",
                version=said,
            )

    async def has_project(self, name: str) -> bool:
        """Whether there is such a project, whoever's it is. It takes no right but to be known.

        Raises:
            UnavailableError: As `ask`.
        """
        answer = await self.ask("HEAD", "projects", 200, 404, right="", query={"project_name": name})
        return answer.status == 200

    async def ask(
        self,
        verb: Verb,
        path: str,
        *expected: int,
        right: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Json] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Exchange until Harbor gives one of these answers.

        Args:
            verb: Of HTTP.
            path: Below `/api/v2.0`, encoded.
            expected: Statuses that are answers.
            right: What the account needs for it, as `project: create`; told where it is refused.
            query: Of the address.
            body: Sent as JSON.
            headers: More of them.

        Raises:
            UnavailableError: It does not answer so, or refuses the account.
        """
        url = URL(f"{self._base}/api/v2.0/{path}", encoded=True)
        call = Call(
            method=verb,
            url=url.extend_query(query) if query else url,
            scopes=(),
            headers={"Accept": "application/json", "Content-Type": "application/json", **(headers or {})},
            body=None if body is None else json.dumps(body).encode(),
        )
        transport = self._transport()
        answer = await transport.ask(call, *expected, 400, 401, 403, 404, 409, 412, 422, limit=_BYTES)
        if answer.status in expected:
            return answer
        raise self._failure(transport, call, answer, right)

    def read(self, answer: Answer, kind: type) -> Json:
        """Return an answer's JSON, which must be of this kind.

        Raises:
            UnavailableError: It is not.
        """
        try:
            said = json.loads(answer.content)
        except ValueError:
            said = None
        if not isinstance(said, kind):
            raise UnavailableError(
                f"What Harbor answers to {answer.url.path} cannot be read.", registry=self._base.authority
            )
        return said

    async def pages(self, path: str, *, right: str, query: Mapping[str, str] | None = None) -> list[Json]:
        """Return all of a list.

        Raises:
            UnavailableError: As `ask`, or it does not end.
        """
        found: list[Json] = []
        for page in range(1, PAGES + 1):
            more = {**(query or {}), "page": str(page), "page_size": str(PAGE_SIZE)}
            there = self.read(await self.ask("GET", path, 200, right=right, query=more), list)
            found += there
            if len(there) < PAGE_SIZE:
                return found
        raise UnavailableError(f"Harbor's list {path} does not end after {PAGES} pages.", registry=self._base.authority)

    def _failure(self, transport: Transport, call: Call, answer: Answer, right: str) -> SandboxdError:
        told = transport.failure(call, answer)
        if isinstance(told, NotFoundError):  # what was there a moment ago, or another Harbor than we know
            return UnavailableError(told.message, registry=self._base.authority, status=str(answer.status))
        if answer.status not in {401, 403} or not isinstance(told, UnavailableError) or not right:
            return told
        return UnavailableError(
            f"{told.message} The account {self._who} needs the permission `{right}` in Harbor (docs/images-kept.md has "
            "all of them).",
            registry=self._base.authority,
            account=self._who,
            permission=right,
        )

    def _transport(self) -> Transport:
        if self._http is None:
            self._http = open_session(self._authority)
        return Transport(self._http, self._base, self._access)
