"""The care of kept images over the manager's world in memory."""

from __future__ import annotations

from datetime import timedelta

from prometheus_client import CollectorRegistry

from sandboxd.images.signing import SignaturePolicy
from sandboxd.manager.backup_uses import BackupImageUses
from sandboxd.manager.image_care import ImageCare
from sandboxd.manager.image_care_metrics import ImageCareMetrics
from sandboxd.manager.image_losses import ImageLosses
from sandboxd.manager.image_survey import ImageSurvey
from sandboxd.model.image import Generation
from sandboxd.model.image_keeping import KeepingPolicy, digest_of
from sandboxd.model.image_names import user_repository
from sandboxd.model.sandbox import Sandbox
from tests.fakes.image_care import FakeImageSightings, FakeImageUses
from tests.fakes.images import REGISTRY
from tests.manager_world import SOON, ManagerWorld, a_request

REPOSITORY = "acme/gemini-cli-user-ada"
DAY = timedelta(days=1).total_seconds()


class ImageCareWorld(ManagerWorld):
    """Sandboxes that are committed, and whoever cares for their images."""

    def __init__(self, *, previous: int = 1, signing: bool = False, policy: SignaturePolicy | None = None) -> None:
        super().__init__(keeps_root=False, commits=True, signing=signing, signatures=policy)
        self.uses = FakeImageUses()
        self.sightings = FakeImageSightings()
        self.figures = CollectorRegistry()
        self.metrics = ImageCareMetrics(self.figures)
        self.policy = KeepingPolicy(previous=previous)

    def care(self, *, batch: int = 100) -> ImageCare:
        """As one replica has it."""
        deeds = self.core.tools.deeds
        return ImageCare(
            units=self.units,
            registry=self.registry,
            survey=ImageSurvey(
                units=self.units,
                registry=self.registry,
                registry_name=REGISTRY,
                repository_of=user_repository,
                sightings=self.sightings,
                policy=self.policy,
                clock=self.clock,
            ),
            uses=[self.uses, BackupImageUses(self.units)],
            sightings=self.sightings,
            losses=ImageLosses(
                units=self.units,
                running=self.running,
                changes=self.core.changes,
                deeds=deeds,
                metrics=self.metrics,
                clock=self.clock,
            ),
            signatures=self.image_tools.signatures,
            deeds=deeds,
            metrics=self.metrics,
            clock=self.clock,
            batch=batch,
        )

    async def committed(self, sandbox: Sandbox, root: str) -> Generation:
        """Commit a root file system."""
        self.builder.roots[sandbox.id] = root
        shown = await self.manager.images.commit(a_request(), sandbox.id, timeout=SOON)
        return shown.generation

    async def given_images(self, number: int) -> tuple[Sandbox, list[Generation]]:
        """A sandbox with so many images, the last of them active, all made long ago."""
        sandbox = await self.given_active()
        made = [await self.committed(sandbox, f"with package {n}") for n in range(1, number + 1)]
        self.clock.advance(2 * DAY)
        return sandbox, made

    def tags(self) -> set[str]:
        """What the registry has."""
        return {name for name in self.registry.manifests[REPOSITORY] if ":" not in name}

    def statuses(self) -> list[str]:
        """Of all rows, by number."""
        rows = sorted(self.units.rows.generations.values(), key=lambda row: row.number)
        return [row.status.value for row in rows]

    def lose(self, image: Generation) -> None:
        """The registry has it no more."""
        kept = {
            name: one for name, one in self.registry.manifests[REPOSITORY].items() if one.digest != digest_of(image)
        }
        self.registry.manifests[REPOSITORY] = kept

    def count(self, name: str, **labels: str) -> float:
        """A metric's value."""
        return self.figures.get_sample_value(f"sandboxd_{name}", labels) or 0.0
