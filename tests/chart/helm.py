"""The chart as Helm renders it, read back as JSON. Helm is the development cluster's, or the machine's."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from sandboxd.dev.node import cache_directory

CHART: Final = Path(__file__).resolve().parents[2] / "helm" / "sandboxd"
KUBERNETES: Final = "1.36.0"
NO_HELM: Final = "there is no helm: `make cluster-up` builds one, or put one on the PATH"
TRIAL: Final[Mapping[str, Any]] = {"database": {"bundled": {"enabled": True}}}
"""Least values of an installation that runs."""

Object = dict[str, Any]
"""A Kubernetes object. Any: JSON."""


def find_helm() -> Path | None:
    """Return the program, or None."""
    built = cache_directory() / "devcluster" / "bin" / "helm"
    found = shutil.which("helm")
    return built if os.access(built, os.X_OK) else Path(found) if found else None


def run_helm(
    *arguments: str, values: Mapping[str, Any] | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run it, with values by standard input."""
    helm = find_helm()
    assert helm is not None, NO_HELM
    given = [] if values is None else ["--values", "-"]
    return subprocess.run(
        [helm, *arguments, *given],
        input=None if values is None else yaml.safe_dump(dict(values)),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def render(values: Mapping[str, Any] = TRIAL, *, release: str = "t", namespace: str = "sys") -> list[Object]:
    """Return what a release is made of, hooks included."""
    done = run_helm(
        "template", release, str(CHART), "--namespace", namespace, "--kube-version", KUBERNETES, values=values
    )
    assert done.returncode == 0, done.stderr
    return [made for made in yaml.safe_load_all(done.stdout) if made]


def refusal(values: Mapping[str, Any]) -> str:
    """Return why these values are refused."""
    done = run_helm("template", "t", str(CHART), "--kube-version", KUBERNETES, values=values)
    assert done.returncode != 0, "these values are accepted"
    return done.stderr


def of_kind(objects: Sequence[Object], kind: str, name: str = "") -> list[Object]:
    """Return the objects of a kind, in their order."""
    return [one for one in objects if one["kind"] == kind and (not name or one["metadata"]["name"] == name)]


def pod_of(made: Object) -> Object:
    """Return the pod's spec of whatever makes pods."""
    spec: Object = made["spec"]
    while "containers" not in spec:
        spec = spec["template"]["spec"] if "template" in spec else spec["jobTemplate"]["spec"]
    return spec


def makers_of_pods(objects: Sequence[Object]) -> list[Object]:
    """Return everything that makes pods."""
    return [one for one in objects if one["kind"] in {"Deployment", "StatefulSet", "Job", "CronJob", "DaemonSet"}]
