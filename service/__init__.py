"""The online side of cifarserve: everything that answers requests. It never imports torch."""

import os

# The published ONNX Runtime (1.31) sends trace events to its maker, under an identifier that it keeps in the home
# folder, unless told not to before it is imported. A value that is set already stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
