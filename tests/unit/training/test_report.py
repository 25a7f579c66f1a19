"""report.html and predictions.npz: what is in them, and that they are part of the published version."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from service.manifest import ManifestError, read_manifest, verify_files
from tests.unit.training import pictures
from tests.unit.training.conftest import FinishedRun
from tests.unit.training.reports import render, untrained
from training import architectures, export, predictions, publish, report
from training.calibrate import softmax
from training.datasets import LabelledImages
from training.errors import CheckpointError
from training.layers import first_convolution, trace
from training.model import Classifier, predict_logits
from training.predictions import PREDICTIONS_FILE, Predictions, PredictionsError
from training.report import REPORT_FILE

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """The elements of a page, with their texts; fails when tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def sections(self) -> list[str | None]:
        return [attributes["id"] for tag, attributes in self.elements if tag == "section"]

    def sources(self) -> list[str]:
        return [attributes["src"] or "" for tag, attributes in self.elements if tag == "img"]


def tutorial(channels: int = 3, classes: int = len(pictures.CLASSES)) -> nn.Module:
    return architectures.build("tutorial", (8, 8, channels), classes)


@pytest.fixture(scope="module")
def page(finished_run: FinishedRun) -> str:
    return (finished_run.folder / REPORT_FILE).read_text()


def test_every_section_is_there_under_a_heading_and_in_the_contents(page: str) -> None:
    found = Page(page)
    # `mistakes` only where there are any.
    expected = ["training", "classes", "confusion", "confidence", "mistakes", "inside", "layers", "parity", "origin"]
    assert [name for name in found.sections() if name != "mistakes"] == [one for one in expected if one != "mistakes"]
    links = [attributes["href"] for tag, attributes in found.elements if tag == "a"]
    assert links == [f"#{name}" for name in found.sections()]
    assert len(found.texts["h1"]) == 1
    assert len(found.texts["h2"]) == len(found.sections())


def test_nothing_is_asked_for_from_outside_and_nothing_runs(page: str) -> None:
    found = Page(page)
    assert {tag for tag, _ in found.elements}.isdisjoint({"script", "iframe", "object", "embed", "base", "form"})
    for tag, attributes in found.elements:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, name, attributes[name])
        assert not [name for name in attributes if name.startswith("on")]
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    (policy,) = [each["content"] for tag, each in found.elements if each.get("http-equiv") == "Content-Security-Policy"]
    assert (policy or "").startswith("default-src 'none'; img-src data:;")


def test_what_cannot_be_seen_is_said(page: str) -> None:
    found = Page(page)
    charts = [attributes for tag, attributes in found.elements if tag == "svg"]
    assert len(charts) == 5
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in charts)
    assert all("alt" in attributes for tag, attributes in found.elements if tag == "img")
    tables = [tag for tag, _ in found.elements if tag == "table"]
    assert len(found.texts["caption"]) == len(tables)
    assert all(attributes.get("scope") for tag, attributes in found.elements if tag == "th")
    identifiers = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_the_numbers_are_the_evaluations(page: str, finished_run: FinishedRun) -> None:
    found, evaluation = Page(page), finished_run.model.evaluation
    assert f"{evaluation['accuracy']:.2%} of 30 test images right" in found.texts["p"][0]
    cells = [text for text in found.texts["td"] if text.isdecimal()]
    for row in evaluation["confusion_matrix"]:
        for count in filter(None, row):
            assert str(count) in cells
    for scores in evaluation["per_class"]:
        assert scores["label"] in found.texts["th"]
        assert f"{scores['recall']:.1%}" in found.texts["td"]
    codes = found.texts["code"]
    assert finished_run.dataset.fingerprint() in codes
    assert finished_run.dataset.test.fingerprint() in codes
    facts = dict(zip(found.texts["dt"], found.texts["dd"], strict=True))
    assert (facts["seed"], facts["optimizer"], facts["flip"]) == ("3", "adam", "yes")
    assert facts["torch"] == torch.__version__.split("+")[0]


def test_the_file_is_small(page: str) -> None:
    assert len(page.encode()) < 500_000


def test_mistakes_are_the_surest_ones_first_with_their_pictures(finished_run: FinishedRun) -> None:
    test = finished_run.dataset.test
    torch.manual_seed(0)
    model = untrained(finished_run.model, test, tutorial())
    found = Predictions.of(softmax(predict_logits(model.classifier, test.images)), test.labels)
    wrong = np.flatnonzero(~found.right)
    assert len(wrong) > report.MISTAKES  # it has learnt nothing
    html = render(model, test)
    shown = [float(share) / 100 for share in re.findall(r"<br>([\d.]+)%, is ", html)]
    surest = np.sort(found.probability[wrong])[::-1][: report.MISTAKES]
    assert shown == pytest.approx(surest, abs=6e-4)
    (first,) = [
        attributes for tag, attributes in Page(html).elements if (attributes.get("alt") or "").startswith("Test image")
    ][:1]
    index = wrong[np.argsort(-found.probability[wrong], kind="stable")[0]]
    assert first["alt"] == (
        f"Test image of class {pictures.CLASSES[found.labels[index]]}, "
        f"predicted {pictures.CLASSES[found.predicted[index]]}"
    )
    data = base64.b64decode((first["src"] or "").removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), test.images[index])


def test_class_names_are_text_whatever_is_in_them(finished_run: FinishedRun) -> None:
    labels = ("<script>alert(1)</script>", 'a"b', "c&d")
    test = finished_run.dataset.test
    html = render(untrained(finished_run.model, test, tutorial(), labels), test)
    found = Page(html)
    assert "script" not in {tag for tag, _ in found.elements}
    assert set(labels) <= set(found.texts["th"])


def test_grey_images_have_a_report_too(finished_run: FinishedRun) -> None:
    colour = finished_run.dataset.test
    test = LabelledImages(np.ascontiguousarray(colour.images[..., :1]), colour.labels)
    html = render(untrained(finished_run.model, test, tutorial(channels=1)), test)
    assert {"mistakes", "inside", "layers"} <= set(Page(html).sections())
    assert "32 filters of the first convolution" in html


class _Foreign(nn.Module):
    """A network whose arithmetic torch does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(3, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.from_numpy(pixels.numpy().mean(axis=(2, 3)) @ self.weights.detach().numpy())


def test_a_network_without_torchs_layers_has_a_report_without_what_they_would_show(finished_run: FinishedRun) -> None:
    test = finished_run.dataset.test
    found = Page(render(untrained(finished_run.model, test, _Foreign()), test))
    assert {"inside", "layers"}.isdisjoint(found.sections())
    assert {"training", "classes", "confusion", "confidence", "parity", "origin"} <= set(found.sections())
    assert "0.00 M" in " ".join(found.texts["dd"])  # nine parameters


def test_many_classes_have_no_matrix_but_their_confusions(finished_run: FinishedRun) -> None:
    labels = tuple(f"class {index}" for index in range(report.MATRIX_CLASSES + 1))
    test = finished_run.dataset.test
    html = render(untrained(finished_run.model, test, tutorial(classes=len(labels)), labels), test)
    assert "predicted class (columns)" not in html
    assert "Most frequent mistakes" in html


def test_every_parity_entry_is_a_row_with_what_it_holds(finished_run: FinishedRun) -> None:
    first = dataclasses.asdict(finished_run.export.parity[0])
    lower = first | {"provider": "cpu", "precision": "int8", "agreement": 0.9912, "calibration_images": 512}
    html = render(
        finished_run.model, finished_run.dataset.test, parity=[first, lower], compute_precisions=["fp32"]
    )  # fmt: skip
    (titles,) = re.findall(r"Parity by provider.*?<thead>(.*?)</thead>", html, re.DOTALL)
    rows = re.findall(r"<td>cpu</td>.*?</tr>", html)
    assert "calibration images" in titles
    assert "<td>none</td><td>yes</td>" in rows[0]
    assert "<td>int8</td><td>30</td><td>99.12%</td>" in rows[1]
    assert "<td>512</td><td>no</td>" in rows[1]


@pytest.mark.parametrize(
    ("name", "parameters", "millions"),
    [("tutorial", 5_852_170, 138), ("record", 1_972_792, 118)],  # as their docstrings state them
)
def test_layers_add_up_to_the_published_cost(name: str, parameters: int, millions: int) -> None:
    network = architectures.build(name, (32, 32, 3), 10)
    classifier = Classifier(network, torch.zeros(3), torch.ones(3), torch.contiguous_format).eval()
    layers = trace(classifier, np.zeros((32, 32, 3), np.uint8))
    assert sum(layer.parameters for layer in layers) == parameters
    assert round(sum(layer.multiply_adds or 0 for layer in layers) / 1e6) == millions
    assert layers[-1].size == (10,)
    filters = first_convolution(layers, 3)
    assert filters is not None
    assert filters.shape[1] == 3
    assert not any(module._forward_hooks for module in network.modules())


def test_what_a_layer_gave_is_kept_though_the_next_one_works_in_place() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 2))
    classifier = Classifier(network, torch.full((3,), 128.0), torch.ones(3), torch.contiguous_format).eval()
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    convolution, activation, *_ = trace(classifier, image)
    assert (convolution.output < 0).any()
    assert torch.equal(activation.output, convolution.output.relu())


class _Gain(nn.Module):
    """A module with a part and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 4, 3)
        self.gain = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.as_tensor(self.inner(pixels) * self.gain)


def test_parameters_beside_the_parts_of_a_module_are_counted_and_its_cost_is_called_unknown() -> None:
    network = nn.Sequential(_Gain(), nn.Flatten(), nn.Linear(4 * 36, 2))
    classifier = Classifier(network, torch.zeros(3), torch.ones(3), torch.contiguous_format).eval()
    layers = trace(classifier, np.zeros((8, 8, 3), np.uint8))
    assert [layer.name for layer in layers] == ["0.inner", "0", "1", "2"]
    assert sum(layer.parameters for layer in layers) == sum(each.numel() for each in network.parameters())
    assert [layer.multiply_adds for layer in layers] == [4 * 36 * 27, None, 0, 2 * 144]


def test_predictions_are_those_of_the_evaluation_and_come_back_as_they_were(finished_run: FinishedRun) -> None:
    found = predictions.load(finished_run.folder / PREDICTIONS_FILE)
    test = finished_run.dataset.test
    expected = softmax(predict_logits(finished_run.model.classifier, test.images))
    assert np.array_equal(found.labels, test.labels)
    assert np.array_equal(found.predicted, expected.argmax(1))
    assert found.probability == pytest.approx(expected.max(1))
    assert found.right.mean() == finished_run.model.evaluation["accuracy"]
    with np.load(finished_run.folder / PREDICTIONS_FILE, allow_pickle=False) as arrays:
        assert {name: arrays[name].dtype for name in arrays} == {
            "labels": np.uint8, "predicted": np.uint8, "probability": np.float32,
        }  # fmt: skip


def test_a_file_with_a_pickle_in_it_is_refused(tmp_path: Path) -> None:
    objects = np.array([{}, []], object)
    np.savez(tmp_path / "p.npz", labels=objects, predicted=objects, probability=objects)
    with pytest.raises(PredictionsError, match=r"p\.npz: no predictions"):
        predictions.load(tmp_path / "p.npz")


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "p.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PredictionsError, match=r"p\.npz"):
        predictions.load(path)


def test_both_files_are_published_and_vouched_for(finished_run: FinishedRun, tmp_path: Path) -> None:
    publish.publish(finished_run.folder, finished_run.model, finished_run.export, tmp_path, "colours")
    folder = tmp_path / "colours" / "1"
    manifest = read_manifest(folder)
    for name in (REPORT_FILE, PREDICTIONS_FILE):
        assert manifest.files[name].size == (folder / name).stat().st_size
    (folder / REPORT_FILE).write_text("another")
    with pytest.raises(ManifestError, match=r"report\.html"):
        verify_files(folder, manifest)


def test_a_report_that_was_changed_after_the_export_is_not_published(finished_run: FinishedRun, tmp_path: Path) -> None:
    for name in ("model.safetensors", "export.json", *finished_run.export.files):
        (tmp_path / name).write_bytes((finished_run.folder / name).read_bytes())
    export.load(tmp_path)
    (tmp_path / REPORT_FILE).write_text("another")
    with pytest.raises(CheckpointError, match="changed since the export"):
        export.load(tmp_path)
