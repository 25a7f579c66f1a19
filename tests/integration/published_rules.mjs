// Validates custom resources by the rules that their projects publish: node published_rules.mjs < resources.json
//
// Prints a JSON list of what is wrong. Beside the rules themselves, each field is put to the test with a value that no
// rule allows: a field that the rules do not know lets that pass.
import { readFileSync } from "node:fs";

const PACKAGES = {
  "monitoring.coreos.com": "prometheus-operator",
  "keda.sh": "keda",
  "cert-manager.io": "cert-manager",
  "gateway.networking.k8s.io": "gateway-api",
};

function* paths(value, path = []) {
  if (value === null || typeof value !== "object") return;
  for (const key of Object.keys(value)) {
    yield [...path, key];
    yield* paths(value[key], [...path, key]);
  }
}

const wrong = [];
for (const resource of JSON.parse(readFileSync(0, "utf8"))) {
  const [group, version] = resource.apiVersion.split("/");
  const models = await import(`@kubernetes-models/${PACKAGES[group]}/${group}/${version}`);
  const refusal = (candidate) => {
    try {
      new models[resource.kind](candidate).validate();
      return "";
    } catch (error) {
      return error.message;
    }
  };
  const reason = refusal(resource);
  if (reason) wrong.push(`${resource.kind}: ${reason}`);
  for (const path of paths(resource.spec)) {
    const changed = structuredClone(resource);
    path.slice(0, -1).reduce((place, key) => place[key], changed.spec)[path.at(-1)] = [[]];
    if (!refusal(changed)) wrong.push(`${resource.kind}: spec.${path.join(".")} is not known`);
  }
}
console.log(JSON.stringify(wrong));
