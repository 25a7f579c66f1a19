"""What a load test's levels mean, in words and numbers: the knee, the ratio of two runs, what to change."""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.documents import DocumentError, parse_json

# Of the ratio of two runs, by the t distribution for many windows: 1.96 standard errors.
_Z = 1.96
# Of the p99 that is asked for when nobody says which, in seconds.
USUAL_LIMIT = 0.01


def read(path: Path) -> dict[str, Any]:
    """A result that was written before. Raises ValueError and OSError."""
    try:
        result = parse_json(path.read_text())
        for level in result["levels"]:
            level["concurrency"], level["rate"], level["windows"], level["latency_seconds"]["p99"]
    except DocumentError as error:
        raise ValueError(f"{path}: is no result of a load test: {error}") from None
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"{path}: is no result of a load test") from None
    return dict(result)


def processor() -> str:
    """Its name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def knee(levels: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The level with the most throughput for its latency (L. Kleinrock's power): beyond it, waiting grows faster."""
    whole = [one for one in levels if one["images_per_second"] and one["latency_seconds"]["p99"]]
    return max(whole, key=lambda one: one["images_per_second"] / one["latency_seconds"]["p99"], default=None)


def within(levels: Sequence[dict[str, Any]], limit: float) -> dict[str, Any] | None:
    """The level with the most throughput of those without errors whose p99 is below `limit` seconds."""
    good = [
        one for one in levels
        if not one["errors"] and one["latency_seconds"]["p99"] and one["latency_seconds"]["p99"] < limit
    ]  # fmt: skip
    return max(good, key=lambda one: one["images_per_second"], default=None)


def ratio(new: Sequence[float], old: Sequence[float]) -> tuple[float, float, float]:
    """Mean of `new` over that of `old`, and the ends of its 95% confidence interval, from the spread of the windows.

    By the delta method on the logarithm; NaN ends with fewer than two windows in either.
    """
    means = statistics.fmean(new), statistics.fmean(old)
    found = means[0] / means[1]
    if min(len(new), len(old)) < 2 or not found:
        return found, math.nan, math.nan
    spread = math.sqrt(
        sum(statistics.variance(one) / len(one) / mean**2 for one, mean in zip((new, old), means, strict=True))
    )
    return found, found * math.exp(-_Z * spread), found * math.exp(_Z * spread)


def compare(new: dict[str, Any], old: dict[str, Any]) -> list[dict[str, Any]]:
    """The ratio of requests/s for each load that both runs have."""
    before = {(one["concurrency"], one["rate"]): one for one in old["levels"]}
    rows = []
    for one in new["levels"]:
        other = before.get((one["concurrency"], one["rate"]))
        if other is None or not one["windows"] or not other["windows"] or not any(other["windows"]):
            continue
        found, low, high = ratio(one["windows"], other["windows"])
        rows.append({
            "load": title(one), "ratio": round(found, 4), "low": round(low, 4), "high": round(high, 4),
            "p99": _over(one["latency_seconds"]["p99"], other["latency_seconds"]["p99"]),
        })  # fmt: skip
    return rows


def _over(new: float | None, old: float | None) -> float | None:
    return round(new / old, 4) if new and old else None


def title(level: dict[str, Any]) -> str:
    return f"{level['rate']:,.5g} requests/s" if level["rate"] else f"{level['concurrency']} in flight"


def heads() -> str:
    return f"{'load':>18} {'images/s':>10} {'p50 ms':>9} {'p99 ms':>9} {'batch':>6} {'cores':>6}"


def line(level: dict[str, Any]) -> str:
    """A level under `heads()`."""
    times, server = level["latency_seconds"], level["server"]
    cells = [f"{title(level):>18}", f"{level['images_per_second']:>10,.0f}"]
    cells += [f"{times[name] * 1e3:>9,.2f}" if times[name] is not None else " " * 9 for name in ("p50", "p99")]
    cells += [f"{server[name]:>6.1f}" if name in server else " " * 6 for name in ("images_in_a_batch", "cores")]
    notes = [f"{count} {code}" for code, count in level["errors"].items()]
    if level["client_was_the_limit"]:
        notes.append("the client was the limit")
    return " ".join([*cells, "", "; ".join([*notes, *filter(None, [level["broken"]])])]).rstrip()


def sentence(result: dict[str, Any]) -> str:
    """What one wants to know, in a sentence or two."""
    levels = result["levels"]
    best = max(levels, key=lambda one: one["images_per_second"], default=None)
    if best is None or not best["images_per_second"]:
        return "No request was answered."
    said = f"At most {best['images_per_second']:,.0f} images/s ({title(best)})"
    if len(levels) > 1 and (at := knee(levels)) is not None:
        p99 = at["latency_seconds"]["p99"] * 1e3
        said += f"; the knee is at {at['images_per_second']:,.0f} images/s with p99 {p99:.1f} ms ({title(at)})"
    if (good := within(levels, USUAL_LIMIT)) is not None:
        said += f". With p99 below {USUAL_LIMIT * 1e3:g} ms: {good['images_per_second']:,.0f} images/s ({title(good)})"
    return said + "."


def advice(result: dict[str, Any]) -> list[str]:
    """What to change to get more, as far as what was measured says; the first reason comes first."""
    levels = [one for one in result["levels"] if one["images_per_second"]]
    if not levels:
        return []
    best, said = max(levels, key=lambda one: one["images_per_second"]), []
    if best["client_was_the_limit"]:
        said.append("The client was the limit, not the server: give it more --processes, or a machine of its own.")
    closed = [one for one in levels if one["concurrency"]]
    if len(closed) > 1 and best is closed[-1] and best["images_per_second"] > 1.1 * closed[-2]["images_per_second"]:
        said.append(f"Throughput still rises at {title(best)}: try more, --concurrency {best['concurrency'] * 2}.")
    codes = {code for one in levels for code in one["errors"]}
    if "RESOURCE_EXHAUSTED" in codes:
        said.append("The server sheds what it cannot hold (RESOURCE_EXHAUSTED): it is beyond its capacity. More "
                    "replicas, or a longer queue (--max-queue-images) and with it longer waits.")  # fmt: skip
    server = best["server"]
    queue, compute = server.get("queue_seconds"), server.get("compute_seconds")
    if queue is None or not compute:
        return [*said, *([] if server else ["With --metrics, or --server-pid, this says where the time goes."])]
    cores = f" on {server['cores']:.1f} cores" if "cores" in server else ""
    waits = f"waits {queue * 1e3:.1f} ms for {compute * 1e3:.1f} ms of computing{cores}"
    if queue > compute / 2:
        said.append(f"At {title(best)} a request {waits}: the engine is the limit. More cores or replicas, a faster "
                    "precision or provider (`cifarserve tune` tries them); less load for shorter waits.")  # fmt: skip
    elif best["images_per_request"] == 1:
        said.append(f"At {title(best)} a request {waits}: the way in is the limit. More images in a request "
                    "(--images 32), a stream (--stream), or more --workers of the server.")  # fmt: skip
    return said
