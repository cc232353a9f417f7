from datetime import UTC, datetime, timedelta

import pytest

from sandboxd.manager.backup_uses import BackupImageUses
from sandboxd.model.backup import BackupSet, BackupSetId
from sandboxd.model.backup_errors import BackupStorageFullError
from sandboxd.model.errors import DeadlineError
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from tests.fakes.manager import FakeClock, FakeUnits

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
SOON = timedelta(seconds=5)


def a_set(number: int, *, image: str) -> BackupSet:
    return BackupSet(
        id=BackupSetId(f"bak-{number}"),
        sandbox=SandboxId(f"sbx-{number}"),
        client=ClientId("acme"),
        freelancer=FreelancerId("ada"),
        take_time=NOON,
        image=image,
        create_time=NOON,
        update_time=NOON,
    )


async def given(*backups: BackupSet) -> FakeUnits:
    units = FakeUnits(FakeClock())
    async with units.begin() as work:
        for one in backups:
            await work.backup_sets.begin(one)
        await work.commit()
    return units


@pytest.mark.parametrize("page", [1, 2, 3, 500])
async def test_every_image_that_a_set_needs_is_named_by_its_digest(page: int) -> None:
    images = [f"registry.test/acme/a@sha256:{number:064}" for number in range(5)]
    failed = a_set(8, image=f"registry.test/acme/a@sha256:{8:064}").fail(BackupStorageFullError("X"), at=NOON)
    units = await given(
        *(a_set(number, image=image) for number, image in enumerate(images)), a_set(7, image=""), failed
    )

    named = await BackupImageUses(units, page=page).named(timeout=SOON)

    assert named == {f"sha256:{number:064}": f"backup bak-{number}" for number in range(5)}


async def test_rows_that_do_not_answer_in_time_are_an_error_and_no_answer() -> None:
    uses = BackupImageUses(await given(a_set(1, image="registry.test/a@sha256:1")))

    with pytest.raises(DeadlineError):
        await uses.named(timeout=timedelta(0))
