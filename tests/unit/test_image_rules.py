"""Whose an image is, what it means that it cannot be pulled, and what a pod of one is like."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sandboxd.model.cluster_status import Reason
from sandboxd.model.ids import ClientId
from sandboxd.operator.image_rules import is_foreign, pull_reason
from sandboxd.operator.pod_shape import AGENT_COMMAND, pod_template
from sandboxd.operator.template import Template
from tests.operator_world import OWN_IMAGE, SANDBOX, TEMPLATE, THEIRS, a_spec

R = Reason
REF = f'"{OWN_IMAGE}"'
PULL = f"rpc error: code = Unknown desc = failed to pull and unpack image {REF}"
RESOLVE = f"{PULL}: failed to resolve reference {REF}"
HEAD = 'failed to do request: Head "http://registry.example/v2/kept/acme/gemini-cli-user-ada/manifests/sha256:aaa"'
WORDS = {
    "no such manifest": (f"{RESOLVE}: {OWN_IMAGE}: not found", R.IMAGE_MISSING),
    "a layer is gone": (
        (
            f"{PULL}: failed to copy: httpReadSeeker: failed open: content at "
            "http://registry.example/v2/x/blobs/sha256:1 not found: not found"
        ),
        R.IMAGE_MISSING,
    ),
    "CRI-O's words": (
        f"initializing source docker://{OWN_IMAGE}: reading manifest sha256:aaa in registry.example: manifest unknown",
        R.IMAGE_MISSING,
    ),
    "backing off, with the cause": (
        f"Back-off pulling image {REF}: ErrImagePull: {RESOLVE}: not found",
        R.IMAGE_MISSING,
    ),
    "nobody listens": (
        f"{RESOLVE}: {HEAD}: dial tcp 10.0.0.1:443: connect: connection refused",
        R.REGISTRY_UNAVAILABLE,
    ),
    "no name": (f"{RESOLVE}: {HEAD}: dial tcp: lookup registry.example: no such host", R.REGISTRY_UNAVAILABLE),
    "no time": (f"{RESOLVE}: {HEAD}: net/http: TLS handshake timeout", R.REGISTRY_UNAVAILABLE),
    "its certificate": (f"{RESOLVE}: {HEAD}: tls: failed to verify certificate: x509: unknown", R.REGISTRY_UNAVAILABLE),
    "it fails": (f"{RESOLVE}: unexpected status from HEAD request: 503 Service Unavailable", R.REGISTRY_UNAVAILABLE),
    "too often": (f"{RESOLVE}: unexpected status: 429 Too Many Requests", R.REGISTRY_UNAVAILABLE),
    "no credentials": (
        f"{RESOLVE}: pull access denied, repository does not exist or may require authorization: insufficient_scope",
        R.REGISTRY_UNAVAILABLE,
    ),
    "the node is full": (f"{PULL}: failed to extract layer sha256:1: no space left on device", R.REGISTRY_UNAVAILABLE),
    "the connection ends in the middle": (
        f"{PULL}: failed to copy: httpReadSeeker: unexpected EOF",
        R.REGISTRY_UNAVAILABLE,
    ),
    "what nobody has seen yet": (f"{PULL}: something else", R.REGISTRY_UNAVAILABLE),
    "a layer is no tar": (f"{PULL}: failed to extract layer sha256:1: archive/tar: invalid tar header", R.IMAGE_BROKEN),
    "a layer is another one": (f"{PULL}: wrong diff id calculated on extraction sha256:1", R.IMAGE_BROKEN),
    "for other machines": (f"{PULL}: no match for platform in manifest sha256:1: not found", R.IMAGE_BROKEN),
}


@pytest.mark.parametrize(("words", "reason"), WORDS.values(), ids=WORDS.keys())
def test_what_a_kubelet_says_of_a_pull_is_told_apart(words: str, reason: Reason) -> None:
    assert pull_reason("ErrImagePull", words, before=R.STARTING) is reason


@pytest.mark.parametrize("client", ["timeout", "forbidden", "mismatch", "not-found"])
def test_a_clients_name_is_no_reason(client: str) -> None:
    missing = WORDS["no such manifest"][0].replace("acme", client)
    away = WORDS["nobody listens"][0].replace("acme", client)

    assert pull_reason("ErrImagePull", missing, before=R.STARTING) is R.IMAGE_MISSING
    assert pull_reason("ErrImagePull", away, before=R.STARTING) is R.REGISTRY_UNAVAILABLE


def test_while_a_kubelet_backs_off_without_a_cause_the_last_one_counts() -> None:
    text = f"Back-off pulling image {REF}"

    for before in (R.IMAGE_MISSING, R.IMAGE_BROKEN, R.REGISTRY_UNAVAILABLE):
        assert pull_reason("ImagePullBackOff", text, before=before) is before
    assert pull_reason("ImagePullBackOff", text, before=R.STARTING) is R.REGISTRY_UNAVAILABLE


@pytest.mark.parametrize("image", ["", OWN_IMAGE])
def test_an_image_of_the_sandboxs_client_is_its_own(image: str) -> None:
    assert is_foreign(a_spec(image=image)) == ""


@pytest.mark.parametrize(
    "image",
    [THEIRS, OWN_IMAGE.replace("gemini-cli-user-", ""), OWN_IMAGE.partition("@")[0], "sandbox:latest", TEMPLATE.image],
)
def test_any_other_image_is_refused(image: str) -> None:
    assert "is refused" in is_foreign(a_spec(image=image))


def test_a_client_whose_name_no_path_can_hold_has_a_repository_too() -> None:
    spec = a_spec(image=OWN_IMAGE, client=ClientId("ac..me"))

    assert "not one of client ac..me" in is_foreign(spec)


def pod(*, image: str, template: Template = TEMPLATE) -> dict[str, Any]:
    made: dict[str, Any] = pod_template(SANDBOX, a_spec(image=image), template, labels={})["spec"]
    return made


def test_a_pod_of_an_own_image_differs_from_the_bases_by_its_image_alone() -> None:
    own, base = pod(image=OWN_IMAGE), pod(image="")

    assert own["containers"][0].pop("image") == OWN_IMAGE
    assert base["containers"][0].pop("image") == TEMPLATE.image
    assert own == base
    assert own["containers"][0]["command"] == list(AGENT_COMMAND)
    assert "args" not in own["containers"][0]
    assert own["containers"][0]["imagePullPolicy"] == "IfNotPresent"


def test_an_own_image_is_pulled_with_the_secrets_of_both_registries() -> None:
    template = replace(TEMPLATE, image_pull_secrets=("base",), user_image_pull_secrets=("kept", "base"))

    assert pod(image=OWN_IMAGE, template=template)["imagePullSecrets"] == [{"name": "base"}, {"name": "kept"}]
    assert pod(image="", template=template)["imagePullSecrets"] == [{"name": "base"}]
    assert "imagePullSecrets" not in pod(image=OWN_IMAGE)
