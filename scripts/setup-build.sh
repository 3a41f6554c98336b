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
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    say "please install: ${missing[*]}"
    exit 1
  fi
  say "installing ${missing[*]}"
  apt-get update -q >&2
  # RUNLEVEL=1 keeps packaged services from starting: the tests start their own.
  DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
fi

if ! cargo nextest --version >/dev/null 2>&1; then
  say "installing cargo-nextest"
  cargo install cargo-nextest --locked
fi
