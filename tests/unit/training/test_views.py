"""Multi-view evaluation sees each image six times, and is reported apart from what is served."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unit.training.conftest import FinishedRun
from training import checkpoint, finished, views
from training.model import predict_logits


def test_the_six_views_are_mirrored_and_shifted_and_weigh_one_together() -> None:
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    weighted = list(views._views(images))
    assert len(weighted) == views.SIX
    assert sum(weight for weight, _ in weighted) == 1.0
    assert all(view.shape == images.shape for _, view in weighted)
    (_, same), (_, mirrored), (_, up_left), _, (_, down_right), _ = weighted
    assert np.array_equal(same, images)
    assert np.array_equal(mirrored[:, :, 0], images[:, :, -1])
    assert np.array_equal(up_left[:, 1:, 1:], images[:, :-1, :-1])
    assert np.array_equal(down_right[:, :-1, :-1], images[:, 1:, 1:])


def test_the_answer_to_a_picture_without_direction_is_that_of_one_view(finished_run: FinishedRun) -> None:
    plain = np.full((3, 8, 8, 3), 77, np.uint8)
    classifier = finished_run.model.classifier
    assert views.six_view_logits(classifier, plain) == pytest.approx(predict_logits(classifier, plain), abs=1e-4)


def test_the_accuracy_in_six_views_is_a_figure_of_its_own(finished_run: FinishedRun) -> None:
    dataset = finished_run.dataset
    model = finished.finish(checkpoint.load(finished_run.folder), dataset, "int8", six_views=True)
    assert model.evaluation["accuracy"] == finished_run.model.evaluation["accuracy"]
    expected = views.six_view_logits(model.classifier, dataset.test.images).argmax(1) == dataset.test.labels
    assert model.evaluation["accuracy_in_six_views"] == expected.mean()
    assert "accuracy_in_six_views" not in finished_run.model.evaluation
    assert torch.is_inference_mode_enabled() is False
