#!/usr/bin/env bash
# Builds the platform wheel: the Python package and the `longshore` binary, tagged by the glibc it needs.
#
# usage: build-wheel.sh [FOLDER]; by default dist/.
# LONGSHORE_WHEEL_BINARY names a binary to carry; without it a release build is made.
set -euo pipefail
out=$(realpath -m "${1:-$(dirname "$0")/../dist}")
cd "$(dirname "$0")/.."

if [ -z "${LONGSHORE_WHEEL_BINARY:-}" ]; then
  cargo build --release --locked --package longshore-cli
  LONGSHORE_WHEEL_BINARY=$PWD/target/release/longshore
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Stripped of symbols but not of the section headers, which the tag is read from.
cp "$LONGSHORE_WHEEL_BINARY" "$work/longshore"
strip "$work/longshore"
export LONGSHORE_WHEEL_BINARY=$work/longshore

"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet build
mkdir -p "$out"
"$work/venv/bin/python" -m build --wheel --outdir "$out" python-client
