#!/usr/bin/env bash
# Makes .cache/bench-plots: the Python environment that draws the plots of docs/benchmarks.md. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly packages=(
  matplotlib==3.11.2 contourpy==1.3.3 cycler==0.12.1 fonttools==4.68.0 kiwisolver==1.5.1 numpy==2.4.6
  packaging==26.3 pillow==13.0.0 pyparsing==3.3.3 python-dateutil==4.0.0
)
[ -x .venv/bin/uv ] || scripts/python-env.sh test
venv=$PWD/.cache/bench-plots
[ "$(cat "$venv/made-of" 2>/dev/null)" = "${packages[*]}" ] && exit
[ -x "$venv/bin/python" ] || .venv/bin/uv venv --quiet --python .venv/bin/python "$venv"
.venv/bin/uv pip install --quiet --python "$venv/bin/python" --no-deps "${packages[@]}"
echo "${packages[*]}" > "$venv/made-of"
