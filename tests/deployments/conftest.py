"""Ray warns when it is imported; in these tests warnings are errors, so it is imported once here, aside."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray.serve.schema  # noqa: F401
