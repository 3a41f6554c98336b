"""What the package shares with the rest of the project: generated code, chunk ids, wheels."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fake_loader import repository

import longshore

PACKAGE = repository() / "python-client"


def test_chunk_ids_are_the_golden_vectors() -> None:
    vectors = json.loads((repository() / "crates/types/testdata/chunk-ids.json").read_text())
    assert vectors
    for vector in vectors:
        parts = (vector["url"].encode(), vector["version"].encode(), str(vector["index"]).encode())
        digest = hashlib.sha256(b"longshore-chunk-1\0" + b"\0".join(parts)).digest()
        assert digest[:16].hex() == vector["id"]


def test_the_generated_modules_are_current() -> None:
    run = subprocess.run(
        [repository() / "scripts/python-proto.sh", "--check"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable},
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_version_is_the_package_s() -> None:
    assert f'version = "{longshore.__version__}"' in (PACKAGE / "pyproject.toml").read_text()
    assert f'version = "{longshore.__version__}"' in (repository() / "Cargo.toml").read_text()


def build(tmp_path: Path, **environ: str) -> Path:
    run = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=PACKAGE,
        capture_output=True,
        text=True,
        env={**os.environ, **environ},
    )
    assert run.returncode == 0, run.stderr
    (wheel,) = tmp_path.glob("*.whl")
    return wheel


def test_the_pure_wheel(tmp_path: Path) -> None:
    wheel = build(tmp_path)
    assert wheel.name == f"longshore-{longshore.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert {"longshore/py.typed", "longshore/_proto/loader_pb2.py", "longshore/_proto/loader_pb2.pyi"} <= set(names)
    assert not any("/data/" in name or "tests" in name for name in names)


def test_the_platform_wheel_carries_the_binary_and_its_script_runs(tmp_path: Path) -> None:
    program = shutil.which("true")
    assert program is not None
    wheel = build(tmp_path / "dist", LONGSHORE_WHEEL_BINARY=program)
    assert "-py3-none-manylinux_2_" in wheel.name
    assert wheel.name.endswith(f"_{os.uname().machine}.whl")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip: list[Any] = [
        venv / "bin/python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--ignore-installed",
    ]
    subprocess.run([*pip, wheel], check=True)
    subprocess.run([venv / "bin/longshore"], check=True)
    # Its dependencies, from here; what the venv itself has comes first.
    (site,) = (venv / "lib").glob("python*/site-packages")
    (site / "outer.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path))
    found = subprocess.run(
        [venv / "bin/python", "-c", "import longshore._binary as b; print(b.__file__, b.find())"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "/nowhere"},
    )
    assert found.stdout.split() == [f"{site}/longshore/_binary.py", f"{venv}/bin/longshore"], found.stderr


def test_a_binary_that_would_not_run_elsewhere_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "longshore"
    text.write_text("#!/bin/sh\n")
    with pytest.raises(AssertionError, match="not a 64-bit little-endian ELF file"):
        build(tmp_path / "dist", LONGSHORE_WHEEL_BINARY=str(text))
