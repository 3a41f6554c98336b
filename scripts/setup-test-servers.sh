#!/usr/bin/env bash
# Installs the real servers that the origin tests run against, below .cache/tools: moto and s3s-fs (S3), azurite
# (Azure) and, from Debian, nginx. Run again, it only installs what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

TOOLS="$PWD/.cache/tools"
MOTO_VERSION=5.2.5
S3S_FS_VERSION=0.14.1
# The last one for the Node.js of Debian 12.
AZURITE_VERSION=3.35.0

mkdir -p "$TOOLS"
say() { printf 'setup: %s\n' "$*" >&2; }

# Marks a folder when it is complete, so that one whose installation was interrupted is made afresh.
install_into() {
    local target=$1
    shift
    if [ -e "$target/.complete" ]; then
        return
    fi
    say "installing $(basename "$target")"
    rm -rf "$target"
    "$@"
    touch "$target/.complete"
}

get_moto() {
    python3 -m venv "$TOOLS/moto"
    "$TOOLS/moto/bin/pip" install --quiet --disable-pip-version-check "moto[server]==$MOTO_VERSION"
}

get_azurite() {
    npm install --loglevel=error --no-audit --no-fund --prefix "$TOOLS/azurite" "azurite@$AZURITE_VERSION"
}

get_s3s_fs() {
    # A folder of its own for the build, outside of the workspace's target.
    CARGO_TARGET_DIR="$TOOLS/s3s-fs-build" nice -n 10 cargo install --quiet s3s-fs --version "$S3S_FS_VERSION" \
        --features binary --locked --root "$TOOLS/s3s-fs"
    rm -rf "$TOOLS/s3s-fs-build"
}

get_debian_packages() {
    local missing=()
    command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || missing+=(nginx-light)
    command -v npm >/dev/null || missing+=(nodejs npm)
    python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    scripts/debian-packages.sh "${missing[@]}"
}

get_debian_packages
install_into "$TOOLS/moto" get_moto
install_into "$TOOLS/azurite" get_azurite
install_into "$TOOLS/s3s-fs" get_s3s_fs
say "all there"
