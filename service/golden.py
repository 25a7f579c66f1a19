"""golden.npz: a few inputs of a version, with the answers that PyTorch gave. Imports no ONNX Runtime."""

from __future__ import annotations

import zipfile
from typing import Any, BinaryIO

import numpy as np

_MOST_BYTES = 256 << 20


def read(golden: BinaryIO) -> tuple[Any, Any]:
    """Images and probabilities, as they are in the file: their shapes and types are not checked.

    Raises ValueError when the file is damaged, or is more than 256 MiB when unpacked.
    """
    try:
        with zipfile.ZipFile(golden) as members:
            size = sum(member.file_size for member in members.infolist())
        if size <= _MOST_BYTES:
            golden.seek(0)
            with np.load(golden, allow_pickle=False) as arrays:
                return arrays["image"], arrays["probabilities"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"is not readable: {error}") from error
    raise ValueError(f"is {size} bytes when unpacked, the limit is {_MOST_BYTES}")
