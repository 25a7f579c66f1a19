"""Copies the versions that the image holds into the volume, where they are not there yet: seed.py FROM TO."""

import shutil
import sys
import tempfile
from pathlib import Path

source, target = map(Path, sys.argv[1:])
for version in source.glob("*/[0-9]*"):
    destination = target / version.relative_to(source)
    if destination.exists():
        continue
    destination.parent.mkdir(parents=True, exist_ok=True)
    # As the server expects of every publisher: finished under another name, then in sight by one rename. A name of this
    # pod's own: the others begin at the same time.
    with tempfile.TemporaryDirectory(prefix=f".tmp-{version.name}-", dir=destination.parent) as folder:
        unfinished = Path(folder) / version.name
        shutil.copytree(version, unfinished)
        try:
            unfinished.rename(destination)
        except OSError:
            if not destination.exists():  # otherwise another pod was first
                raise
