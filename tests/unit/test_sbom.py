"""The list of an image's packages: the same for the same packages, and read as it is meant by another's reader."""

from __future__ import annotations

import json
import random

import pytest
from cyclonedx.model.bom import Bom
from packageurl import PackageURL

from sandboxd.images.sbom import purl_of, write_sbom
from sandboxd.model.image_sbom import in_image
from sandboxd.model.packages import Package, PackageKey, PackageManager, PackagePlace

M = PackageManager
NAMES = {
    M.DPKG: ("base-files", "12.4+deb12u11"),
    M.PIP: ("requests", "2.32.0"),
    M.NPM: ("@google/gemini-cli", "0.1.7"),
    M.CARGO: ("ripgrep", "14.1.1"),
    M.GEM: ("rake", "13.2.1"),
    M.GO: ("github.com/mikefarah/yq/v4", "v4.44.1"),
}


def a_package(
    manager: PackageManager, name: str, version: str = "1", *, directory: str = "/usr/lib", place: str = "root"
) -> Package:
    key = PackageKey(manager=manager, name=name, directory=directory)
    return Package(key=key, version=version, place=PackagePlace(place))


def all_kinds() -> list[Package]:
    return [a_package(manager, name, version) for manager, (name, version) in NAMES.items()]


def test_every_managers_packages_have_the_names_that_scanners_know() -> None:
    found = [purl_of(one, distribution=("debian", "debian-12")) for one in all_kinds()]

    assert found == [
        "pkg:deb/debian/base-files@12.4%2Bdeb12u11?distro=debian-12",
        "pkg:pypi/requests@2.32.0",
        "pkg:npm/%40google/gemini-cli@0.1.7",
        "pkg:cargo/ripgrep@14.1.1",
        "pkg:gem/rake@13.2.1",
        "pkg:golang/github.com/mikefarah/yq/v4@v4.44.1",
    ]
    for purl in found:
        assert PackageURL.from_string(purl).to_string() == purl


def test_a_foreign_architecture_is_said_and_is_no_part_of_the_name() -> None:
    assert purl_of(a_package(M.DPKG, "libc6:i386", "2.36")) == "pkg:deb/debian/libc6@2.36?arch=i386"


@pytest.mark.parametrize(
    ("version", "vendor", "release"),
    [
        ("12.4+deb12u11", "debian", "debian-12"),
        ("13.8", "debian", "debian-13"),
        ("13ubuntu10.2", "ubuntu", None),
        ("trixie", "debian", None),
    ],
)
def test_whose_debian_it_is_says_the_version_of_base_files(version: str, vendor: str, release: str | None) -> None:
    packages = [a_package(M.DPKG, "base-files", version), a_package(M.DPKG, "jq")]

    component = next(
        one for one in json.loads(write_sbom(packages, complete=True))["components"] if one["name"] == "jq"
    )

    purl = PackageURL.from_string(component["purl"])
    assert (purl.namespace, dict(purl.qualifiers).get("distro")) == (vendor, release)


def test_another_reader_of_the_format_finds_every_package() -> None:
    packages = [*all_kinds(), a_package(M.PIP, "requests", "2.32.0", directory="/usr/local/lib/python3.13")]

    bom = Bom.from_json(json.loads(write_sbom(packages, complete=True)))  # type: ignore[attr-defined]  # by a decorator

    assert len(bom.components) == len(packages), "one name in two directories is two"
    assert {(one.name, one.version) for one in bom.components} == set(NAMES.values())
    assert {str(one.purl) for one in bom.components} == {
        purl_of(one, distribution=("debian", "debian-12")) for one in packages
    }
    assert len({one.bom_ref.value for one in bom.components}) == len(packages)


def test_the_same_packages_make_the_same_bytes_in_whatever_order_they_come() -> None:
    packages = [*all_kinds(), *(a_package(M.NPM, f"n{number}") for number in range(200))]
    shuffled = list(packages)
    random.Random(1).shuffle(shuffled)

    first = write_sbom(packages, complete=True)

    assert write_sbom(shuffled, complete=True) == first
    assert write_sbom(packages, complete=False) != first
    assert write_sbom(packages[1:], complete=True) != first


def test_a_name_that_no_package_can_have_is_listed_all_the_same() -> None:
    names = ["/", "@/", "a b", '"}],"components":[', "..", "é\u202e", "a@b?c#d", ":i386"]
    packages = [a_package(manager, name, "1?#@/") for manager in M for name in names]

    components = json.loads(write_sbom(packages, complete=True))["components"]

    assert {one["name"] for one in components} == set(names)
    assert len({one["bom-ref"] for one in components}) == len(packages)
    for one in components:
        if "purl" in one:
            assert PackageURL.from_string(one["purl"]).version == "1?#@/"


def test_a_program_that_no_manager_knows_is_listed_and_has_no_name_of_a_registry() -> None:
    component = json.loads(write_sbom([a_package(M.PROGRAM, "helm", "00ff")], complete=True))["components"][0]

    assert (component["type"], component["name"], component["version"]) == ("application", "helm", "00ff")
    assert "purl" not in component


def test_what_lies_on_the_home_volume_is_in_no_image() -> None:
    packages = [a_package(M.PIP, "b"), a_package(M.PIP, "home", place="home"), a_package(M.PIP, "a")]

    assert [one.key.name for one in in_image(packages)] == ["a", "b"]
