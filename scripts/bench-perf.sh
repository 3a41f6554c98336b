#!/usr/bin/env bash
# Installs `perf` where it is missing, for `make bench-profile`: Debian's linux-perf, as root. Safe to run again.
set -euo pipefail
command -v perf >/dev/null && exit
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "there is no perf: please install it (Debian: linux-perf)" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends linux-perf >/dev/null
