#!/bin/sh
# Makes dist-guest/: the kernel and the first files of the guest that test/qemu-system.test.ts boots. The kernel is
# Debian's for virtual machines (its NVMe driver is built in) and the guest's programs are its busybox; both are
# unpacked, nothing is installed. What is there already is kept; remove the folder for a newer kernel.
set -eu
cd "$(dirname "$0")/.."
kernel=linux-image-cloud-amd64
folder=$PWD/dist-guest

if [ ! -f "$folder/vmlinuz" ] || [ ! -x "$folder/busybox" ]; then
    for program in apt-get apt-cache dpkg; do
        command -v $program >/dev/null || { echo "guest.sh: $program is needed, of Debian or a relative of it" >&2; exit 1; }
    done
    unpacked=$(mktemp -d)
    trap 'rm -rf "$unpacked"' EXIT
    # The package of that name only names the newest kernel.
    image=$(apt-cache depends $kernel | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    [ -n "$image" ] || { echo "guest.sh: there is no package $kernel; apt-get update may help" >&2; exit 1; }
    (cd "$unpacked" && apt-get download -qq "$image" busybox-static 2>/dev/null &&
        for package in *.deb; do dpkg -x "$package" .; done)
    mkdir -p "$folder"
    cp "$unpacked"/bin/busybox "$folder/busybox" 2>/dev/null || cp "$unpacked"/usr/bin/busybox "$folder/busybox"
    cp "$unpacked"/boot/vmlinuz-* "$folder/vmlinuz"
    echo "$image" >"$folder/kernel"
fi

root=$(mktemp -d)
trap 'rm -rf "$root" "${unpacked:-$root}"' EXIT
mkdir "$root/bin" "$root/proc" "$root/sys" "$root/dev"
cp "$folder/busybox" "$root/bin/"
install -m 755 test/guest/init "$root/init"
(cd "$root" && find . | "$folder/busybox" cpio -o -H newc 2>/dev/null) | gzip -1 >"$folder/initrd.gz.$$"
mv "$folder/initrd.gz.$$" "$folder/initrd.gz"
