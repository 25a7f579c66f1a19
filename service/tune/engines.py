"""The engine alone: every provider and precision that there is, by threads and size of the batch."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service import cpu
from service.manifest import PRECISIONS, Manifest, read_manifest
from service.precisions import AUTO, fastest_first
from service.tune.candidates import GPUS, Candidate, Curve, counted, undominated
from service.tune.goal import Goal
from service.tune.present import Present
from service.tune.race import Budget

PROVIDERS = ("cuda", "openvino", "cpu")  # TensorRT builds its engines for minutes: only when it is asked for
MOST_IMAGES = 256  # in a batch
_ENDS = 0.2  # share of the time after which no other engine is opened
_ENDING = 5.0  # seconds, for a process that has closed its output
_PATIENCE = 30.0  # seconds, at least, for an engine to be opened and timed


class EnginesFailed(RuntimeError):
    """The present settings do not serve this model. Fit for people."""


@dataclass
class Engines:
    """Fills as it goes. `dropped` are providers, precisions and thread counts, and why."""

    curves: list[Curve] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    onnxruntime: str = ""

    def drop(self, what: str, reason: str) -> None:
        self.dropped.append((what, reason))


async def present_candidate(present: Present, engines: Engines) -> Candidate:
    """What the settings as they are come to. Raises EnginesFailed."""
    async with EngineProcess() as process:
        record = dataclasses.asdict(present.compute)
        answer = await process.ask(
            {"kind": "present", "folder": str(present.folder), "name": present.name, "version": present.version,
             "compute": record}, 10 * _PATIENCE,
        )  # fmt: skip
    if "error" in answer:
        raise EnginesFailed(f"the settings as they are do not serve: {answer['error']}")
    engines.onnxruntime = answer["onnxruntime"]
    return present.candidate(answer["provider"], answer["precision"])


async def time_engines(
    present: Present, now: Candidate, goal: Goal, wanted: Sequence[str], budget: Budget, engines: Engines,
    told: Callable[[Curve], None],
) -> list[Curve]:  # fmt: skip
    """Time all engines that the version may be computed with, and give those worth going on with."""
    cores = cpu.usable_cores()
    manifest = read_manifest(present.folder)
    for precision in PRECISIONS:
        if precision not in manifest.compute_precisions:
            engines.drop(precision, "this version has not passed its gates in it")
    arms = _arms(manifest, wanted, engines)
    failed: dict[tuple[str, str], str] = {}
    async with EngineProcess() as process:
        for threads in _thread_counts(cores, now.threads):
            for arm in list(arms):
                if arm[0] in GPUS and any((one.provider, one.precision) == arm for one in engines.curves):
                    continue  # a GPU's kernels do not run on these threads
                if engines.curves and budget.left(_ENDS) <= 0:
                    engines.drop(
                        f"{' '.join(arm)}, {counted(threads, 'thread')}", "not measured: the time did not suffice"
                    )
                    continue
                answer = await process.ask(_job(present, arm, threads, goal), max(_PATIENCE, budget.left(0.5)))
                if "error" in answer:
                    arms.remove(arm)
                    failed.setdefault(arm, answer["error"])
                    continue
                seconds = {int(size): took for size, took in answer["seconds"].items()}
                engines.curves.append(Curve(*arm, threads, seconds))
                told(engines.curves[-1])
            # Whoever is beaten with these threads is not tried with others.
            left = {(one.provider, one.precision) for one in undominated(engines.curves, cores)[0]}
            arms = [arm for arm in arms if arm in left]
    _drop_failed(failed, engines)
    kept, beaten = undominated(engines.curves, cores)
    for what, reason in beaten:
        engines.drop(what, reason)
    return kept


def _arms(manifest: Manifest, wanted: Sequence[str], engines: Engines) -> list[tuple[str, str]]:
    """Providers and precisions to try: those that the version has passed its gates in, where they are computed fast."""
    arms = []
    for provider in wanted or PROVIDERS:
        fast = fastest_first(manifest, provider, AUTO)
        if not fast:
            engines.drop(provider, "computes none of the precisions that this version has passed in")
        arms += [(provider, precision) for precision in fast]
    return arms


def _drop_failed(failed: Mapping[tuple[str, str], str], engines: Engines) -> None:
    """What is wrong with all precisions of a provider alike is said of the provider."""
    for provider in dict.fromkeys(provider for provider, _ in failed):
        reasons = {precision: reason for (one, precision), reason in failed.items() if one == provider}
        if len(set(reasons.values())) == 1 and not any(curve.provider == provider for curve in engines.curves):
            engines.drop(provider, next(iter(reasons.values())))
        else:
            for precision, reason in reasons.items():
                engines.drop(f"{provider} {precision}", reason)


def _thread_counts(cores: int, present: int) -> list[int]:
    """All cores first, then those of the present settings, one, and the powers of two between."""
    powers = [1 << bits for bits in range(cores.bit_length()) if 1 << bits < cores]
    return list(dict.fromkeys((cores, present, 1, *reversed(powers))))


def _job(present: Present, arm: tuple[str, str], threads: int, goal: Goal) -> dict[str, Any]:
    provider, precision = arm
    compute = present.compute
    options = compute.provider_options if compute.provider == provider else {}
    chosen = dataclasses.replace(
        compute, provider=provider, precision=precision, threads=threads, buckets=(), provider_options=options,
        target_latency=0.0,
    )  # fmt: skip
    return {
        "kind": "curve", "folder": str(present.folder), "compute": dataclasses.asdict(chosen),
        "most": max(MOST_IMAGES, compute.max_batch_size),
        "longest": goal.objective.seconds if goal.objective else float(MOST_IMAGES),
    }  # fmt: skip


class EngineProcess:
    """`service.tune.engine_process`, started again when it has died."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> EngineProcess:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def ask(self, job: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to `job`; `error` when there is none within so many seconds, or the process died of it."""
        if self._process is None:
            pipe = asyncio.subprocess.PIPE
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "service.tune.engine_process", stdin=pipe, stdout=pipe,
                stderr=asyncio.subprocess.DEVNULL, process_group=0,
            )  # fmt: skip
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(ConnectionError):
            process.stdin.write(json.dumps(job).encode() + b"\n")
        try:
            async with asyncio.timeout(seconds):
                line = await process.stdout.readline()
        except TimeoutError:
            await self._end()
            return {"error": f"took longer than {seconds:.3g} s"}
        if not line:
            with contextlib.suppress(TimeoutError):  # to be killed at its end would lose it its status
                async with asyncio.timeout(_ENDING):
                    await process.wait()
            await self._end()
            return {"error": f"the process that computed it ended with status {process.returncode}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
