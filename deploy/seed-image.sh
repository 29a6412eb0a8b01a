#!/usr/bin/env bash
# Makes sure that a Debian seed image for ARCH is in the Docker engine, as railyard-seed:bookworm-ARCH.
#
# With a registry in reach that is a pull and a tag. Without one, the image is debootstrapped from the
# Debian mirror that this machine's own apt uses: a build farm behind a firewall has a mirror, but often no registry.
set -euo pipefail

SUITE=bookworm
PULL_TIMEOUT_SECS=60 # A refused or unresolvable registry answers at once; this bounds the one that only swallows packets.

usage() {
    cat <<'USAGE'
usage: seed-image.sh ARCH             make railyard-seed:bookworm-ARCH (amd64 or arm64), unless it is there
       seed-image.sh --print-mirror   print the Debian mirror that this machine's apt uses
USAGE
}

say() { echo "seed-image: $*" >&2; }
die() { say "$*"; exit 1; }

# apt may name its mirrors in a file (mirror+file:/etc/apt/mirrors/debian.list, as Debian's cloud images do);
# then the first mirror in that file is meant.
plain_uri() {
    case $1 in
    mirror+file:*) awk '!/^#/ && NF { print $1; exit }' "${1#mirror+file:}" ;;
    *) echo "$1" ;;
    esac
}

# RELEASE is the suite as the sources name it, and is known before the first `apt-get update`.
print_mirror() {
    command -v apt-get >/dev/null || die "this machine has no apt; give the pipeline a mirror with --param apt_mirror=URL"
    local uri
    # shellcheck disable=SC2016  # The $(…) are apt's own fields.
    uri=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Identifier: Packages' |
        awk -v suite="$SUITE" '$1 == suite && $2 == "main" && !found { found = 1; print $3 }')
    [ -n "$uri" ] || die "apt's sources have no archive with suite $SUITE, component main; add one to /etc/apt/sources.list.d"
    plain_uri "$uri"
}

install_debootstrap() {
    command -v debootstrap >/dev/null && return
    [ "$(id -u)" = 0 ] || die "debootstrap is missing; run as root, or install it: sudo apt-get install debootstrap"
    say "installing debootstrap"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends debootstrap >/dev/null
}

# A foreign root runs its own dpkg in the second half, so the kernel must know how to run ARCH.
check_can_run() {
    [ "$(dpkg --print-architecture)" = "$1" ] && return
    local cpu
    case $1 in amd64) cpu=x86_64 ;; arm64) cpu=aarch64 ;; esac
    grep -qs '^enabled' "/proc/sys/fs/binfmt_misc/qemu-$cpu" ||
        die "this machine cannot run $1; install qemu-user-static and binfmt-support, and mount binfmt_misc"
}

# Not `docker import --platform`: engine 20.10 takes the flag and still records its own architecture.
load_image() {
    local dir=$1 arch=$2 tag=$3 digest
    digest=$(sha256sum "$dir/layer.tar" | cut -d' ' -f1)
    cat >"$dir/config.json" <<END
{"architecture": "$arch", "os": "linux", "created": "$(date -u +%FT%TZ)", "config": {"Cmd": ["bash"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$digest"]}, "history": [{"created_by": "debootstrap"}]}
END
    echo "[{\"Config\": \"config.json\", \"RepoTags\": [\"$tag\"], \"Layers\": [\"layer.tar\"]}]" >"$dir/manifest.json"
    tar -C "$dir" -c manifest.json config.json layer.tar | docker load --quiet >/dev/null
}

bootstrap() {
    local arch=$1 tag=$2 mirror dir
    [ "$(id -u)" = 0 ] || die "no registry in reach, and debootstrap needs root: run this script as root"
    mirror=$(print_mirror)
    install_debootstrap
    check_can_run "$arch"
    dir=$(mktemp -d "${TMPDIR:-/tmp}/railyard-seed.XXXXXX")
    # shellcheck disable=SC2064  # The directory is known now and is a local.
    trap "rm -rf --one-file-system '$dir'" EXIT
    say "debootstrap $SUITE for $arch from this machine's mirror (some minutes when emulated)"
    if ! debootstrap --variant=minbase --arch="$arch" "$SUITE" "$dir/root" "$mirror" >"$dir/log" 2>&1; then
        tail -n 20 "$dir/log" >&2
        die "debootstrap failed"
    fi
    rm -rf "$dir"/root/var/lib/apt/lists/* "$dir"/root/var/cache/apt/*.bin "$dir"/root/var/cache/apt/archives/*.deb
    rm -rf "$dir"/root/usr/share/{doc,man,info,locale}/*
    tar -C "$dir/root" --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' --numeric-owner -cf "$dir/layer.tar" .
    load_image "$dir" "$arch" "$tag"
}

case ${1:-} in
--print-mirror) print_mirror; exit ;;
amd64 | arm64) ;;
-h | --help) usage; exit ;;
*) usage >&2; exit 2 ;;
esac

arch=$1
tag=railyard-seed:$SUITE-$arch
if docker image inspect "$tag" >/dev/null 2>&1; then
    say "$tag is there"
    exit
fi
docker version >/dev/null 2>&1 || die "no Docker engine answers"
if timeout "$PULL_TIMEOUT_SECS" docker pull --quiet --platform "linux/$arch" "debian:$SUITE" >/dev/null 2>&1; then
    docker tag "debian:$SUITE" "$tag"
    say "$tag pulled"
else
    say "no registry in reach"
    bootstrap "$arch" "$tag"
    say "$tag made"
fi
