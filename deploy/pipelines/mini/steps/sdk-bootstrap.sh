#!/bin/bash
# Bootstraps the SDK's root from the Debian archive: sdk-root.tar.zst.
#
# debootstrap needs mknod and chroot, which a container has by default, but no mounts: in a container it leaves
# /proc of the new root alone. So this step runs without privileges.
set -euo pipefail
stage() { echo "==> $*"; }

export DEBIAN_FRONTEND=noninteractive LC_ALL=C
apt="apt-get -qq -o Acquire::Retries=3 -o Dpkg::Options::=--force-unsafe-io -o Dpkg::Use-Pty=0"

if [ -n "$APT_MIRROR" ]; then
    stage "the seed image uses the mirror given"
    rm -f /etc/apt/sources.list.d/*
    echo "deb $APT_MIRROR $SUITE main" >/etc/apt/sources.list
fi

stage "installing debootstrap and zstd"
$apt update
$apt install -y --no-install-recommends debootstrap zstd >/dev/null
# Without a mirror given, the SDK comes from wherever the seed image gets its packages.
# shellcheck disable=SC2016  # The $(…) is apt's own field.
mirror=${APT_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' | sed -n 1p)}

stage "bootstrapping $SUITE for $RAILYARD_ARCH"
root=/var/tmp/sdk-root # Not in /work: that may be mounted nodev.
debootstrap --variant=minbase --keyring=/usr/share/keyrings/debian-archive-keyring.gpg "$SUITE" "$root" "$mirror" |
    grep --line-buffered -vE 'mount -t proc|debootstrap.log for details|^I: (Retrieving|Validating|Extracting|Unpacking|Configuring) '

stage "settling the SDK's own configuration"
cat >"$root/etc/apt/sources.list" <<END
deb $mirror $SUITE main
deb-src $mirror $SUITE main
${APT_SECURITY_MIRROR:+deb $APT_SECURITY_MIRROR $SUITE-security main}
${APT_SECURITY_MIRROR:+deb-src $APT_SECURITY_MIRROR $SUITE-security main}
END
# Containers are thrown away, so nothing is gained by syncing, by documentation, or by a second user for downloads
# (which would need capabilities that most steps do without).
cat >"$root/etc/apt/apt.conf.d/90sdk" <<'END'
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Retries "3";
Acquire::Languages "none";
Dpkg::Use-Pty "0";
END
cat >"$root/etc/dpkg/dpkg.cfg.d/90sdk" <<'END'
force-unsafe-io
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/iso-codes/*
path-exclude=/usr/share/xml/iso-codes/*
END
echo "MINI_SDK_VERSION=$RAILYARD_VERSION" >"$root/etc/mini-sdk-release"
rm -rf "$root"/usr/share/{doc,man,info,locale}/* "$root"/var/lib/apt/lists/* \
    "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb "$root"/var/log/*.log

stage "packing"
dpkg-query --admindir="$root/var/lib/dpkg" -W >sdk-packages.txt
# The engine makes /dev, /proc and /sys itself.
tar -C "$root" --sort=name --numeric-owner --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' -c . |
    zstd -q -T0 -3 -o sdk-root.tar.zst
stage "SDK root: $(wc -l <sdk-packages.txt) packages, $(du -h sdk-root.tar.zst | cut -f1)"
