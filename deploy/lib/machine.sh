# shellcheck shell=bash
# What the demo and the tests need of the machine, installed and started where that can be done. To be sourced.
#
# The caller sets DATA, a directory for logs of what is started here.

START_TIMEOUT_SECS=60

say() { printf '\n== %s\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# have COMMAND…: whether all of them are there.
have() {
    local command
    for command in "$@"; do command -v "$command" >/dev/null || return; done
}

can_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
apt_install() {
    say "installing $*"
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >/dev/null
}

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
    if ! have dockerd docker; then
        local packages=(docker.io iptables)
        # Newer Debians have the client in a package of its own.
        if apt-cache show docker-cli >/dev/null 2>&1; then packages+=(docker-cli); fi
        apt_install "${packages[@]}"
    fi
    engine_answers && return
    # No service manager started it (this may be a container or a bare virtual machine), so we do. An engine that was killed
    # leaves its pid behind, which another process may have by now.
    say "starting the Docker engine"
    pidof dockerd >/dev/null || rm -f /var/run/docker.pid /var/run/docker/containerd/containerd.pid
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
