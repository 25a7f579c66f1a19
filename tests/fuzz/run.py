"""Coverage-guided fuzzing of one target.

    python -m tests.fuzz.run pictures -runs=1000000 -max_len=4096

The flags after the name are libFuzzer's. New inputs that reach new code go into a folder of their own, given last; the
corpus in this folder is always read. With `--fields`, messages and documents are changed field by field (mutate.py),
otherwise as bytes. A crash, a hang (-timeout, in seconds) or memory beyond -rss_limit_mb (in MiB) ends the run with the
input in a file `crash-...`, `timeout-...` or `oom-...`, and exit status 1 or more.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

# With Pillow: what parses the formats is in Python, and tells the fuzzer how far an input came.
with atheris.instrument_imports(include=["service", "PIL"]):
    from tests.fuzz.targets import MESSAGES, TARGETS

from tests.fuzz import mutate

FIELDS = "--fields"


def main() -> None:
    name, *flags = [argument for argument in sys.argv[1:] if argument != FIELDS]
    corpus = Path(__file__).parent / "corpus" / name
    folders = [flag for flag in flags if not flag.startswith("-")] or []
    options = [flag for flag in flags if flag.startswith("-")]
    # The first folder is where libFuzzer writes: never into the corpus that is committed, unless told so.
    arguments = [sys.argv[0], *options, *folders, *([str(corpus)] if folders else [])]
    if not folders:
        arguments += ["-seed_inputs=" + ",".join(str(path) for path in sorted(corpus.iterdir()))]
    custom = {}
    if FIELDS in sys.argv:
        custom["custom_mutator"] = mutate.of_messages(MESSAGES[name]) if name in MESSAGES else mutate.json_document
    atheris.Setup(arguments, TARGETS[name], **custom)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
