"""Writes the corpus: small inputs that are right, for the fuzzer to change. Run once; what it wrote is committed."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
from cifarserve.v1 import classifier_pb2
from inference import grpc_predict_v2_pb2
from PIL import Image

from tests import colour_model

CORPUS = Path(__file__).parent / "corpus"


def main() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        (CORPUS / "pictures" / kind.lower()).write_bytes(file.getvalue())
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16"):
        file = io.BytesIO()
        Image.new(mode, (5, 3)).save(file, "JPEG" if mode == "CMYK" else "PNG")
        (CORPUS / "pictures" / mode.replace(";", "").lower()).write_bytes(file.getvalue())
    encoded = (CORPUS / "pictures" / "png").read_bytes()

    raw = classifier_pb2.RawImage(rgb=pixels.tobytes(), width=8, height=8)
    whole = classifier_pb2.RawImage(rgb=bytes(32 * 32 * 3), width=32, height=32)
    images = {
        "raw": [classifier_pb2.Image(raw=raw)],
        "whole": [classifier_pb2.Image(raw=whole)] * 2,
        "encoded": [classifier_pb2.Image(encoded=encoded)],
        "none": [classifier_pb2.Image()],
    }
    for name, content in images.items():
        request = classifier_pb2.ClassifyRequest(images=content, top_k=3, model="m", version=1, id="x")
        (CORPUS / "requests" / name).write_bytes(request.SerializeToString())

    infer = grpc_predict_v2_pb2.ModelInferRequest
    tensor = infer.InferInputTensor
    uint8 = tensor(name="image", datatype="UINT8", shape=[1, 32, 32, 3])
    strings = tensor(name="image_bytes", datatype="BYTES", shape=[1])
    typed = tensor(name="image_bytes", datatype="BYTES", shape=[1, 1])
    typed.contents.bytes_contents.append(encoded)
    contents = {
        "raw": infer(model_name="m", inputs=[uint8], raw_input_contents=[bytes(3072)]),
        "strings": infer(inputs=[strings], raw_input_contents=[len(encoded).to_bytes(4, "little") + encoded]),
        "typed": infer(inputs=[typed]),
        "outputs": infer(inputs=[uint8], outputs=[infer.InferRequestedOutputTensor(name="logits")]),
    }
    contents["outputs"].outputs[0].parameters["classification"].int64_param = 3
    contents["typed"].parameters["timeout"].int64_param = 1000
    contents["typed"].parameters["priority"].string_param = "1"
    for name, message in contents.items():
        (CORPUS / "tensors" / name).write_bytes(message.SerializeToString())

    with tempfile.TemporaryDirectory() as folder:
        version = colour_model.publish(Path(folder), baseline=colour_model.BASELINE)
        (CORPUS / "documents" / "manifest").write_bytes((version / "manifest.json").read_bytes())
    text = 'versions = "latest 2"\ntraffic = { 1 = 95, 2 = 5 }\nshadow = 3\nprovider = "cpu"\nbuckets = [8]\n'
    (CORPUS / "documents" / "config").write_text(text + "provider_options = { a = 1 }\n")


if __name__ == "__main__":
    main()
