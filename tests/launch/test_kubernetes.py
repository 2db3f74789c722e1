"""launch/kubernetes: the manifests are MPIJobs, and their commands and images are those of this checkout."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "launch" / "kubernetes"
SCHEMA = json.loads(Path(__file__).with_name("mpijob_v2beta1.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
MANIFESTS = sorted(FOLDER.glob("*.yaml"))


def manifest(path: Path) -> dict[str, Any]:
    (content,) = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def container(job: dict[str, Any], replica: str) -> dict[str, Any]:
    (only,) = job["spec"]["mpiReplicaSpecs"][replica]["template"]["spec"]["containers"]
    return only


def test_the_schema_is_one() -> None:
    VALIDATOR.check_schema(SCHEMA)


def test_there_is_one_for_cpus_and_one_for_gpus() -> None:
    assert [path.name for path in MANIFESTS] == ["mpijob-cuda.yaml", "mpijob.yaml"]
    gpus = [container(manifest(path), "Worker")["resources"]["limits"].get("nvidia.com/gpu") for path in MANIFESTS]
    assert gpus == [1, None]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifest(path: Path, tmp_path: Path) -> None:
    job = manifest(path)
    VALIDATOR.validate(job)
    launcher, worker = container(job, "Launcher"), container(job, "Worker")
    assert launcher["image"] == worker["image"]
    kind = worker["image"].rpartition(":")[2]
    assert f"launch/kubernetes/Dockerfile.{kind}" in path.read_text(encoding="utf-8")
    assert (FOLDER / f"Dockerfile.{kind}").is_file()
    pod = job["spec"]["mpiReplicaSpecs"]["Worker"]["template"]["spec"]
    assert {mount["name"] for mount in worker["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}

    # as the operator writes it
    slots, workers = job["spec"]["slotsPerWorker"], job["spec"]["mpiReplicaSpecs"]["Worker"]["replicas"]
    hosts = [f"{job['metadata']['name']}-worker-{number}.{job['metadata']['name']}" for number in range(workers)]
    hosts_file = tmp_path / "hostfile"
    hosts_file.write_text("".join(f"{host} slots={slots}\n" for host in hosts))
    (script,) = launcher["command"]
    assert ("WORKDIR", "/opt/hvd_compress") in instructions(FOLDER / f"Dockerfile.{kind}")
    options, _, program = " ".join(launcher["args"]).partition(" -- ")
    options = options.replace("/etc/mpi/hostfile", str(hosts_file))
    words = [
        str(ROOT / Path(script).relative_to("/opt/hvd_compress")),
        *options.split(),
        "--dry-run",
        "--",
        *program.split(),
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    command = shlex.split(done.stdout.splitlines()[-1])
    assert command[command.index("--host") + 1] == ",".join(f"{host}:{slots}" for host in hosts)
    assert command[command.index("--bind-to") + 1] == "none"
    (threads,) = launcher["env"]
    assert threads == {"name": "OMP_NUM_THREADS", "value": str(int(worker["resources"]["limits"]["cpu"]) // slots)}
    assert shlex.join(command).endswith(program)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_nothing_runs_as_root(path: Path) -> None:
    """The manifests ask for the user that the images make, and workers start what the images would."""
    job = manifest(path)
    kind = container(job, "Worker")["image"].rpartition(":")[2]
    found = instructions(FOLDER / f"Dockerfile.{kind}")
    [made] = [rest for word, rest in found if word == "RUN" and "useradd" in rest]
    name, user = re.search(r"--uid (\d+) (\w+)", made).group(2, 1)  # type: ignore[union-attr]
    assert [rest for word, rest in found if word == "USER"] == [name]
    assert found.index(("USER", name)) > max(i for i, (word, _) in enumerate(found) if word in {"RUN", "COPY"})
    for replica in ("Launcher", "Worker"):
        context = container(job, replica)["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == int(user)
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    [command] = [json.loads(rest) for word, rest in found if word == "CMD"]
    assert [*container(job, "Worker")["command"], *container(job, "Worker")["args"]] == command
    keys = job["spec"]["sshAuthMountPath"]
    assert keys == f"/home/{name}/.ssh"
    assert f"HostKey {keys}/id_rsa" in made
    ports = {int(port) for port in re.findall(r"Port (\d+)", made)}
    assert len(ports) == 1
    assert min(ports) >= 1024


def test_ci_takes_actions_by_their_commit() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    used = re.findall(r"uses: (.*)", text)
    assert used
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action) for action in used)


def put(job: dict[str, Any], where: str, value: Any) -> None:
    *way, last = where.split(".")
    for key in way:
        job = job[int(key) if isinstance(job, list) else key]
    job[last] = value


WORKER = "spec.mpiReplicaSpecs.Worker"


@pytest.mark.parametrize(
    "damage",
    [
        lambda job: put(job, "apiVersion", "kubeflow.org/v1"),
        lambda job: put(job, "metadata.name", "Hvd_Compress"),
        lambda job: put(job, "spec.slotsPerWorkers", 1),
        lambda job: put(job, "spec.runPolicy.cleanPodPolicy", "running"),
        lambda job: put(job, "spec.cleanPodPolicy", "Running"),
        lambda job: put(job, "spec.mpiReplicaSpecs.Launcher.replicas", 2),
        lambda job: put(job, f"{WORKER}.replicas", "2"),
        lambda job: put(job, f"{WORKER}.template.spec.containers.0.command", "sleep"),
        lambda job: put(job, f"{WORKER}.template.spec.containers.0.resources.limits.memory", "8 GB"),
        lambda job: put(job, f"{WORKER}.template.spec.volumes.0.hostPath", {"path": "/dev/shm"}),
        lambda job: put(job, f"{WORKER}.template.spec.containers.0.securityContext.runAsRoot", False),
        lambda job: put(job, f"{WORKER}.template.spec.containers.0.securityContext.runAsUser", "1000"),
        lambda job: job["spec"]["mpiReplicaSpecs"].pop("Launcher"),
    ],
)
def test_the_schema_refuses(damage: Callable[[dict[str, Any]], Any]) -> None:
    job = copy.deepcopy(manifest(FOLDER / "mpijob.yaml"))
    damage(job)
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(job)


def instructions(path: Path) -> list[tuple[str, str]]:
    """Of a Dockerfile: instructions and their arguments, lines joined, comments left out."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("Dockerfile.*")), ids=lambda path: path.suffix[1:])
def test_dockerfile(path: Path) -> None:
    found = instructions(path)
    known = {"FROM", "RUN", "ARG", "ENV", "WORKDIR", "COPY", "USER", "CMD"}
    assert {word for word, _ in found} <= known
    for word, rest in found:
        if word == "RUN":
            done = subprocess.run(
                ["shellcheck", "--shell=sh", "-"], input=rest, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout
        if word == "CMD":
            assert json.loads(rest)[0].startswith("/")
    # setup.sh names what it needs; a pod of the operator also needs ssh at both ends
    packages = " ".join(rest for word, rest in found if word == "RUN")
    assert all(name in packages for name in ("g++", "make", "openssh-server", "openssh-client"))
    assert ("RUN", "launch/setup.sh && rm -rf ~/.cache build/setup") in found


def has_engine() -> bool:
    """Whether there is a container engine, and it answers."""
    engine = shutil.which("docker")
    return engine is not None and subprocess.run([engine, "info"], capture_output=True, check=False).returncode == 0


@pytest.mark.long
def test_the_image_is_built_and_works() -> None:
    """That for CPUs; the other needs a machine with a GPU."""
    if not has_engine():
        pytest.skip("no container engine answers here; test_dockerfile has read the file")
    tag = "hvd_compress:test"
    subprocess.run(["docker", "build", "-f", FOLDER / "Dockerfile.cpu", "-t", tag, ROOT], check=True)
    doctor = ["bash", "-c", ". launch/env.sh && hvd-compress doctor"]
    subprocess.run(["docker", "run", "--rm", tag, *doctor], check=True)
    subprocess.run(["docker", "image", "rm", tag], check=True)


def test_images_hold_neither_environments_nor_builds_of_the_host() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".venv", "build", ".git"} <= set(ignored)
