"""What is wrong with a sandbox's volumes themselves."""

from __future__ import annotations

from sandboxd.model.errors import NotFoundError, WrongStateError
from sandboxd.model.ids import SandboxId


class VolumesNotFoundError(NotFoundError):
    """The sandbox has no volumes: it was never started, or they were released."""

    reason = "VOLUMES_NOT_FOUND"

    def __init__(self, sandbox: SandboxId) -> None:
        super().__init__(f"Sandbox {sandbox} has no volumes.", sandbox=sandbox)


class VolumesInUseError(WrongStateError):
    """Compute of the sandbox runs: nothing is put into its volumes."""

    reason = "VOLUMES_IN_USE"

    def __init__(self, sandbox: SandboxId) -> None:
        super().__init__(f"Sandbox {sandbox} runs. Its volumes are restored while it does not.", sandbox=sandbox)
