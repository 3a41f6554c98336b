#!/usr/bin/env bash
# Makes .cache/bench-peers: the Python environment of the tests, with the other savers of checkpoints beside it.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/python-env.sh test
venv=$PWD/.cache/bench-peers
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
site=$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')
"$PWD/.venv/bin/python" -c 'import site; print(site.getsitepackages()[0])' > "$site/tests.pth"
echo "$PWD/python-client/src" >> "$site/tests.pth"
"$venv/bin/pip" install --quiet --disable-pip-version-check boto3==1.44.5
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps s3torchconnector==1.5.0 s3torchconnectorclient==1.5.0
command -v fio >/dev/null || { echo "please install fio" >&2; exit 1; }
