"""Tuning's judgement on made-up measurements: what is pruned, who wins, what it costs, and what is written."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import config, model_config
from service.config import ConfigError, Settings
from service.loadtest.objective import Objective
from service.tune import files, page
from service.tune.candidates import Candidate, Curve, structural, undominated, variants
from service.tune.engines import Engines
from service.tune.findings import Findings
from service.tune.goal import Goal
from service.tune.race import FINAL, LEAST_REPEATS, Budget, Race, Result, TrialFailed
from service.tune.verdict import Verdict, decide, paired

THROUGHPUT = Goal("throughput", None, 1, 64)
LATENCY = Goal("latency", None, 1, 1)
SLO = Goal("slo", Objective(99, 0.02), 1, 64)
PRESENT = Candidate("cpu", "int8", 4, 1, 64)
OTHERS = [dataclasses.replace(PRESENT, threads=threads, workers=4 // threads) for threads in (1, 2)]


def curve(precision: str, threads: int, each: float, fixed: float = 0.0, provider: str = "cpu") -> Curve:
    return Curve(provider, precision, threads, {size: fixed + each * size for size in (1, 2, 4, 8, 16, 32, 64)})


def test_a_precision_that_is_beaten_at_every_size_is_dropped_with_the_reason() -> None:
    kept, beaten = undominated([curve("int8", 2, 0.001), curve("fp32", 2, 0.003)], cores=2)
    assert [one.precision for one in kept] == ["int8"]
    assert beaten == [("cpu fp32", "cpu int8 is at least 3.0 times as fast at every size")]


def test_one_that_is_better_somewhere_or_within_the_noise_stays() -> None:
    better_alone = Curve("cpu", "fp32", 2, {1: 0.001, 64: 0.2})
    better_in_batches = Curve("cuda", "fp16", 1, {1: 0.004, 64: 0.01})
    assert undominated([better_alone, better_in_batches], 2)[0] == [better_alone, better_in_batches]
    alike = [curve("int8", 2, 0.00100), curve("fp32", 2, 0.00105)]
    assert undominated(alike, 2)[0] == alike


def test_threads_that_buy_nothing_are_dropped() -> None:
    kept, beaten = undominated([curve("int8", 4, 0.001), curve("int8", 2, 0.001), curve("int8", 1, 0.002)], cores=4)
    assert [one.threads for one in kept] == [2, 1]
    assert beaten == [("cpu int8, 4 threads", "no faster than with 2")]


def test_fewer_threads_are_kept_where_more_engines_make_up_for_them() -> None:
    # Alone, one thread is never faster; four such engines are faster than one of four.
    kept, _ = undominated([curve("int8", 4, 0.0005), curve("int8", 1, 0.001)], cores=4)
    assert {one.threads for one in kept} == {1, 4}


def test_every_division_of_the_cores_is_a_candidate_but_the_present_one() -> None:
    curves = [curve("int8", threads, 0.004 / threads) for threads in (1, 2, 4)]
    found = structural(curves, PRESENT, 4, THROUGHPUT)
    assert {(one.threads, one.workers) for one in found} == {(1, 1), (1, 2), (1, 4), (2, 1), (2, 2)}
    assert all(one.threads * one.workers <= 4 for one in found)
    # The most promising come first, as the time may not suffice for all.
    assert (found[0].threads * found[0].workers, found[-1].threads * found[-1].workers) == (4, 1)


def test_for_latency_there_is_one_worker_and_nothing_waits() -> None:
    found = structural([curve("int8", threads, 0.004 / threads) for threads in (1, 2, 4)], PRESENT, 4, LATENCY)
    assert [(one.threads, one.workers) for one in found] == [(2, 1), (1, 1)]
    assert variants(PRESENT, curve("int8", 4, 0.001), PRESENT, LATENCY) == []


def test_batches_fit_into_the_objective() -> None:
    own = curve("int8", 2, 0.001)  # 8 images in 8 ms: with the batch before, 16 of 20 ms
    assert all(one.max_batch_size == 8 for one in structural([own], PRESENT, 4, SLO))
    assert {one.max_batch_size for one in variants(PRESENT, own, PRESENT, SLO)} == {4, 8, 16, 64}
    assert {one.max_queue_delay for one in variants(PRESENT, own, PRESENT, SLO)} == {0.0, 0.002}


def test_batches_and_delay_follow_the_engines_knee() -> None:
    # 1 ms for any batch and 0.05 ms for an image: 64 images have 95% of no more than a batch of 64 could.
    found = variants(PRESENT, curve("int8", 4, 0.00005, fixed=0.001), PRESENT, THROUGHPUT)
    assert {(one.max_batch_size, one.max_queue_delay) for one in found} == {(64, 0.0011)}
    flat = variants(PRESENT, curve("int8", 4, 0.001), PRESENT, THROUGHPUT)
    assert {(one.max_batch_size, one.max_queue_delay) for one in flat} == {(1, 0.0), (4, 0.0), (64, 0.0003)}


def test_sizes_that_padding_serves_as_fast_are_no_buckets() -> None:
    own = Curve("cuda", "fp16", 1, {1: 1.0, 2: 1.0, 4: 1.01, 8: 2.0, 12: 3.0, 16: 3.05})
    assert own.worthwhile_buckets() == (4, 8, 16)
    base = Candidate("cuda", "fp16", 1, 1, 16)
    assert (4, 8, 16) in {one.buckets for one in variants(base, own, base, THROUGHPUT)}


def test_a_gain_within_the_noise_keeps_the_present() -> None:
    verdict = decide(PRESENT, {PRESENT: [100, 110, 95], OTHERS[0]: [108, 104, 103]}, 0.02)
    assert verdict.winner == PRESENT
    assert "no gain beyond the noise" in verdict.reason


def test_a_gain_that_slow_minutes_hide_is_seen_in_turns() -> None:
    # The machine halves its speed on the way: unpaired, the two overlap.
    verdict = decide(PRESENT, {PRESENT: [100, 80, 50, 52], OTHERS[0]: [121, 95, 61, 62]}, 0.02)
    assert verdict.winner == OTHERS[0]
    assert verdict.gains[OTHERS[0]].ratio == pytest.approx(1.2, abs=0.02)


def test_a_certain_gain_that_is_not_worth_it_is_left() -> None:
    scores = {PRESENT: [100.0, 100.1, 99.9], OTHERS[0]: [101.0, 101.1, 100.9]}
    assert paired(scores[OTHERS[0]], scores[PRESENT]).low > 1
    assert decide(PRESENT, scores, 0.02).winner == PRESENT


def test_of_two_gains_the_higher_is_taken() -> None:
    scores = {PRESENT: [100, 101, 99], OTHERS[0]: [120, 121, 118], OTHERS[1]: [150, 152, 149]}
    assert decide(PRESENT, scores, 0.02).winner == OTHERS[1]


def test_one_repeat_proves_nothing() -> None:
    assert decide(PRESENT, {PRESENT: [100], OTHERS[0]: [300]}, 0.02).winner == PRESENT


def test_where_the_present_never_holds_the_objective_who_always_does_wins() -> None:
    assert decide(PRESENT, {PRESENT: [0, 0, 0], OTHERS[0]: [50, 60, 40]}, 0.05).winner == OTHERS[0]
    assert decide(PRESENT, {PRESENT: [0, 70, 0], OTHERS[0]: [50, 60, 40]}, 0.05).winner == PRESENT
    assert decide(PRESENT, {PRESENT: [70, 70, 70], OTHERS[0]: [0, 90, 90]}, 0.05).winner == PRESENT


class Machine:
    """Speeds by candidate, noise, and a clock that trials make go on."""

    def __init__(
        self, speeds: dict[Candidate, float], *, noise: float = 0.0, seed: int = 0, trial: float = 6.0
    ) -> None:
        self.speeds, self.noise, self.trial = speeds, noise, trial
        self.chance = random.Random(seed)
        self.now = 0.0
        self.failing: dict[Candidate, str] = {}

    def clock(self) -> float:
        return self.now

    async def measure(self, candidate: Candidate, seconds: float) -> Result:
        self.now += self.trial - 2 + seconds
        if candidate in self.failing:
            raise TrialFailed(self.failing[candidate])
        score = self.speeds.get(candidate, 100.0) * math.exp(self.chance.gauss(0, self.noise))
        return Result(score, score, 0.01, 0.02)


def race(
    machine: Machine,
    challengers: Sequence[Candidate],
    more: Callable[[Candidate], Sequence[Candidate]] = lambda _: (),
    seconds: float = 300.0,
) -> tuple[Race, Verdict]:
    run = Race(machine.measure, Budget(seconds, machine.clock), THROUGHPUT, 1, lambda _: None)
    return run, asyncio.run(run.run(PRESENT, challengers, more))


def many(count: int) -> list[Candidate]:
    return [dataclasses.replace(PRESENT, max_batch_size=size + 1) for size in range(count)]


def test_the_fastest_of_many_is_found_in_the_time() -> None:
    pool = many(10)
    machine = Machine({pool[7]: 150.0, pool[2]: 120.0}, noise=0.02)
    run, verdict = race(machine, pool)
    assert verdict.winner == pool[7]
    assert machine.now <= 300
    finals = [trial.candidate for trial in run.trials if trial.stage == FINAL]
    assert finals.count(PRESENT) == finals.count(pool[7]) >= LEAST_REPEATS
    assert len(set(finals)) <= 3


def test_variants_of_the_best_join_after_the_first_look() -> None:
    base, better = many(2)[1], dataclasses.replace(PRESENT, max_queue_delay=0.001)
    asked = []

    def more(best: Candidate) -> list[Candidate]:
        asked.append(best)
        return [better]

    _, verdict = race(Machine({base: 120.0, better: 160.0}, noise=0.01), many(2), more)
    assert asked == [base]
    assert verdict.winner == better


def test_equal_settings_are_rarely_told_apart_by_noise() -> None:
    claims = [race(Machine({}, noise=0.08, seed=seed), many(6))[1].winner != PRESENT for seed in range(200)]
    # Two challengers, each above a one-sided 97.5% bound by chance: 5% at most, and three standard errors of that.
    assert sum(claims) / len(claims) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def test_a_true_gain_is_found_through_the_noise() -> None:
    pool = many(6)
    found = [race(Machine({pool[3]: 150.0}, noise=0.05, seed=seed), pool)[1].winner == pool[3] for seed in range(60)]
    assert sum(found) >= 57


def test_who_does_not_serve_is_dropped_with_the_reason_and_never_wins() -> None:
    pool = many(3)
    machine = Machine({pool[1]: 900.0, pool[2]: 130.0}, noise=0.01)
    machine.failing[pool[1]] = "golden outputs differ by 0.4"
    run, verdict = race(machine, pool)
    assert (str(pool[1]), "golden outputs differ by 0.4") in run.dropped
    assert verdict.winner == pool[2]


def test_who_fails_in_the_finals_is_out() -> None:
    pool = many(2)
    machine = Machine({pool[0]: 200.0}, noise=0.01)

    async def measure(candidate: Candidate, seconds: float) -> Result:
        if machine.now > 60 and candidate == pool[0]:
            machine.failing[candidate] = "calls failed: 7 INTERNAL"
        return await machine.measure(candidate, seconds)

    run = Race(measure, Budget(300, machine.clock), THROUGHPUT, 1, lambda _: None)
    verdict = asyncio.run(run.run(PRESENT, pool, lambda _: ()))
    assert verdict.winner == PRESENT
    assert (str(pool[0]), "calls failed: 7 INTERNAL") in run.dropped


def test_when_the_present_settings_fail_that_is_an_error() -> None:
    machine = Machine({})
    machine.failing[PRESENT] = "does not serve"
    with pytest.raises(TrialFailed, match="does not serve"):
        race(machine, many(2))


@pytest.mark.parametrize("seconds", [1, 20, 45, 60, 90, 120, 200, 300])
@pytest.mark.parametrize("trial", [3.0, 6.0, 15.0])
def test_the_time_is_kept(seconds: float, trial: float) -> None:
    machine = Machine({}, noise=0.02, trial=trial)
    run, verdict = race(machine, many(8), seconds=seconds)
    # The first trial is made in any case: what one costs is not known before.
    assert machine.now <= max(seconds, trial)
    if not any(trial.stage == FINAL for trial in run.trials):
        assert verdict.winner == PRESENT
        assert "too little time" in verdict.reason
        measured = {str(one.candidate) for one in run.trials}
        assert {str(one) for one in many(8)} <= measured | {what for what, _ in run.dropped}


def test_the_time_that_it_asks_for_is_enough() -> None:
    _, verdict = race(Machine({}), many(1), seconds=30)
    minutes = float(verdict.reason.split("--minutes ")[1].split(" ")[0])
    run, _ = race(Machine({}), many(1), seconds=60 * minutes)
    assert any(trial.stage == FINAL for trial in run.trials)


SETTINGS = Settings()
COMPUTE = model_config.parse({}, SETTINGS, "").compute


def test_what_is_unchanged_keeps_its_words_and_the_rest_is_said() -> None:
    winner = dataclasses.replace(PRESENT, threads=2, max_batch_size=16)
    keys = files.model_keys(winner, PRESENT, COMPUTE)
    assert (keys["provider"], keys["precision"]) == ("auto", "auto")
    assert (keys["threads"], keys["max_batch_size"]) == (2, 16)
    assert files.server_keys(winner, PRESENT) == {}


def test_another_precision_is_named_with_its_provider() -> None:
    keys = files.model_keys(dataclasses.replace(PRESENT, precision="fp32"), PRESENT, COMPUTE)
    assert (keys["provider"], keys["precision"], keys["threads"]) == ("cpu", "fp32", 0)


def test_with_other_workers_the_threads_are_named() -> None:
    winner = dataclasses.replace(PRESENT, workers=2)
    assert files.model_keys(winner, PRESENT, COMPUTE)["threads"] == 4
    assert files.server_keys(winner, PRESENT) == {"workers": 2}


def test_options_stay_with_their_provider() -> None:
    compute = dataclasses.replace(COMPUTE, provider="cpu", provider_options={"session.x": "1"})
    assert files.model_keys(PRESENT, PRESENT, compute)["provider_options"] == {"session.x": "1"}
    assert "provider_options" not in files.model_keys(dataclasses.replace(PRESENT, provider="cuda"), PRESENT, compute)


OLD = """# ours
versions = [2]  # pinned
threads = 7
traffic = { 1 = 5, 2 = 95 }

[tuned]
when = "before"
measured = [
  { threads = 7 },
]
"""


def test_a_file_is_rewritten_around_what_others_wrote_in_it() -> None:
    made = files.rewritten(OLD, {"threads": 2, "buckets": (2, 4)}, files.MODEL_KEYS, ['when = "now"'])
    assert tomllib.loads(made) == {
        "threads": 2, "buckets": [2, 4], "versions": [2], "traffic": {"1": 5, "2": 95}, "tuned": {"when": "now"},
    }  # fmt: skip
    assert "# ours" in made
    assert files.rewritten(made, {"threads": 2, "buckets": (2, 4)}, files.MODEL_KEYS, ['when = "now"']) == made


def test_tables_after_the_old_evidence_stay() -> None:
    made = files.rewritten(OLD + "[other]\nthreads = 1\n", {"threads": 2}, files.MODEL_KEYS, ["a = 1"])
    assert tomllib.loads(made)["other"] == {"threads": 1}
    assert tomllib.loads(made)["tuned"] == {"a": 1}


def test_a_file_that_cannot_be_rewritten_is_refused() -> None:
    with pytest.raises(ConfigError, match="on one line"):
        files.rewritten("buckets = [\n  1,\n  2,\n]\n", {"threads": 2}, files.MODEL_KEYS)


@given(st.recursive(
    st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
))  # fmt: skip
def test_values_survive_toml(value: object) -> None:
    assert tomllib.loads(f"value = {files.toml(value)}") == {"value": value}


def test_evidence_is_accepted_by_all_readers(tmp_path: Path) -> None:
    found = findings()
    (tmp_path / "config.toml").write_text(files.rewritten("", {"threads": 3}, files.MODEL_KEYS, found.evidence()))
    assert model_config.read_model_config(tmp_path, SETTINGS).compute.threads == 3
    # And by what pins a version in the same file.
    model_config.write_pin(tmp_path, 5)
    again = model_config.read_model_config(tmp_path, SETTINGS)
    assert (again.compute.threads, str(again.versions)) == (3, "[5]")
    server = tmp_path / "cifarserve.toml"
    server.write_text(files.rewritten("port = 9\n", {"workers": 3}, files.SERVER_KEYS, found.evidence()))
    assert config.load({"config": server}, {}) == Settings(port=9, workers=3)


def findings() -> Findings:
    pool = many(2)
    run, verdict = race(Machine({pool[0]: 150.0}, noise=0.01), pool)
    engines = Engines([curve("int8", 2, 0.001)], [("cuda", 'not "here" <b>')], "1.2.3")
    return Findings("m<1>", THROUGHPUT, "tune", engines, PRESENT, run.trials, run.dropped, verdict)


def test_the_page_needs_nothing_else_and_says_what_is_to_be_set() -> None:
    found = findings()
    text = page.page(found)
    assert "http" not in text
    assert "<script" not in text
    assert "m&lt;1&gt;" in text
    assert "not &quot;here&quot; &lt;b&gt;" in text
    assert "<tr class='changed'><td>max_batch_size</td><td class='text'>64</td><td class='text'>1</td></tr>" in text
    assert text.count("<circle") == len(found.trials)


def test_a_busy_machine_is_said_to_be_one() -> None:
    quiet, busy = (dataclasses.replace(findings(), load=load) for load in (0.1, 40.0))
    assert quiet.warning() == ""
    assert "busy" not in page.page(quiet)
    assert "The machine is busy (load 40.0 on " in page.page(busy)
    assert "load = 40.0" in busy.evidence()


@pytest.mark.parametrize("goal", [THROUGHPUT, LATENCY, SLO])
def test_a_page_without_anything_measured_says_so(goal: Goal) -> None:
    assert "Nothing was measured" in page.page(Findings("m", goal, "tune", Engines()))
