"""What all work has in common that `serve` asks the operator for by a resource: a probe of an image, a backup."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from sandboxd.kubeapi.errors import KubeNotFoundError
from sandboxd.operator.builders import Json
from sandboxd.operator.kinds import Kind
from sandboxd.operator.mirrors import Mirrors
from sandboxd.operator.observed import is_ours
from sandboxd.operator.plan import PlanSettings
from sandboxd.operator.template import Template
from sandboxd.operator.tenancy import namespace_objects
from sandboxd.operator.writing import Writer


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedWork:
    """Looks for what a piece of work needs, and writes what is known of it."""

    mirrors: Mirrors
    writer: Writer
    settings: PlanSettings

    def ours(self, kind: Kind, namespace: str, name: str) -> Json | None:
        """A resource of this installation; None where there is none."""
        found = self.mirrors.get(kind, namespace, name)
        return found if found is not None and is_ours(found, instance=self.settings.instance) else None

    def template(self, name: str) -> Template | None:
        """A template; None where there is none. Raises KeyError or ValueError where it cannot be read."""
        found = self.mirrors.get(Kind.TEMPLATE, "", name)
        return None if found is None else self.settings.read_template(found["spec"])

    def is_furnished(self, name: str) -> bool:
        """Whether a client's namespace has all it must hold: then its own key was worked on, and wakes its work."""
        namespace = self.mirrors.get(Kind.NAMESPACE, "", name)
        if namespace is None:
            return False
        built = namespace_objects(namespace, instance=self.settings.instance, network=self.settings.network)
        return all(
            self.mirrors.get(kind, name, one["metadata"]["name"]) is not None
            for kind, objects in built.items()
            for one in objects
        )

    async def conclude(self, kind: Kind, resource: Json, status: Json) -> bool:
        """Write the status of a resource as it was last seen; False where whoever asked has taken it away."""
        metadata = resource["metadata"]
        with suppress(KubeNotFoundError):  # they have their answer, or wait no more
            await self.writer.patch_status(
                kind, metadata["namespace"], metadata["name"], status, metadata["resourceVersion"]
            )
            return True
        return False


def until(moment: datetime, *, now: datetime) -> float:
    """Seconds until a moment, a little more: so that it is over when they are."""
    return max(0.0, (moment - now) / timedelta(seconds=1)) + 0.5
