#!/usr/bin/env bash
# Regenerates python-client/src/longshore/_proto from proto/. With --check: fails when the committed files differ.
#
# The generator is pinned: what it writes decides the oldest protobuf runtime that can load it (5.29 for 1.71.0).
# The modules are moved from `longshore.v1` to `longshore._proto`, because the package itself is called longshore.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly tools_version=1.71.0
venv=.cache/python-proto-$tools_version
python=${PYTHON:-python3}

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import grpc_tools' 2>/dev/null; then
  rm -rf "$venv"
  "$python" -m venv "$venv"
  # pkg_resources, which this version of the generator imports, left setuptools in version 82.
  "$venv/bin/pip" install --quiet "grpcio-tools==$tools_version" "setuptools<81"
fi

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
"$venv/bin/python" -W ignore -m grpc_tools.protoc -I proto --python_out="$out" --pyi_out="$out" \
  longshore/v1/model.proto longshore/v1/loader.proto longshore/v1/checkpoint.proto
for file in "$out"/longshore/v1/*; do
  sed -i -e 's/^from longshore\.v1 import/from longshore._proto import/' \
    -e "s/'longshore\.v1\.\([a-z]*_pb2\)'/'longshore._proto.\1'/" "$file"
done

target=python-client/src/longshore/_proto
if [ "${1:-}" = --check ]; then
  for file in "$out"/longshore/v1/*; do
    diff -u "$target/$(basename "$file")" "$file" || { echo "run scripts/python-proto.sh: $target is not current" >&2; exit 1; }
  done
else
  cp "$out"/longshore/v1/* "$target/"
fi
