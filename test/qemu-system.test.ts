/**
 * QEMU's system emulator, unmodified, boots a guest whose NVMe disk is a function of the machine (vfio-pci). The
 * guest's kernel is Debian's; what it does is `test/guest/init`, whose verdict is checked, and what it read and
 * wrote against the disk's file on this side.
 */
import { spawnSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { chmodSync, existsSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { PRESETS } from "../src/machine/presets.ts";
import { exec, installed, type Outcome, ROOT, SOFTIOMMU, scratch } from "./support/run.ts";

const QEMU = "qemu-system-x86_64";
const FOLDER = join(ROOT, "dist-guest");
const MEBIBYTE = 1 << 20;

const hasEmulator = installed(QEMU);
const hasGuest = existsSync(join(FOLDER, "vmlinuz"));
const hasIommufd =
  hasEmulator && spawnSync(QEMU, ["-object", "help"], { encoding: "utf8" }).stdout.includes("iommufd");
if (!hasEmulator)
  console.log("skipping guests of QEMU: install Debian's package qemu-system-x86 to run them");
else if (!hasGuest)
  console.log("skipping guests of QEMU: run scripts/guest.sh, which fetches a kernel for them");
else if (!hasIommufd)
  console.log(
    "skipping a guest through -object iommufd: this QEMU does not have it (8.2 is the first that does)",
  );

const isRoot = process.getuid?.() === 0;
/** Starts a command as a user with no rights at all. */
const UNPRIVILEGED = isRoot
  ? "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all".split(" ")
  : "setpriv --no-new-privs".split(" ");

interface Guest {
  readonly preset: string;
  /** Of the disk, in the machine file. */
  readonly mmap?: boolean;
  /** Arguments of QEMU: the device, and what must come before it. */
  readonly devices: readonly string[];
  /** Of the guest's kernel. */
  readonly parameters?: readonly string[];
  /** Who starts softiommu; by default us. */
  readonly as?: readonly string[];
  /** Its programs lock memory as root does. */
  readonly privileged?: boolean;
}

const hash = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

/** What the guest said of a name, once or more often. */
const said = (stdout: string, name: string): string[] =>
  [...stdout.matchAll(/guest: (\S+) (.*?)\r?$/gm)].flatMap(([, key, value]) =>
    key === name ? [value!] : [],
  );

describe.skipIf(!hasEmulator || !hasGuest)("a guest of QEMU with a passed NVMe disk", () => {
  let folder: string;
  beforeAll(() => {
    const made = spawnSync(join(ROOT, "scripts/guest.sh"), { encoding: "utf8" });
    expect(made).toMatchObject({ status: 0, stderr: "" });
    folder = scratch();
    chmodSync(folder, 0o777);
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  const disk = (): string => join(folder, "disk.img");

  const boot = (guest: Guest): Promise<Outcome> => {
    const { preset, mmap = true, devices, parameters = [], as = [], privileged = true } = guest;
    const machine = join(folder, "machine.yaml");
    const controller = `  - model: nvme\n    at: 0000:01:00.0\n`;
    const ours = `${controller}    file: ${disk()}\n    mmap: ${mmap}\n`;
    const text = PRESETS.get(preset)!.replace(controller, ours);
    expect(text).toContain(ours);
    writeFileSync(machine, privileged ? `privileges: root\n${text}` : text);
    const append = ["console=ttyS0", "panic=-1", "quiet", ...parameters].join(" ");
    const emulator = [
      QEMU,
      "-accel",
      "tcg",
      "-m",
      "128",
      "-smp",
      "2",
      "-nographic",
      "-no-reboot",
      "-nodefaults",
    ];
    const kernel = [
      "-kernel",
      join(FOLDER, "vmlinuz"),
      "-initrd",
      join(FOLDER, "initrd.gz"),
      "-append",
      append,
    ];
    const run = [process.execPath, SOFTIOMMU, "run", "--machine", machine, "--explain", "--"];
    const all = [...as, ...run, ...emulator, "-serial", "stdio", ...kernel, ...devices];
    return exec(all[0]!, all.slice(1));
  };

  const seeded = (): Uint8Array => {
    const bytes = randomBytes(MEBIBYTE);
    writeFileSync(disk(), bytes);
    truncateSync(disk(), 1024 * MEBIBYTE);
    chmodSync(disk(), 0o666);
    return bytes;
  };

  const works = async (guest: Guest): Promise<Outcome> => {
    const ours = seeded();
    const outcome = await boot(guest);
    const { stdout, stderr, status } = outcome;
    expect(said(stdout, "verdict"), `${stdout}\n${stderr}`).toEqual(["good"]);
    expect(status).toBe(0);
    for (const step of ["written", "controller-reset", "function-reset", "driver-again"])
      expect(said(stdout, step), step).toEqual(["same"]);
    expect(said(stdout, "model")).toEqual(["softiommu NVMe controller"]);
    expect(said(stdout, "hosts")).toEqual([hash(ours)]);
    const written = readFileSync(disk()).subarray(MEBIBYTE, 5 * MEBIBYTE);
    expect(said(stdout, "guests")).toEqual([hash(written)]);
    expect(stderr).toMatch(/ DMA accesses \([\d.]+ MiB\), 0 refused/);
    expect(stderr).not.toContain("internal error");
    // iommufd maps no registers by their address, on Linux either.
    if (!guest.devices.includes("iommufd,id=i")) expect(stderr).not.toContain("Bad address");
    return outcome;
  };

  const vectors = ({ stdout }: Outcome): number[] =>
    [0, 1, 2].map((queue) => Number(said(stdout, `nvme0q${queue}`)[0]));

  it("writes and reads through a group, with an MSI-X vector for each queue, through resets and a new driver", async () => {
    const outcome = await works({ preset: "vtd", devices: ["-device", "vfio-pci,host=0000:01:00.0"] });
    expect(said(outcome.stdout, "interrupts")).toEqual(["msix"]);
    for (const count of vectors(outcome)) expect(count).toBeGreaterThan(0);
  });

  it("does so on an Arm host, with INTx and without mapped registers", async () => {
    const outcome = await works({
      preset: "smmuv3",
      mmap: false,
      parameters: ["pci=nomsi"],
      devices: ["-device", "vfio-pci,host=0000:01:00.0"],
    });
    expect(said(outcome.stdout, "interrupts")).toEqual(["intx"]);
    // One line serves all queues; it has the name of the last.
    expect(vectors(outcome)[1]).toBeGreaterThan(0);
  });

  it("does so for an ordinary user, and with an IOMMU of its own", async () => {
    const outcome = await works({
      preset: "vtd-legacy",
      as: UNPRIVILEGED,
      parameters: ["intel_iommu=on"],
      devices: [
        ..."-machine q35 -device intel-iommu,caching-mode=on,intremap=off".split(" "),
        ..."-device vfio-pci,host=0000:01:00.0".split(" "),
      ],
    });
    for (const count of vectors(outcome)) expect(count).toBeGreaterThan(0);
  });

  it.skipIf(!hasIommufd)("does so through iommufd", async () => {
    const outcome = await works({
      preset: "vtd",
      devices: "-object iommufd,id=i -device vfio-pci,host=0000:01:00.0,iommufd=i".split(" "),
    });
    for (const count of vectors(outcome)) expect(count).toBeGreaterThan(0);
  });

  it("is not started where its memory cannot be locked, and is told which limit that is", async () => {
    seeded();
    const { status, stderr } = await boot({
      preset: "vtd",
      as: [...UNPRIVILEGED, "prlimit", "--memlock=8388608:8388608"],
      privileged: false,
      devices: ["-device", "vfio-pci,host=0000:01:00.0"],
    });
    expect(status).toBe(1);
    expect(stderr).toMatch(/VFIO_IOMMU_MAP_DMA .* ENOMEM: .* beyond RLIMIT_MEMLOCK \(2048 pages\)/);
  });
});
