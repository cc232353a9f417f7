"""A `SandboxProbe` as `serve` and the operator agree on it: one boot of an image, and what came of it.

`serve` writes the spec once, the operator makes a pod of it and writes the status. Neither is needed for its end: the
pod has a deadline of its own, and the resource is removed when its time is over, whoever is alive by then.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sandboxd.model.boot_step import BootStep
from sandboxd.model.cluster import API_VERSION, INSTANCE_LABEL
from sandboxd.model.ids import SandboxId

PROBE_PREFIX: Final = "probe-"
"""Begins the name of every one; its pod has the same."""
KEPT: Final = timedelta(seconds=30)
"""How long a probe whose deadline is over stays, for whoever waits for it and is late."""


class ProbeState(enum.Enum):
    """What is known of the image."""

    WAITING = "Waiting"
    """Its pod has not started; the reason says what it waits for."""
    RUNNING = "Running"
    BOOTED = "Booted"
    """It boots: the end."""
    BROKEN = "Broken"
    """It does not; the step says where: the end."""
    UNDECIDED = "Undecided"
    """Something else came between, and nothing is known of it: the end."""


ENDS: Final = frozenset({ProbeState.BOOTED, ProbeState.BROKEN, ProbeState.UNDECIDED})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedProbe:
    """The spec of a `SandboxProbe`. It never changes."""

    sandbox: SandboxId
    """Whose image it is to become: it gives template, client and node."""
    image: str
    """By digest, of the client's repository."""
    deadline: timedelta
    """For its pod; whole seconds."""

    def as_mapping(self) -> dict[str, Any]:  # Any: JSON
        """Return it as the resource has it."""
        return {
            "sandbox": self.sandbox,
            "image": self.image,
            "deadlineSeconds": max(1, round(self.deadline.total_seconds())),
        }

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> PlacedProbe:
        """Read it from a resource.

        Raises:
            KeyError, ValueError: It is not what the resource's schema promises.
        """
        return cls(
            sandbox=SandboxId(given["sandbox"]),
            image=str(given["image"]),
            deadline=timedelta(seconds=int(given["deadlineSeconds"])),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeStatus:
    """The status of a `SandboxProbe`."""

    state: ProbeState = ProbeState.WAITING
    reason: str = ""
    """A word of the closed set that the reasons of a `Sandbox` are from."""
    step: BootStep | None = None
    """Of a broken image; of one that waits, the step at which it is broken if it stays so."""
    message: str = ""
    pod_uid: str = ""
    """The pod that it ran in: there is no second."""

    def as_mapping(self) -> dict[str, Any]:  # Any: JSON
        """Return it as the resource has it."""
        return {
            "state": self.state.value,
            "reason": self.reason,
            "step": "" if self.step is None else self.step.value,
            "message": self.message,
            "podUID": self.pod_uid,
        }

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> ProbeStatus:
        """Read it from a resource; an empty mapping is the status before the operator's first."""
        step = str(given.get("step", ""))
        return cls(
            state=ProbeState(given.get("state", ProbeState.WAITING.value)),
            reason=str(given.get("reason", "")),
            step=BootStep(step) if step else None,
            message=str(given.get("message", "")),
            pod_uid=str(given.get("podUID", "")),
        )


def probe_resource(name: str, probe: PlacedProbe, *, namespace: str, instance: str, owner_uid: str) -> dict[str, Any]:
    """Return the `SandboxProbe` that `serve` writes. It goes with its sandbox. Any: JSON."""
    owner = {"apiVersion": API_VERSION, "kind": "Sandbox", "name": probe.sandbox, "uid": owner_uid}
    return {
        "apiVersion": API_VERSION,
        "kind": "SandboxProbe",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {INSTANCE_LABEL: instance},
            "ownerReferences": [{**owner, "controller": False, "blockOwnerDeletion": False}],
        },
        "spec": probe.as_mapping(),
    }
