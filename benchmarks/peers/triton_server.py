"""The tritonserver in PyTriton's wheel with a plain model repository: triton_model.py in the Python backend.

Its dynamic batcher waits for nothing (a queue delay of 0), which is its fastest setting on small loads.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

import engine

CONFIG = f"""
name: "cnn"
backend: "python"
max_batch_size: {engine.MAX_BATCH}
input [{{ name: "image" data_type: TYPE_UINT8 dims: [{engine.HEIGHT}, {engine.WIDTH}, {engine.CHANNELS}] }}]
output [{{ name: "probabilities" data_type: TYPE_FP32 dims: [{engine.CLASSES}] }}]
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
instance_group [{{ kind: KIND_CPU count: 1 }}]
"""


def main() -> None:
    packages = Path(sysconfig.get_path("purelib"))
    triton = packages / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = Path(tempfile.mkdtemp(prefix="triton-"))
    (folder / "models/cnn/1").mkdir(parents=True)
    (folder / "models/cnn/config.pbtxt").write_text(CONFIG)
    here = Path(__file__).parent
    shutil.copy(here / "triton_model.py", folder / "models/cnn/1/model.py")
    shutil.copytree(triton / "backends/python", folder / "backends/python")
    shutil.copy(triton / "python_backend_stubs" / version / "triton_python_backend_stub", folder / "backends/python")
    environment = os.environ | {
        "PYTHONPATH": f"{here}:{packages}", "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
    }  # fmt: skip
    command = [
        str(triton / "bin/tritonserver"), "--model-repository", str(folder / "models"), "--backend-directory",
        str(folder / "backends"), "--grpc-address", "127.0.0.1", "--grpc-port", str(engine.PORT), "--allow-http",
        "false", "--allow-metrics", "false",
    ]  # fmt: skip
    os.execve(command[0], command, environment)


if __name__ == "__main__":
    main()
