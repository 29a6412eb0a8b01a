#!/usr/bin/env bash
# The whole of Railyard on one machine: builds the farm, starts it, and has it build and boot a small Linux
# distribution (pipelines/mini). Leaves the artifacts in ./railyard-data and stops what it started.
set -euo pipefail
cd "$(dirname "$0")/.."

DATA="railyard-data"
START_TIMEOUT_SECS=60

usage() {
    cat <<'USAGE'
usage: demo.sh [--arm64]
  --arm64   build for linux/arm64 as well; emulated where this machine is not arm64, which takes some minutes more
USAGE
}

say() { printf '\n== %s\n' "$*" >&2; }
die() { printf 'demo: %s\n' "$*" >&2; exit 1; }

arches=(amd64)
while [ $# -gt 0 ]; do
    case $1 in
    --arm64) arches+=(arm64) ;;
    -h | --help) usage; exit ;;
    *) usage >&2; exit 2 ;;
    esac
    shift
done

can_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
apt_install() {
    say "installing $*"
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >/dev/null
}

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

# wait_for WHAT LOG COMMAND…: until COMMAND succeeds; gives up after START_TIMEOUT_SECS, or when $wait_pid has ended.
wait_for() {
    local what=$1 log=$2 deadline=$((SECONDS + START_TIMEOUT_SECS))
    shift 2
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge $deadline ] || ! kill -0 "$wait_pid" 2>/dev/null; then
            tail -n 20 "$log" >&2
            die "$what does not answer; its log is $log"
        fi
        sleep 0.2
    done
}

engine_answers() { timeout 10 docker version >/dev/null 2>&1; }

ensure_engine() {
    engine_answers && return
    can_apt || die "no Docker engine answers; start it, or install it (https://docs.docker.com/engine/install), and see that $(id -un) may use it"
    if ! command -v dockerd >/dev/null || ! command -v docker >/dev/null; then
        local packages=(docker.io iptables)
        # Newer Debians have the client in a package of its own.
        if apt-cache show docker-cli >/dev/null 2>&1; then packages+=(docker-cli); fi
        apt_install "${packages[@]}"
    fi
    engine_answers && return
    # No service manager started it (this may be a container or a bare virtual machine), so we do.
    say "starting the Docker engine"
    setsid dockerd >"$DATA/dockerd.log" 2>&1 </dev/null &
    wait_pid=$!
    wait_for "the Docker engine" "$DATA/dockerd.log" engine_answers
}

# Lets the kernel run programs of ARCH. Flag F: the kernel holds the emulator open, so that it also works in containers.
ensure_emulation() {
    local arch=$1 cpu
    case $arch in amd64) cpu=x86_64 ;; arm64) cpu=aarch64 ;; esac
    case $(uname -m) in "$cpu") return ;; esac
    local entry=/proc/sys/fs/binfmt_misc/qemu-$cpu
    emulates() { grep -qs '^enabled' "$entry" && grep -qs '^flags:.*F' "$entry"; }
    emulates && return
    can_apt || die "this machine cannot run $arch programs; as root: apt-get install qemu-user-static binfmt-support"
    apt_install qemu-user-static binfmt-support
    [ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
    emulates || update-binfmts --enable "qemu-$cpu"
    emulates || die "$entry is not enabled with flag F, so containers cannot run $arch programs"
}

ensure_toolchain() {
    command -v cargo >/dev/null || die "cargo is missing; install Rust from https://rustup.rs"
    command -v cc >/dev/null && return
    can_apt || die "a C compiler is missing; as root: apt-get install gcc libc6-dev"
    apt_install gcc libc6-dev
}

mkdir -p $DATA
ensure_toolchain
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
    wait_for "the farm" $DATA/dev.log timeout 10 "$railyard" workers
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
    say "done; get them with: railyard fetch $build 'images/**' -o DIR (the farm has to run: railyard dev)"
else
    say "the build failed; its logs: railyard logs $build (the farm has to run: railyard dev)"
fi
exit $status
