"""Which limits hold for a sandbox, what comes next for it, and who may wish otherwise."""

from __future__ import annotations

from datetime import datetime

from sandboxd.manager.lifecycle_ports import Dirtiness
from sandboxd.manager.verdicts import hindered
from sandboxd.model.accounts import ClientPolicies
from sandboxd.model.caller import Caller, Role
from sandboxd.model.errors import FieldViolation, ForbiddenError, InvalidRequestError, UnavailableError
from sandboxd.model.lifecycle import LONGEST_AWAKE, LifecyclePolicy
from sandboxd.model.next_step import NextStep, next_step
from sandboxd.model.sandbox import Sandbox
from sandboxd.model.sources import Clock


class RestPolicies:
    """Answers from memory: a client's policy is seconds old at most."""

    def __init__(
        self, *, defaults: LifecyclePolicy, policies: ClientPolicies, dirtiness: Dirtiness, clock: Clock
    ) -> None:
        self.defaults = defaults
        self._policies = policies
        self._dirtiness = dirtiness
        self._clock = clock

    async def next_step(self, sandbox: Sandbox) -> NextStep | None:
        """What policy does next with a sandbox; None where it does nothing, or its client's policy is not known now."""
        try:
            policy = await self._policies.policy(sandbox.client)
        except UnavailableError:
            return None
        holds = self.defaults.under(policy.lifecycle).under(sandbox.lifecycle)
        without = hindered(sandbox, holds, await self._dirtiness.root_of(sandbox))
        return next_step(sandbox, holds, at=self._clock.now(), without=without)


def require_allowed(
    caller: Caller, *, changes_lifecycle: bool, keep_awake_until: datetime | None, at: datetime
) -> None:
    """Let pass what a caller wishes for a sandbox.

    Raises:
        ForbiddenError: A freelancer wishes other limits: whoever pays decides about them.
        InvalidRequestError: It shall be kept awake for too long.
    """
    if caller.role is Role.FREELANCER and changes_lifecycle:
        raise ForbiddenError("A freelancer cannot set when sandboxes rest. It can set keep_awake_until.")
    if keep_awake_until is not None and keep_awake_until > at + LONGEST_AWAKE:
        problem = f"must be at most {LONGEST_AWAKE.days} days ahead"
        raise InvalidRequestError(
            f"sandbox.keep_awake_until {problem}.",
            violations=[FieldViolation(field="sandbox.keep_awake_until", description=problem)],
        )
