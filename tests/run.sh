#!/usr/bin/env bash
# Runs every test: those of the crates, those with a real Docker engine, a real S3 service and an emulated arm64, and the demo, which
# builds and boots an operating system. Exits 0 only if all ran and passed. Nothing is skipped: what a test needs and cannot have
# makes it fail, with a sentence that says why.
#
# As root on a Debian system it installs what is missing and starts an engine if none answers.
set -euo pipefail
cd "$(dirname "$0")/.."

DATA=target/test-run
mkdir -p "$DATA"
# shellcheck source=deploy/lib/machine.sh
. deploy/lib/machine.sh

# The artifacts of the build, and what tests with several GiB write beside each other. A worker takes no jobs on a disk that is
# nearly full, whoever filled it.
FREE_GIB=20
mkdir -p "${CARGO_TARGET_DIR:-target}"
for dir in "${CARGO_TARGET_DIR:-target}" "${TMPDIR:-/tmp}"; do
    free_gib=$(($(df --output=avail -k "$dir" | tail -n 1) / 1048576))
    [ "$free_gib" -ge $FREE_GIB ] || die "$dir has $free_gib GiB free; the tests need $FREE_GIB GiB"
done

say "what the tests need of this machine"
ensure_toolchain
if ! have busybox zstd xz gzip bzip2 curl skopeo mkfs.ext4 python3 unshare; then
    can_apt || die "busybox-static, zstd, xz-utils, gzip, bzip2, curl, skopeo, e2fsprogs, python3 and util-linux are needed; install them"
    apt_install busybox-static zstd xz-utils gzip bzip2 curl skopeo e2fsprogs python3 util-linux
fi
ensure_engine
ensure_emulation arm64

say "the tests of the crates, and those across crates"
if command -v cargo-nextest >/dev/null 2>&1; then
    cargo nextest run --workspace --no-fail-fast
else
    cargo test --workspace --no-fail-fast
fi

say "the demo: an operating system, built and booted"
deploy/demo.sh

say "all tests ran and passed"
