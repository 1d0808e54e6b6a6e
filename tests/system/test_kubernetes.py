"""The manifests of launch/kubernetes: every field known, of its type and allowed, and what they say together right.

No cluster is needed, and none was used: `kubectl kustomize` makes the manifests, launch/kubernetes/mpijob.schema.json
checks the MPIJob, kubernetes-validate the built-in kinds and the pods. What runs in the pods runs in test_pods.py.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from distbp.options import make, read_toml

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install 'distbp[test]'")
jsonschema = pytest.importorskip("jsonschema", reason="not installed: pip install 'distbp[test]'")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="not installed: pip install 'distbp[test]'")

FOLDER = Path(__file__).parents[2] / "launch" / "kubernetes"
SIZES = {"small": (1, 2), "large": (8, 4)}  # workers, ranks on each
OVERLAYS = ["small", "small-openmpi", "large", "large-openmpi"]
VERSION = "1.32"  # of Kubernetes, whose fields are checked
SAVE = 60  # seconds that writing a checkpoint may take
MOUNTED = {"/etc/mpi", "/home/distbp/.ssh"}  # by the operator

SPEC = ("spec",)
LAUNCHER, WORKER = (("spec", "mpiReplicaSpecs", role) for role in ("Launcher", "Worker"))
POD = (*WORKER, "template", "spec")
BOX = (*POD, "containers", 0)
ABSENT = object()
PLANTED = [  # where, and what is put there
    (("kind",), "MPIJobs"),
    (("apiVersion",), "kubeflow.org/v1"),
    (("metadata", "name"), "Distbp_1"),
    (("metadata", "name"), "a" * 60),
    (("metadata", "label"), {"a": "b"}),
    ((*SPEC, "slotsPerWorkers"), 2),
    ((*SPEC, "slotsPerWorker"), 0),
    ((*SPEC, "slotsPerWorker"), "2"),
    ((*SPEC, "mpiImplementation"), "mpich"),
    ((*SPEC, "launcherCreationPolicy"), "WaitForWorkers"),
    ((*SPEC, "sshAuthMountPath"), "home/distbp/.ssh"),
    ((*SPEC, "mpiReplicaSpecs"), ABSENT),
    ((*SPEC, "runPolicy", "backoffLimit"), -1),
    ((*SPEC, "runPolicy", "backOffLimit"), 6),
    ((*SPEC, "runPolicy", "cleanPodPolicy"), "Always"),
    ((*SPEC, "runPolicy", "activeDeadlineSeconds"), 0),
    ((*SPEC, "runPolicy", "suspend"), "yes"),
    ((*SPEC, "mpiReplicaSpecs", "Workers"), {}),
    (LAUNCHER, ABSENT),
    ((*LAUNCHER, "replicas"), 2),
    ((*LAUNCHER, "restartPolicy"), "Always"),
    ((*LAUNCHER, "template", "spec", "containers", 0, "env", 0, "value"), 1),
    ((*WORKER, "replicas"), 0),
    ((*WORKER, "replicas"), "4"),
    ((*POD, "terminationGracePeriod"), 60),
    ((*POD, "terminationGracePeriodSeconds"), "60s"),
    ((*POD, "securityContext", "runAsNonRoot"), "true"),
    ((*POD, "securityContext", "seccompProfile", "type"), "runtime/default"),
    ((*POD, "containers"), []),
    ((*BOX, "imagee"), "distbp"),
    ((*BOX, "image"), ABSENT),
    ((*BOX, "command"), "sshd"),
    ((*BOX, "ports", 0, "containerPort"), 70000),
    ((*BOX, "readinessProbe", "tcpSocket", "port"), ABSENT),
    ((*BOX, "lifecycle", "preStop", "exec", "cmd"), ["true"]),
    ((*BOX, "securityContext", "capabilities", "drop"), "ALL"),
    ((*BOX, "resources", "limits", "memory"), "2 GB"),
    ((*BOX, "resources", "limits", "cpus"), "2"),
    ((*BOX, "volumeMounts", 0, "mountPath"), ABSENT),
    ((*POD, "volumes", 0, "configMap", "name"), 5),
    ((*POD, "volumes", 3, "emptyDir", "medium"), "RAM"),
    ((*POD, "volumes", 3, "emptyDir", "sizeLimit"), "one"),
    ((*POD, "volumes", 3, "hostPath"), {"path": "/"}),
]


def errors(job: dict[str, Any]) -> dict[tuple[str | int, ...], str]:
    """Return where the schema finds an MPIJob wrong, and what."""
    schema = json.loads((FOLDER / "mpijob.schema.json").read_text())
    found = jsonschema.Draft202012Validator(schema).iter_errors(job)
    return {tuple(error.absolute_path): error.message for error in found}


def pods(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return each role's template as a Pod."""
    specs = job["spec"]["mpiReplicaSpecs"]
    return {
        role: {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, **specs[role]["template"]}
        for role in specs
    }


def validate(kind: dict[str, Any]) -> None:
    kubernetes_validate.validate(kind, VERSION, strict=True)


def read(text: str) -> list[dict[str, Any]]:
    """Return the manifests of a text; no two places share an object, as YAML's aliases would have it."""
    manifests: list[dict[str, Any]] = json.loads(json.dumps(list(yaml.safe_load_all(text))))
    return manifests


def base() -> list[dict[str, Any]]:
    """Return the manifests of base/ as they are written."""
    return [one for name in ("mpijob", "volumes") for one in read((FOLDER / f"base/{name}.yaml").read_text())]


def plant(there: dict[str, Any], where: tuple[str | int, ...], value: object) -> None:
    """Put a value at a place, or take away what is there."""
    place: Any = there
    for step in where[:-1]:
        place = place[step]
    if value is ABSENT:
        del place[where[-1]]
    else:
        place[where[-1]] = value


def name(value: object) -> str:
    """Return how a planted error is called among the tests."""
    return ".".join(map(str, value)) if isinstance(value, tuple) else "gone" if value is ABSENT else str(value)[:12]


def made(overlay: str, folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Return the manifests of an overlay."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed; base/ is checked without it")
    command = ["kubectl", "kustomize", str(folder / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return read(done.stdout)


def bytes_of(quantity: str) -> int:
    units = {"Mi": 2**20, "Gi": 2**30}
    return int(quantity[:-2]) * units[quantity[-2:]]


def check(manifests: list[dict[str, Any]], workers: int, slots: int) -> dict[str, Any]:
    """Check manifests against the schemas, and what they say together; return the MPIJob."""
    (job,) = (one for one in manifests if one["kind"] == "MPIJob")
    assert errors(job) == {}
    for one in manifests:
        if one is not job:
            validate(one)
    spec, specs = job["spec"], job["spec"]["mpiReplicaSpecs"]
    assert spec["launcherCreationPolicy"] == "WaitForWorkersReady"
    assert (specs["Worker"]["replicas"], spec["slotsPerWorker"]) == (workers, slots)
    assert spec["runPolicy"]["backoffLimit"] > 0
    assert spec["runPolicy"]["cleanPodPolicy"] == "Running"
    assert specs["Worker"]["restartPolicy"] == "OnFailure"
    claims = {one["metadata"]["name"] for one in manifests if one["kind"] == "PersistentVolumeClaim"}
    for pod in pods(job).values():
        validate(pod)
        of_pod, (box,) = pod["spec"], pod["spec"]["containers"]
        assert of_pod["terminationGracePeriodSeconds"] >= 2 * SAVE
        user, closed = of_pod["securityContext"], box["securityContext"]
        assert user["runAsNonRoot"] is True
        assert user["runAsUser"] == user["runAsGroup"] == user["fsGroup"] == 1000
        assert user["seccompProfile"] == {"type": "RuntimeDefault"}
        assert closed == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        volumes = {volume["name"]: volume for volume in of_pod["volumes"]}
        assert {mount["name"] for mount in box["volumeMounts"]} == set(volumes)
        assert not MOUNTED & {mount["mountPath"] for mount in box["volumeMounts"]}
        assert {
            v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v
        } <= claims
        assert box["image"].split(":")[0] == "distbp"
    worker = pods(job)["Worker"]["spec"]
    box = worker["containers"][0]
    assert box["resources"]["requests"] == box["resources"]["limits"]
    assert box["resources"]["limits"]["cpu"] == str(slots)
    (shm,) = (volume for volume in worker["volumes"] if volume["name"] == "shm")
    assert {"name": "shm", "mountPath": "/dev/shm"} in box["volumeMounts"]
    assert shm["emptyDir"]["medium"] == "Memory"
    assert bytes_of(shm["emptyDir"]["sizeLimit"]) <= bytes_of(box["resources"]["limits"]["memory"]) // 2
    (line,) = pods(job)["Launcher"]["spec"]["containers"][0]["args"]
    assert "--hostfile /etc/mpi/hostfile" in line
    assert " -n " not in line  # as many ranks as the host file has slots
    return job


def test_base_as_written() -> None:
    job = check(base(), *SIZES["small"])
    assert job["spec"]["mpiImplementation"] == "MPICH"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay(overlay: str) -> None:
    size, _, openmpi = overlay.partition("-")
    manifests = made(overlay)
    job = check(manifests, *SIZES[size])
    assert job["spec"]["mpiImplementation"] == ("OpenMPI" if openmpi else "MPICH")
    images = {pod["spec"]["containers"][0]["image"] for pod in pods(job).values()}
    assert images == {"distbp:0.1.0-openmpi" if openmpi else "distbp:0.1.0"}
    (config,) = (one for one in manifests if one["kind"] == "ConfigMap")
    assert {
        volume["configMap"]["name"]
        for pod in pods(job).values()
        for volume in pod["spec"]["volumes"]
        if "configMap" in volume
    } == {config["metadata"]["name"]}
    assert set(config["data"]) == {"settings.toml", "sshd_config", "ssh_config"}
    assert f"HostKey {job['spec']['sshAuthMountPath']}/id_rsa" in config["data"]["sshd_config"]


@pytest.mark.parametrize("mpi", ["mpich", "openmpi"])
def test_an_image_in_a_registry_is_named_in_one_place(mpi: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDER, tmp_path / "kubernetes"))
    path = folder / mpi / "kustomization.yaml"
    path.write_text(re.sub("# newName: (\\S+).*", r"\n    newName: \1", path.read_text()))
    tag = "0.1.0-openmpi" if mpi == "openmpi" else "0.1.0"
    for size in SIZES:
        (job,) = (
            one for one in made(f"{size}-openmpi" if mpi == "openmpi" else size, folder) if one["kind"] == "MPIJob"
        )
        images = {pod["spec"]["containers"][0]["image"] for pod in pods(job).values()}
        assert images == {f"registry.example.org/distbp:{tag}"}


def test_every_overlay_is_tested() -> None:
    assert sorted(OVERLAYS) == sorted(path.name for path in (FOLDER / "overlays").iterdir())


def test_settings_fit_every_size() -> None:
    settings = make(read_toml(FOLDER / "base" / "settings.toml"))
    assert settings.data.shards == 32  # 8 workers x 4 ranks, and the same bits on 2


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads((FOLDER / "mpijob.schema.json").read_text()))


@pytest.mark.parametrize(("where", "value"), PLANTED, ids=name)
def test_planted_errors_are_found(where: tuple[str | int, ...], value: object) -> None:
    job = base()[0]
    assert errors(job) == {}
    plant(job, where, value)
    assert {where, where[:-1]} & set(errors(job))  # there, or where a field too many or too few is said


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("spec", "containers", 0, "imagee"), "distbp"),
        (("spec", "containers", 0, "ports", 0, "containerPort"), "2222"),
        (("spec", "terminationGracePeriod"), 60),
        (("spec", "volumes", 3, "emptyDir", "size"), "1Gi"),
        (("spec", "securityContext", "runAsNonRoot"), "true"),
    ],
    ids=name,
)
def test_planted_errors_in_pods_are_found(where: tuple[str | int, ...], value: object) -> None:
    pod = pods(base()[0])["Worker"]
    validate(pod)
    plant(pod, where, value)
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(pod)


@pytest.mark.parametrize(
    ("where", "value"), [(("spec", "accessMode"), ["ReadWriteMany"]), (("spec", "resources"), "10Gi")], ids=name
)
def test_planted_errors_in_claims_are_found(where: tuple[str | int, ...], value: object) -> None:
    claim = base()[1]
    validate(claim)
    plant(claim, where, value)
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(claim)
