"""The GPU report's own tests: its arithmetic, its page, and the very same script over the fake driver."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

import subjects  # noqa: E402
from agent import Agent  # noqa: E402
from cases import BY_NAME, CASES, PUBLISHED  # noqa: E402
from context import OutOfTime, alarm  # noqa: E402
from daemons import Failed  # noqa: E402
from machine import Sizes, huge_pages  # noqa: E402
from report import FAILED, MEASURED, NOT_MEASURED, PASSED, PUBLISHED_FIGURE, Report, Row, Samples, page  # noqa: E402
from report import percentile as percentile_of  # noqa: E402

GIB = 1 << 30
RESULTS = sorted((ROOT / "benches" / "results").glob("gpu*.json"))
#: A number with the unit of a speed or a time.
SPEED = re.compile(r"\d (?:GB/s|ms|s)\b")


def test_rows_are_medians_and_ratios_within_rounds():
    limit, ours = Samples(), Samples()
    for seconds in (1.0, 2.0, 4.0):
        limit.add(10**10, seconds, 0.5)
        ours.add(10**10, seconds * 2, 1.0)
    row = ours.row("gpu/pinned-to-device", "longshore", limit, note="n")
    assert (row.value, row.min, row.max, row.runs) == (2.5, 1.25, 5.0, 3)
    assert (row.limit, row.ratio_to_limit, row.cpu_s_per_gb) == (5.0, 0.5, 0.1)
    broken = Samples(error="broken").row("gpu/pinned-to-device", "longshore", limit, note="n")
    assert (broken.status, broken.note) == (FAILED, "n; broken")


@pytest.mark.parametrize(("share", "wanted"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_percentiles(share, wanted):
    assert percentile_of(list(range(100, 0, -1)), share) == wanted


def test_a_card_of_140_gb_beside_128_gib_is_measured_with_40_gb():
    sizes = Sizes.fitting(memory=124 * GIB, gpu=140 * GIB, tmpfs=62 * GIB, disk=50 * GIB)
    assert 40e9 <= sizes.model_bytes <= 60e9
    assert sizes.tensors >= 1000
    # In tmpfs, page-locked, and something for everybody else.
    assert sizes.model_bytes + sizes.pinned_bytes < 100 * GIB
    # The loads beside the peers must not come out of the page-locked tier.
    assert sizes.staging_bytes < sizes.model_bytes * sizes.shared_files / sizes.files
    assert len(sizes.segment_bytes) >= 3


def test_a_step_that_is_late_leaves_no_answer_to_be_taken_for_another(tmp_path):
    agent = Agent("limits", {**os.environ, "PYTHONPATH": ""}, tmp_path / "log", buffer_bytes=1, piece_bytes=1)
    with pytest.raises(OutOfTime), alarm(0.01):
        agent.call("ready", seconds=30)
    with pytest.raises(Failed, match="ended"):
        agent.call("ready", seconds=30)
    agent.end()


def test_huge_pages_are_given_back(tmp_path):
    setting = tmp_path / "nr_hugepages"
    setting.write_text("7\n")
    with huge_pages(5 << 20, setting) as count:
        assert count == 3
    assert setting.read_text() == "7\n"
    with huge_pages(5 << 20, Path("/proc/sys/kernel/osrelease")) as count:
        # Not a setting that anybody can change.
        assert count == 0


def test_small_machines_get_small_models():
    sizes = Sizes.fitting(memory=24 * GIB, gpu=8 * GIB, tmpfs=12 * GIB, disk=10 * GIB)
    assert sizes.model_bytes + sizes.pinned_bytes < 24 * GIB
    assert sizes.model_bytes <= 8 * GIB * 0.4


def test_the_page_without_results_lists_every_case():
    text = page([])
    for case in CASES:
        for subject in case.subjects:
            said = PUBLISHED.get(subject, "not measured yet")
            assert f"| `{case.name}` | {subject} | {said} |" in text


def test_a_run_that_ends_early_has_a_row_for_everything(tmp_path):
    report = Report(
        tmp_path, {"card": "Card", "date": "2026-01-02", "machine": "m", "driver": "1", "versions": {}, "command": "c"}
    )
    report.add(Row("gpu/attach", "same process", MEASURED, value=1.25, unit="ms (p99)"))
    report.complete("out of time")
    value = json.loads((tmp_path / "gpu.json").read_text())
    found = {(row["case"], row["subject"]): row["status"] for row in value["rows"]}
    assert found.keys() == {(case.name, subject) for case in CASES for subject in case.subjects}
    assert set(found.values()) == {MEASURED, NOT_MEASURED, PUBLISHED_FIGURE}
    text = page([value | {"page_locked": {"bytes": 10**9, "pages": "hugetlb 2 MiB", "start_seconds": 2}}])
    assert "1.0 GB of page-locked memory (hugetlb 2 MiB) were ready in 2.0 s" in text
    assert "1.25 ms (p99)" in text
    assert "not measured: out of time" in text
    with pytest.raises(ValueError, match="not listed"):
        report.add(Row("gpu/other", "x", MEASURED))


def test_runs_of_some_stages_make_one_page():
    row = {
        "case": "gpu/attach",
        "subject": "same process",
        "unit": "ms (p99)",
        "note": "",
        "runs": 1,
        "cache_state": "",
    }
    row |= dict.fromkeys(("min", "max", "limit", "ratio_to_limit", "cpu_s_per_gb"))
    head = {"card": "Card", "date": "2026-01-02", "machine": "m", "driver": "1", "versions": {}}
    first = {**head, "command": "one", "rows": [{**row, "status": NOT_MEASURED, "value": None}]}
    second = {**head, "command": "two", "rows": [{**row, "status": MEASURED, "value": 3.0}]}
    for runs in ([first, second], [second, first]):
        text = page(runs)
        assert text.count("| `gpu/attach` |") == 1
        assert "3 ms (p99)" in text
        assert "`one`" in text
        assert "`two`" in text


def test_the_committed_page_is_made_from_the_committed_results():
    wanted = page([json.loads(path.read_text()) for path in RESULTS])
    assert (ROOT / "docs" / "benchmarks-gpu.md").read_text() == wanted, "run: make gpu-page"


def test_what_a_page_says_of_the_fake_driver_has_no_speeds():
    row = {"case": "gpu/attach", "subject": "same process", "status": MEASURED}
    text = page([{"card": "fake", "date": "2026-01-02", "rows": [row]}])
    section = text.split("## On the fake driver")[1]
    assert "| `gpu/attach` | same process | works |" in section
    assert not SPEED.search(section)


def test_thaw_is_given_a_snapshot_and_gives_the_tensors_of_the_files(tmp_path, monkeypatch):
    """By its functions' documented contract, since it does nothing without a card."""

    def freeze(module, path):
        parameters = list(module.parameters())
        torch.save(parameters, path)
        return {"num_regions": len(parameters)}

    def restore(module, path, direct_io):
        asked.append((path, direct_io))
        for parameter, kept in zip(module.parameters(), torch.load(path, weights_only=True), strict=True):
            parameter.data.copy_(kept)
        return {"num_regions": len(list(module.parameters()))}

    asked = []
    thaw = types.ModuleType("thaw_common.snapshot")
    thaw.freeze_model_pipelined, thaw.restore_model_pipelined = freeze, restore
    monkeypatch.setitem(sys.modules, "thaw_common", types.ModuleType("thaw_common"))
    monkeypatch.setitem(sys.modules, "thaw_common.snapshot", thaw)
    folder = tmp_path / "model"
    folder.mkdir()
    wanted = {"layers.0.weight": torch.arange(12.0).view(3, 4), "layers.0.flags": torch.tensor([True, False])}
    save_file(wanted, folder / "a.safetensors")
    files = [str(folder / "a.safetensors")]
    for resident in (True, False):
        subjects.PREPARE["thaw"](files, "cpu", resident)
        tensors, _kept = subjects.PEERS["thaw"](files, "cpu", resident)
        assert {name: each.tolist() for name, each in tensors.items()} == {
            name: each.tolist() for name, each in wanted.items()
        }
    # One snapshot, not in the model's folder, read past the page cache where that holds no file.
    assert [direct_io for _, direct_io in asked] == [False, True]
    assert len({path for path, _ in asked}) == 1
    assert [path.name for path in folder.iterdir()] == ["a.safetensors"]
    thaw.freeze_model_pipelined = lambda *_: {"num_regions": 0}
    with pytest.raises(RuntimeError, match="0 of 2 tensors"):
        subjects.PREPARE["thaw"]([*files, *files], "cpu", True)


@pytest.fixture(scope="module")
def fake_driver(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fake-driver")
    subprocess.run([ROOT / "target" / "debug" / "fake-cuda-install", folder], check=True, stdout=subprocess.DEVNULL)
    return folder / "lib"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    environment = {**os.environ, "PROFILE": "debug", "BUILD": "no"}
    subprocess.run([ROOT / "scripts" / "gpu-bundle.sh", folder], check=True, env=environment)
    return folder


def test_the_bundle_has_what_the_script_needs_and_nothing_else(bundle):
    top = sorted(path.name for path in bundle.iterdir())
    assert top == ["bin", "python", "scripts"]
    assert sorted(path.name for path in (bundle / "bin").iterdir()) == [
        "fake-origin",
        "gpu-bench",
        "longshore",
        "modelgen",
    ]
    assert not list(bundle.rglob("__pycache__"))


def test_the_same_script_over_the_fake_driver(bundle, fake_driver, tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable}
    command = [
        bundle / "scripts" / "gpu.sh",
        bundle,
        tmp_path,
        "--quick",
        "--driver-folder",
        fake_driver,
        "--seconds",
        "700",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=760)
    log = tmp_path / "log.txt"
    said = done.stdout[-6000:] + done.stderr[-2000:] + (log.read_text()[-3000:] if log.exists() else "")
    value = json.loads((tmp_path / "gpu.json").read_text())
    assert value["card"] == "fake", said
    rows = {(row["case"], row["subject"]): row for row in value["rows"]}
    assert rows.keys() == {(case.name, subject) for case in CASES for subject in case.subjects}, said
    failed = [key for key, row in rows.items() if row["status"] == FAILED]
    assert not failed, (failed, said)
    assert done.returncode == 0, said
    for name in BY_NAME:
        statuses = {row["status"] for (case, _), row in rows.items() if case == name}
        assert statuses & {PASSED, MEASURED}, (name, said)
    assert all(row["value"] is None for row in rows.values())
    section = (tmp_path / "gpu.md").read_text().split("## On the fake driver")[1]
    assert not SPEED.search(section)
