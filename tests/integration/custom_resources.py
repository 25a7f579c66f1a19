"""Field rules of the custom resources in deploy/, as their projects' definitions have them: the fields that we use.

A field that is not listed is refused: who begins to use one adds it here, and has it checked by what the projects
publish. For KServe (serving.kserve.io) that is its Python package, with every run of the tests. For prometheus-operator
(monitoring.coreos.com), KEDA (keda.sh) and cert-manager it is packages of npm, made from their definitions; with them
in node_modules, which is not kept, a test validates every resource:

    npm install --no-save @kubernetes-models/prometheus-operator@6.0.0 @kubernetes-models/keda@2.0.0 \\
        @kubernetes-models/cert-manager@6.0.0

What is in a pod is not repeated: `containers` are checked as those of a Pod.
"""

from __future__ import annotations

from typing import Any

TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
SECONDS = {"type": "string", "pattern": r"^(0|([0-9]+(ms|s|m|h|d|w|y))+)$"}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}


def fields(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def items(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema, "minItems": 1}


def choice(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


SPECS: dict[tuple[str, str], dict[str, Any]] = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): fields(
        "selector endpoints",
        selector=fields("", matchLabels=TEXTS),
        endpoints=items(fields("port", port=TEXT, path=TEXT, interval=SECONDS, scrapeTimeout=SECONDS)),
        jobLabel=TEXT,
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): fields(
        "groups",
        groups=items(
            fields(
                "name rules",
                name=TEXT,
                rules=items(
                    fields(
                        "expr", record=TEXT, alert=TEXT, expr=TEXT, labels=TEXTS, annotations=TEXTS, **{"for": SECONDS}
                    )
                ),
            )
        ),
    ),
    ("keda.sh/v1alpha1", "ScaledObject"): fields(
        "scaleTargetRef triggers",
        scaleTargetRef=fields("name", name=TEXT, kind=TEXT, apiVersion=TEXT),
        minReplicaCount=COUNT,
        maxReplicaCount=COUNT,
        pollingInterval=COUNT,
        fallback=fields(
            "failureThreshold replicas",
            failureThreshold=COUNT,
            replicas=COUNT,
            behavior=choice("static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"),
        ),
        triggers=items(
            fields(
                "type metadata",
                type=choice("prometheus", "cpu"),
                metricType=choice("AverageValue", "Value", "Utilization"),
                metadata=TEXTS,
            )
        ),
        # As the behaviour of a HorizontalPodAutoscaler, which is checked where that is.
        advanced=fields("", horizontalPodAutoscalerConfig=fields("", behavior={"type": "object"})),
    ),
    ("cert-manager.io/v1", "Certificate"): fields(
        "secretName issuerRef",
        secretName=TEXT,
        dnsNames=items(TEXT),
        issuerRef=fields("name", name=TEXT, kind=choice("Issuer", "ClusterIssuer"), group=TEXT),
        privateKey=fields(
            "",
            algorithm=choice("RSA", "ECDSA", "Ed25519"),
            size=COUNT,
            rotationPolicy=choice("Never", "Always"),
        ),
    ),
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): fields(
        "containers",
        annotations=TEXTS,
        supportedModelFormats=items(fields("name", name=TEXT, version=TEXT, autoSelect={"type": "boolean"})),
        protocolVersions=items(choice("v1", "v2", "grpc-v1", "grpc-v2")),
        multiModel={"type": "boolean"},
        containers=items({"type": "object"}),
    ),
    ("serving.kserve.io/v1beta1", "InferenceService"): fields(
        "predictor",
        predictor=fields(
            "model",
            minReplicas=COUNT,
            maxReplicas=COUNT,
            canaryTrafficPercent={"type": "integer", "minimum": 0, "maximum": 100},
            model=fields(
                "modelFormat",
                modelFormat=fields("name", name=TEXT, version=TEXT),
                runtime=TEXT,
                protocolVersion=choice("v1", "v2", "grpc-v1", "grpc-v2"),
                storageUri=TEXT,
            ),
        ),
    ),
}
