#!/usr/bin/env bash
# Makes the Python environments of those that the benchmarks measure beside Longshore: .cache/bench-peers-NAME for each
# peer of benches/peers, and .cache/bench-peers for the savers of checkpoints. Safe to run again, and quick then.
#
# usage: bench-peers.sh [NAME...]; all of them without a name. `instanttensor` and `thaw` need a GPU and are made only
# by name. Each environment is laid over that of the tests (torch, numpy, safetensors: 4 GB once), so that it adds only
# its own packages: about 250 MB together. All versions are pinned, what they depend on too.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly boto=(boto3==1.44.5 botocore==1.44.5 s3transfer==0.19.3 jmespath==1.1.0 python-dateutil==2.9.0.post0 six==1.17.0 urllib3==2.8.0)
readonly connector=(s3torchconnector==1.5.0 s3torchconnectorclient==1.5.0)
readonly all=(checkpoint safetensors safetensors-pread safetensors-next runai fastsafetensors tensorizer boto3 s3torchconnector s3fs)

# What is laid over the environment of the tests, for one name.
packages_of() {
  case "$1" in
    checkpoint) echo "${boto[@]}" "${connector[@]}" ;;
    safetensors | safetensors-pread) echo safetensors==0.8.0 ;;
    safetensors-next) echo safetensors==0.9.0rc1 ;;
    runai) echo runai-model-streamer==0.17.0 runai-model-streamer-s3==0.17.0 humanize==4.17.0 "${boto[@]}" ;;
    fastsafetensors) echo fastsafetensors==0.5.0 typer==0.29.2 ;;
    tensorizer) echo tensorizer==2.12.1 redis==8.1.0 hiredis==3.5.0 libnacl==2.1.0 psutil==7.2.2 "${boto[@]}" ;;
    boto3) echo "${boto[@]}" ;;
    s3torchconnector) echo "${connector[@]}" ;;
    s3fs) echo s3fs==2026.9.0 fsspec==2026.9.0 aiobotocore==3.10.0 botocore==1.43.117 aioitertools==0.13.0 wrapt==2.5.2 "${boto[@]:3}" ;;
    instanttensor) echo instanttensor==0.2.2 ;;
    thaw) echo thaw-vllm==0.6.0 thaw-native==0.3.2 ;;
    *) echo "$1 is not a peer; there are ${all[*]} instanttensor thaw" >&2; return 1 ;;
  esac
}

make_one() {
  local name=$1 packages venv=$PWD/.cache/bench-peers site stamp
  packages=$(packages_of "$name")
  [ "$name" = checkpoint ] || venv=$venv-$name
  stamp="$("$tests/bin/python" -V) $tests $packages"
  [ "$(cat "$venv/made-of" 2>/dev/null)" = "$stamp" ] && return
  [ -x "$venv/bin/python" ] || "$tests/bin/uv" venv --quiet --python "$tests/bin/python" "$venv"
  # shellcheck disable=SC2086 # one word a package
  "$tests/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps $packages
  site=$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')
  "$tests/bin/python" -c 'import site; print(site.getsitepackages()[0])' > "$site/tests.pth"
  echo "$PWD/python-client/src" >> "$site/tests.pth"
  echo "$stamp" > "$venv/made-of"
}

tests=$PWD/.venv
[ $# -gt 0 ] && names=("$@") || names=("${all[@]}")
for name in "${names[@]}"; do packages_of "$name" >/dev/null; done
scripts/python-env.sh test
failed=()
for name in "${names[@]}"; do
  # In a child (where `set -e` holds, as it would not left of `||`), so that one that cannot be had keeps none of the
  # others from being made.
  make_one "$name" &
  wait $! || failed+=("$name")
done
for tool in fio curl; do
  command -v "$tool" >/dev/null || scripts/debian-packages.sh "$tool" || failed+=("$tool")
done
[ ${#failed[@]} -eq 0 ] || { echo "could not make: ${failed[*]}" >&2; exit 1; }
