/**
 * What devices reach of a guest's memory while it is made private and shared, against what a literal reading says: by how the
 * VMM maps it, and however much the unit remembers.
 */
import fc from "fast-check";
import { expect, it } from "vitest";
import { GuestRig } from "../../test/support/guest-rig.ts";
import { SecureGuest } from "../guest/secure-guest.ts";
import type { MemoryMapping } from "../guest/virtual-unit.ts";
import { openNode } from "../guest/vmm-process.ts";
import { SnpCalls } from "../viommu/snp-calls.ts";

const PAGE = 4096;
/** Pages of 2 MiB. */
const PARTS = 512;
const MARK = "mark";

/** What the guest shares and takes back as a whole: first page, and number of pages. */
const BUFFERS = [
  [3, 1],
  [16, 16],
  [PARTS, PARTS],
  [2 * PARTS, PARTS - 1],
  [3 * PARTS - 1, 1],
] as const;
/** In buffers, at their edges and beside them. */
const LOOKED = [
  0,
  3,
  4,
  15,
  16,
  31,
  32,
  PARTS - 1,
  PARTS,
  2 * PARTS - 1,
  2 * PARTS,
  3 * PARTS - 2,
  3 * PARTS - 1,
];

const steps = fc.array(
  fc.oneof(
    fc.record({ what: fc.constant("toggle" as const), buffer: fc.nat(BUFFERS.length - 1) }),
    fc.record({ what: fc.constantFrom("read" as const, "write" as const), page: fc.constantFrom(...LOOKED) }),
  ),
  { maxLength: 12 },
);

/** Whether devices may have the page: it is shared; and where it is mapped by a large leaf, so is all of the 2 MiB around. */
const reachable = (shared: ReadonlySet<number>, page: number, maps: MemoryMapping): boolean => {
  if (!shared.has(page)) return false;
  if (maps !== "whole") return true;
  const first = page - (page % PARTS);
  for (let part = 0; part < PARTS; part++) if (!shared.has(first + part)) return false;
  return true;
};

class Life {
  readonly rig: GuestRig;
  readonly secure: SecureGuest;
  readonly shared = new Set<number>();
  readonly #maps: MemoryMapping;

  constructor(maps: MemoryMapping, cache: string, deviceTlb: boolean) {
    const settings = `cache: ${cache}\n    device-tlb: ${deviceTlb}\n    host-levels:`;
    const edit = (text: string): string => text.replace("host-levels:", settings);
    this.rig = new GuestRig("snp", "shadow", { shows: "none", maps, edit });
    this.#maps = maps;
    const { vmm, machine } = this.rig;
    this.secure = new SecureGuest(
      vmm,
      new SnpCalls(vmm.task, openNode(vmm.task, machine, "/dev/softiommu-snp"), 1),
    );
  }

  /** The device has used the end of the buffer just before, so that the unit remembers what it may. */
  toggle(buffer: number): void {
    const [first, count] = BUFFERS[buffer]!;
    this.look(first + count - 1, false);
    const isShared = this.shared.has(first);
    if (isShared) this.secure.takeBack(first * PAGE, count * PAGE);
    else this.secure.share(first * PAGE, count * PAGE);
    for (let page = first; page < first + count; page++)
      if (isShared) this.shared.delete(page);
      else this.shared.add(page);
    this.look(first + count - 1, true);
  }

  look(page: number, writes: boolean): void {
    const { memory } = this.rig.vmm;
    const [device] = this.rig.devices;
    const at = page * PAGE;
    memory.writeBytes(at, Buffer.from(MARK));
    if (writes) {
      device!.write(Buffer.from("DMA!"));
      device!.store(at, MARK.length);
    } else device!.fetch(at, MARK.length);
    const found = new Uint8Array(MARK.length);
    const result = this.rig.settle(device!);
    memory.readBytes(at, found);
    const reaches = reachable(this.shared, page, this.#maps);
    expect(result).toBe(reaches ? "done" : "fault");
    expect(Buffer.from(found).toString()).toBe(writes && reaches ? "DMA!" : MARK);
  }
}

it.each([
  ["whole", "normal", false],
  ["whole", "paranoid", true],
  ["small", "normal", false],
  ["small", "normal", true],
  ["shared", "normal", true],
] as const)(
  "mapped as %s, cache %s, device TLBs %s: devices reach what is shared, and no more",
  (maps, cache, tlb) => {
    fc.assert(
      fc.property(steps, (program) => {
        const life = new Life(maps, cache, tlb);
        for (const step of program)
          if (step.what === "toggle") life.toggle(step.buffer);
          else life.look(step.page, step.what === "write");
        expect(life.rig.machine.live()["privatePages"]).toBe(
          life.rig.vmm.ram.bytes / PAGE - life.shared.size,
        );
        expect(life.rig.close()).toEqual({});
      }),
      { numRuns: 5 },
    );
  },
);
