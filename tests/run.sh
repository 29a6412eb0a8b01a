#!/usr/bin/env bash
# Runs every test: those of the crates, those with a real Docker engine and a real S3 server, and the demo pipeline.
# Exits 0 only if all ran and passed. Nothing is skipped: what a test needs and cannot be had makes it fail, with a sentence
# that says why.
#
# As root on a Debian system it installs what is missing (engine, busybox, binfmt for arm64) and starts an engine if none answers.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }

. deploy/lib/engine.sh

say "the engine, and what the containers need"
ensure_packages busybox-static zstd
ensure_engine
ensure_binfmt_arm64 || echo "arm64 cannot be emulated here: the arm64 test will say so and fail" >&2

say "every test of the workspace"
if command -v cargo-nextest >/dev/null 2>&1; then
    cargo nextest run --workspace --no-fail-fast
else
    cargo test --workspace --no-fail-fast
fi

say "all tests ran and passed"
