/**
 * What the reverse map table costs: mapping, translations that have to walk, translations that are remembered, and accesses of
 * a device, on a host with secure nested paging against the same host without. Each host has processes of its own, in turns, so
 * that what is compiled for one is not compiled for both. And what a change of a page's state costs, against a mapping of it.
 */
import { execFileSync } from "node:child_process";
import { SecureGuest } from "../src/guest/secure-guest.ts";
import { openNode } from "../src/guest/vmm-process.ts";
import { Access, Transaction, TranslateStatus } from "../src/hardware/unit.ts";
import { SnpCalls } from "../src/viommu/snp-calls.ts";
import { GuestRig, RAM_BYTES } from "../test/support/guest-rig.ts";
import { elapsed } from "./measure.ts";
import { type BenchRow, median } from "./row.ts";

const PAGE = 4096;
const ROUNDS = 7;
const PROCESSES = 5;
const BYTES = 64;
const PAGES = RAM_BYTES / PAGE;
/** Requester id of the first function of the rig. */
const RID = 0x7e00;

type Host = "amd" | "snp";
/** Nanoseconds of each. */
type Figures = { readonly [what: string]: number };

const settled = (measure: () => number): number => {
  const figures = Array.from({ length: ROUNDS + 1 }, measure);
  return median(figures.slice(1)); // the first warms up
};

/** Translations of a VMM's guest memory, all of it mapped in pages of 4 KiB, page after page. */
const translations = (host: Host, cache: "none" | "normal", pages: number): number => {
  const rig = new GuestRig(host, "shadow", {
    shows: "none",
    maps: "small",
    edit: (text) => text.replace("host-levels: 6 ", `cache: ${cache}\n    host-levels: 6 `),
  });
  const { unit } = rig.machine.units.get("ivhd0")!;
  const transaction = new Transaction();
  transaction.rid = RID;
  transaction.access = Access.read;
  const count = 50_000;
  const each = settled(() =>
    elapsed(() => {
      for (let i = 0; i < count; i++) {
        transaction.lo = (i % pages) * PAGE;
        if (unit.translate(transaction) !== TranslateStatus.ok) throw new Error("a translation is refused");
      }
    }, count),
  );
  rig.close();
  return each;
};

/** A page mapped and unmapped by system calls, and reads of a device. */
const calls = (host: Host): Figures => {
  const rig = new GuestRig(host, "shadow", { shows: "none", maps: "shared" });
  const { sharing } = rig.vmm;
  const mapping = settled(() => {
    rig.takeCalls();
    return elapsed(() => {
      for (let i = 0; i < 500; i++) {
        sharing!.share(i * PAGE, PAGE);
        sharing!.takeBack(i * PAGE, PAGE);
      }
    }, 500);
  });
  sharing!.share(0, PAGE);
  const [device] = rig.devices;
  const reading = settled(() =>
    elapsed(() => {
      for (let i = 0; i < 500; i++) {
        device!.fetch(0, BYTES);
        if (rig.settle(device!) !== "done") throw new Error("the device's read ended otherwise");
      }
    }, 500),
  );
  rig.close();
  return { mapping, reading };
};

/** Pages of large ones made shared and private again. */
const states = (): number => {
  const rig = new GuestRig("snp", "shadow", { shows: "virtio", maps: "shared" });
  const fd = openNode(rig.vmm.task, rig.machine, "/dev/softiommu-snp");
  const secure = new SecureGuest(rig.vmm, new SnpCalls(rig.vmm.task, fd, 1));
  const each = settled(() =>
    elapsed(() => {
      for (let i = 0; i < 500; i++) {
        secure.share((i % PAGES) * PAGE, PAGE);
        secure.takeBack((i % PAGES) * PAGE, PAGE);
      }
    }, 500),
  );
  rig.close();
  return each;
};

/** In a process of its own. */
export const figuresOf = (host: Host): Figures => ({
  ...calls(host),
  walking: translations(host, "none", PAGES),
  remembered: translations(host, "normal", 64),
  ...(host === "snp" && { changing: states() }),
});

const apart = (host: Host): Figures => {
  const script = `const { figuresOf } = await import(${JSON.stringify(import.meta.url)});
    console.log(JSON.stringify(figuresOf(${JSON.stringify(host)})));`;
  const output = execFileSync(process.execPath, ["--input-type=module", "-e", script], { encoding: "utf8" });
  return JSON.parse(output) as Figures;
};

const NAMES: readonly (readonly [figure: string, name: string])[] = [
  ["mapping", "map + unmap of a page by ioctls, with the reverse map table against without"],
  ["walking", "translation by walking, with the reverse map table against without"],
  ["remembered", "translation that is remembered, with the reverse map table against without"],
  ["reading", "device reads 64 bytes, with the reverse map table against without"],
];

export const snpBench = (): BenchRow[] => {
  const turns = Array.from({ length: PROCESSES }, () => ({ snp: apart("snp"), amd: apart("amd") }));
  const middle = (host: Host, figure: string): number => median(turns.map((turn) => turn[host][figure]!));
  const row = (name: string, ours: number, baseline: number): BenchRow => ({
    ...{ name, ours, baseline, unit: "ns" },
    ratio: ours / baseline,
  });
  return [
    ...NAMES.map(([figure, name]) => row(name, middle("snp", figure), middle("amd", figure))),
    row(
      "share a page of a large one and take it back, against map + unmap of it",
      middle("snp", "changing"),
      middle("snp", "mapping"),
    ),
  ];
};
