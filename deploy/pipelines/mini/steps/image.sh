#!/bin/bash
# Makes the bootable image out of the board's root that the packages step left in /build/root:
#
#   mini.raw       GPT disk: an EFI system partition (systemd-boot, kernel, initrd) and the root partition
#   vmlinuz, initrd.cpio.zst   the same kernel and initrd, for direct boot
#   root.squashfs  the root partition alone
#   version.txt, packages.txt, files.txt, cmdline.txt   what is in it
#
# Partitions are made as files and put at their place in the disk: no loop device, no mount, no privileges.
set -euo pipefail
stage() { echo "==> $*"; }
export LC_ALL=C
# shellcheck source=/dev/null
. /build/info
# shellcheck source=/dev/null
. /etc/mini-sdk-release
export SOURCE_DATE_EPOCH

case $RAILYARD_ARCH in
amd64)
    console=ttyS0 efi_name=BOOTX64.EFI sd_boot=systemd-bootx64.efi
    root_type=4f68bce3-e8cd-4db1-96e7-fbcaf984b709 # "Linux root (x86-64)" of the Discoverable Partitions Specification
    ;;
arm64)
    console=ttyAMA0 efi_name=BOOTAA64.EFI sd_boot=systemd-bootaa64.efi
    root_type=b921b045-1df0-41c3-af44-4c6f280d3fae # "Linux root (ARM64)"
    ;;
esac
cmdline="console=$console quiet loglevel=4 panic=10"

# Same inputs, same bytes: every time stamp is the source's.
date_all() { find "$1" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +; }
# A stable id for a thing of this version: a UUID from the hash of its name.
uuid_for() {
    printf %s "mini $RAILYARD_ARCH $RAILYARD_VERSION $1" | sha256sum |
        sed -E 's/^(.{8})(.{4}).(.{3}).(.{3})(.{12}).*/\1-\2-5\3-8\4-\5/'
}

mkdir out

stage "fetching the kernel"
meta=linux-image-cloud-$RAILYARD_ARCH
kernel_package=$(apt-cache depends "$meta" | awk '$1 == "Depends:" { print $2; exit }')
apt-get -qq download "$kernel_package"
dpkg-deb --fsys-tarfile "$kernel_package"_*.deb | tar -x ./boot ./lib/modules
release=$(basename lib/modules/*)
cp "boot/vmlinuz-$release" out/vmlinuz
stage "kernel $release"

stage "making the initramfs"
# What it takes to find a disk and mount the root: virtio for QEMU and most clouds, SCSI disks for the rest
# (NVMe is built in), and the root's file system.
wanted=(virtio_pci virtio_blk virtio_scsi sd_mod squashfs)
optional=(virtio_mmio ata_piix hv_storvsc vmw_pvscsi)
depmod -b . "$release"
initrd=$PWD/initrd
mkdir -p "$initrd"/{bin,dev,proc,sys,newroot,modules}
cp /build/root/usr/bin/busybox "$initrd/bin/"
# The modules lie flat, and `load` names them in the order in which they have to be inserted.
modules_for() { modprobe -d . -S "$release" --show-depends "$1" | awk '$1 == "insmod" { print $2 }'; }
{
    for module in "${wanted[@]}"; do modules_for "$module"; done
    for module in "${optional[@]}"; do modules_for "$module" 2>/dev/null || true; done
} | awk '!seen[$0]++' | while read -r path; do
    cp "$path" "$initrd/modules/"
    basename "$path"
done >"$initrd/modules/load"
cat >"$initrd/init" <<'END'
#!/bin/busybox sh
# Finds the partition named mini-root on any disk, and starts the system from it.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
while read -r module; do insmod "/modules/$module" 2>/dev/null; done </modules/load
tries=0
until uevent=$(grep -lx PARTNAME=mini-root /sys/class/block/*/uevent 2>/dev/null); do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || { echo "MINI-OS initrd: no partition named mini-root after a minute"; poweroff -f; }
    sleep 0.1
done
uevent=${uevent%%uevent*}
mount -t squashfs -o ro "/dev/$(basename "$uevent")" /newroot || { echo "MINI-OS initrd: cannot mount the root"; poweroff -f; }
for dir in dev proc sys; do mount -o move "/$dir" "/newroot/$dir"; done
exec switch_root /newroot /bin/init
END
chmod 0755 "$initrd/init"
date_all "$initrd"
(cd "$initrd" && find . -print0 | sort -z | cpio --quiet --null -o -H newc --reproducible -R 0:0) |
    zstd -q -T0 -9 -o out/initrd.cpio.zst

stage "making the root"
cp -a /build/root root
dpkg-query --admindir=root/var/lib/dpkg -W -f '${Package}\t${Version}\t${Architecture}\n' >out/packages.txt
printf '%s\t%s\t%s\n' "$kernel_package" "$(dpkg-deb -f "$kernel_package"_*.deb Version)" "$RAILYARD_ARCH" >>out/packages.txt
rm -rf root/var/*
cat >out/version.txt <<END
MINI_VERSION=$RAILYARD_VERSION
MINI_VERSION_ID=$RAILYARD_VERSION
MINI_BUILD_ID=$RAILYARD_BUILD
MINI_SDK_VERSION=$MINI_SDK_VERSION
MINI_ARCH=$RAILYARD_ARCH
MINI_KERNEL=$release
MINI_BUSYBOX=$BUSYBOX_VERSION
END
cp out/packages.txt out/version.txt root/usr/share/mini/
date_all root
mksquashfs root out/root.squashfs -quiet -no-progress -noappend -all-root -comp zstd -Xcompression-level 15
# Mode, size in bytes, path.
find root -mindepth 1 -printf '%M\t%s\t/%P\n' | sort -t "$(printf '\t')" -k 3 >out/files.txt

stage "making the EFI system partition"
printf '%s\n' "$cmdline" >out/cmdline.txt
mkdir -p esp/EFI/BOOT esp/loader/entries esp/mini
cp "/usr/lib/systemd/boot/efi/$sd_boot" "esp/EFI/BOOT/$efi_name"
cp out/vmlinuz esp/mini/vmlinuz
cp out/initrd.cpio.zst esp/mini/initrd
printf 'timeout 0\ndefault mini.conf\n' >esp/loader/loader.conf
cat >esp/loader/entries/mini.conf <<END
title   Mini OS
version $RAILYARD_VERSION
linux   /mini/vmlinuz
initrd  /mini/initrd
options $cmdline
END
date_all esp
esp_mib=$(($(du -sm --apparent-size esp | cut -f1) + 4))
[ $esp_mib -ge 34 ] || esp_mib=34 # FAT32 begins there, and firmware may read nothing smaller.
truncate -s "${esp_mib}M" esp.img
mkfs.vfat -F 32 -s 1 -n MINI-ESP -i "$(uuid_for esp-volume | cut -c1-8)" --invariant esp.img >/dev/null
mcopy -Q -m -s -i esp.img esp/* ::

stage "making the disk"
root_mib=$((($(stat -c %s out/root.squashfs) + 1048575) / 1048576))
# One MiB before the first partition, and one after the last for the backup table.
truncate -s "$((1 + esp_mib + root_mib + 1))M" out/mini.raw
sfdisk --quiet out/mini.raw <<END
label: gpt
label-id: $(uuid_for disk)
start=1MiB, size=${esp_mib}MiB, type=c12a7328-f81f-11d2-ba4b-00a0c93ec93b, uuid=$(uuid_for esp), name=mini-esp
size=${root_mib}MiB, type=$root_type, uuid=$(uuid_for root), name=mini-root
END
dd if=esp.img of=out/mini.raw bs=1M seek=1 conv=notrunc,sparse status=none
dd if=out/root.squashfs of=out/mini.raw bs=1M seek=$((1 + esp_mib)) conv=notrunc,sparse status=none

cat out/version.txt
ls -ls out
