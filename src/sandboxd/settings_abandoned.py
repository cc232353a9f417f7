"""Settings of what nobody needs any more: how often it is looked for, when it goes, what it costs."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from sandboxd.model.abandoned import AbandonedPolicy

_PRICE = r"[^\s=,]{1,63}=[0-9]{1,9}(\.[0-9]{1,6})?"


class AbandonedSettings(BaseSettings):
    """What becomes of abandoned things. A part of `Settings`."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    abandoned_look_seconds: float = Field(default=3_600, ge=0, le=604_800)
    """How often one replica looks for what nobody needs any more, and removes what goes by itself; 0: only when
    somebody asks, and nothing is removed."""
    abandoned_survey_seconds: float = Field(default=86_400, ge=0, le=31_536_000)
    """How often, on Kubernetes, a pod is made to look into each client's repository of backups for what belongs to no
    backup (of VolumeSnapshots the operator tells without one); 0: never."""
    abandoned_grace_seconds: float = Field(default=604_800, ge=0, le=315_360_000)
    """For how long something must have been seen abandoned, at two looks at least, before it is removed."""
    abandoned_prices: str = Field(default="", max_length=4096, pattern=rf"^({_PRICE}(,{_PRICE})*)?$")
    """What a GB costs a month, by storage: `fast-ssd=0.17,backups=0.02,*=0.1` (a storage class, `local`, `backups`,
    `snapshots`, `registry`; `*` is all others), in whatever currency you count. If empty no cost is shown."""

    @property
    def abandoned_policy(self) -> AbandonedPolicy:
        """When abandoned things go, and what they cost."""
        pairs = [one.rpartition("=") for one in self.abandoned_prices.split(",") if one]
        return AbandonedPolicy(
            grace=timedelta(seconds=self.abandoned_grace_seconds),
            pause=timedelta(seconds=self.abandoned_look_seconds),
            prices={name: float(price) for name, _, price in pairs},
        )
