"""Images between the model and the contract."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from google.protobuf.duration_pb2 import Duration

from sandboxd.api.grpc.codec_packages import MANAGERS
from sandboxd.api.grpc.names import timestamp
from sandboxd.images.sbom import CYCLONEDX
from sandboxd.manager.base_plans import BasePlan
from sandboxd.manager.image_views import ShownImage
from sandboxd.model.ids import SandboxId
from sandboxd.model.image import (
    CommitPhase,
    CommitTrigger,
    Generation,
    GenerationStatus,
    ImageContent,
    LeftOutPaths,
    number_of,
    tag_of,
)
from sandboxd.model.image_sbom import ImageSbom
from sandboxd.model.replay import ReplayAction
from sandboxd.v1 import image_pb2 as pb

STATUSES: Final = {
    GenerationStatus.BUILDING: pb.IMAGE_STATUS_BUILDING,
    GenerationStatus.PUSHED: pb.IMAGE_STATUS_PUSHED,
    GenerationStatus.VERIFIED: pb.IMAGE_STATUS_VERIFIED,
    GenerationStatus.ACTIVE: pb.IMAGE_STATUS_ACTIVE,
    GenerationStatus.SUPERSEDED: pb.IMAGE_STATUS_SUPERSEDED,
    GenerationStatus.FAILED: pb.IMAGE_STATUS_FAILED,
    GenerationStatus.DISCARDED: pb.IMAGE_STATUS_DISCARDED,
    GenerationStatus.DELETING: pb.IMAGE_STATUS_DELETING,
    GenerationStatus.DELETED: pb.IMAGE_STATUS_DELETED,
}
TRIGGERS: Final = {
    CommitTrigger.REQUEST: pb.COMMIT_TRIGGER_REQUEST,
    CommitTrigger.STOP: pb.COMMIT_TRIGGER_STOP,
    CommitTrigger.PAUSE: pb.COMMIT_TRIGGER_PAUSE,
    CommitTrigger.TERMINATE: pb.COMMIT_TRIGGER_TERMINATE,
    CommitTrigger.INSTALL: pb.COMMIT_TRIGGER_INSTALL,
    CommitTrigger.UPGRADE: pb.COMMIT_TRIGGER_UPGRADE,
    CommitTrigger.RESTORE: pb.COMMIT_TRIGGER_RESTORE,
}
PHASES: Final = {
    CommitPhase.HELD: pb.COMMIT_PHASE_HELD,
    CommitPhase.REPLAY: pb.COMMIT_PHASE_REPLAY,
    CommitPhase.CAPTURE: pb.COMMIT_PHASE_CAPTURE,
    CommitPhase.PUSH: pb.COMMIT_PHASE_PUSH,
    CommitPhase.VERIFY: pb.COMMIT_PHASE_VERIFY,
    CommitPhase.PROBE: pb.COMMIT_PHASE_PROBE,
    CommitPhase.ACTIVATE: pb.COMMIT_PHASE_ACTIVATE,
}


ACTIONS: Final = {
    ReplayAction.INSTALL: pb.REPLAY_ACTION_INSTALL,
    ReplayAction.IN_BASE: pb.REPLAY_ACTION_IN_BASE,
    ReplayAction.IMPOSSIBLE: pb.REPLAY_ACTION_IMPOSSIBLE,
}


def image_name(sandbox: SandboxId, number: int) -> str:
    """Name an image."""
    return f"sandboxes/{sandbox}/images/{tag_of(number)}"


def image_number(name: str) -> int:
    """Return the number that an image's name holds; g000000, which the rules let through, is nobody's."""
    return number_of(name.split("/")[3]) or 0


def encode_image(shown: ShownImage) -> pb.Image:
    """Encode an image."""
    generation = shown.generation
    content = generation.content or ImageContent(digest="")
    failure = generation.failure
    return pb.Image(
        name=image_name(generation.sandbox, generation.number),
        status=STATUSES[generation.status],
        trigger=TRIGGERS[generation.trigger],
        dry_run=generation.dry_run,
        unchanged=generation.unchanged,
        digest=content.digest,
        reference=generation.reference,
        base=generation.base,
        incarnation=generation.incarnation,
        raw_bytes=content.raw_bytes,
        compressed_bytes=content.compressed_bytes,
        image_bytes=content.image_bytes,
        layers=content.layers,
        entries=content.entries,
        largest=[pb.ImagePath(path=_text(path), bytes=size) for path, size in content.largest],
        left_out=_left_out(content.left_out),
        phases=_phases(generation),
        progress=_progress(generation) if generation.status.in_flight else None,
        failure=None if failure is None else pb.CommitFailure(reason=failure.reason, message=_text(failure.message)),
        warnings=[_text(warning) for warning in shown.warnings],
        create_time=timestamp(generation.create_time),
        capture_time=timestamp(generation.capture_time),
        activate_time=timestamp(generation.activate_time),
        end_time=timestamp(generation.end_time),
    )


def encode_plan(plan: BasePlan) -> pb.PlanImageUpgradeResponse:
    """Encode what an upgrade of the base would do."""
    return pb.PlanImageUpgradeResponse(
        needed=plan.needed,
        image="" if plan.image is None else image_name(plan.image.sandbox, plan.image.number),
        old_base="" if plan.old_base is None else str(plan.old_base),
        new_base=str(plan.new_base),
        packages=[
            pb.PlannedPackage(
                manager=MANAGERS[one.package.key.manager],
                name=one.package.key.name,
                version=one.package.version,
                directory=one.package.key.directory,
                action=ACTIONS[one.action],
            )
            for one in plan.packages
        ],
        left_out=_left_out(plan.left_out),
    )


def _left_out(found: Sequence[LeftOutPaths]) -> list[pb.LeftOut]:
    return [pb.LeftOut(reason=one.reason, count=one.count, paths=[_text(path) for path in one.paths]) for one in found]


def _phases(generation: Generation) -> list[pb.CommitPhaseDuration]:
    durations = []
    for phase, number in PHASES.items():
        if phase.value in generation.seconds:
            duration = Duration()
            duration.FromTimedelta(timedelta(seconds=max(0.0, generation.seconds[phase.value])))
            durations.append(pb.CommitPhaseDuration(phase=number, duration=duration))
    return durations


def _progress(generation: Generation) -> pb.CommitProgress:
    progress = generation.progress
    return pb.CommitProgress(
        phase=PHASES[progress.phase],
        entries=progress.entries,
        bytes=progress.bytes,
        total_bytes=progress.total_bytes,
    )


def _text(path: str) -> str:
    """What was written by the freelancer's processes, as protobuf takes it: bytes that were no UTF-8 are replaced."""
    return path.encode(errors="surrogateescape").decode(errors="replace")


def encode_sbom(sbom: ImageSbom) -> pb.ImageSbom:
    """Put a list of packages that is attached into the contract's words."""
    attached = sbom.attached
    assert attached is not None, "only what is attached is told"
    return pb.ImageSbom(
        media_type=CYCLONEDX,
        digest=attached.document,
        size_bytes=attached.size,
        manifest_digest=attached.manifest,
        packages=len(sbom.packages),
        complete=sbom.complete,
        attach_time=timestamp(attached.attach_time),
    )
