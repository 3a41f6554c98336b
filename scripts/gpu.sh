#!/usr/bin/env bash
# Checks and measures Longshore on a GPU. Needs neither Cargo nor a network: only what `make gpu-bundle` put together, NVIDIA's
# driver, and a python3 with torch, grpcio and protobuf.
#
# usage: gpu.sh BUNDLE OUT [--quick] [--driver-folder DIR] [--stages NAME...] [--seconds N] [--huge-pages] [--memory-folder DIR]
#                          [--disk-folder DIR]
#
# Writes OUT/gpu.json, OUT/gpu.md and OUT/log.txt, each row as soon as it is there. Ends within nine minutes; what found no time
# says so. --quick with --driver-folder runs the same steps over the fake driver, with tiny models.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
ulimit -n "$(ulimit -Hn)" 2>/dev/null || true
ulimit -l unlimited 2>/dev/null || true
exec "${PYTHON:-python3}" -u "$here/gpu" "$@"
