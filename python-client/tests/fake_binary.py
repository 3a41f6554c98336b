"""Stands in for `longshore loader --private`: prints its sockets, serves one model, ends with the last lease."""

from __future__ import annotations

import argparse
import json
import os
import sys

from fake_loader import URI, FakeLoader, FakeModel


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["loader"])
    parser.add_argument("--private", action="store_true", required=True)
    parser.add_argument("--socket-dir", required=True)
    parser.add_argument("--remove-socket-dir", action="store_true")
    args = parser.parse_args()
    mode = os.environ.get("FAKE_MODE", "")
    if mode == "fail":
        print("error: the cache folder is read-only", file=sys.stderr)
        return 5
    if mode == "babble":
        print("hello")
        return 0
    if mode == "silent":
        sys.stdin.read()
        os.execvp("sleep", ["sleep", "60"])
    with FakeLoader(args.socket_dir) as loader:
        loader.models[URI] = FakeModel(tensors={"pid": ("I64", (), os.getpid().to_bytes(8, "little"))})
        print(json.dumps({"loader_socket": loader.socket, "attach_socket": loader.attach_socket}), flush=True)
        loader.wait_for_the_last_lease()
    return 0


if __name__ == "__main__":
    sys.exit(main())
