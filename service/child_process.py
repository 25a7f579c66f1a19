"""Runs a module of this package as a child process that reports on a pipe of its own, never on standard output.

Libraries print to standard output, in C too: what stands there is no report. A child's standard output goes where its
standard error goes. What the parent tells it comes to its standard input, and its reports go to the pipe whose number
is the first argument of its command line; both are lines of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import IO, Any

_LONGEST_REPORT = 1 << 24  # bytes
_LAST_WORDS = 1 << 12  # bytes of its output that are kept for people


class ReportError(RuntimeError):
    """What came on the pipe of reports is no report."""


class ChildProcess:
    """The parent's end. To be used from one event loop."""

    def __init__(self, process: asyncio.subprocess.Process, reports: asyncio.StreamReader) -> None:
        self._process = process
        self._reports = reports
        self._output = b""
        self._listening = asyncio.create_task(self._listen(process.stdout)) if process.stdout else None

    @classmethod
    async def start(
        cls, module: str, *arguments: str, output: IO[bytes] | int | None = None, session: bool = False,
        environment: dict[str, str] | None = None,
    ) -> ChildProcess:  # fmt: skip
        """Run `python -m module` in a process group of its own: a Ctrl-C is for its parent, which ends it in order.

        `output` takes its standard output and error: None: this process's standard error; asyncio.subprocess.PIPE:
        `last_words` has the end of it. With `session`, it gets a session of its own, too.
        """
        ours, theirs = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", module, str(theirs), *arguments, stdin=asyncio.subprocess.PIPE,
                stdout=2 if output is None else output, stderr=asyncio.subprocess.STDOUT, pass_fds=(theirs,),
                env=environment, start_new_session=session, process_group=None if session else 0,
            )  # fmt: skip
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        reports = asyncio.StreamReader(limit=_LONGEST_REPORT)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reports), os.fdopen(ours, "rb")
        )
        return cls(process, reports)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """As subprocess.Popen.returncode."""
        return self._process.returncode

    def tell(self, record: dict[str, Any]) -> None:
        """Send a record. What a process that has ended is told is lost."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(record, default=str).encode() + b"\n")

    def tell_no_more(self) -> None:
        """End its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def report(self) -> dict[str, Any] | None:
        """The next report; None when there will be no more. Raises ReportError."""
        try:
            line = await self._reports.readline()
            record = json.loads(line) if line else None
        except ValueError as error:  # no JSON, or a line beyond the limit
            raise ReportError(f"process {self.pid} sent no report but something else: {error}") from None
        if not (record is None or isinstance(record, dict)):
            raise ReportError(f"process {self.pid} sent no report but something else: {line[:80]!r}")
        return record

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.status is None:
            self._process.send_signal(number)

    async def wait(self) -> int:
        """Wait for its end; its exit status."""
        return await self._process.wait()

    async def kill(self) -> None:
        """Kill it, and all that it has started, unless it has ended; returns when it is gone."""
        if self.status is None:
            kill_tree(self.pid)
        await self.wait()
        if self._listening is not None:
            self._listening.cancel()

    async def last_words(self) -> str:
        """The last line of what a process that has ended had put out; empty when there is none."""
        if self._listening is not None:
            await asyncio.wait({self._listening}, timeout=1.0)  # a process that it has started may hold the pipe open
        lines = self._output.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    async def _listen(self, output: asyncio.StreamReader) -> None:
        while some := await output.read(1 << 16):
            self._output = (self._output + some)[-_LAST_WORDS:]


def descendants(pid: int) -> list[int]:
    """The processes that descend from `pid`; none where /proc does not tell."""
    try:
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (OSError, ValueError):
        return []
    return [one for child in children for one in (*descendants(child), child)]


def kill_tree(pid: int) -> None:
    """Kill `pid`, which has not been waited for, and all that descends from it."""
    for one in (pid, *descendants(pid)):  # the ancestor first: it would start others again
        with contextlib.suppress(ProcessLookupError):  # of `kill`: it has ended meanwhile
            os.kill(one, signal.SIGKILL)


def ending(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


class Reports:
    """The child's end of the pipe. `send` may be called from any thread."""

    def __init__(self) -> None:
        number = int(sys.argv.pop(1))
        os.set_inheritable(number, False)  # what this process starts must not hold it open
        self._number = number

    def send(self, record: dict[str, Any]) -> None:
        """Raises BrokenPipeError when the parent is gone."""
        line = memoryview(json.dumps(record).encode() + b"\n")
        while line:
            line = line[os.write(self._number, line) :]
