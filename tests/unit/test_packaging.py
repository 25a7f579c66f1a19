"""What pyproject.toml says about the packages, held against the folders."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_folder_of_python_files_is_installed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    tops = {"service": "service", "training": "training", **setuptools["package-dir"]}
    folders = {name: {file.parent for file in (ROOT / top).rglob("*.py")} for name, top in tops.items()}
    packages = {
        ".".join((name, *folder.relative_to(ROOT / tops[name]).parts)) for name in tops for folder in folders[name]
    }
    assert set(setuptools["packages"]) == packages
