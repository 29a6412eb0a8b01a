#!/bin/bash
# Converts the disk image into FORMAT.
set -euo pipefail

options=()
: "${FORMAT:?}"
case $FORMAT in
qcow2) format=qcow2 options=(-c) ;;
vmdk) format=vmdk options=(-o subformat=streamOptimized) ;;           # the kind that OVA and the ESX importers take
vhd) format=vpc options=(-o subformat=fixed -o force_size=on) ;; # Azure takes fixed disks of whole MiB only
*) echo "unknown format $FORMAT" >&2; exit 1 ;;
esac

mkdir out
echo "==> converting to $FORMAT"
qemu-img convert -f raw -O "$format" "${options[@]}" /inputs/image/out/mini.raw "out/mini.$FORMAT"
qemu-img info -f "$format" "out/mini.$FORMAT"
echo "==> comparing with the disk image"
# A format may round the disk up; the rest must then be empty, which is what compare checks without -s.
qemu-img compare -f raw -F "$format" /inputs/image/out/mini.raw "out/mini.$FORMAT"
