"""Seconds to an accuracy, beside the script that the record recipe goes back to, in one run on this machine.

    python benchmarks/record.py --script airbench94_muon.py --data cifar10-jpeg.tar.xz

`--script` is a copy of `airbench94_muon.py` (K. Jordan, github.com/KellerJordan/cifar10-airbench; not part of this
project). It was written for one GPU: here it computes on the CPU, its network under bf16 autocast, its other arithmetic
in fp32 where it has fp16, uncompiled, and is otherwise as it is. Ours is `cifarserve train` and `evaluate` as anybody
runs them. Both times are of training alone. Prints JSON, also to --out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "protos")]

import torch  # noqa: E402
import torchvision  # noqa: E402, F401  # before torch is changed for the script, which imports it

from service import cpu  # noqa: E402
from training import checkpoint, finished  # noqa: E402
from training.datasets import Dataset  # noqa: E402
from training.sources import read_data  # noqa: E402


class Clock:
    """Stands for torch.cuda.Event."""

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: Clock) -> float:
        """In milliseconds."""
        return 1e3 * (end.at - self.at)


@contextlib.contextmanager
def without_gpu(dataset: Dataset) -> Iterator[None]:
    """A folder and a torch in which the script runs on the CPU, on these pictures."""
    before, load = Path.cwd(), torch.load
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as patches:
        (Path(folder) / "cifar10").mkdir()
        for name, split in (("train", dataset.train), ("test", dataset.test)):
            data = {"images": torch.from_numpy(split.images), "labels": torch.from_numpy(split.labels), "classes": []}
            torch.save(data, Path(folder) / "cifar10" / f"{name}.pt")
        for of, attribute, stands in (
            (torch.cuda, "Event", Clock),
            (torch.cuda, "synchronize", lambda: None),
            (torch, "compile", lambda function: function),
            (torch, "load", lambda path, map_location: load(path, weights_only=True)),
            (torch.nn.Module, "half", lambda module: module),
            (torch.Tensor, "half", torch.Tensor.float),
        ):
            patches.enter_context(mock.patch.object(of, attribute, stands))
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("published", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.object(sys, "argv", [str(path)]):  # it reads itself
        spec.loader.exec_module(module)
    return module


def published(path: Path, dataset: Dataset) -> dict[str, Any]:
    """The script's accuracy in one view and in six, and the seconds that it counts for training."""
    torch.set_num_threads(cpu.usable_cores())
    torch.manual_seed(0)
    said: dict[str, Any] = {}
    with without_gpu(dataset):
        script = imported(path)
        forward = script.CifarNet.forward

        def in_bf16(*arguments: Any, **named: Any) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return forward(*arguments, **named).float()

        def note(variables: dict[str, Any], is_final_entry: bool) -> None:
            if not is_final_entry:
                said.update({name: variables[name] for name in ("epoch", "val_acc", "time_seconds")})
                print(f"published: {said}", file=sys.stderr)

        script.CifarNet.forward = in_bf16
        script.print_training_details = note
        six = script.main(0, script.CifarNet().to(memory_format=torch.channels_last))
    return {"one_view": said["val_acc"], "six_views": six, "seconds": said["time_seconds"], "epochs": said["epoch"] + 1}


def ours(recipe: str, data: str, changes: list[str]) -> dict[str, Any]:
    """The same of our recipe, with flags of `cifarserve train` that change it."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        for flags in (["train", "--recipe", recipe, *changes], ["evaluate", "--six-views"]):
            command = [sys.executable, "-m", "service.cli", *flags, "--run", run, "--data", data]
            subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)
        history = checkpoint.load(run).position.history
        evaluation = finished.load(run).evaluation
    return {
        "one_view": evaluation["accuracy"], "one_view_before_rounding": evaluation["accuracy_before_rounding"],
        "six_views": evaluation["accuracy_in_six_views"],
        "seconds": sum(epoch.seconds for epoch in history), "epochs": len(history),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", type=Path, required=True, help="a copy of airbench94_muon.py")
    parser.add_argument("--data", required=True, help="folder or archive of 32x32 pictures")
    parser.add_argument("--recipe", default="sprint")
    parser.add_argument("--out", type=Path, help="file for the JSON")
    parser.add_argument("flags", nargs="*", help="after --: of `cifarserve train`")
    options = parser.parse_args()
    script, data = options.script.resolve(), str(Path(options.data).resolve())
    mine = ours(options.recipe, data, options.flags)
    theirs = published(script, read_data(data, None, (32, 32, 3), Path("data"), 1.0))
    found = {"ours": mine, "published": theirs, "ratio_of_seconds": mine["seconds"] / theirs["seconds"]}
    text = json.dumps(found, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
