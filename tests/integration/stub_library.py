"""A folder for PYTHONPATH that makes one library misbehave in every process that imports it; the rest is as it is."""

from __future__ import annotations

import os
from pathlib import Path

from tests.integration.server_process import ENVIRONMENT

_FINDER = """
import importlib.abc, importlib.util, os, signal, sys, time

WHEN = {module!r}


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == WHEN:
            sys.meta_path.remove(self)
            found = importlib.util.find_spec(name)
            at_import()
            return found
        return None


def at_import():
{code}


sys.meta_path.insert(0, Finder())
"""


def at_import_of(module: str, code: str, folder: Path) -> dict[str, str]:
    """The environment in which `code` runs just before a process imports `module`."""
    folder.mkdir(exist_ok=True)
    body = "\n".join(f"    {line}" for line in code.strip().splitlines())
    (folder / "sitecustomize.py").write_text(_FINDER.format(module=module, code=body))
    return ENVIRONMENT | {"PYTHONPATH": os.pathsep.join((str(folder), ENVIRONMENT["PYTHONPATH"]))}
