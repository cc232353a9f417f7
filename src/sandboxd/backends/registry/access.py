"""How a registry lets us in: with nothing, with a name and a password, or a token from the server it names."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from typing import Final

import aiohttp
from yarl import URL

from sandboxd.model.errors import UnavailableError

_PARAMETER: Final = re.compile(r'([a-z_]+)="([^"]*)"', re.IGNORECASE)
_TOKEN_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryAccount:
    """Who we are for a registry."""

    name: str
    password: str = field(repr=False)

    @property
    def basic(self) -> str:
        """The header's value for basic authentication."""
        return "Basic " + base64.b64encode(f"{self.name}:{self.password}".encode()).decode()


def scopes_of(repository: str, *, write: bool, source: str = "") -> tuple[str, ...]:
    """Return the scopes of a token for a repository, and for reading another that blobs are mounted from."""
    own = f"repository:{repository}:pull,push" if write else f"repository:{repository}:pull"
    return (own, f"repository:{source}:pull") if source else (own,)


class RegistryAccess:
    """Knows the `Authorization` to send, learns it from refusals, and sends the password nowhere in the clear."""

    def __init__(self, base: URL, account: RegistryAccount | None, *, basic: bool = False) -> None:
        """Keep who we are; with `basic` name and password are sent before anybody asks for them."""
        self._base = base
        self._account = account
        self._basic = basic
        self._tokens: dict[tuple[str, ...], str] = {}

    def header(self, url: URL, scopes: tuple[str, ...]) -> dict[str, str]:
        """Return what to send along; nothing to another origin, as the storage that an upload is sent on to."""
        if url.origin() != self._base.origin():
            return {}
        if scopes in self._tokens:
            return {"Authorization": self._tokens[scopes]}
        return {"Authorization": self._account.basic} if self._basic and self._account else {}

    async def learn(
        self, http: aiohttp.ClientSession, challenge: str, scopes: tuple[str, ...], *, refused: dict[str, str]
    ) -> bool:
        """Take a refusal's `WWW-Authenticate`; False where nothing else can be sent than what was refused.

        Raises:
            UnavailableError: The token server does not give a token.
        """
        scheme, _, rest = challenge.partition(" ")
        sent = refused.get("Authorization")
        if sent is not None and self._tokens.get(scopes) == sent:
            del self._tokens[scopes]
        if scheme.lower() == "bearer" and scopes not in self._tokens:
            parameters = {name.lower(): value for name, value in _PARAMETER.findall(rest)}
            self._tokens[scopes] = "Bearer " + await self._token(http, parameters, scopes)
        elif scheme.lower() == "basic":
            # Also in place of a token that has expired: Harbor then asks for name and password, not for another token.
            self._basic = self._account is not None
        now = self._tokens.get(scopes) or (self._account.basic if self._basic and self._account else None)
        return now is not None and now != sent

    async def _token(self, http: aiohttp.ClientSession, parameters: dict[str, str], scopes: tuple[str, ...]) -> str:
        realm = URL(parameters.get("realm", ""))
        if realm.scheme != "https" and (realm.scheme != "http" or self._base.scheme != "http"):
            raise UnavailableError("The registry names a token server without TLS. Look at its auth.token.realm.")
        query = [("scope", scope) for scope in scopes]
        if service := parameters.get("service"):
            query.append(("service", service))
        headers = {"Authorization": self._account.basic} if self._account else {}
        async with http.get(realm.update_query(query), headers=headers, allow_redirects=False) as answer:
            if answer.status != 200:
                raise UnavailableError(
                    f"The registry's token server {realm.host} answers {answer.status}. Look at the account.",
                    server=str(realm.host),
                    status=str(answer.status),
                )
            text = await answer.content.read(_TOKEN_BYTES)
            while more := await answer.content.read(_TOKEN_BYTES - len(text)):
                text += more
        return _token_in(text, str(realm.host))


def _token_in(text: bytes, server: str) -> str:
    try:
        said = json.loads(text)
        token = said.get("token") or said.get("access_token")
    except (ValueError, AttributeError):
        token = None
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise UnavailableError(f"The registry's token server {server} gives no token.", server=server)
    return token
