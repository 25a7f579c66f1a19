from __future__ import annotations

from hypothesis import HealthCheck, settings

import service  # noqa: F401 - first, for what it sets before ONNX Runtime is imported

# No test asserts absolute speed: a busy machine must not fail one.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")
