"""The child side of `agent.py`: one loader, or one limit, that does what it is told and says how long it took."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import sys
import threading
import time
import traceback
from typing import Any


class Limits:
    """Plain copies."""

    def __init__(self, buffer_bytes: int, piece_bytes: int) -> None:
        from driver import Copies

        self._copies = Copies(buffer_bytes, piece_bytes)

    def ready(self) -> dict[str, Any]:
        return {"made_by": self._copies.made_by}

    def to_device(self, size: int) -> dict[str, Any]:
        seconds, cpu, done = self._copies.to_device(size)
        return {"seconds": seconds, "cpu_seconds": cpu, "bytes": done}

    def on_device(self, size: int) -> dict[str, Any]:
        seconds, cpu, done = self._copies.on_device(size)
        return {"seconds": seconds, "cpu_seconds": cpu, "bytes": done}


class Holding:
    """Tensors that are kept, and what can be asked about them."""

    def __init__(self, device: str) -> None:
        import torch

        self._torch = torch
        self._is_cuda = torch.cuda.is_available()
        self.device = device if self._is_cuda else "cpu"
        if self._is_cuda:
            # The context and the allocator of an inference process, which no load should be billed for.
            torch.zeros(1, device=device)
            torch.cuda.synchronize()
        self._tensors: dict[str, Any] = {}
        self._kept: list[Any] = []
        self._watch: Watch | None = None

    def ready(self) -> dict[str, Any]:
        return {"torch": self._torch.__version__, "cuda": self._is_cuda, "device": self.device}

    def _synchronize(self) -> None:
        if self._is_cuda:
            self._torch.cuda.synchronize()

    def drop(self) -> dict[str, Any]:
        """Gives everything back, also what torch's allocator keeps."""
        self._tensors, self._kept = {}, []
        gc.collect()
        if self._is_cuda:
            self._torch.cuda.empty_cache()
        return {}

    def where(self) -> dict[str, Any]:
        """On which devices the tensors are."""
        return {"devices": sorted({str(tensor.device) for tensor in self._tensors.values()})}

    def compare(self, files: list[str]) -> dict[str, Any]:
        from compare import differences

        tensors, size, wrong = differences(self._tensors, files)
        return {"tensors": tensors, "bytes": size, "wrong": wrong[:5], "wrong_count": len(wrong)}

    def fingerprint(self) -> dict[str, Any]:
        from compare import fingerprint

        return {"fingerprint": fingerprint(self._tensors)}

    def watch(self) -> dict[str, Any]:
        """Begins to read all the time."""
        self._watch = Watch(self._tensors)
        return {}

    def watched(self) -> dict[str, Any]:
        """Ends that, and says what was read."""
        watch, self._watch = self._watch, None
        return {"reads": 0} if watch is None else watch.end()


class Watch:
    """Reads random tensors over and over, and compares each with what it was at first."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        from compare import of_one

        self._sum = of_one
        self._tensors = tensors
        # A sample: large ones would keep the GPU busy with nothing else.
        names = sorted(name for name, tensor in tensors.items() if tensor.numel())
        self._names = random.Random(1).sample(names, min(len(names), 64))
        self._wanted = {name: of_one(tensors[name]) for name in self._names}
        self._stop = threading.Event()
        self._reads = self._wrong = 0
        self._errors: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        choose = random.Random(2)
        while not self._stop.is_set():
            name = choose.choice(self._names)
            try:
                self._wrong += self._sum(self._tensors[name]) != self._wanted[name]
            except Exception as error:  # noqa: BLE001 - whatever a read raises is what is counted
                self._errors.append(repr(error)[:200])
                return
            self._reads += 1

    def end(self) -> dict[str, Any]:
        self._stop.set()
        self._thread.join(30)
        return {"reads": self._reads, "wrong": self._wrong, "errors": self._errors}


class Longshore(Holding):
    """The product's own client, against one loader."""

    def __init__(self, socket: str, device: str) -> None:
        super().__init__(device)
        import longshore

        self._longshore = longshore
        self._asked = device
        self._socket = socket
        self._node: Any = None

    def _connect(self) -> Any:
        if self._node is None:
            self._node = self._longshore.connect(self._socket)
        return self._node

    def use(self, socket: str) -> dict[str, Any]:
        """From now on another loader."""
        self.disconnect()
        self._socket = socket
        return {}

    def devices(self) -> dict[str, Any]:
        """Bytes that models take of each device, as the loader counts them."""
        return {each.device: each.used_bytes for each in self._connect().status().devices}

    def disconnect(self) -> dict[str, Any]:
        """After the loader was started again."""
        node, self._node = self._node, None
        if node is not None:
            node.close()
        return {}

    def load(self, uri: str, writable: bool = False, rank: int = 0, world: int = 0, long: int = 0) -> dict[str, Any]:
        """From the call to usable tensors; one rank's part when `world` is given."""
        node = self._connect()
        options: dict[str, Any] = {"writable": True} if writable else {}
        if world:
            from slicing import rules

            options["parallel"] = self._longshore.Parallel(rank, world, rules(self._longshore, long))
        cpu, start = time.process_time(), time.perf_counter()
        model = node.load(uri, device=self._asked, framework="torch", progress=False, timeout=200, **options)
        tensors = model.state_dict()
        self._synchronize()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        self._tensors, self._kept = tensors, [model]
        report = model.report
        return {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
            "tensors": len(tensors),
            "model_id": model.model_id,
            "attach_socket": model.attach_socket,
            "device": model.device,
            "loader_seconds": report.seconds,
            "tiers": dict(report.bytes_by_tier),
            "reattached": report.reattached,
            "fallbacks": [fallback.kind for fallback in report.fallbacks],
            "mismatches": report.checksum_mismatches,
        }

    def attach(self, model_id: str, attach_socket: str, writable: bool = False, keep: bool = False) -> dict[str, Any]:
        """From the call to usable tensors, over the attach socket alone."""
        start = time.perf_counter()
        model = self._longshore.attach(model_id, attach_socket, framework="torch", writable=writable)
        tensors = model.state_dict()
        self._synchronize()
        seconds = time.perf_counter() - start
        count = len(tensors)
        if keep:
            self._tensors, self._kept = tensors, [model]
        else:
            del tensors
            model.close()
        return {"seconds": seconds, "tensors": count}

    def attaches(self, model_id: str, attach_socket: str, count: int) -> dict[str, Any]:
        """The seconds of so many."""
        return {"seconds": [self.attach(model_id, attach_socket)["seconds"] for _ in range(count)]}

    def files(self, name: str) -> dict[str, Any]:
        """The content of a file that came with the model."""
        return {"hex": bytes(self._kept[0].files[name]).hex()}

    def unload(self, uri: str) -> dict[str, Any]:
        self.drop()
        done = self._connect().unload(uri)
        return {"models": done.models, "freed": done.bytes_freed, "leased": done.bytes_leased}

    def wait_for_model(self, model_id: str, within: float) -> dict[str, Any]:
        """When the loader knows the model: on the clock that all processes share."""
        self.disconnect()
        deadline = time.monotonic() + within
        last = "nothing listens"
        while time.monotonic() < deadline:
            try:
                models = self._connect().models(timeout=2)
                if any(model.model_id == model_id for model in models):
                    return {"at": time.monotonic()}
                last = f"{len(models)} models, not this one"
            except self._longshore.Error as error:
                last = str(error)
                self.disconnect()
            time.sleep(0.002)
        raise TimeoutError(f"the model is not back within {within:.0f} s: {last[:300]}")

    def write(self, name: str) -> dict[str, Any]:
        """Adds one to a tensor in place and waits: what happens is the answer."""
        self._tensors[name].view(self._torch.uint8).add_(1)
        self._synchronize()
        return {"written": True}

    def load_ranks(self, uri: str, world: int, long: int) -> dict[str, Any]:
        """All ranks at once; what they hold is kept by rank."""
        from concurrent.futures import ThreadPoolExecutor

        from slicing import rules

        node = self._connect()

        def one(rank: int) -> Any:
            parallel = self._longshore.Parallel(rank, world, rules(self._longshore, long))
            return node.load(uri, device=self._asked, framework="torch", progress=False, timeout=100, parallel=parallel)

        start = time.perf_counter()
        with ThreadPoolExecutor(world) as pool:
            self._kept = list(pool.map(one, range(world)))
        self._synchronize()
        return {"seconds": time.perf_counter() - start}

    def rank_slices(self, files: list[str], world: int) -> dict[str, Any]:
        """Compares what `load_ranks` left with slices of the files' tensors."""
        from slicing import differences

        wrong = []
        for rank, model in enumerate(self._kept):
            wrong += [f"rank {rank}: {text}" for text in differences(model.state_dict(), files, rank, world)[1]]
        return {"wrong": wrong[:5], "wrong_count": len(wrong)}

    def slices(self, files: list[str], rank: int, world: int) -> dict[str, Any]:
        """Compares one rank's tensors with slices of the files' ones."""
        from slicing import differences

        tensors, wrong = differences(self._tensors, files, rank, world)
        return {"tensors": tensors, "wrong": wrong[:5], "wrong_count": len(wrong)}


class Peer(Holding):
    """Another loader."""

    def __init__(self, name: str, device: str) -> None:
        super().__init__(device)
        from importlib.metadata import version

        from subjects import PACKAGES, PEERS, PREPARE, VERSIONS

        self._load, self._prepare = PEERS[name], PREPARE.get(name)
        self.version = version(PACKAGES[name])
        wanted = VERSIONS.get(name, "")
        if not self.version.startswith(wanted):
            raise RuntimeError(f"{PACKAGES[name]} {self.version} is installed, {wanted} was asked for")

    def ready(self) -> dict[str, Any]:
        return {**super().ready(), "version": self.version}

    def load(self, files: list[str], resident: bool) -> dict[str, Any]:
        """From the call to usable tensors."""
        if self._prepare is not None:
            self._prepare(list(files), self.device, resident)
            self._synchronize()
        cpu, start = time.process_time(), time.perf_counter()
        tensors, kept = self._load(list(files), self.device, resident)
        self._synchronize()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        self._tensors, self._kept = tensors, kept
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        return {"seconds": seconds, "cpu_seconds": cpu, "bytes": size, "tensors": len(tensors)}

    def drop(self) -> dict[str, Any]:
        self._tensors = {}
        for each in self._kept:
            if hasattr(each, "close"):
                with contextlib.suppress(Exception):
                    each.close()
        return super().drop()


ROLES = {"limits": Limits, "longshore": Longshore, "peer": Peer}


def main() -> None:
    # What libraries print must not end up between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Made before anything is asked, so that several children import and make their contexts side by side.
    subject: Any = None
    broken = ""
    try:
        subject = ROLES[sys.argv[1]](**json.loads(sys.argv[2]))
    except Exception as error:  # noqa: BLE001 - it is the answer
        traceback.print_exc()
        broken = f"{type(error).__name__}: {str(error)[:600]}"
    for line in sys.stdin:
        request = json.loads(line)
        try:
            operation = request.pop("operation")
            answer = {"error": broken} if broken else getattr(subject, operation)(**request)
        except Exception as error:  # noqa: BLE001 - it is the answer
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {str(error)[:600]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
