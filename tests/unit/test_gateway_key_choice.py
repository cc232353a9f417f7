"""Whose key a model call is made with: the client's own, else the installation's, else none."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxd.bootstrap.gateway import PLACEHOLDER_KEY, choose_api_keys
from sandboxd.bootstrap.keys import KeyFiles
from sandboxd.model.ids import ClientId
from sandboxd.settings import load_settings

ACME, OTHER = ClientId("acme"), ClientId("other")


def given_key(directory: Path, client: ClientId, key: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / client
    path.write_text(key)
    path.chmod(0o600)


@pytest.mark.parametrize(
    ("settings", "rest"),
    [
        ({}, None),
        ({"gemini_api_key": "the-installation"}, "the-installation"),
        ({"gemini_url": "http://127.0.0.1:9"}, PLACEHOLDER_KEY),
    ],
)
def test_a_client_without_a_key_gets_the_installations_or_none(
    tmp_path: Path, settings: dict[str, str], rest: str | None
) -> None:
    files = KeyFiles(home=tmp_path)
    keys = choose_api_keys(load_settings(data_dir=tmp_path, **settings), files)

    before = keys.key_for(OTHER)
    given_key(files.gemini_keys, ACME, "acmes-own")  # as `serve` writes it, while the gateway runs
    own = keys.key_for(ACME)

    assert own is not None
    assert own.reveal() == "acmes-own"
    assert (before.reveal() if before else None) == rest
