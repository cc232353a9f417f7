"""What the service does by itself and not for a caller: on record like everything else, before it is begun."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Protocol

from typing_extensions import override

from sandboxd.model.ids import ClientId, SandboxId


class OwnDeeds(Protocol):
    """Puts the service's own work on record."""

    def recorded(
        self, action: str, *, client: ClientId, sandbox: SandboxId, target: str = ""
    ) -> AbstractAsyncContextManager[None]:
        """Do what is inside, once it is on record that it begins; how it ended is put on record, too.

        Args:
            action: From a closed set, for example `Recovery/Finish`.
            client: Whose sandbox it is.
            sandbox: What it is done on.
            target: What it is done on where that is no sandbox, or not all of it.

        Raises:
            AuditUnavailableError: It could not be put on record: nothing was done.
        """
        ...


class Unrecorded(OwnDeeds):
    """Puts nothing on record: for rooms that are built without an audit."""

    @override
    def recorded(
        self, action: str, *, client: ClientId, sandbox: SandboxId, target: str = ""
    ) -> AbstractAsyncContextManager[None]:
        return nullcontext()


UNRECORDED = Unrecorded()
