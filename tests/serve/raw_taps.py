"""The service with targets that were not told of any drafter, as where a target's machine cannot read a drafter's checkpoint."""

from typing import Any

from ray.serve import Application

from deployments import app
from deployments.target import Target
from dspark.config import DrafterConfig, TargetConfig


class UntoldTarget(Target):
    """Has no drafter's projection, so raw taps travel."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: TargetConfig, drafters: tuple[DrafterConfig, ...], lease_silence_timeout_s: float
    ) -> None:
        await super().__init__(config, (), lease_silence_timeout_s)


def build(args: dict[str, Any]) -> Application:
    """As deployments.app:build."""
    app.Target = UntoldTarget  # type: ignore[misc]  # the launcher's process ends with this application
    return app.build(args)
