"""The list of an image's packages as a CycloneDX 1.6 document (https://cyclonedx.org/docs/1.6/json/). Pure.

The same packages give the same bytes: no moment, no random number and no name of an image is in it; which image it
describes says the `subject` of the manifest that it is attached by. Names and versions are what files in the sandbox
said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from packageurl import PackageURL

from sandboxd.model.packages import Package, PackageManager

CYCLONEDX: Final = "application/vnd.cyclonedx+json"
"""Media type of the document, and artifact type of its manifest."""
_TYPES: Final[Mapping[PackageManager, str]] = {
    PackageManager.DPKG: "deb",
    PackageManager.PIP: "pypi",
    PackageManager.NPM: "npm",
    PackageManager.CARGO: "cargo",
    PackageManager.GEM: "gem",
    PackageManager.GO: "golang",
}
"""How the purl specification calls the managers' packages; a program that none of them knows has no such name."""
_BASE_FILES: Final = "base-files"
"""The package of Debian and what derives from it whose version says which release it is: `12.4+deb12u11`."""
_RELEASE: Final = re.compile(r"(\d+)(?:\.|\+|$)")


def write_sbom(packages: Sequence[Package], *, complete: bool) -> bytes:
    """Write the document.

    Args:
        packages: Of the image, each key once.
        complete: False where a database could not be read. Even a complete one is no list of everything: files that no
            package manager knows of are not in it, and its composition says so.
    """
    distribution = _distribution(packages)
    components = sorted((_component(one, distribution) for one in packages), key=lambda one: str(one["bom-ref"]))
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "sandboxd"}]},
            "component": {"type": "container", "bom-ref": "image", "name": "gemini-cli-user"},
            "properties": [_property("packages_complete", "true" if complete else "false")],
        },
        "components": components,
        "compositions": [{"aggregate": "incomplete", "assemblies": ["image"]}],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def purl_of(package: Package, *, distribution: tuple[str, str] = ("debian", "")) -> str:
    """Name a package as scanners do (https://github.com/package-url/purl-spec).

    Args:
        package: Which.
        distribution: Of a Debian package: vendor, and release as `debian-12`, where it is known.
    """
    key, qualifiers = package.key, dict[str, str]()
    if key.manager not in _TYPES:
        return ""
    namespace, name = "", key.name
    if key.manager is PackageManager.DPKG:
        namespace, release = distribution
        name, _, architecture = key.name.partition(":")
        qualifiers = {"arch": architecture, "distro": release}
    elif key.manager in (PackageManager.NPM, PackageManager.GO) and "/" in key.name:
        namespace, _, name = key.name.rpartition("/")
    used = {word: value for word, value in qualifiers.items() if value}
    try:
        return str(PackageURL(_TYPES[key.manager], namespace, name, package.version, used).to_string())
    except (ValueError, TypeError):  # a name that no registry has (`/`), as files in a sandbox may have it
        return ""


def _component(package: Package, distribution: tuple[str, str]) -> Mapping[str, Any]:  # Any: JSON
    purl, key = purl_of(package, distribution=distribution), package.key
    properties = [_property("directory", key.directory), _property("manager", key.manager.value)]
    if not package.requested:
        properties.append(_property("requested", "false"))
    said: dict[str, Any] = {  # Any: JSON
        # One name may be installed in several directories, and a reference must be there once.
        "bom-ref": f"{key.manager.value}:{key.name}@{package.version}#{key.directory}",
        "type": "application" if key.manager is PackageManager.PROGRAM else "library",
        "name": key.name,
        "version": package.version,
        "properties": properties,
    }
    return {**said, "purl": purl} if purl else said


def _property(name: str, value: str) -> Mapping[str, str]:
    return {"name": f"sandboxd:{name}", "value": value}


def _distribution(packages: Sequence[Package]) -> tuple[str, str]:
    """Say whose Debian packages these are, and of which release, by the version of `base-files`."""
    for one in packages:
        if one.key.manager is PackageManager.DPKG and one.key.name == _BASE_FILES:
            if "ubuntu" in one.version:
                return "ubuntu", ""
            release = _RELEASE.match(one.version)
            return "debian", f"debian-{release[1]}" if release else ""
    return "debian", ""
