"""Training speed against the plain loop: the same network, the same pictures, the same machine, in turns.

    python benchmarks/train.py --data cifar10-jpeg.tar.xz

The plain loop is what a tutorial has: torchvision's transforms on PIL images in a DataLoader with two workers, fp32,
contiguous, and the network as it is. Ours is `training.loop` as the command line runs it, on images of full size.
Prints images/s of each round and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from service import cpu
from training import architectures, datasets, hardware, loop
from training.datasets import LabelledImages
from training.errors import Interrupted
from training.recipes import RECIPES
from training.run import describe_run
from training.sources import read_data

WARM_UP = 2  # steps


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """As torchvision.datasets.CIFAR10: arrays in memory, a PIL image and the transforms for each."""

    def __init__(self, split: LabelledImages) -> None:
        self.split = split
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
            ]
        )

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.split.images[index])), int(self.split.labels[index])


def plain(network: str, batch: int, train: LabelledImages, seconds: float) -> float:
    """Images/s of the plain loop, after its first steps."""
    torch.set_num_threads(cpu.usable_cores())
    model = architectures.build(network, (32, 32, 3), 10).train()
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1e-3, momentum=0.9)
    loader = DataLoader(Pictures(train), batch_size=batch, shuffle=True, num_workers=2)

    def steps() -> Iterator[int]:
        while True:
            for images, labels in loader:
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(images), labels).backward()
                optimizer.step()
                yield len(labels)

    return _rate(steps(), seconds)


def _rate(steps: Iterator[int], seconds: float) -> float:
    for _ in range(WARM_UP):
        next(steps)
    images, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        images += next(steps)
    return images / (time.perf_counter() - began)


def ours(network: str, dataset: datasets.Dataset, seconds: float) -> float:
    """Images/s of the training loop, stopped as Ctrl-C would, on full-size images."""
    torch.set_num_threads(cpu.usable_cores())
    hardware.keep_memory()
    recipe = dataclasses.replace(RECIPES[network], small_until=0.0, epochs=1000)
    spec = describe_run(recipe, hardware.choose("cpu", "auto"), dataset)
    ends: list[float] = []

    def stop() -> int:
        ends.append(time.perf_counter())
        return int(len(ends) > WARM_UP and ends[-1] - ends[WARM_UP - 1] >= seconds)

    with tempfile.TemporaryDirectory() as run, contextlib.suppress(Interrupted):
        loop.train(spec, dataset, Path(run), resume=False, stop_signal=stop, console=Console(quiet=True))
    return (len(ends) - WARM_UP) * recipe.batch_size / (ends[-1] - ends[WARM_UP - 1])


def apart(measure: Callable[..., float], *arguments: object) -> float:
    """Measure in a process of its own: what one loop asks of the C library must not help the other."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder or archive of 32x32 pictures")
    parser.add_argument("--networks", nargs="+", default=["tutorial", "record"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each round")
    options = parser.parse_args()
    dataset = read_data(options.data, None, (32, 32, 3), Path("data"), 1.0)
    for network in options.networks:
        batch = RECIPES[network].batch_size
        rates: dict[str, list[float]] = {"plain": [], "ours": []}
        for _ in range(options.rounds):
            rates["plain"].append(apart(plain, network, batch, dataset.train, options.seconds))
            rates["ours"].append(apart(ours, network, dataset, options.seconds))
        medians = {name: statistics.median(found) for name, found in rates.items()}
        shown = "; ".join(f"{name} {', '.join(f'{rate:.0f}' for rate in found)}" for name, found in rates.items())
        print(f"{network}, batches of {batch}, images/s: {shown}; ratio {medians['ours'] / medians['plain']:.2f}")


if __name__ == "__main__":
    main()
