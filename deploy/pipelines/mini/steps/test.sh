#!/bin/bash
# Boots what was built in QEMU and looks around in it through the serial console, as a user would:
#   direct   kernel and initrd given to QEMU, the root from mini.raw
#   uefi     mini.qcow2 alone, through firmware and boot loader (amd64 only: see below)
# Leaves test-*.tap and console-*.log, and fails if any check failed.
set -euo pipefail
stage() { echo "==> $*"; }

image=/inputs/image/out
disk_qcow2=/inputs/vms/qcow2/out/mini.qcow2
# shellcheck source=/dev/null
. $image/version.txt

case $RAILYARD_ARCH in
amd64) machine=(qemu-system-x86_64 -machine q35) cpu=x86_64 kvm_cpu=qemu64 tcg_cpu=qemu64 ;;
arm64) machine=(qemu-system-aarch64 -machine virt) cpu=aarch64 kvm_cpu=host tcg_cpu=cortex-a57 ;;
esac
machine+=(-m 256 -smp 1 -nodefaults -no-user-config -display none -serial stdio -no-reboot)

# How long until the system is up, and from the request to power off to the end. KVM takes two seconds; where it
# has not got there after fifteen, emulation is the better hope, and that may itself be emulated, so it gets long.
use_kvm() { machine_accel=(-accel kvm -cpu "$kvm_cpu") boot_secs=15 off_secs=60; }
use_tcg() { machine_accel=(-accel tcg -cpu "$tcg_cpu") boot_secs=600 off_secs=120; }
if [ -w /dev/kvm ]; then use_kvm; else use_tcg; fi

count=0 failed=0
# check WHAT COMMAND…: one line of TAP.
check() {
    local what=$1 result=ok
    shift
    if ! "$@"; then
        result="not ok"
        failed=$((failed + 1))
    fi
    count=$((count + 1))
    echo "$result $count - $what" | tee -a "$tap"
}
not() { ! "$@"; }
says() { grep -qE "$1" "$console"; }

# start NAME QEMU-ARGUMENTS…: boots until the console says that the system is up (up=yes) or there is no hope.
start() {
    local name=$1 started=$SECONDS
    shift
    up=no
    : >"$name.raw"
    rm -f "$name.keys"
    mkfifo "$name.keys"
    exec 3<>"$name.keys" # Open at both ends, or QEMU would see the end of its input.
    timeout --kill-after=10 $((boot_secs + off_secs)) "${machine[@]}" "${machine_accel[@]}" "$@" \
        <"$name.keys" >"$name.raw" 2>"$name.err" &
    qemu=$!
    while kill -0 $qemu 2>/dev/null && [ $((SECONDS - started)) -lt $boot_secs ]; do
        if grep -q '^MINI-OS .* is up' "$name.raw"; then
            up=yes
            break
        fi
        ! grep -q '^KVM internal error' "$name.err" || break # QEMU would stand still, and wait for a debugger.
        sleep 0.2
    done
    stage "$name: ${machine_accel[1]}, up=$up after $((SECONDS - started)) s"
}

# prompts N: waits for the shell's Nth prompt. Typing ahead of it would mix the echo into the answers.
prompts() {
    local deadline=$((SECONDS + off_secs))
    until [ "$(grep -c '^/ # ' "$name.raw")" -ge "$1" ]; do
        kill -0 $qemu 2>/dev/null && [ $SECONDS -lt $deadline ] || return 1
        sleep 0.2
    done
}

# Asks one question at each prompt and powers off at the last. A question that cannot be asked has no answer, and so
# fails its check.
ask() {
    local n=0 question
    while IFS= read -r question; do
        n=$((n + 1))
        prompts $n || return 0
        echo "$question" >&3
    done <<'END'
echo "ANSWER pid1 $(readlink -f /proc/1/exe)"
echo "ANSWER busybox $(busybox | head -n 1)"
echo "ANSWER mount $(grep ' / squashfs ' /proc/mounts)"
echo "ANSWER write $(touch /x 2>&1)"
echo "ANSWER sum $(sha256sum < /usr/share/mini/version.txt)"
poweroff
END
}

# stop NAME: ends the machine, one way or the other; its exit status is in `status`.
stop() {
    status=0
    if [ $up = yes ]; then ask; else kill $qemu 2>/dev/null || true; fi
    wait $qemu || status=$?
    exec 3>&-
    # The console ends lines with CR LF; the CR would stand between a pattern and its $.
    tr -d '\r' <"$1.raw" >"$console"
    [ $up = yes ] || cat "$console" "$1.err"
}

# boot NAME QEMU-ARGUMENTS…: the whole test of one way to boot.
boot() {
    local name=$1
    stage "booting: $name"
    tap=test-$name.tap console=console-$name.log count=0
    : >"$tap"
    start "$@"
    stop "$name"
    # A /dev/kvm may be there and be of no use, for instance inside a virtual machine. That is not the image's fault.
    if [ $up = no ] && [ "${machine_accel[1]}" = kvm ]; then
        stage "$name: KVM did not get there, so again without it"
        use_tcg
        start "$@"
        stop "$name"
    fi

    check "$name: the console says that $MINI_VERSION is up" says "^MINI-OS ${MINI_VERSION//[.+]/\\&} is up, root "
    check "$name: the kernel is $MINI_KERNEL on $cpu" says "^MINI-OS .* Linux $MINI_KERNEL $cpu\$"
    check "$name: process 1 is busybox" says '^ANSWER pid1 /usr/bin/busybox$'
    check "$name: busybox is the one built" says "^ANSWER busybox BusyBox v$busybox_upstream "
    check "$name: the root is a squashfs, mounted read-only" says '^ANSWER mount /dev/[^ ]+ / squashfs ro[, ]'
    check "$name: the root takes no writes" says '^ANSWER write .*Read-only file system'
    check "$name: version.txt in the root is the one published" says "^ANSWER sum $(sha256sum <$image/version.txt | cut -d' ' -f1)"
    check "$name: powered off when asked to" test "$up $status" = "yes 0"
    check "$name: the kernel did not panic" not says 'Kernel panic'
    echo "1..$count" >>"$tap"
}
# 1:1.35.0-4+deb12u1 → 1.35.0
busybox_upstream=${MINI_BUSYBOX#*:}
busybox_upstream=${busybox_upstream%%-*}

boot direct -kernel $image/vmlinuz -initrd $image/initrd.cpio.zst -append "$(cat $image/cmdline.txt)" \
    -drive "file=$image/mini.raw,format=raw,if=none,id=disk,snapshot=on" -device virtio-blk-pci,drive=disk

# Debian's UEFI firmware for arm64 unpacks to 264 MB, and its boot takes minutes where arm64 is emulated.
if [ "$RAILYARD_ARCH" = amd64 ]; then
    cp /usr/share/OVMF/OVMF_VARS_4M.fd vars.fd
    boot uefi -drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd \
        -drive if=pflash,format=raw,file=vars.fd \
        -drive "file=$disk_qcow2,format=qcow2,if=none,id=disk,snapshot=on" -device virtio-blk-pci,drive=disk
fi

stage "$failed checks failed"
[ "$failed" -eq 0 ]
