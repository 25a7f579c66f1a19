"""The offline side of cifarserve: trains, evaluates, exports and publishes what the other side serves."""

import service  # noqa: F401 - first, for what it sets before ONNX Runtime is imported
