"""Generate the Python stubs from the .proto files: `python protos/generate.py OUTPUT_FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import google.rpc
import grpc_tools
from grpc_tools import protoc

HERE = Path(__file__).resolve().parent


def generate(output: Path) -> None:
    """Write the stubs of every .proto beside this file into `output`. Raises RuntimeError when the compiler fails."""
    protos = sorted(str(path.relative_to(HERE)) for path in HERE.rglob("*.proto"))
    includes = [HERE, Path(grpc_tools.__file__).parent / "_proto", Path(google.rpc.__path__[0]).parent.parent]
    arguments = [f"--proto_path={folder}" for folder in includes]
    arguments += [f"--{kind}_out={output}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", *arguments, *protos]) != 0:
        raise RuntimeError("protoc failed")


if __name__ == "__main__":
    generate(Path(sys.argv[1]))
