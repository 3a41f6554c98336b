#!/usr/bin/env bash
# Puts together what a machine with a GPU needs to run scripts/gpu.sh: binaries, the Python client, the report's scripts. The
# machine needs no Cargo and no network. Wheels of other loaders are added by scripts/gpu-wheels.sh and stay when this runs again.
#
# usage: gpu-bundle.sh [FOLDER]; by default gpu-bundle/. PROFILE=debug takes the debug build; BUILD=no takes what is built.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-gpu-bundle}")
profile=${PROFILE:-release}
readonly limit_mib=60
readonly binaries=(longshore gpu-bench modelgen fake-origin)

case $profile in
  release) flags=(--release) ;;
  debug) flags=() ;;
  *) echo "PROFILE is release or debug" >&2; exit 2 ;;
esac
if [ "${BUILD:-yes}" != no ]; then
  cargo build --locked "${flags[@]}" -p longshore-cli -p longshore-benches -p longshore-testkit --bins
fi

mkdir -p "$out/bin" "$out/python" "$out/scripts"
for name in "${binaries[@]}"; do
  strip -o "$out/bin/$name" "target/$profile/$name"
done
rm -rf "$out/python/longshore" "$out/scripts/gpu"
cp -R python-client/src/longshore "$out/python/longshore"
cp -R scripts/gpu scripts/gpu.sh "$out/scripts/"
find "$out/python" "$out/scripts" -name __pycache__ -prune -exec rm -rf {} +

size_mib=$(du -sm "$out" | cut -f1)
echo "$out: $size_mib MiB"
if [ "$profile" = release ] && [ "$size_mib" -ge "$limit_mib" ]; then
  echo "that is more than the $limit_mib MiB that machines with GPUs commonly take: leave out wheels" >&2
  exit 1
fi
