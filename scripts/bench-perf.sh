#!/usr/bin/env bash
# Installs `perf` where it is missing, for `make bench-profile`: Debian's linux-perf. Safe to run again.
set -euo pipefail
command -v perf >/dev/null || "$(dirname "$0")/debian-packages.sh" linux-perf
