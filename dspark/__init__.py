"""DSpark: draft models guess, the target model commits.

    from dspark import Engine, EngineConfig, SamplingParams

Names are imported on first use, so that `import dspark` alone loads neither torch nor ray.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspark.config import EngineConfig
    from dspark.engine import Engine
    from dspark.errors import DSparkError
    from dspark.types import SamplingParams

__version__ = "0.1.0"

__all__ = ["DSparkError", "Engine", "EngineConfig", "SamplingParams", "__version__"]

_HOMES = {
    "DSparkError": "dspark.errors",
    "Engine": "dspark.engine",
    "EngineConfig": "dspark.config",
    "SamplingParams": "dspark.types",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
