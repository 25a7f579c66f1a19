"""`cifarserve serve` for as long as whoever started it lives: it drains when its standard input ends.

python -m service.tune.server_process FLAGS...
"""

from __future__ import annotations

import sys

from service import cli, workers

if __name__ == "__main__":
    workers.stop_when_input_ends()
    sys.exit(cli.main(["serve", *sys.argv[1:]]))
