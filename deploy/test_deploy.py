"""Every file of deploy/ is parsed by the tool or schema that will read it, and names only settings that exist."""

import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from dockerfile_parse import DockerfileParser

HERE = Path(__file__).parent
ROOT = HERE.parent
BINARY = ROOT / "target" / "debug" / "longshore"
MANIFESTS = sorted((HERE / "kubernetes").glob("*.yaml"))
HUGE_PAGES = HERE / "kubernetes" / "huge-pages"
UNITS = sorted((HERE / "systemd").glob("*.service"))
KUBERNETES_VERSION = "1.34"


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def known_variables():
    out = subprocess.run([BINARY, "reference"], check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"LONGSHORE_[A-Z_]+", out))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_follow_the_schema(path):
    for document in documents(path):
        if document["kind"] == "Kustomization":
            listed = [HERE / "kubernetes" / name for name in document["resources"]]
            assert all(item.exists() for item in listed)
            continue
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


def test_the_schema_check_can_fail():
    document = documents(HERE / "kubernetes" / "loader.yaml")[0]
    document["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


def test_workers_are_listed_once_a_replica():
    by_kind = {document["kind"]: document for path in MANIFESTS for document in documents(path)}
    workers = by_kind["ConfigMap"]["data"]["LONGSHORE_WORKERS"].split(",")
    stateful = by_kind["StatefulSet"]
    assert len(workers) == stateful["spec"]["replicas"]
    for number, worker in enumerate(workers):
        assert worker == f"longshore-worker-{number}.{stateful['spec']['serviceName']}.longshore.svc:7070"


def test_daemons_have_probes_and_memory_limits():
    daemons = [d for path in MANIFESTS for d in documents(path) if d["kind"] in ("StatefulSet", "DaemonSet")]
    assert len(daemons) == 3
    for daemon in daemons:
        for container in daemon["spec"]["template"]["spec"]["containers"]:
            assert {"livenessProbe", "readinessProbe"} <= container.keys()
            assert "memory" in container["resources"]["limits"]


def daemon_sets():
    documents_of_kind = [d for path in MANIFESTS for d in documents(path) if d["kind"] == "DaemonSet"]
    return {document["metadata"]["name"]: document["spec"] for document in documents_of_kind}


def environment_of(container):
    return {entry["name"]: entry.get("value") for entry in container.get("env", [])}


def test_holder_and_loader_see_every_gpu_and_take_none_from_the_scheduler():
    for name in ("longshore-holder", "longshore-loader"):
        pod = daemon_sets()[name]["template"]["spec"]
        assert pod["runtimeClassName"] == "nvidia"
        for container in pod["containers"]:
            assert environment_of(container)["NVIDIA_VISIBLE_DEVICES"] == "all"
            assert "compute" in environment_of(container)["NVIDIA_DRIVER_CAPABILITIES"]
            assert "nvidia.com/gpu" not in container["resources"]["limits"]


def test_an_upgrade_of_the_loader_leaves_the_holder_alone():
    holder, loader = daemon_sets()["longshore-holder"], daemon_sets()["longshore-loader"]
    assert holder["updateStrategy"]["type"] == "OnDelete"
    assert loader["updateStrategy"]["type"] == "RollingUpdate"
    container = loader["template"]["spec"]["containers"][0]
    assert environment_of(container)["LONGSHORE_LOADER_REQUIRE_HOLDER"] == "true"
    # The holder's own socket is for its user alone.
    users = [spec["template"]["spec"]["securityContext"]["runAsUser"] for spec in (holder, loader)]
    assert users[0] == users[1]
    folders = [spec["template"]["spec"]["volumes"][0]["hostPath"]["path"] for spec in (holder, loader)]
    assert folders[0] == folders[1]


def test_nothing_shares_namespaces_with_the_host_and_inference_mounts_only_the_sockets():
    for path in MANIFESTS:
        for document in documents(path):
            spec = document.get("spec", {})
            pod = spec.get("template", {}).get("spec", spec)
            assert not {"hostIPC", "hostPID", "hostNetwork"} & pod.keys(), path
    pod = documents(HERE / "kubernetes" / "example-pod.yaml")[0]["spec"]
    assert [volume["hostPath"]["path"] for volume in pod["volumes"]] == ["/run/longshore"]
    assert [mount["name"] for mount in pod["containers"][0]["volumeMounts"]] == ["sockets"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def gibibytes(text):
    return int(re.fullmatch(r"(\d+)Gi?B?", text)[1])


def test_the_huge_pages_patch_fits_the_loader_and_its_page_locked_memory():
    component = documents(HUGE_PAGES / "kustomization.yaml")[0]
    assert component["kind"] == "Component"
    (patch,) = [documents(HUGE_PAGES / entry["path"])[0] for entry in component["patches"]]
    loader = next(d for d in documents(HERE / "kubernetes" / "loader.yaml") if d["kind"] == "DaemonSet")
    assert patch["metadata"]["name"] == loader["metadata"]["name"]
    (container,) = patch["spec"]["template"]["spec"]["containers"]
    patched = loader["spec"]["template"]["spec"]["containers"][0]
    assert patched["name"] == container["name"]
    pinned = gibibytes(environment_of(patched)["LONGSHORE_LOADER_PINNED_MEMORY"])
    whole = gibibytes(patched["resources"]["limits"]["memory"])
    for kind, resources in container["resources"].items():
        assert gibibytes(resources["hugepages-2Mi"]) == pinned
        assert gibibytes(resources["memory"]) + pinned == whole
        patched["resources"][kind] |= resources
    kubernetes_validate.validate(loader, KUBERNETES_VERSION, strict=True)


def unit(name):
    """Settings of a unit, each with all of its values."""
    settings = {}
    for line in (HERE / "systemd" / f"longshore-{name}.service").read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            settings.setdefault(key, []).append(value)
    return settings


def test_the_loader_can_be_restarted_without_the_holder():
    loader, holder = unit("loader"), unit("holder")
    assert "longshore-holder.service" in loader["Wants"][0].split()
    assert "longshore-holder.service" in loader["After"][0].split()
    binding = {"Requires", "Requisite", "BindsTo", "PartOf", "PropagatesStopTo", "StopPropagatedFrom", "Upholds"}
    assert not binding & (loader.keys() | holder.keys())
    assert loader["LimitMEMLOCK"] == ["infinity"]
    assert "LONGSHORE_LOADER_REQUIRE_HOLDER=true" in loader["Environment"]
    assert loader["Environment"][0] == holder["Environment"][0]
    assert loader["User"] == holder["User"]
    for settings in (loader, holder):
        # Both need the GPUs' device files, and a folder that outlives either.
        assert "PrivateDevices" not in settings
        assert settings["RuntimeDirectoryPreserve"] == ["yes"]


def test_what_is_being_saved_outlives_the_loader():
    loader = unit("loader")
    folder = Path(environment_lines(loader)["LONGSHORE_CHECKPOINT_DIR"])
    kept = [Path("/var/lib", name) for name in loader["StateDirectory"][0].split()]
    assert folder in kept
    assert loader["StateDirectoryMode"] == ["0700"]
    assert "PrivateIPC" not in loader

    pod = daemon_sets()["longshore-loader"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    made = {path for init in pod["initContainers"] for path in init["command"] if path.startswith("/")}
    environment = environment_of(container)
    for name in ("LONGSHORE_CHECKPOINT_DIR", "LONGSHORE_CHECKPOINT_SLAB_DIR"):
        assert environment[name] in made
        assert "hostPath" in volumes[mounts[environment[name]]]
    slabs = volumes[mounts[environment["LONGSHORE_CHECKPOINT_SLAB_DIR"]]]["hostPath"]["path"]
    assert slabs.startswith("/dev/shm/")
    memory, slab_memory = environment["LONGSHORE_LOADER_MEMORY"], environment["LONGSHORE_CHECKPOINT_MEMORY"]
    pinned = environment["LONGSHORE_LOADER_PINNED_MEMORY"]
    assert gibibytes(slab_memory) + gibibytes(pinned) < gibibytes(memory)


def environment_lines(settings):
    return dict(line.split("=", 1) for line in settings["Environment"])


def test_reserved_huge_pages_are_a_setting_of_this_kernel():
    lines = (HERE / "systemd" / "longshore-hugepages.conf").read_text().splitlines()
    settings = [line.split("=") for line in lines if line and not line.startswith("#")]
    assert settings
    for name, value in settings:
        assert Path("/proc/sys", *name.strip().split(".")).exists()
        assert int(value) > 0


def test_only_settings_that_exist_are_named():
    known = known_variables()
    named = set()
    for path in [
        *MANIFESTS,
        *UNITS,
        HERE / "systemd" / "longshore.env",
        HERE / "Containerfile",
    ]:
        named |= set(re.findall(r"LONGSHORE_[A-Z_]+", path.read_text()))
    assert named
    assert named <= known, named - known


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_are_accepted_by_systemd(path, tmp_path):
    # The verifier looks for the program: give it one in the place that the unit names.
    assert shutil.which("systemd-analyze"), "systemd-analyze is missing: run make setup"
    text = path.read_text()
    program = tmp_path / "longshore"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / path.name
    copy.write_text(text.replace("/usr/local/bin/longshore", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", copy],
        capture_output=True,
        text=True,
    )
    complaints = [line for line in done.stderr.splitlines() if path.name in line]
    assert not complaints, complaints
    assert done.returncode == 0, done.stderr


def test_the_container_recipe_copies_what_exists_and_builds_what_it_starts():
    parser = DockerfileParser(fileobj=open(HERE / "Containerfile", "rb"))
    steps = parser.structure
    stages = [step["value"].split()[-1] for step in steps if step["instruction"] == "FROM" and " AS " in step["value"]]
    copies = [step["value"].split() for step in steps if step["instruction"] == "COPY"]
    assert copies
    for words in copies:
        if words[0].startswith("--from="):
            assert words[0].removeprefix("--from=") in stages
            continue
        for source in words[:-1]:
            assert (ROOT / source).exists(), source
    members = re.findall(
        r'"([^"]+)"',
        (ROOT / "Cargo.toml").read_text().split("members = [")[1].split("]")[0],
    )
    copied = {source.strip("./") for words in copies if not words[0].startswith("--") for source in words[:-1]}
    assert all(member.split("/")[0] in copied for member in members)
    entry = next(step["value"] for step in steps if step["instruction"] == "ENTRYPOINT")
    assert any(words[-1] in entry for words in copies if words[0].startswith("--from="))


def test_tmpfiles_lines_are_whole_and_name_a_file_of_this_kernel():
    lines = (HERE / "systemd" / "longshore-tmpfiles.conf").read_text().splitlines()
    entries = [line.split(maxsplit=6) for line in lines if line and not line.startswith("#")]
    assert entries
    for kind, path, mode, user, group, age, argument in entries:
        assert (kind, mode, user, group, age, argument) == ("w!", "-", "-", "-", "-", "advise")
        assert Path(path).exists()
