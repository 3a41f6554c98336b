"""Attaches from new processes: each is forked from one that imported everything and touched no GPU, makes its context
as any inference process must, and then attaches once. Prints one JSON list.

usage: new_process.py MODEL_ID ATTACH_SOCKET COUNT DEVICE SECONDS
"""

from __future__ import annotations

import json
import os
import sys
import time


def attach_once(model_id: str, socket: str, device: str) -> dict[str, float]:
    """In the new process: how long the context took, and the attach."""
    import longshore
    import torch

    is_cuda = torch.cuda.is_available()
    begun = time.perf_counter()
    if is_cuda:
        torch.zeros(1, device=device)
        torch.cuda.synchronize()
    start = time.perf_counter()
    model = longshore.attach(model_id, socket, framework="torch")
    tensors = model.state_dict()
    if is_cuda:
        torch.cuda.synchronize()
    end = time.perf_counter()
    return {"context": start - begun, "attach": end - start, "tensors": float(len(tensors))}


def main() -> None:
    import longshore  # noqa: F401 - imported before the fork
    import torch  # noqa: F401

    model_id, socket, count, device = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    seconds = float(sys.argv[5])
    deadline = time.monotonic() + seconds
    found: list[dict[str, float]] = []
    for _ in range(count):
        if time.monotonic() > deadline:
            break
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(writing, json.dumps(attach_once(model_id, socket, device)).encode())
                os._exit(0)
            except BaseException as error:  # noqa: BLE001 - nothing may leave a forked child
                os.write(writing, json.dumps({"error": repr(error)[:400]}).encode())
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading, "rb") as answers:
            answer = json.loads(answers.read() or b'{"error": "the process ended without an answer"}')
        os.waitpid(child, 0)
        if "error" in answer:
            sys.exit(str(answer["error"]))
        found.append(answer)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
