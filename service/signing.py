"""Signatures of published versions: Ed25519 over the manifest, which holds the SHA-256 of every other file.

    openssl genpkey -algorithm ed25519 -out signing.pem
    openssl pkey -in signing.pem -pubout -out signing.pub

The private key signs (`publish`, `retrain` and `models sign`); a server that has the public one serves nothing else.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from service.manifest import MANIFEST_FILE, SIGNATURE_FILE, ManifestError, read_file


class KeyFileError(ValueError):
    """A file does not hold an Ed25519 key in PEM."""


def signature(manifest: bytes, key: Path) -> bytes:
    """What to write into SIGNATURE_FILE, for the bytes of a manifest. Raises KeyFileError."""
    loaded = _load(key, lambda pem: serialization.load_pem_private_key(pem, password=None))
    if not isinstance(loaded, Ed25519PrivateKey):
        raise KeyFileError(f"{key}: is no Ed25519 private key")
    return base64.b64encode(loaded.sign(manifest)) + b"\n"


def signed_manifest(folder: Path, key: Path) -> bytes:
    """The bytes of a version's manifest, which the owner of the private key has signed.

    Raises ManifestError when they are not signed so, and KeyFileError.
    """
    loaded = _load(key, serialization.load_pem_public_key)
    if not isinstance(loaded, Ed25519PublicKey):
        raise KeyFileError(f"{key}: is no Ed25519 public key")
    try:
        content = read_file(folder / MANIFEST_FILE)
        given = base64.b64decode(read_file(folder / SIGNATURE_FILE), validate=False)
        loaded.verify(given, content)
    except FileNotFoundError as error:
        raise ManifestError(f"{error.filename}: missing; this server serves signed versions only") from None
    except (OSError, binascii.Error) as error:
        raise ManifestError(f"{folder / SIGNATURE_FILE}: unreadable: {error}") from None
    except InvalidSignature:
        raise ManifestError(f"{folder / SIGNATURE_FILE}: not signed by the key in {key}") from None
    return content


def _load(key: Path, load: Any) -> Any:
    try:
        return load(key.read_bytes())
    except (OSError, ValueError, TypeError) as error:  # TypeError: it is encrypted with a password
        raise KeyFileError(f"{key}: {error}") from None
