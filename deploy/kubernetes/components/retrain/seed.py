"""Copies the versions that the image holds into the volume, where they are not there yet: seed.py FROM TO."""

import shutil
import sys
from pathlib import Path

source, target = map(Path, sys.argv[1:])
for version in source.glob("*/[0-9]*"):
    destination = target / version.relative_to(source)
    if destination.exists():
        continue
    destination.parent.mkdir(parents=True, exist_ok=True)
    # As the server expects of every publisher: finished under another name, then in sight by one rename.
    unfinished = destination.with_name(f".tmp-{version.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(version, unfinished)
    unfinished.rename(destination)
