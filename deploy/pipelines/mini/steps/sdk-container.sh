#!/bin/bash
# Installs what the later steps work with. All apt work of the pipeline is here, so that it is done once per build.
set -euo pipefail
stage() { echo "==> $*"; }

export DEBIAN_FRONTEND=noninteractive LC_ALL=C

tools=(
    gcc libc6-dev make dpkg-dev bzip2         # packages
    cpio kmod squashfs-tools zstd             # image: initramfs and root
    dosfstools fdisk mtools systemd-boot-efi  # image: partitions and boot loader, without loop mounts
    qemu-utils                                # vms
)
case $RAILYARD_ARCH in # test
amd64) tools+=(qemu-system-x86 ovmf) ;;
arm64) tools+=(qemu-system-arm) ;;
esac

stage "fetching the package index"
apt-get -qq update

stage "installing ${tools[*]}"
apt-get -qq install -y "${tools[@]}" 2>apt.log |
    awk '/^Setting up/ && ++n % 20 == 0 { print n " packages set up"; fflush() }' ||
    { cat apt.log >&2; exit 1; }
# The package index stays: the next steps fetch sources and a kernel with it, of the same day as these tools.
apt-get clean

dpkg-query -W >sdk-container-packages.txt
stage "$(gcc --version | sed -n 1p), $(qemu-img --version | sed -n 1p)"
