#!/usr/bin/env bash
# The whole of Railyard on one machine: builds the farm, starts it, and has it build and boot a small Linux
# distribution (pipelines/mini). Leaves the artifacts in ./railyard-data and stops what it started.
set -euo pipefail
cd "$(dirname "$0")/.."

DATA="railyard-data"
# shellcheck source=deploy/lib/machine.sh
. deploy/lib/machine.sh

usage() {
    cat <<'USAGE'
usage: demo.sh [--arm64]
  --arm64   build for linux/arm64 as well; emulated where this machine is not arm64, which takes some minutes more
USAGE
}

arches=(amd64)
while [ $# -gt 0 ]; do
    case $1 in
    --arm64) arches+=(arm64) ;;
    -h | --help) usage; exit ;;
    *) usage >&2; exit 2 ;;
    esac
    shift
done

# What this script started, and nothing else, is stopped at its end. An engine stays: it is the machine's from then on.
farm_pid=
# shellcheck disable=SC2317  # Called by the trap.
stop_farm() {
    [ -n "$farm_pid" ] || return 0
    kill -TERM "$farm_pid" 2>/dev/null || true
    for _ in $(seq 150); do
        kill -0 "$farm_pid" 2>/dev/null || break
        sleep 0.2
    done
    kill -KILL "$farm_pid" 2>/dev/null || true
    wait "$farm_pid" 2>/dev/null || true
    farm_pid=
}
trap stop_farm EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir -p $DATA
ensure_toolchain
have curl || apt_install curl
ensure_engine
platforms=()
for arch in "${arches[@]}"; do
    ensure_emulation "$arch"
    deploy/seed-image.sh "$arch"
    platforms+=(--platform "linux/$arch")
done

say "building railyard"
cargo build --release --bin railyard
railyard=${CARGO_TARGET_DIR:-target}/release/railyard

# The demo is for its own farm only, whatever farm the user's settings name.
unset RAILYARD_URL RAILYARD_CA RAILYARD_CERT RAILYARD_KEY
export RAILYARD_CONFIG=$PWD/$DATA/client.toml
if timeout 10 "$railyard" workers >/dev/null 2>&1; then
    say "using the farm that runs here"
else
    say "starting the farm (log: $DATA/dev.log)"
    "$railyard" dev --data $DATA >$DATA/dev.log 2>&1 </dev/null &
    farm_pid=$!
    wait_pid=$farm_pid
    # shellcheck disable=SC2317  # Called by wait_for.
    worker_is_there() { timeout 10 "$railyard" workers | grep -q ' online '; }
    wait_for "the farm's worker" $DATA/dev.log worker_is_there
fi
"$railyard" workers

params=(--param 'seed_image=railyard-seed:bookworm-{{ arch }}')
# A registry's image names a mirror of its own; this machine's apt knows the one that is in reach.
if mirror=$(deploy/seed-image.sh --print-mirror); then params+=(--param "apt_mirror=$mirror"); fi

say "building the mini distribution for ${arches[*]}"
status=0
build=$("$railyard" submit deploy/pipelines/mini/railyard.yaml "${platforms[@]}" "${params[@]}" --wait) || status=$?
[ -n "$build" ] || die "the build was not accepted"

say "the jobs of $build"
"$railyard" show "$build" || status=1
say "the artifacts of $build"
"$railyard" artifacts "$build" || status=1
if [ $status = 0 ]; then
    version=${build#*/}
    say "they lie in $DATA/cache, and are served as long as the farm runs"
    for arch in "${arches[@]}"; do
        ls -l "$DATA/cache/images/$arch/$version"
        curl --silent --show-error --fail --cacert $DATA/pki/ca.pem "https://127.0.0.1:7411/cache/images/$arch/$version/version.txt"
    done
    say "done. Start the farm again with: $railyard dev; then: $railyard fetch $build 'images/**' -o DIR"
else
    say "the build failed. Start the farm again with: $railyard dev; then: $railyard logs $build"
fi
exit $status
