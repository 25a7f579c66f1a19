"""Asks the advisory service of pip-audit whether a version that is pinned here has a known weakness.

    python requirements/audit.py [FILE ...]        (all of requirements/*.txt by default; `make audit`)

Exit status: 0 nothing known, 1 something is (printed), 3 the service could not be asked: nothing is known either way.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PATIENCE = 60  # seconds, for each file
CLEAN, FOUND, NOT_ASKED = 0, 1, 3


def audit(file: Path, program: Path) -> list[str] | None:
    """What is known of the versions in `file`, in lines; None when the service did not answer, which is printed."""
    flags = ["--require-hashes", "--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    command = [str(program), "--requirement", str(file), *flags]
    said = ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)  # noqa: S603
        said = done.stderr
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError, TypeError):
        last = (said.strip().splitlines() or [f"no answer in {PATIENCE} s"])[-1]
        print(f"{file.name}: not audited, the advisory service cannot be asked: {last[:300]}")
        return None
    return [
        f"{file.name}: {package['name']} {package['version']}: {found['id']}, fixed in"
        f" {', '.join(found['fix_versions']) or 'no version'}"
        for package in packages
        for found in package.get("vulns", [])
    ]


def main() -> int:
    files = [Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("*.txt"))
    results = [audit(file, Path(sys.executable).with_name("pip-audit")) for file in files]
    for line in (line for found in results for line in found or ()):
        print(line)
    if any(results):
        return FOUND
    if None in results:
        return NOT_ASKED
    print(f"nothing is known against the versions in {', '.join(file.name for file in files)}")
    return CLEAN


if __name__ == "__main__":
    sys.exit(main())
