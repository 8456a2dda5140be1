"""The manifests are valid, refer to what exists, run commands that the programs understand, and keep their promises."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import kubernetes_validate
import pytest
import yaml
from distributed.cli import dask_scheduler, dask_worker

from diffai_dist.cli import commands
from diffai_dist.config import load

ROOT = Path(__file__).parents[1]
K8S = ROOT / "k8s"
DOCKERFILE = (K8S / "Dockerfile").read_text(encoding="utf-8")
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
CRDS = "dask_kubernetes/operator/deployment/helm/dask-kubernetes-operator/crds"
PROGRAMS = {"diffai-dist": commands, "dask scheduler": dask_scheduler.main, "dask worker": dask_worker.main}

Document = dict[str, Any]


def documents(path: Path) -> list[Document]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def daskjob() -> Document:
    (job,) = documents(K8S / "operator/daskjob.yaml")
    return job


def kustomization(folder: Path) -> Document:
    (document,) = documents(folder / "kustomization.yaml")
    return document


def referred(folder: Path) -> Iterator[Path]:
    """Every file and folder that a kustomization names."""
    rules = kustomization(folder)
    for generator in rules.get("configMapGenerator", []) + rules.get("secretGenerator", []):
        yield from (folder / name for name in generator.get("files", []) + generator.get("envs", []))
    patches = [patch["path"] for patch in rules.get("patches", [])]
    for name in rules.get("resources", []) + rules.get("components", []) + patches:
        yield (folder / name).resolve()


def generated(folder: Path) -> Iterator[Document]:
    for rule, kind in (("configMapGenerator", "ConfigMap"), ("secretGenerator", "Secret")):
        for generator in kustomization(folder).get(rule, []):
            data = {name: (folder / name).read_text() for name in generator.get("files", [])}
            yield {"apiVersion": "v1", "kind": kind, "metadata": {"name": generator["name"]}, "data": data}


def built(folder: Path) -> list[Document]:
    """What kustomize makes of a folder, but for patches, labels and the namespace."""
    rules, found = kustomization(folder), list(generated(folder))
    for name in rules.get("resources", []) + rules.get("components", []):
        path = (folder / name).resolve()
        found += built(path) if path.is_dir() else documents(path)
    return found


def render(folder: Path) -> list[Document]:
    """What kustomize makes of it."""
    if not (kubectl := shutil.which("kubectl")):
        pytest.skip("kubectl, which holds kustomize, is not installed")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def template(document: Document) -> Document | None:
    """The pods of a workload as labels and spec."""
    spec = document.get("spec", {})
    match document["kind"]:
        case "Deployment":
            found: Document = spec["template"]
        case "CronJob":
            found = spec["jobTemplate"]["spec"]["template"]
        case _:
            return None
    return {"labels": found["metadata"]["labels"], "spec": found["spec"]}


def dask_pods() -> Iterator[Document]:
    """The pods of a DaskJob, with the labels that the operator gives them."""
    job = daskjob()
    parts = {"job-runner": job["spec"]["job"], **job["spec"]["cluster"]["spec"]}
    for component, part in parts.items():
        labels = job["metadata"]["labels"] | part["metadata"]["labels"]
        labels |= {"dask.org/cluster-name": job["metadata"]["name"], "dask.org/component": component}
        yield {"labels": labels, "spec": part["spec"]}


def pods(overlay: str) -> list[Document]:
    found = [pod for document in built(K8S / "overlays" / overlay) if (pod := template(document))]
    return [*found, *(dask_pods() if overlay.startswith("operator") else ())]


def containers(pod: Document) -> list[Document]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def named(overlay: str, kind: str) -> set[str]:
    return {item["metadata"]["name"] for item in built(K8S / "overlays" / overlay) if item["kind"] == kind}


def unknown_fields(schema: Document, value: Any, path: str = "") -> list[str]:
    """Fields that an API server drops without a word."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return []
    if isinstance(value, list):
        return [bad for i, item in enumerate(value) for bad in unknown_fields(schema["items"], item, f"{path}[{i}]")]
    if not isinstance(value, dict) or "properties" not in schema:
        return []
    known, found = schema["properties"], []
    for key, item in value.items():
        if key in known:
            found += unknown_fields(known[key], item, f"{path}/{key}")
        elif path or key not in ("apiVersion", "kind", "metadata"):
            found.append(f"{path}/{key}")
    return found


@pytest.fixture(scope="module")
def daskjob_schema() -> Document:
    crd = importlib.metadata.distribution("dask-kubernetes").locate_file(f"{CRDS}/daskjob.yaml")
    (version,) = yaml.load(Path(str(crd)).read_text(), yaml.CSafeLoader)["spec"]["versions"]
    schema: Document = version["schema"]["openAPIV3Schema"]
    return schema


# Every manifest by itself


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_manifest_is_valid_kubernetes(overlay: str) -> None:
    found = built(K8S / "overlays" / overlay)
    assert {"Namespace", "ServiceAccount", "NetworkPolicy", "CronJob"} <= {document["kind"] for document in found}
    for document in found:
        kubernetes_validate.validate(document, "1.31", strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_kustomize_renders_is_valid_and_what_the_tests_look_at(overlay: str) -> None:
    folder = K8S / "overlays" / overlay
    rendered = render(folder)
    for document in rendered:
        kubernetes_validate.validate(document, "1.31", strict=True)
        assert document["metadata"].get("namespace", "diffai-dist") == "diffai-dist"
    names = [sorted((item["kind"], item["metadata"]["name"]) for item in found) for found in (rendered, built(folder))]
    assert names[0] == names[1]
    (account,) = (a for a in rendered if a["kind"] == "ServiceAccount" and a["metadata"]["name"] == "diffai-dist")
    assert ("eks.amazonaws.com/role-arn" in account["metadata"].get("annotations", {})) == overlay.endswith("role")


def test_the_daskjob_is_what_the_operator_knows(daskjob_schema: Document) -> None:
    jsonschema.Draft7Validator(daskjob_schema).validate(daskjob())
    assert unknown_fields(daskjob_schema, daskjob()) == []


def test_the_validation_of_daskjobs_finds_mistakes(daskjob_schema: Document) -> None:
    wrong = daskjob()
    worker = wrong["spec"]["cluster"]["spec"]["worker"]
    worker["spec"]["containers"][0]["imagePullPolcy"] = "Always"
    assert unknown_fields(daskjob_schema, wrong) == ["/spec/cluster/spec/worker/spec/containers[0]/imagePullPolcy"]
    worker["replicas"] = "4"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(daskjob_schema).validate(wrong)


# References


def test_kustomizations_name_what_exists_and_every_file_is_named() -> None:
    folders = [path.parent for path in K8S.rglob("kustomization.yaml")]
    named_paths = {path for folder in folders for path in referred(folder)}
    assert [path for path in named_paths if not path.exists()] == []
    files = {path for folder in folders for path in folder.iterdir() if path.is_file()}
    kustomizations = {folder / "kustomization.yaml" for folder in folders}
    assert files - kustomizations == {path for path in named_paths if path.is_file()}
    assert {folder for folder in folders if folder.parent != K8S / "overlays"} == named_paths - files


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_refer_to_what_is_there(overlay: str) -> None:
    for pod in pods(overlay):
        assert pod["spec"]["serviceAccountName"] in named(overlay, "ServiceAccount")
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        maps = {volume["configMap"]["name"] for volume in volumes.values() if "configMap" in volume}
        assert maps <= named(overlay, "ConfigMap")
        assert {mount["name"] for part in containers(pod) for mount in part["volumeMounts"]} == set(volumes)
        for source in (source for part in containers(pod) for source in part.get("envFrom", [])):
            secret = source["secretRef"]
            assert secret["optional"]
            assert (secret["name"] in named(overlay, "Secret")) == overlay.endswith("secret")


def test_the_role_of_the_nightly_pod_covers_what_its_script_asks_for() -> None:
    (role,) = (part for part in documents(K8S / "operator/account.yaml") if part["kind"] == "Role")
    allowed = {(verb, kind) for rule in role["rules"] for verb in rule["verbs"] for kind in rule["resources"]}
    script = (K8S / "operator/nightly.sh").read_text()
    kinds = re.findall(r"kubectl (get|delete) ([a-z,]+)", script)
    asked = {(verb, kind.removesuffix("s") + "s") for verb, many in kinds for kind in many.split(",")}
    assert asked | {("create", "daskjobs")} <= allowed
    assert "--watch" not in script
    assert "kubectl wait" not in script


def test_the_service_of_the_scheduler_finds_its_pod_and_everyone_finds_the_service() -> None:
    (service,) = (d for d in documents(K8S / "standalone/scheduler.yaml") if d["kind"] == "Service")
    scheduler = daskjob()["spec"]["cluster"]["spec"]["scheduler"]
    tonight = {"metadata": {"name": "tonight-scheduler"}, "spec": scheduler["service"]}
    for place, here in (("standalone-s3-role", service), ("operator-s3-role", tonight)):
        selector, ports = here["spec"]["selector"], {port["targetPort"] for port in here["spec"]["ports"]}
        (found,) = (pod for pod in pods(place) if selector.items() <= pod["labels"].items())
        assert {port["name"] for port in found["spec"]["containers"][0]["ports"]} == ports
        addresses = {
            variable["value"]
            for pod in pods(place)
            for part in containers(pod)
            for variable in part.get("env", [])
            if variable["name"] == "DASK_SCHEDULER_ADDRESS"
        }
        assert addresses == {f"tcp://{here['metadata']['name']}:8786"}


# Commands


def words(container: Document) -> list[str]:
    """The command line, with a value for each variable: its own, or one that the operator or the downward API sets."""
    values = {variable["name"]: variable.get("value", "set-by-kubernetes") for variable in container.get("env", [])}
    values.setdefault("DASK_WORKER_NAME", "set-by-the-operator")
    return [re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], word) for word in container["args"]]


def parsed(program: str, arguments: list[str]) -> click.Context:
    command = PROGRAMS[program]
    if isinstance(command, click.Group):
        verb, *arguments = arguments
        command = command.commands[verb]
    context: click.Context = command.make_context(program, arguments)
    # dask takes options that it does not know for its positional arguments
    for word in (context.params.get("scheduler"), *context.params.get("preload_argv", ())):
        if word and word.startswith("-"):
            raise click.NoSuchOption(word)
    return context


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_command_is_one_that_the_program_understands(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://127.0.0.1:8786")
    seen = set()
    for container in (container for pod in pods(overlay) for container in containers(pod)):
        assert "command" not in container  # it would replace the image's entry point, and with it the warm cache
        program, *arguments = words(container)
        if program == "dask":
            program, arguments = f"dask {arguments[0]}", arguments[1:]
        seen.add(program)
        if program in PROGRAMS:
            parsed(program, arguments)
        elif program == "python":
            compile(arguments[1], "args", "exec")
            assert arguments[0] == "-c"
        else:
            assert [program, *arguments] == ["sh", "/nightly/nightly.sh"]
    assert {*PROGRAMS, "python"} <= seen


@pytest.mark.parametrize("line", ["dask worker|--nthread=4", "diffai-dist|sweep|c.yaml|--schedule|env"])
def test_a_misspelt_option_in_a_manifest_would_be_found(line: str) -> None:
    program, *arguments = line.split("|")
    with pytest.raises(click.UsageError):
        parsed(program, arguments)


def test_the_configuration_is_one_that_loads() -> None:
    config = load(str(K8S / "base/nightly.yaml"), {})
    assert config.cluster.scheduler == "env"
    assert config.store
    for pod in (*pods("standalone-s3-role"), *pods("operator-s3-role")):
        for container in containers(pod):
            if "sweep" in container["args"]:
                (mount,) = (m["mountPath"] for m in container["volumeMounts"] if m["name"] == "config")
                assert container["args"][2] == f"{mount}/nightly.yaml"


# Promises


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_unprivileged_and_write_to_tmp_alone(overlay: str) -> None:
    for pod in pods(overlay):
        spec = pod["spec"]
        context = spec["securityContext"]
        assert context["runAsNonRoot"]
        assert context["runAsUser"] == context["fsGroup"] == 10001
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")] == ["/tmp"]
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert container["image"] == "diffai-dist:0.1.0"
    uid = re.search(r"^USER (\d+):\1$", DOCKERFILE, re.MULTILINE)
    assert uid is not None
    assert uid[1] == "10001"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workers_use_what_they_are_given_and_may_lie_on_spot_nodes_unlike_the_others(overlay: str) -> None:
    for pod in pods(overlay):
        component, spec = pod["labels"]["app.kubernetes.io/component"], pod["spec"]
        if component == "nightly":
            continue
        assert spec["terminationGracePeriodSeconds"] == 60
        assert ("affinity" in spec) == (component != "worker")
        if component == "worker":
            (container,) = spec["containers"]
            options = parsed("dask worker", words(container)[2:]).params
            assert str(options["nthreads"]) == container["resources"]["requests"]["cpu"]
            assert options["memory_limit"].removesuffix("B") == container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_our_pods_reach_the_scheduler(overlay: str) -> None:
    policies = [item["spec"] for item in built(K8S / "overlays" / overlay) if item["kind"] == "NetworkPolicy"]
    ours = {"matchLabels": {"app.kubernetes.io/name": "diffai-dist"}}
    (policy,) = (policy for policy in policies if policy["podSelector"] == ours)
    assert policy["ingress"] == [{"from": [{"podSelector": ours}]}]
    for pod in pods(overlay):
        matching = [p for p in policies if p["podSelector"]["matchLabels"].items() <= pod["labels"].items()]
        assert len(matching) == 1
        assert matching[0]["policyTypes"] == ["Ingress", "Egress"]
        runs_dask = pod["labels"]["app.kubernetes.io/component"] != "nightly"
        assert (matching[0] is policy) == runs_dask


@pytest.mark.parametrize("variant", ["operator", "standalone"])
def test_a_night_and_its_attempts_stay_within_one_date(variant: str) -> None:
    (cron,) = documents(K8S / variant / "cronjob.yaml")
    spec, job = cron["spec"], cron["spec"]["jobTemplate"]["spec"]
    minute, hour, *every_day = spec["schedule"].split()
    assert every_day == ["*", "*", "*"]
    assert spec["timeZone"] == "Etc/UTC"
    start = 3600 * int(hour) + 60 * int(minute)
    assert start + spec["startingDeadlineSeconds"] + job["activeDeadlineSeconds"] < 86400
    assert daskjob()["spec"]["job"]["spec"]["activeDeadlineSeconds"] < job["activeDeadlineSeconds"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert job["backoffLimit"] > 0
    assert job["ttlSecondsAfterFinished"] > 0
    rule = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert rule["containerName"] == job["template"]["spec"]["containers"][0]["name"]


def test_the_name_of_a_daskjob_is_one_that_the_operator_takes() -> None:
    (cron,) = documents(K8S / "operator/cronjob.yaml")
    (container,) = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    (sweep,) = (variable["value"] for variable in container["env"] if variable["name"] == "SWEEP")
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", sweep)
    assert len(f"{sweep}-20260131") <= 53


def test_the_overlay_in_the_readme_renders(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", (K8S / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    shutil.copytree(K8S, tmp_path / "diffai-dist/k8s")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(example)
    (mine / "nightly.yaml").write_text("name: mine\n")
    rendered = {(item["kind"], item["metadata"]["name"]): item for item in render(mine)}
    for item in rendered.values():
        kubernetes_validate.validate(item, "1.31", strict=True)
    assert rendered["ConfigMap", "diffai-dist-config"]["data"] == {"nightly.yaml": "name: mine\n"}
    workers = template(rendered["Deployment", "diffai-dist-worker"])
    assert workers is not None
    assert workers["spec"]["tolerations"]
    assert workers["spec"]["containers"][0]["image"] == "registry.example/diffai-dist:0.1.0"
    account = rendered["ServiceAccount", "diffai-dist"]["metadata"]["annotations"]
    assert account["eks.amazonaws.com/role-arn"].endswith("sweeps")


# The script of the night, before a stand-in for kubectl


KUBECTL = f"""#!{sys.executable}
import json, pathlib, sys, yaml
path = pathlib.Path(__file__).with_name("cluster.json")
cluster = json.loads(path.read_text())
verb, *words = sys.argv[1:]
options = [word for word in words if word.startswith("--")]
output = words[words.index("--output") + 1] if "--output" in words else ""
jobs, kind, name = cluster["jobs"], words[0], words[1]
match verb, kind:
    case "create", "--filename":
        made = yaml.safe_load(sys.stdin)
        assert made["metadata"]["name"] not in jobs, "AlreadyExists"
        jobs[made["metadata"]["name"]] = cluster["to come"]
        cluster["made"].append(made)
    case "get", "daskjob":
        assert "--ignore-not-found" in options
        now = "gone" if name not in jobs else jobs[name].pop(0) if len(jobs[name]) > 1 else jobs[name][0]
        if now == "away":
            path.write_text(json.dumps(cluster))
            sys.exit("The connection to the server was refused")
        if now != "gone":
            print(f"daskjob/{{name}}" if output == "name" else f"DaskJob{{now}}")
    case "get", "daskjobs":
        print(*(f"{{name}}={{states[0]}}" for name, states in jobs.items()), sep="\\n")
    case "get", "pod" if name == "nightly-pod":
        print("registry.example/diffai-dist:9")
    case "get", "pod" if name.endswith("-runner"):
        if cluster["runner"]:
            print(f"pod/{{name}}" if output == "name" else cluster["exit code"])
    case "get", "daskclusters,deployments,services,pods":
        if cluster["left"]:
            cluster["left"] -= 1
            print("deployment.apps/scheduler")
    case "delete", "daskjob":
        assert "--wait=false" in options, "waiting needs the right to watch"
        cluster["deleted"].append(name)
        del jobs[name]
    case _:
        sys.exit(f"not foreseen: {{sys.argv}}")
path.write_text(json.dumps(cluster))
"""

TONIGHT = "nightly-20260131"


def run_night(folder: Path, **cluster: Any) -> tuple[int, Document]:
    """The exit code, and the cluster as the script left it."""
    begin = {"jobs": {}, "to come": ["", "JobCreated", "Running", "Successful"], "runner": True, "exit code": 0}
    state = begin | {"left": 0, "made": [], "deleted": []} | cluster
    (folder / "cluster.json").write_text(json.dumps(state))
    for name, text in (("kubectl", KUBECTL), ("date", '#!/bin/sh\n[ "$*" = "-u +%Y%m%d" ] && echo 20260131\n')):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "SWEEP": "nightly", "POD_NAME": "nightly-pod"}
    done = subprocess.run(
        ["sh", str(K8S / "operator/nightly.sh")],
        env=environment | {"PAUSE_SECONDS": "0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "not foreseen" not in done.stderr, done.stderr
    return done.returncode, json.loads((folder / "cluster.json").read_text())


def test_a_night_creates_its_daskjob_and_waits_for_it(tmp_path: Path, daskjob_schema: Document) -> None:
    code, cluster = run_night(tmp_path)
    (made,) = cluster["made"]
    assert code == 0
    assert cluster["jobs"] == {TONIGHT: ["Successful"]}
    jsonschema.Draft7Validator(daskjob_schema).validate(made)
    assert unknown_fields(daskjob_schema, made) == []
    text = json.dumps(made)
    assert "tonight" not in text
    assert re.findall('"image": "(.*?)"', text) == ["registry.example/diffai-dist:9"] * 4
    assert f"tcp://{TONIGHT}-scheduler:8786" in text
    service = made["spec"]["cluster"]["spec"]["scheduler"]["service"]
    assert service["selector"]["dask.org/cluster-name"] == TONIGHT


@pytest.mark.parametrize(("ending", "code"), [(3, 3), (4, 4), (143, 143)])
def test_a_failed_night_ends_as_its_sweep_did(tmp_path: Path, ending: int, code: int) -> None:
    ended, cluster = run_night(tmp_path, **{"to come": ["Running", "Failed"], "exit code": ending})
    assert ended == code
    assert cluster["deleted"] == []  # its logs stay until the next attempt


def test_a_sweep_whose_pod_vanished_has_failed(tmp_path: Path) -> None:
    code, _ = run_night(tmp_path, **{"to come": ["JobCreated", "Running"], "runner": False})
    assert code == 4


def test_a_daskjob_that_is_deleted_under_way_has_failed(tmp_path: Path) -> None:
    code, cluster = run_night(tmp_path, **{"to come": ["Running", "gone"], "exit code": ""})
    assert code == 4
    assert len(cluster["made"]) == 1


def test_a_second_attempt_waits_for_what_runs_and_leaves_what_succeeded(tmp_path: Path) -> None:
    for states in (["Running", "Running", "Successful"], ["Successful"]):
        code, cluster = run_night(tmp_path, jobs={TONIGHT: states})
        assert code == 0
        assert cluster["made"] == cluster["deleted"] == []


def test_a_second_attempt_replaces_what_failed_once_nothing_of_it_is_left(tmp_path: Path) -> None:
    code, cluster = run_night(tmp_path, jobs={TONIGHT: ["Failed"]}, left=3)
    assert code == 0
    assert cluster["deleted"] == [TONIGHT]
    assert cluster["left"] == 0
    assert len(cluster["made"]) == 1


def test_an_api_server_that_is_away_is_waited_for_and_nothing_is_created_blindly(tmp_path: Path) -> None:
    code, _ = run_night(tmp_path, jobs={TONIGHT: ["Running", "away", "away", "Successful"]})
    assert code == 0
    code, cluster = run_night(tmp_path, jobs={TONIGHT: ["away", "Failed"]})
    assert code != 0
    assert cluster["made"] == cluster["deleted"] == []


def test_earlier_nights_leave_but_for_those_under_way_and_those_of_others(tmp_path: Path) -> None:
    earlier = {"nightly-20260128": ["Failed"], "nightly-20260129": ["Successful"], "nightly-20260130": ["Running"]}
    code, cluster = run_night(tmp_path, jobs={**earlier, "other-20260130": ["Failed"], "nightly-by-hand": ["Failed"]})
    assert code == 0
    assert cluster["deleted"] == ["nightly-20260128", "nightly-20260129"]


# The image


def image_environment() -> dict[str, str]:
    """What the Dockerfile sets, with the defaults of its arguments."""
    arguments = dict(re.findall(r"^ARG (\w+)=(.*)$", DOCKERFILE, re.MULTILINE))
    pairs = re.findall(r'^ENV (\w+)="?(.*?)"?$', DOCKERFILE, re.MULTILINE)
    return {name: arguments.get(value.removeprefix("$"), value) for name, value in pairs}


def test_the_build_gets_what_it_copies() -> None:
    let_through = [line[1:] for line in (K8S / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    assert sorted(" ".join(copied).split()) == sorted(let_through)
    assert [name for name in let_through if not (ROOT / name).exists()] == []


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the image's processor is an x86-64 one")
def test_the_cache_that_the_image_holds_is_loaded_and_nothing_is_compiled(tmp_path: Path) -> None:
    in_image, in_pod, demo = tmp_path / "opt/numba", tmp_path / "tmp", tmp_path / "demo"
    in_pod.mkdir()
    environment = {**os.environ, **image_environment(), "NUMBA_DEBUG_CACHE": "1"}
    assert environment["NUMBA_CPU_NAME"] == "x86-64-v3"
    assert environment["NUMBA_CPU_FEATURES"] == ""
    assert environment["NUMBA_CACHE_DIR"] == "/tmp/numba"
    (warm,) = re.findall(r'^RUN NUMBA_CACHE_DIR=/opt/numba python -c "(.*)"$', DOCKERFILE, re.MULTILINE)
    subprocess.run([sys.executable, "-c", warm], env=environment | {"NUMBA_CACHE_DIR": str(in_image)}, check=True)
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)
    start = [word.replace("/opt/numba /tmp", f"{in_image} {in_pod}") for word in json.loads(entry)]
    sweep = ["sweep", f"{demo}/*.safetensors", "--pairs", "all", "--elementwise"]
    for command in (["demo", "--directory", str(demo)], sweep):
        done = subprocess.run(
            [*start, sys.executable, "-m", "diffai_dist", *command],
            env=environment | {"NUMBA_CACHE_DIR": str(in_pod / "numba")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "[cache] data loaded" in done.stdout
        assert "[cache] data saved" not in done.stdout
    files = [{path.name for path in folder.rglob("*.nb[ic]")} for folder in (in_image, in_pod)]
    assert files[0] == files[1] != set()
