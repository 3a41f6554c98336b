"""What the machine is, and how large the work on it can be."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 1 << 30
MIB = 1 << 20
CHUNK = 16 * MIB
NR_HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")
#: As tensors: nine a layer and three more.
TENSORS = 1000
_QUERY = "name,uuid,driver_version,memory.total,pcie.link.gen.max,pcie.link.width.max,mig.mode.current"


def cards() -> list[dict[str, str]]:
    """The GPUs by nvidia-smi; none when it is missing or fails."""
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    return [dict(zip(_QUERY.split(","), row, strict=False)) for row in rows if done.returncode == 0]


def cards_by_torch(python: str, environment: dict[str, str]) -> list[dict[str, str]]:
    """The same where there is no nvidia-smi, as far as torch knows."""
    script = (
        "import json, torch; p = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]; "
        "print(json.dumps([{'name': d.name, 'memory.total': str(d.total_memory >> 20)} for d in p]))"
    )
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    try:
        found: list[dict[str, str]] = json.loads(done.stdout)
    except ValueError:
        return []
    return found


def memory_bytes(field: str) -> int:
    """A line of /proc/meminfo."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) * 1024
    return 0


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "unknown"


def _chosen(path: str) -> str:
    text = _first_line(path)
    return text.split("[")[1].split("]")[0] if "[" in text else text


def describe() -> str:
    """Processor, cores, memory, kernel and the settings that matter, in a line."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    nodes = len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1
    huge = "/sys/kernel/mm/transparent_hugepage"
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, {memory_bytes('MemTotal') / GIB:.0f} GiB, "
        f"{nodes} NUMA node(s), Linux {platform.release().split('-')[0]}, huge pages: {_chosen(huge + '/enabled')}, "
        f"for shared memory {_chosen(huge + '/shmem_enabled')}, hugetlb {_first_line('/proc/sys/vm/nr_hugepages')}"
    )


def versions(longshore: Path, environment: dict[str, str], python: str) -> dict[str, str]:
    """Versions of what takes part."""
    found = {"python": platform.python_version()}
    done = subprocess.run([longshore, "--version"], capture_output=True, text=True, env=environment, timeout=30)
    found["longshore"] = done.stdout.strip().removeprefix("longshore ") or "unknown"
    script = "import json, torch; print(json.dumps([torch.__version__, torch.version.cuda]))"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    try:
        torch, cuda = json.loads(done.stdout)
        found |= {"torch": torch, "CUDA of torch": str(cuda)}
    except ValueError:
        found["torch"] = "not importable"
    return found


def least_page_locked() -> int:
    """What a loader needs of it: a chunk for each thread that fetches, as many that are copied, and some to spare."""
    return (2 * min(max(len(os.sched_getaffinity(0)), 4), 32) + 4) * CHUNK


@contextlib.contextmanager
def huge_pages(wanted_bytes: int, setting: Path = NR_HUGEPAGES) -> Iterator[int]:
    """Reserves huge pages of 2 MiB for a while, as deploy/ tells nodes with GPUs to; gives their number.

    Needs root. All or none: fewer than are needed would only be missing elsewhere. The results tell what memory is made
    of in the end.
    """
    wanted = -(-wanted_bytes // (2 * MIB))
    before = setting.read_text()
    try:
        setting.write_text(f"{wanted}\n")
        found = int(setting.read_text())
        if found < wanted:
            setting.write_text(before)
    except OSError as error:
        print(f"  huge pages cannot be reserved: {error}", flush=True)
        found = 0
    if found < wanted:
        print(f"  no huge pages: {wanted} are needed, {found} could be had", flush=True)
        yield 0
        return
    try:
        yield found
    finally:
        setting.write_text(before)


def file_system(folder: Path) -> str:
    """Its kind, for instance `tmpfs` or `ext2/ext3`."""
    done = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, timeout=20)
    return done.stdout.strip() or "unknown"


def mount_tmpfs(folder: Path) -> bool:
    """A tmpfs of three fifths of the memory, on a folder with too little room; needs root. Whether it was made."""
    memory = memory_bytes("MemTotal")
    if shutil.disk_usage(folder).free >= memory * 0.45 or os.geteuid() != 0:
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={memory // 5 * 3}", "longshore-gpu", str(folder)]
    return subprocess.run(command, capture_output=True, timeout=30).returncode == 0


def unmount(folder: Path) -> None:
    """Takes it away, also when something still looks into it."""
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, timeout=30)


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    model_bytes: int
    tensors: int
    files: int
    #: Files of the model that the side-by-side loads take.
    shared_files: int
    #: Most that goes to the disk.
    disk_bytes: int
    #: Page-locked memory of the daemon that keeps a whole model in it, and of the other one.
    pinned_bytes: int
    staging_bytes: int
    #: The model that a store and a worker serve.
    remote_bytes: int
    #: Sizes of the models whose regions have one and more segments.
    segment_bytes: tuple[int, ...]
    copy_bytes: int
    rounds: int
    attaches: int
    new_processes: int
    kills: int

    @staticmethod
    def tiny() -> Sizes:
        """For the fake driver: everything runs, nothing takes long."""
        return Sizes(
            model_bytes=40 * MIB, tensors=30, files=3, shared_files=2, disk_bytes=12 * MIB,
            pinned_bytes=least_page_locked() + 64 * MIB,
            staging_bytes=least_page_locked(), remote_bytes=20 * MIB, segment_bytes=(20 * MIB,), copy_bytes=4 * MIB,
            rounds=3, attaches=10, new_processes=3, kills=3,
        )  # fmt: skip

    @staticmethod
    def fitting(memory: int, gpu: int, tmpfs: int, disk: int) -> Sizes:
        """For a card: as large as there is room. A model lies in tmpfs and in page-locked memory at once."""
        room = max(memory - 12 * GIB, 4 * GIB)
        model = int(min(42e9, gpu * 0.4, room * 0.38, tmpfs * 0.85))
        files = 10
        remote = int(min(4e9, model / 4))
        segments = tuple(size for size in (3 * GIB // 4, 5 * GIB // 2, 6 * GIB) if size < model)
        return Sizes(
            model_bytes=model, tensors=TENSORS, files=files, shared_files=4,
            disk_bytes=int(min(8e9, disk * 0.4)), pinned_bytes=model + 3 * GIB,
            staging_bytes=min(8 * GIB, room // 8), remote_bytes=remote, segment_bytes=segments, copy_bytes=256 * MIB,
            rounds=5, attaches=200, new_processes=100, kills=100,
        )  # fmt: skip


def facts(longshore: Path, environment: dict[str, str], python: str, command: str, fake: bool) -> dict[str, Any]:
    """The head of the results."""
    found = [] if fake else cards() or cards_by_torch(python, environment)
    card = "fake" if fake else (found[0]["name"] if found else "none")
    driver = "fake" if fake else (found[0].get("driver_version", "unknown") if found else "none")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": describe(),
        "card": card,
        "driver": driver,
        "cards": found,
        "versions": versions(longshore, environment, python),
        "command": command,
        "seconds": 0.0,
    }
