"""`cifarserve classify` with a real server: any files, any model, any terminal."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import colour_model
from tests.integration.server_process import ENVIRONMENT, ServerProcess, cli, command, serving

COLOURS = {"red": (250, 5, 5), "green": (5, 250, 5), "blue": (5, 5, 250)}


def write(path: Path, label: str = "red", size: int = 16, noise: bool = False) -> Path:
    """A PNG that shows `label`; with `noise` one that cannot be compressed, of some 3 x size x size bytes."""
    pixels = colour_model.plain(COLOURS[label], size)
    if noise:
        dots = np.random.default_rng(size).integers(0, 40, pixels.shape, np.uint8)
        pixels = np.where(pixels > 100, pixels - dots, pixels + dots)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    path.write_bytes(file.getvalue())
    return path


def records(target: str, *arguments: object, status: int = 0) -> list[dict[str, object]]:
    done = cli("classify", "--target", target, "--json", *arguments)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def best(record: dict[str, object]) -> str | None:
    classes = record["classes"]
    assert isinstance(classes, list)
    return classes[0]["label"] if classes else None


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("two-classes")
    colour_model.publish(folder / "models", labels=("[red]", "\x1b[31mgreen"))
    with serving(folder / "models", folder / "log") as server:
        yield server


def test_a_model_of_two_classes_is_shown_with_both(two_classes: ServerProcess, tmp_path: Path) -> None:
    (record,) = records(two_classes.target, write(tmp_path / "a.png"))
    assert best(record) == "[red]"
    assert len(record["classes"]) == 2  # type: ignore[arg-type]
    assert record["error"] is None


def test_the_command_that_serve_prints_works(two_classes: ServerProcess, tmp_path: Path) -> None:
    words = two_classes.announced[-1].split()
    assert words[:3] == ["try", "cifarserve", "classify"]
    done = cli(*words[2:-1], write(tmp_path / "a.png"))
    assert done.returncode == 0, done.stderr


def test_more_classes_are_shown_only_on_demand(server: ServerProcess, tmp_path: Path) -> None:
    picture = write(tmp_path / "a.png")
    (three,) = records(server.target, picture)
    (five,) = records(server.target, picture, "--top-k", 5)
    assert (len(three["classes"]), len(five["classes"])) == (3, 5)  # type: ignore[arg-type]


def test_more_classes_than_there_are_is_an_error_that_is_said_once(two_classes: ServerProcess, tmp_path: Path) -> None:
    pictures = [write(tmp_path / f"{number}.png") for number in range(3)]
    done = cli("classify", "--target", two_classes.target, "--top-k", 3, *pictures)
    assert done.returncode == 1
    assert done.stderr.count("top_k") == 1
    assert "must be between 1 and 2" in done.stderr


def test_labels_and_paths_are_printed_as_they_are(two_classes: ServerProcess, tmp_path: Path) -> None:
    folder = tmp_path / "[bold]x[/bold] :cat:"
    folder.mkdir(parents=True)
    pictures = [write(folder / "[red]a\x1b[2J\n.png"), write(folder / "b.png", "green")]
    done = cli("classify", "--target", two_classes.target, *pictures, folder / "[/none].png")
    assert done.returncode == 1
    assert f"{folder}/[red]a\\x1b[2J\\n.png" in done.stdout
    assert "[red] " in done.stdout
    assert "\\x1b[31mgreen" in done.stdout
    assert f"{folder}/[/none].png: No such file or directory" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_a_name_that_is_not_utf8_is_printed(server: ServerProcess, tmp_path: Path) -> None:
    picture = write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")))
    done = cli("classify", "--target", server.target, picture, str(picture) + "x")
    assert done.returncode == 1
    assert "\\xff.png" in done.stdout
    assert "\\xff.pngx: No such file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_that_cannot_show_a_character_gets_another(
    server: ServerProcess, tmp_path: Path, encoding: str
) -> None:
    picture = write(tmp_path / "日本é.png")
    for arguments in (("classify", "--target", server.target, picture), ("models", "--target", server.target)):
        done = subprocess.run(
            command(*arguments), env=ENVIRONMENT | {"PYTHONIOENCODING": encoding}, capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
        assert done.stdout.decode(encoding)
    assert b"?" in subprocess.run(
        command("classify", "--target", server.target, picture),
        env=ENVIRONMENT | {"PYTHONIOENCODING": encoding}, capture_output=True, timeout=60,
    ).stdout  # fmt: skip


def test_each_file_is_reported_in_its_place_and_a_bad_one_by_name(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"broken")
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "fifo.png")
    files = [
        write(tmp_path / "a.png", "red"), tmp_path / "broken.png", tmp_path / "missing.png",
        write(tmp_path / "b.png", "green"), tmp_path, tmp_path / "empty.png", tmp_path / "fifo.png", "/dev/zero",
        write(tmp_path / "large.png", noise=True, size=1000), write(tmp_path / "c.png", "blue"),
    ]  # fmt: skip
    found = records(server.target, *files, status=1)
    assert [record["image"] for record in found] == list(map(str, files))
    assert [best(record) for record in found] == ["red", None, None, "green", *[None] * 5, "blue"]
    reasons = [record["error"] for record in found if record["error"]]
    for reason, part in zip(
        reasons,
        (
            "not a picture",
            "No such file",
            "directory",
            "is empty",
            "not a regular file",
            "not a regular",
            "larger than max",
        ),
        strict=True,
    ):
        assert part in str(reason)
    table = cli("classify", "--target", server.target, *files)
    assert table.returncode == 1
    lines = [line for line in table.stdout.splitlines() if ".png" in line]
    assert [line.split()[1].rpartition("/")[2] for line in lines if "/" in line][:2] == ["a.png", "broken.png"]
    for record in found:
        assert (f"{record['image']}: " in table.stderr) is (record["error"] is not None)


def test_pictures_that_no_single_request_could_carry_are_all_classified(server: ServerProcess, tmp_path: Path) -> None:
    """The server takes 200 images and 2 MB: neither is known beforehand."""
    large = [write(tmp_path / f"large{number}.png", "green", 550, noise=True) for number in range(7)]
    assert sum(path.stat().st_size for path in large) > 3_000_000
    small = [write(tmp_path / f"{number}.png", ("red", "blue")[number % 2]) for number in range(257)]
    found = records(server.target, *large, *small)
    assert [best(record) for record in found] == ["green"] * 7 + [("red", "blue")[number % 2] for number in range(257)]


@pytest.mark.parametrize(
    "flags", [("--max-images-per-request", 1), ("--max-images-per-request", 5, "--max-queue-images", 5)]
)
def test_a_server_that_takes_few_images_at_once_gets_few(
    models: Path, tmp_path: Path, flags: tuple[object, ...]
) -> None:
    colour_model.publish(models)
    pictures = [write(tmp_path / f"{number}.png", ("red", "blue")[number % 2]) for number in range(40)]
    with serving(models, tmp_path / "log", *flags) as server:
        found = records(server.target, *pictures)
    assert [best(record) for record in found] == [("red", "blue")[number % 2] for number in range(40)]


def test_many_bad_files_do_not_lose_the_good_ones(server: ServerProcess, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(70)]
    for number, path in enumerate(files):
        write(path, "blue") if number % 3 else path.write_bytes(b"broken")
    found = records(server.target, *files, status=1)
    assert [best(record) for record in found] == ["blue" if number % 3 else None for number in range(70)]


def test_a_server_that_is_not_there_is_said_once_beside_the_files_that_are_not(tmp_path: Path) -> None:
    pictures = [write(tmp_path / f"{number}.png") for number in range(150)]
    done = cli("classify", "--target", "127.0.0.1:1", *pictures, tmp_path / "missing.png")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("UNAVAILABLE") == 1
    assert "150 of 151 files" in done.stderr
    assert "missing.png: No such file" in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_a_server_that_does_not_answer_is_said_once(models: Path, tmp_path: Path) -> None:
    colour_model.publish(models)
    pictures = [write(tmp_path / f"{number}.png") for number in range(100)]
    with serving(models, tmp_path / "log") as server:
        server.process.send_signal(signal.SIGSTOP)
        try:
            done = cli("classify", "--target", server.target, "--timeout", 1, *pictures)
        finally:
            server.process.send_signal(signal.SIGCONT)
    assert done.returncode == 1
    assert done.stderr.count("DEADLINE_EXCEEDED") == 1
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_token_is_said_once_and_an_unusable_file_of_one_is_asked_for_wrongly(
    models: Path, tmp_path: Path
) -> None:
    colour_model.publish(models)
    (tmp_path / "tokens").write_text("a-token-of-the-tests")
    (tmp_path / "wrong").write_text("another-token-of-the-tests")
    (tmp_path / "none").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    pictures = [write(tmp_path / f"{number}.png") for number in range(100)]
    with serving(models, tmp_path / "log", "--token-file", tmp_path / "tokens") as server:
        done = cli("classify", "--target", server.target, "--token-file", tmp_path / "wrong", *pictures)
        assert done.returncode == 1
        assert done.stderr.count("UNAUTHENTICATED") == 1
        assert len(done.stderr.splitlines()) == 1
        good = cli("classify", "--target", server.target, "--token-file", tmp_path / "tokens", pictures[0])
        assert good.returncode == 0, good.stderr
    for name in ("none", "binary", "missing"):
        wrong = cli("classify", "--target", server.target, "--token-file", tmp_path / name, pictures[0])
        assert wrong.returncode == 2
        assert f"{tmp_path / name}: " in wrong.stderr
        assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
    "flags",
    [("--top-k", "0"), ("--top-k", "-1"), ("--top-k", str(2**32)), ("--version", "-1"), ("--version", str(2**63)),
     ("--timeout", "0"), ("--timeout", "nan"), ("--timeout", "inf"), ("--tls-certificate", __file__), ()],
)  # fmt: skip
def test_what_is_asked_for_wrongly_is_status_2(flags: tuple[str, ...]) -> None:
    done = cli("classify", "--target", "127.0.0.1:1", *flags, *([__file__] if flags else []))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
