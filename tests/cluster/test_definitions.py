"""Helm installs definitions once and never again: what `prepare` does to them with each upgrade."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandboxd.bootstrap.prepare import apply_definitions
from sandboxd.kubeapi.client import KubeClient
from sandboxd.model.cluster import GROUP
from tests.eventually import eventually
from tests.kube import CRDS, Cluster, KubectlError

INCARNATION = "inc-01jd0000000000000000000000"
Json = dict[str, Any]
"""Any: JSON."""
COLUMN = "Freelancer"
FIELD = "recipe"
FORMER_RULE = "a rule of the older version"


@pytest.fixture
async def group(cluster: Cluster) -> AsyncIterator[str]:
    """A group of this test alone, or everybody's sandboxes would lose a field."""
    name = f"t{secrets.token_hex(4)}.example"
    yield name
    await cluster.kubectl("delete", "crd", f"sandboxes.{name}", "--ignore-not-found")


def _definition(group: str, *, older: bool) -> Json:
    """Ours in another group; as an older version may have been, without a field and a column."""
    text = (CRDS / "sandboxes.yaml").read_text().replace(GROUP, group)
    definition: Json = yaml.safe_load(text)
    definition["metadata"]["annotations"] = {"api-approved.kubernetes.io": "unapproved, of a test"}
    if older:
        (version,) = definition["spec"]["versions"]
        columns = version["additionalPrinterColumns"]
        version["additionalPrinterColumns"] = [one for one in columns if one["name"] != COLUMN]
        spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
        del spec["properties"][FIELD]
        spec["properties"]["former"] = {"type": "string"}
        spec["x-kubernetes-validations"].append({"rule": "self.client != 'other'", "message": FORMER_RULE})
    return definition


def _sandbox(group: str, name: str, **more: Any) -> str:
    resources = {"cpu": "1", "memory": "1G", "home": "1G", "workspace": "1G"}
    spec = {"client": "acme", "freelancer": "ada", "tier": "basic", "incarnation": INCARNATION, "resources": resources}
    return json.dumps(
        {"apiVersion": f"{group}/v1alpha1", "kind": "Sandbox", "metadata": {"name": name}, "spec": {**spec, **more}}
    )


async def test_an_upgrade_brings_new_fields_and_columns_and_a_rollback_leaves_them(
    cluster: Cluster, group: str, tmp_path: Path
) -> None:
    older, kind = json.dumps(_definition(group, older=True)), f"sandboxes.{group}"
    await cluster.kubectl("create", "-f", "-", stdin=older)  # as `helm install` does
    await cluster.kubectl("wait", f"crd/{kind}", "--for=condition=Established", "--timeout=30s")
    await _made(cluster, _sandbox(group, "before"))
    with pytest.raises(KubectlError, match=FORMER_RULE):
        await cluster.kubectl("create", "-f", "-", stdin=_sandbox(group, "early", client="other"))
    with pytest.raises(KubectlError, match=f'unknown field "spec.{FIELD}"'):
        await cluster.kubectl("create", "-f", "-", stdin=_sandbox(group, "early", recipe="new"))

    (tmp_path / "sandboxes.yaml").write_text(yaml.safe_dump(_definition(group, older=False)))
    async with KubeClient(cluster.kubeconfig) as api:
        await apply_definitions(api, tmp_path)
        await apply_definitions(api, tmp_path)  # each upgrade does

    await _made(cluster, _sandbox(group, "after", recipe="new"))
    await _made(cluster, _sandbox(group, "freed", client="other"))
    with pytest.raises(KubectlError, match='unknown field "spec.former"'):
        await cluster.kubectl("create", "-f", "-", stdin=_sandbox(group, "late", former="old"))

    async def shown() -> bool:
        return COLUMN.upper() in await cluster.kubectl("get", kind, "-o", "wide")

    await eventually(shown, within=20, every=0.3)
    found = {one["metadata"]["name"]: one["spec"] for one in (await cluster.get(kind))["items"]}
    assert (found["before"]["client"], found["after"][FIELD]) == ("acme", "new")
    # A rollback runs no hook of ours (test_values.py), so the definition stays; what `helm install` of a release
    # beside this one brings is refused for being there, and changes nothing.
    with pytest.raises(KubectlError, match="already exists"):
        await cluster.kubectl("create", "-f", "-", stdin=older)
    await cluster.kubectl("patch", kind, "before", "--type=merge", "-p", json.dumps({"spec": {FIELD: "later"}}))


async def _made(cluster: Cluster, sandbox: str) -> None:
    """A definition is served a moment after it is established."""

    async def taken() -> bool:
        try:
            await cluster.kubectl("apply", "-f", "-", stdin=sandbox)
        except KubectlError as error:
            if any(word in str(error) for word in ("no matches for kind", "unknown field", FORMER_RULE)):
                return False
            raise
        return True

    await eventually(taken, within=20, every=0.3)
