"""The manifest for KubeRay against what reads it: the schemas of the operator, of Kubernetes, of Ray Serve, our own."""

import copy
import re

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

from support.paths import ROOT  # noqa: E402

MANIFEST = ROOT / "examples" / "ray" / "rayservice.yml"
# The operator's definition, config/crd/bases/ray.io_rayservices.yaml of the Go module ray-operator.
DEFINITION = ROOT / ".cache" / "kuberay" / "ray.io_rayservices.yaml"


@pytest.fixture
def manifest():
    return yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))


def templates(manifest):
    cluster = manifest["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


@pytest.fixture(scope="module")
def definition():
    if not DEFINITION.is_file():
        pytest.skip(f"there is no {DEFINITION.name}; make {DEFINITION.relative_to(ROOT)} fetches it where Go is")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    versions = yaml.load(DEFINITION.read_text(encoding="utf-8"), loader)["spec"]["versions"]
    return next(each["schema"]["openAPIV3Schema"] for each in versions if each["name"] == "v1")


def strict(schema):
    """The schema in which an unknown field is an error, as the API server's field validation has it."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: strict(each) for name, each in schema.items()}
    if found.pop("x-kubernetes-int-or-string", False):
        found.pop("type", None)
    open_ = found.pop("x-kubernetes-preserve-unknown-fields", False) or "additionalProperties" in found
    if isinstance(found.get("properties"), dict) and not open_:
        found["additionalProperties"] = False
    return found


def test_the_operators_schema(manifest, definition):
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft7Validator(strict(definition))
    assert [error.message for error in validator.iter_errors(manifest)] == []
    wrong = copy.deepcopy(manifest)
    wrong["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["minReplica"] = 1
    assert [error.message for error in validator.iter_errors(wrong)] != []


def test_kubernetes_schema_of_the_pods(manifest):
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for template in templates(manifest):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, **template}
        kubernetes.validate(pod, kubernetes.latest_version(), strict=True)
    pod["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(pod, kubernetes.latest_version(), strict=True)


def test_ray_serves_schema_and_the_applications_options(manifest):
    schema = pytest.importorskip("ray.serve.schema", reason="Ray Serve is not installed")
    from qwenvl_edge.fleet.ray_serve import Options

    config = schema.ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    (application,) = config.applications
    options = Options.model_validate(application.args)
    assert options.replica_limits.rows == 16 and config.http_options.host == "0.0.0.0"
    assert options.api_key_file is not None  # whoever reaches the pod would be refused otherwise


def test_its_parts_fit_together(manifest):
    """An engine fits into a worker, the most engines into the most workers; paths lie on what is mounted."""
    (group,) = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    options = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"][0]["args"]
    for template in templates(manifest):
        (container,) = template["spec"]["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in template["spec"]["volumes"]}
        for path in (options["bundle"], options["api_key_file"]):
            assert any(path.startswith(f"{mount}/") for mount in mounts.values())
    cpu = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert cpu >= options["cpus"] and group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert group["maxReplicas"] * cpu >= options["max_replicas"] * options["cpus"]
    assert re.fullmatch(r"2\.\d+\.\d+", manifest["spec"]["rayClusterConfig"]["rayVersion"])
