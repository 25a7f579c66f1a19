"""What a version's folder may hold: what its manifest vouches for, signed where that is asked for, and nothing else."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import helper

from service import config, model_config, serving
from service.manifest import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, SIGNATURE_FILE, file_entry
from tests import colour_model

ROOT = Path(__file__).resolve().parents[3]


def load(folder: Path, **settings: object) -> serving.Loaded:
    compute = model_config.parse({}, config.Settings(provider="cpu", **settings), "settings").compute  # type: ignore[arg-type]
    return serving.load(folder, "colours", 1, compute)


def refused(folder: Path, **settings: object) -> str:
    with pytest.raises(serving.LoadError) as caught:
        load(folder, **settings)
    return str(caught.value)


def vouch(folder: Path) -> None:
    """Write the present files into the manifest, as one would who may write into the folder."""
    names = [path.name for path in folder.iterdir() if path.name not in (MANIFEST_FILE, SIGNATURE_FILE)]
    colour_model.edit_manifest(folder, files={name: dataclasses.asdict(file_entry(folder / name)) for name in names})


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return colour_model.publish(tmp_path / "models")


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def sign(folder: Path, key: Path) -> subprocess.CompletedProcess[str]:
    repository, name, number = folder.parents[1], folder.parent.name, folder.name
    arguments = ("models", "sign", f"{name}:{number}", "--models", repository, "--key", key)
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_a_server_with_a_key_takes_versions_signed_with_it_and_no_others(version: Path, tmp_path: Path) -> None:
    (private, public), (stranger, _) = keys(tmp_path, "ours"), keys(tmp_path, "theirs")
    assert "manifest.sig: missing" in refused(version, model_public_key=str(public))
    assert sign(version, stranger).returncode == 0
    assert "not signed by the key" in refused(version, model_public_key=str(public))
    done = sign(version, private)
    assert (done.returncode, done.stdout) == (0, "colours version 1: signed\n"), done.stderr
    assert load(version, model_public_key=str(public)).manifest.version == 1
    assert load(version), "who has no key takes it as before"

    colour_model.edit_manifest(version, evaluation={"accuracy": 1.0})
    assert "not signed by the key" in refused(version, model_public_key=str(public))


@pytest.mark.parametrize("content", [b"", b"?", b"AAAA", b"x" * 1000])
def test_a_damaged_signature_is_refused(version: Path, tmp_path: Path, content: bytes) -> None:
    _, public = keys(tmp_path, "ours")
    (version / SIGNATURE_FILE).write_bytes(content)
    assert SIGNATURE_FILE in refused(version, model_public_key=str(public))


def test_what_is_no_key_is_named(version: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path, "ours")
    assert "missing.pub" in refused(version, model_public_key=str(tmp_path / "missing.pub"))
    assert str(private) in refused(version, model_public_key=str(private))
    assert sign(version, public).returncode == 1
    assert str(public) in sign(version, public).stderr


def test_a_changed_version_is_not_signed(version: Path, tmp_path: Path) -> None:
    private, _ = keys(tmp_path, "ours")
    (version / MODEL_FILE).write_bytes(b"something else")
    done = sign(version, private)
    assert done.returncode == 1
    assert "the manifest says" in done.stderr
    assert not (version / SIGNATURE_FILE).exists()


@pytest.mark.parametrize("name", [MANIFEST_FILE, MODEL_FILE, GOLDEN_FILE])
def test_a_link_in_the_place_of_a_file_is_refused(version: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / name
    (version / name).rename(elsewhere)
    (version / name).symlink_to(elsewhere)
    assert f"{version / name}: is a symbolic link" in refused(version)


def test_a_link_in_the_place_of_the_folder_is_refused(version: Path, tmp_path: Path) -> None:
    version.rename(tmp_path / "elsewhere")
    version.symlink_to(tmp_path / "elsewhere")
    assert "is a symbolic link" in refused(version)


def test_a_file_that_nobody_vouches_for_is_refused(version: Path) -> None:
    (version / "weights.bin").write_bytes(b"x")
    assert "weights.bin: is not in the manifest" in refused(version)


def test_a_version_beyond_the_limit_is_refused_before_it_is_read(version: Path) -> None:
    assert "the limit is 1000 (max_model_bytes)" in refused(version, max_model_bytes=1000)


def test_a_golden_file_that_unpacks_to_too_much_is_refused(version: Path) -> None:
    np.savez_compressed(
        version / GOLDEN_FILE, image=np.zeros((400 << 20,), np.uint8), probabilities=np.zeros((1, 5), np.float32)
    )
    assert (version / GOLDEN_FILE).stat().st_size < 1 << 20
    vouch(version)
    assert "when unpacked, the limit is" in refused(version)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link/../../secret.bin"])
def test_weights_outside_of_the_folder_are_not_read(version: Path, location: str) -> None:
    (version.parent / "secret.bin").write_bytes(np.zeros(1000, np.float32).tobytes())
    model = colour_model.build()
    tensor = next(one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT and one.dims)
    size = int(np.prod(tensor.dims)) * 4
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    (version / MODEL_FILE).write_bytes(model.SerializeToString())
    vouch(version)
    message = refused(version)
    assert "does not open model.onnx" in message


def test_operators_of_others_are_refused(version: Path) -> None:
    model = colour_model.build()
    model.graph.node.append(helper.make_node("Exfiltrate", ["image"], ["gone"], domain="com.example"))
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    (version / MODEL_FILE).write_bytes(model.SerializeToString())
    vouch(version)
    assert "does not open model.onnx" in refused(version)
