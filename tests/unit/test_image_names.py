"""Where a freelancer's images lie, and whose an image is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.images.ports import ImageReference
from sandboxd.model.ids import ClientId, FreelancerId, is_name
from sandboxd.model.image_names import belongs_to, split_image, user_repository

DIGEST = "sha256:" + "0" * 64
NAMES = st.from_regex(r"\A[a-z0-9]([-a-z0-9_.@]{0,20}[a-z0-9])?\Z").filter(is_name)
REPOSITORY = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
"""As the distribution specification has it."""


def repository(client: str, freelancer: str, prefix: str = "") -> str:
    return user_repository(ClientId(client), FreelancerId(freelancer), prefix=prefix)


def test_a_plain_name_is_the_path_itself() -> None:
    assert repository("acme", "ada") == "acme/gemini-cli-user-ada"
    assert repository("acme", "ada.l_o-v", "/team/sandboxd/") == "team/sandboxd/acme/gemini-cli-user-ada.l_o-v"


@pytest.mark.parametrize("name", ["ada@example.org", "a..b", "a_-b", "a___b", "a-x0123456789ab"])
def test_a_name_that_no_path_can_hold_is_told_apart_by_its_hash(name: str) -> None:
    made = repository("acme", name)

    assert re.fullmatch(r"acme/gemini-cli-user-.+-x[0-9a-f]{12}", made)
    assert made != f"acme/gemini-cli-user-{name}"


@given(NAMES, NAMES)
def test_every_name_has_a_repository_that_registries_take(client: str, freelancer: str) -> None:
    made = repository(client, freelancer)

    assert REPOSITORY.fullmatch(made)
    assert belongs_to(made, ClientId(client))
    assert split_image(f"localhost:5000/{made}@{DIGEST}") == ("localhost:5000", made, DIGEST)


@given(st.tuples(NAMES, NAMES), st.tuples(NAMES, NAMES))
def test_no_two_share_one(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (repository(*one) == repository(*other)) == (one == other)


@pytest.mark.parametrize(
    "path",
    [
        "globex/gemini-cli-user-ada",
        "acme/globex/gemini-cli-user-ada",
        "acme/gemini-cli-user-ada/more",
        "acme/sandbox",
        "gemini-cli-user-acme",
        "acme-2/gemini-cli-user-ada",
    ],
)
def test_what_lies_elsewhere_is_not_the_clients(path: str) -> None:
    assert not belongs_to(path, ClientId("acme"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost:5000/acme/image:latest",
        f"acme@{DIGEST}",
        f"localhost:5000/acme/image:tag@{DIGEST}",
        f"localhost:5000/Acme/image@{DIGEST}",
        f"localhost:5000/a/../b@{DIGEST}",
        f"localhost:5000//b@{DIGEST}",
        "localhost:5000/acme/image@sha256:12",
        f"localhost:5000/acme/image@{DIGEST}\n",
        f"localhost:5000/{'a' * 500}@{DIGEST}",
    ],
)
def test_only_an_image_by_digest_is_a_reference(text: str) -> None:
    with pytest.raises(ValueError, match="no image by digest"):
        ImageReference.parse(text)


def test_a_reference_reads_what_it_writes() -> None:
    reference = ImageReference(registry="registry.example:443", repository="acme/gemini-cli-user-ada", digest=DIGEST)

    assert ImageReference.parse(str(reference)) == reference
