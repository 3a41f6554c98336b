#!/usr/bin/env bash
# Fetches the wheels of the other loaders that the GPU report measures beside Longshore, into FOLDER/wheels/NAME. Run it where
# there is a package registry; about 11 MiB. Their dependencies (torch, numpy, typer, humanize) are expected on the machine.
#
# usage: gpu-wheels.sh [FOLDER]; by default gpu-bundle/. PYTHON_VERSION names the Python of the machine with the GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-gpu-bundle}")/wheels
version=${PYTHON_VERSION:-3.12}
# Not here: ServerlessLLM reads a format of its own. `thaw` of PyPI is another project than the loader, which is thaw-vllm.
readonly peers=(
  safetensors-0.8=safetensors==0.8.0
  safetensors-0.9rc=safetensors==0.9.0rc1
  fastsafetensors=fastsafetensors==0.5.0
  runai=runai-model-streamer==0.17.0
  instanttensor=instanttensor==0.2.2
  'thaw=thaw-vllm==0.6.0 thaw-native==0.3.2 safetensors==0.8.0'
)
platforms=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
for glibc in 39 35 34 31 30 28 27 24 17; do
  platforms+=(--platform "manylinux_2_${glibc}_x86_64")
done

for peer in "${peers[@]}"; do
  name=${peer%%=*}
  read -ra packages <<<"${peer#*=}"
  rm -rf "${out:?}/$name"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
    --python-version "$version" "${platforms[@]}" --dest "$out/$name" "${packages[@]}" ||
    echo "${packages[*]}: no wheel for Python $version: the report will say that it is not installed" >&2
done
du -sm "$out"
