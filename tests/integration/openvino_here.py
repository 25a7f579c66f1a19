"""Whether OpenVINO computes on this machine, for the tests that need it to."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest

from service import providers
from service.manifest import MODEL_FILE
from tests import colour_model


@functools.cache
def why_not() -> str:
    """What keeps OpenVINO from computing here: an empty text where it computes."""
    with tempfile.TemporaryDirectory() as folder:
        model = colour_model.publish(Path(folder)) / MODEL_FILE
        try:
            providers.open_session(model, providers.Wanted("openvino"))
        except providers.ProviderAbsent as error:
            return str(error)
    return ""


needs_openvino = pytest.mark.skipif(bool(why_not()), reason=f"OpenVINO does not compute here: {why_not()}")
