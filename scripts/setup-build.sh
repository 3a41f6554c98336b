#!/usr/bin/env bash
# Installs what building and testing need and this machine lacks. Does nothing when all is there.
set -euo pipefail

say() { printf 'setup: %s\n' "$*" >&2; }

command -v cargo >/dev/null || { say "no Rust toolchain: install Rust 1.95 or newer from https://rustup.rs and run this again"; exit 1; }

missing=()
command -v cc >/dev/null || missing+=(gcc libc6-dev)
command -v curl >/dev/null || missing+=(curl)
command -v python3 >/dev/null || missing+=(python3 python3-venv)
command -v promtool >/dev/null || missing+=(prometheus)
command -v systemd-analyze >/dev/null || missing+=(systemd)
"$(dirname "$0")/debian-packages.sh" "${missing[@]}"

if ! cargo nextest --version >/dev/null 2>&1; then
  say "installing cargo-nextest"
  cargo install cargo-nextest --locked
fi
