"""Rounding weights to int8, channel by channel."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from training.weights import round_weights, to_int8


@given(
    shape=st.sampled_from([(3, 7), (4, 2, 3, 3), (1, 5)]),
    exponent=st.integers(-6, 6),
    seed=st.integers(0, 100),
)
def test_no_weight_moves_by_more_than_half_a_step(shape: tuple[int, ...], exponent: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(0, 10.0**exponent, shape).astype(np.float32)
    integers, scale = to_int8(values)
    assert integers.dtype == np.int8
    assert np.abs(integers.astype(int)).max() == 127
    assert (np.abs(integers * scale - values) <= scale * 0.5001).all()


def test_channels_have_their_own_scales() -> None:
    values = np.array([[1.0, -0.5], [100.0, 50.0]], np.float32)
    integers, scale = to_int8(values)
    assert integers.tolist() == [[127, -64], [127, 64]]
    assert scale.shape == (2, 1)


def test_a_channel_of_zeros_stays_zero() -> None:
    integers, scale = to_int8(np.zeros((2, 3), np.float32))
    assert (integers * scale == 0).all()


def test_only_weights_are_rounded_not_biases_and_norms() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    round_weights(network, "int8")
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight", "3.weight"}


def test_fp32_weights_stay_as_they_are() -> None:
    network = nn.Linear(5, 3)
    before = network.weight.detach().clone()
    round_weights(network, "fp32")
    assert torch.equal(network.weight, before)
