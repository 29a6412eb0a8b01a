#!/bin/bash
# Builds the distribution's two packages, and installs them into the board's root, /build/root:
#   mini-busybox   all programs, compiled statically from Debian's busybox source with a configuration of our own
#   mini-base      what makes it this distribution: file system layout, boot scripts, os-release
# The root is part of the image that this step commits. The packages are a small apt repository of their own.
set -euo pipefail
stage() { echo "==> $*"; }
export LC_ALL=C
work=$PWD

stage "fetching the busybox source"
apt-get -qq source busybox 2>&1 | grep -v '^dpkg-source: info: applying' || true
source=$(echo "$PWD"/busybox-*/)
cd "$source"
busybox_version=$(dpkg-parsechangelog -S Version)
# Every file we make is dated by the source's own last change, so that the same source makes the same bytes.
SOURCE_DATE_EPOCH=$(dpkg-parsechangelog -S Timestamp)
export SOURCE_DATE_EPOCH

stage "configuring busybox $busybox_version"
# Settings, then applets. The features of an applet keep busybox's own defaults.
settings="STATIC LFS SHOW_USAGE LONG_OPTS BUSYBOX SH_IS_ASH BASH_IS_NONE"
applets="
    INIT HALT POWEROFF REBOOT SWITCH_ROOT ASH
    MOUNT UMOUNT INSMOD LSMOD RMMOD MODPROBE DMESG HOSTNAME UNAME UPTIME FREE PS KILL TOP
    IP PING UDHCPC WGET
    CAT CHMOD CHOWN CP DD DF DU FIND LN LS MKDIR MKNOD MKTEMP MV PWD READLINK RM RMDIR STAT SYNC TOUCH
    AWK BASENAME CLEAR CUT DATE DIRNAME ECHO ENV EXPR FALSE GREP GUNZIP GZIP HEAD ID LESS PRINTF SED SEQ SETSID
    SHA256SUM SLEEP SORT STTY TAIL TAR TEE TEST TR TRUE VI WC XARGS"
# What `make allnoconfig` would write, without the hundreds of processes that it takes (they count where the CPU is
# emulated): every option of the source is off, but the features, which are undecided and take their defaults below.
grep -rhoE --include='*.c' --include='Config.*' '^(//config:)?config [A-Z0-9_]+' . | sed 's/.* //' | sort -u |
    grep -vE '^(FEATURE|ASH)_' | sed 's/.*/# CONFIG_& is not set/' >.config
for option in $settings $applets; do
    sed -i "s/^# CONFIG_$option is not set\$/CONFIG_$option=y/" .config
done
# `yes` ends by SIGPIPE, which is no failure.
{ yes '' || true; } | make -s oldconfig >config.log 2>&1 || { tail config.log; exit 1; }
# An option that this busybox does not know is dropped in silence; better to hear of it here than at boot.
for option in $settings $applets; do
    grep -qx "CONFIG_$option=y" .config || { echo "busybox does not take CONFIG_$option" >&2; exit 1; }
done

stage "compiling busybox"
# A line now and then, for people and for silence_timeout; everything only if it fails.
make -j"$(nproc)" KCONFIG_NOTIMESTAMP=1 busybox 2>&1 | tee make.log | {
    n=0
    while IFS= read -r line; do
        case $line in '  CC '*) n=$((n + 1)) ;; *) continue ;; esac
        [ $((n % 25)) != 0 ] || echo "$n files compiled"
    done
} || { tail -n 40 make.log; exit 1; }
./busybox | sed -n 1p
cd "$work"

# deb NAME VERSION DESCRIPTION: makes a binary package of the tree stage/NAME.
mkdir -p pkgs
deb() {
    local name=$1 version=$2 description=$3 tree=stage/$1
    mkdir -p "$tree/DEBIAN"
    cat >"$tree/DEBIAN/control" <<END
Package: $name
Version: $version
Architecture: $RAILYARD_ARCH
Maintainer: mini <mini@localhost>
Installed-Size: $(du -sk "$tree" | cut -f1)
Section: base
Priority: required
Description: $description
END
    find "$tree" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
    dpkg-deb --root-owner-group -Zzstd -z3 --build "$tree" pkgs >/dev/null
    stage "packaged $name $version"
}

mkdir -p stage/mini-busybox/usr/bin
install -m 0755 "$source/busybox" stage/mini-busybox/usr/bin/busybox
# All applets in one directory; /bin and /sbin point there (mini-base).
"$source/busybox" --list | while read -r applet; do
    [ "$applet" = busybox ] || ln -s busybox "stage/mini-busybox/usr/bin/$applet"
done
# The first character of a Debian version is a digit; ours may be any version that the farm takes.
own_version=0+$(printf %s "$RAILYARD_VERSION" | tr -c 'A-Za-z0-9.+~' '.')
deb mini-busybox "$busybox_version+mini1" "all programs of the mini distribution"

base=stage/mini-base
mkdir -p $base/{dev,proc,sys,run,tmp,root,var,etc/init.d,usr/lib,usr/share/mini}
ln -s usr/bin $base/bin
ln -s usr/bin $base/sbin
ln -s bin $base/usr/sbin
ln -s usr/lib $base/lib
ln -s ../proc/self/mounts $base/etc/mtab
# shellcheck source=/dev/null
. /etc/mini-sdk-release
cat >$base/usr/lib/os-release <<END
NAME="Mini OS"
ID=mini
VERSION="$RAILYARD_VERSION"
VERSION_ID="$RAILYARD_VERSION"
PRETTY_NAME="Mini OS $RAILYARD_VERSION"
BUILD_ID="$RAILYARD_BUILD"
SDK_VERSION="$MINI_SDK_VERSION"
END
ln -s ../usr/lib/os-release $base/etc/os-release
echo mini >$base/etc/hostname
echo 'root::0:0:root:/root:/bin/sh' >$base/etc/passwd
echo 'root:x:0:' >$base/etc/group
cat >$base/etc/inittab <<'END'
::sysinit:/etc/init.d/rcS
::respawn:-/bin/sh
::ctrlaltdel:/bin/reboot
::shutdown:/bin/umount -a -r
END
cat >$base/etc/init.d/rcS <<'END'
#!/bin/sh
# The root is read-only for good; what has to be writable is in memory.
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs /run
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /tmp
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs /var
mkdir -p /dev/pts && mount -t devpts devpts /dev/pts
hostname -F /etc/hostname
. /etc/os-release
# /proc/mounts also lists the initramfs, "rootfs", at the same place.
root=$(awk '$2 == "/" && $1 != "rootfs" { sub(",.*", "", $4); print $3, $4 }' /proc/mounts)
echo "MINI-OS $VERSION_ID is up, root $root, $(uname -srm)"
END
chmod 0755 $base/etc/init.d/rcS
deb mini-base "$own_version" "file system layout and boot scripts of the mini distribution"

stage "indexing the packages"
(cd pkgs && dpkg-scanpackages --multiversion . 2>/dev/null | gzip -9n >Packages.gz)

stage "installing the packages into /build/root"
mkdir -p /build/root/var/lib/dpkg
dpkg --root=/build/root --force-unsafe-io --install pkgs/*.deb | grep '^Setting up'
cat >/build/info <<END
BUSYBOX_VERSION=$busybox_version
SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH
END
# apt made these anew to find the source; they are of no use in the image.
rm -f /var/cache/apt/*.bin
ls -l pkgs
