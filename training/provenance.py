"""Where a model came from: commit, package versions, processor. Nothing that names a person's machine or folders."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("cifarserve", "numpy", "onnx", "onnxruntime", "onnxruntime-ep-openvino", "onnxscript", "pillow", "torch")


def provenance() -> dict[str, Any]:
    """Git commit of the training code (None when it is not a checkout) and whether it was changed since; versions."""
    return {
        **git_state(Path(__file__).resolve().parent),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
    }


def git_state(folder: Path) -> dict[str, Any]:
    """`commit` and `dirty` of the checkout that tracks `folder`; both None where there is none, or no git."""
    # Tracked, not only inside: an environment installed within somebody's checkout has its code ignored there.
    if not _git(folder, "ls-files", "."):
        return {"commit": None, "dirty": None}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": _git(folder, "rev-parse", "HEAD"), "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True)  # noqa: S603, S607
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
