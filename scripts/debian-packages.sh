#!/usr/bin/env bash
# Installs Debian packages, as root. Elsewhere it says which to install, and fails.
#
# usage: debian-packages.sh PACKAGE...; without any it does nothing
set -euo pipefail
[ $# -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "setup: please install: $*" >&2
  exit 1
fi
echo "setup: installing $*" >&2
apt-get update -q >&2
# RUNLEVEL=1 keeps packaged services from starting: the tests start their own.
DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -q --no-install-recommends "$@" >&2
