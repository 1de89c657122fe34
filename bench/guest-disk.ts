/**
 * A disk as a guest of QEMU has it: its own driver on the NVMe model, passed through VFIO, beside the same guest on the
 * NVMe device that QEMU emulates. The guest is that of test/qemu-system.test.ts; without it, or without QEMU, there
 * are no rows.
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type BenchRow, median } from "./row.ts";

const QEMU = "qemu-system-x86_64";
/** From dist-bench/bench. */
const GUEST = fileURLToPath(new URL("../../dist-guest", import.meta.url));
/** Reads that the guest makes of each kind. */
const LARGE = 64;
const SMALL = 2000;
const DISK_BYTES = 2 ** 30;

interface Seconds {
  readonly large: number;
  readonly small: number;
}

const boot = (command: readonly string[], disk: readonly string[]): Seconds => {
  const machine = "-accel tcg -m 128 -nographic -no-reboot -nodefaults -serial stdio".split(" ");
  const kernel = ["-kernel", join(GUEST, "vmlinuz"), "-initrd", join(GUEST, "initrd.gz")];
  const append = ["-append", "console=ttyS0 panic=-1 quiet measure=1"];
  const [program, ...args] = [...command, QEMU, ...machine, ...kernel, ...append, ...disk];
  const { stdout, stderr } = spawnSync(program!, args, { encoding: "utf8", maxBuffer: 1 << 26 });
  const measured = (name: string): number => {
    const all = [...stdout.matchAll(new RegExp(`guest: ${name} ([\\d.]+)`, "g"))].map(([, text]) =>
      Number(text),
    );
    if (all.length === 0) throw new Error(`the guest did not say how long it took:\n${stdout}${stderr}`);
    return median(all);
  };
  return { large: measured("large"), small: measured("small") };
};

/** `softiommu` is the built command. */
export const guestDiskBench = async (softiommu: string): Promise<BenchRow[]> => {
  if (spawnSync("which", [QEMU]).status !== 0 || !existsSync(join(GUEST, "initrd.gz"))) return [];
  const folder = mkdtempSync(join(tmpdir(), "softiommu-bench-"));
  try {
    const file = join(folder, "disk.img");
    writeFileSync(file, "");
    truncateSync(file, DISK_BYTES);
    const passed = ["-device", "vfio-pci,host=0000:01:00.0"];
    const emulated = ["-drive", `file=${file},if=none,id=d,format=raw`, "-device", "nvme,serial=d,drive=d"];
    const ours = boot([process.execPath, softiommu, "run", "--"], passed);
    const baseline = boot([], emulated);
    const row = (name: string, what: keyof Seconds, count: number): BenchRow => ({
      name,
      ours: (ours[what] / count) * 1e6,
      baseline: (baseline[what] / count) * 1e6,
      unit: "µs",
      ratio: ours[what] / baseline[what],
    });
    return [
      row("guest's NVMe 1 MiB sequential read (against QEMU's own NVMe)", "large", LARGE),
      row("guest's NVMe 4 KiB sequential read (against QEMU's own NVMe)", "small", SMALL),
    ];
  } finally {
    rmSync(folder, { recursive: true });
  }
};
