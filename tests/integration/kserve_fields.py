"""Names the fields that KServe's own models do not have: `python kserve_fields.py < resources.json` prints a JSON list.

A program of its own, for the reason in kserve_client.py. What Kubernetes defines (metadata, containers) is not looked
into: test_kubernetes.py validates that.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

from kserve import models

KINDS = {
    ("serving.kserve.io/v1beta1", "InferenceService"): "V1beta1InferenceService",
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): "V1alpha1ServingRuntime",
}


def unknown(value: Any, kind: str, where: str) -> Iterator[str]:
    if kind.startswith("list["):
        for index, item in enumerate(value):
            yield from unknown(item, kind[len("list[") : -1], f"{where}[{index}]")
    elif hasattr(getattr(models, kind, None), "attribute_map"):
        model = getattr(models, kind)
        names = {name: attribute for attribute, name in model.attribute_map.items()}
        for name, item in value.items():
            if name in names:
                yield from unknown(item, model.openapi_types[names[name]], f"{where}.{name}")
            else:
                yield f"{where}.{name}"


if __name__ == "__main__":
    resources = json.load(sys.stdin)
    kinds = [KINDS[resource["apiVersion"], resource["kind"]] for resource in resources]
    found = [field for one, kind in zip(resources, kinds, strict=True) for field in unknown(one, kind, kind)]
    print(json.dumps(found))
