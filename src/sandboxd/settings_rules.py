"""Rules between settings: who listens where needs which files, and what of the callers' settings belongs together.

They look at what was given, before it is typed, so that their problems are told beside those of single settings.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator

PREFIX: Final = "SANDBOXD_"
ADDRESS: Final = re.compile(r"(?P<host>[^\s:\[\]]+|\[[0-9a-fA-F:.]+\]):(?P<port>\d{1,5})")
_TOLD: Final = re.compile(r"([^\s:\[\]/]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?")
_PROJECT: Final = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_LISTENERS: Final = {
    "grpc_listen": "tls",
    "grpc_platform_listen": "tls",
    "web_listen": "tls",
    "operator_web_listen": "tls",
    "gateway_listen": "gateway_tls",
    "gateway_web_listen": "gateway_tls",
}
"""Where a role listens, and the settings of its certificate. What is not on loopback needs one."""


def _check_address(text: str) -> str:
    found = ADDRESS.fullmatch(text)
    if found is None or int(found["port"]) > 65535:
        raise ValueError("must be host:port, for example 127.0.0.1:50051 (port 0 takes a free one)")
    return text


Address = Annotated[str, AfterValidator(_check_address)]
"""Where somebody listens, `host:port`."""
Given = Mapping[str, Any]
"""Settings as they were given, with the defaults beneath. Any: not typed yet."""


def problems_between(given: Given) -> list[str]:
    """Return what does not fit together, one line each."""
    return [
        *_pair_problems(given, "tls"),
        *_pair_problems(given, "gateway_tls"),
        *_listener_problems(given),
        *_platform_problems(given),
        *_issuer_problems(given),
        *_peer_problems(given),
        *_image_problems(given),
    ]


def is_loopback(address: str) -> bool:
    """Tell whether an address `host:port` can be reached from this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_key_url(text: str) -> str:
    """Check the address of a key set.

    Raises:
        ValueError: It is not one that keys can be trusted from.
    """
    if not _is_key_url(text):
        raise ValueError("must be an https URL without user and fragment (http only on this machine's loopback)")
    return text


def _is_key_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        return False
    if not url.hostname or url.username or url.password or url.fragment or re.search(r"\s", text):
        return False
    return url.scheme == "https" or (url.scheme == "http" and is_loopback(f"{url.hostname}:{port or 80}"))


def split_names(text: str) -> frozenset[str]:
    """Split a list of certificate names.

    Raises:
        ValueError: One of them is no DNS name, URI or common name.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if bad := [name for name in names if "*" in name or not name.isprintable() or len(name) > 255]:
        raise ValueError(f"{bad[0]!r} is no name: whole DNS names, URIs or common names, with commas between them")
    return frozenset(names)


def _pair_problems(given: Given, prefix: str) -> list[str]:
    files = {name: given.get(f"{prefix}_{name}_file") for name in ("certificate", "key")}
    problems = [
        f"{PREFIX}{prefix.upper()}_{name.upper()}_FILE: the file {file} does not exist"
        for name, file in files.items()
        if file and not Path(file).is_file()
    ]
    if bool(files["certificate"]) != bool(files["key"]):
        problems.append(f"{_names(prefix)} belong together: set both or none")
    return problems


def _listener_problems(given: Given) -> list[str]:
    return [
        f"{PREFIX}{name.upper()}: {listen} can be reached from other machines; set {_names(prefix)}, "
        "or a loopback address"
        for name, prefix in _LISTENERS.items()
        if (listen := str(given.get(name) or ""))
        and not given.get(f"{prefix}_certificate_file")
        and ADDRESS.fullmatch(listen)
        and not is_loopback(listen)
    ]


def _platform_problems(given: Given) -> list[str]:
    problems = []
    authority = given.get("tls_client_authority_file")
    if authority and not Path(authority).is_file():
        problems.append(f"{PREFIX}TLS_CLIENT_AUTHORITY_FILE: the file {authority} does not exist")
    if authority and not given.get("tls_certificate_file"):
        problems.append(f"{PREFIX}TLS_CLIENT_AUTHORITY_FILE: client certificates need TLS; set {_names('tls')}")
    problems += [
        f"{PREFIX}{name.upper()}: it needs {PREFIX}TLS_CLIENT_AUTHORITY_FILE, or nobody's certificate is checked"
        for name in ("grpc_platform_listen", "platform_certificate_names")
        if given.get(name) and not authority
    ]
    return problems


def _issuer_problems(given: Given) -> list[str]:
    url, file, authority = (given.get(f"jwt_{name}") for name in ("jwks_url", "keys_file", "jwks_authority_file"))
    problems = []
    if url and file:
        problems.append(f"{PREFIX}JWT_JWKS_URL and {PREFIX}JWT_KEYS_FILE exclude each other: keys come from one place")
    if authority and not url:
        problems.append(f"{PREFIX}JWT_JWKS_AUTHORITY_FILE: it is for {PREFIX}JWT_JWKS_URL, which is not set")
    if authority and not Path(authority).is_file():
        problems.append(f"{PREFIX}JWT_JWKS_AUTHORITY_FILE: the file {authority} does not exist")
    return problems


def _peer_problems(given: Given) -> list[str]:
    listen, told = str(given.get("peer_listen") or ""), str(given.get("peer_address") or "")
    if told and not _TOLD.fullmatch(told):
        return [f"{PREFIX}PEER_ADDRESS: must be host or host:port, for example replica-0.sandboxd:50052"]
    if not told and listen.rpartition(":")[0].strip("[]") in ("0.0.0.0", "::"):  # noqa: S104  refused here
        return [f"{PREFIX}PEER_ADDRESS: other replicas cannot use {listen}; say at which address they reach this one"]
    return []


def _image_problems(given: Given) -> list[str]:
    name = f"{PREFIX}IMAGES_REGISTRY"
    registry, address = str(given.get("images_registry") or ""), str(given.get("images_registry_address") or "")
    user, password = given.get("images_registry_user"), given.get("images_registry_password")
    authority = given.get("images_registry_authority_file")
    problems = []
    if not registry:
        needing = ("address", "authority_file", "user", "password")
        problems += [
            f"{name}_{one.upper()}: it is for {name}, which is not set"
            for one in needing
            if given.get(f"images_registry_{one}")
        ]
    if bool(user) != bool(password):
        problems.append(f"{name}_USER and {name}_PASSWORD belong together: set both or none")
    if authority and not Path(authority).is_file():
        problems.append(f"{name}_AUTHORITY_FILE: the file {authority} does not exist")
    problems += _signing_problems(given, registry)
    problems += _harbor_problems(given)
    reached = address or registry
    plain = str(given.get("images_registry_plain")).lower() in {"1", "true", "t", "yes", "y", "on"}
    if plain and password and not is_loopback(f"{reached.partition(':')[0]}:1"):
        problems.append(f"{name}_PLAIN: the password would go to {reached} without TLS; only loopback is accepted")
    return problems + _kaniko_problems(given)


def _harbor_problems(given: Given) -> list[str]:
    if str(given.get("images_registry_kind")) != "harbor":
        return []
    prefix = str(given.get("images_repository_prefix") or "")
    problems = [
        f"{PREFIX}IMAGES_{one.upper()}: Harbor's API needs it"
        for one in ("registry", "registry_user", "registry_password")
        if not given.get(f"images_{one}")
    ]
    if prefix and not _PROJECT.fullmatch(prefix):
        problems.append(
            f"{PREFIX}IMAGES_REPOSITORY_PREFIX: with Harbor it begins the names of projects: small letters and digits, "
            "with single dots, dashes or underscores between them"
        )
    return problems


def _kaniko_problems(given: Given) -> list[str]:
    if str(given.get("images_builder")) != "kaniko":
        return []
    needing = ("registry", "kaniko_namespace", "kaniko_image", "kaniko_agent_image")
    problems = [
        f"{PREFIX}IMAGES_{one.upper()}: builds by kaniko need it" for one in needing if not given.get(f"images_{one}")
    ]
    if str(given.get("backend")) != "kubernetes":
        problems.append(f"{PREFIX}IMAGES_BUILDER: kaniko runs in a cluster; set {PREFIX}BACKEND to kubernetes")
    return problems


def _signing_problems(given: Given, registry: str) -> list[str]:
    key, trust = given.get("images_signing_key_file"), given.get("images_signing_trust_dir")
    wanted = str(given.get("images_signatures") or "never") != "never"
    problems = []
    for name, path, there in (("KEY_FILE", key, Path.is_file), ("TRUST_DIR", trust, Path.is_dir)):
        if path and not registry:
            problems.append(f"{PREFIX}IMAGES_SIGNING_{name}: it is for {PREFIX}IMAGES_REGISTRY, which is not set")
        elif path and not there(Path(path)):
            problems.append(f"{PREFIX}IMAGES_SIGNING_{name}: {path} does not exist")
    if wanted and registry and not key and not trust:
        problems.append(
            f"{PREFIX}IMAGES_SIGNATURES: no key is trusted; set {PREFIX}IMAGES_SIGNING_KEY_FILE or "
            f"{PREFIX}IMAGES_SIGNING_TRUST_DIR"
        )
    return problems


def _names(prefix: str) -> str:
    return f"{PREFIX}{prefix.upper()}_CERTIFICATE_FILE and {PREFIX}{prefix.upper()}_KEY_FILE"
