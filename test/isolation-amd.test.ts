/**
 * VMMs on one AMD-Vi unit of which one means harm itself: it gives the host any device table entry and any command as its
 * guest's, over tables with anything in them. What its function reaches, and what the unit fetches for it, is what its own
 * system calls gave it.
 */
import { describe, expect, it } from "vitest";
import { ManualClock, Random } from "../src/base/clock.ts";
import { silent } from "../src/base/events.ts";
import { WorkQueue } from "../src/base/scheduler.ts";
import { gcr3Fields } from "../src/drivers/amdvi/gcr3-table.ts";
import { AmdNestedDomain } from "../src/drivers/amdvi/nested-domain.ts";
import { TestDevice } from "../src/guest/test-device.ts";
import { Vmm } from "../src/guest/vmm.ts";
import { InvalidatePages, Opcode } from "../src/hardware/amdvi/queue-spec.ts";
import { Dte, ExtendedFeature, Gcr3Entry } from "../src/hardware/amdvi/spec.ts";
import { parseDevice, parseMachine, withDevices } from "../src/machine/file.ts";
import { Machine } from "../src/machine/machine.ts";
import { PRESETS } from "../src/machine/presets.ts";
import { LinuxError } from "../src/uapi/errno.ts";
import { AmdNested } from "../src/viommu/amdvi/nested.ts";
import { lie } from "./support/lie.ts";
import { Witness } from "./support/witness.ts";

const PAGE = 4096;
const RAM_BYTES = 2 * 2 ** 20;
const FUNCTIONS = ["0000:70:00.0", "0000:71:00.0"] as const;
const RID = 8;
const INTERRUPTS = { start: 0xfee0_0000, end: 0xfef0_0000 };
/** In the memory of each guest: a GCR3 table, a page table of which every entry is that table, and a page. */
const [GCR3, TABLE, DATA] = [0x1000, 0x2000, 0x3000];
const ADDRESSES = [0, DATA, 0x5555_0000_0000, 0x1_2345_6000];

const STANDARD = { V: true, TV: true, IR: true, IW: true, GV: true, GIOV: true, DOMAIN: 3 };

class Host {
  readonly random = new Random(1);
  readonly witness = new Witness({ functions: INTERRUPTS, units: INTERRUPTS });
  readonly work = new WorkQueue();
  readonly machine: Machine;
  readonly vmms: readonly [Vmm, Vmm];

  constructor() {
    const text = `${PRESETS.get("amd")!}extensions: [amd-nesting]\n`;
    const devices = FUNCTIONS.map((at) => parseDevice(`test@${at}`));
    const { witness, work } = this;
    this.machine = new Machine(withDevices(parseMachine(text, "amd"), devices), {
      ...{ events: silent, clock: new ManualClock(), scheduler: work },
      unitMemory: witness.unitMemory,
    });
    witness.watch(this.machine);
    const [first, second] = FUNCTIONS.map((at) => this.#boot(at));
    this.vmms = [first!, second!];
  }

  #boot(at: string): Vmm {
    const vmm = new Vmm({
      ...{ host: this.machine, name: at, ramBytes: RAM_BYTES, events: silent, addressWidth: 46 },
      ...{ scheduler: this.work, follow: "nested" as const },
      devices: [{ path: this.machine.vfio.deviceNodes.get(at)!.path, rid: RID }],
    });
    this.witness.owns(vmm.task, vmm.ram.va, RAM_BYTES);
    const root = Gcr3Entry.make({ V: true, ADDR: TABLE });
    for (let at = 0; at < PAGE; at += 8) {
      vmm.memory.store64(GCR3 + at, Number(root), 0);
      // Present, writable, for users: a table, and at the last level a page.
      vmm.memory.store64(TABLE + at, TABLE | 0x67, 0);
    }
    return vmm;
  }

  /** Where a guest's memory is on the host. */
  base({ task, ram }: Vmm): number {
    return task.memory.physical(ram.va);
  }

  /** The function works under the entry; the errno when the host does not take it. */
  under(vmm: Vmm, entry: bigint): string | undefined {
    const { calls } = vmm;
    const [requester] = vmm.devices;
    try {
      const hwpt = calls.allocateGuestEntry(requester!.id, viommuOf(vmm), entry, undefined);
      calls.attach(requester!.fd, hwpt);
      this.#dma(vmm);
      calls.detach(requester!.fd);
      calls.destroy(hwpt);
      return undefined;
    } catch (error) {
      if (error instanceof LinuxError) return error.code;
      throw error;
    }
  }

  #dma(vmm: Vmm): void {
    const device = new TestDevice(vmm.devices[0]!);
    for (const pasid of [undefined, 1]) {
      const address = ADDRESSES[this.random.below(ADDRESSES.length)]! + this.random.below(PAGE);
      if (this.random.below(2) === 0) device.store(address, 16, pasid);
      else device.fetch(address, 16, pasid);
      this.work.run();
    }
  }

  close(): readonly string[] {
    for (const vmm of this.vmms) vmm.exit();
    this.work.run();
    this.witness.stop();
    expect(Object.entries(this.machine.live()).filter(([, count]) => count !== 0)).toEqual([]);
    this.machine.close();
    return this.witness.objections;
  }
}

const viommuOf = ({ backEnd }: Vmm): number => {
  if (!(backEnd instanceof AmdNested)) throw new TypeError("the host nests");
  return backEnd.viommus[0]!;
};

describe("VMMs on one AMD-Vi unit, judged on every access and every fetch by their system calls alone", () => {
  it("reach nothing by a device table entry of any kind; the host takes those that are a guest's to ask for", () => {
    const host = new Host();
    const [evil, other] = host.vmms;
    const { efr } = evil.devices[0]!.info.amd!;
    const fiveLevels = ExtendedFeature.fields.GATS.of(efr) > 0n;
    const f = Dte.fields;
    const expected = (entry: bigint): string | undefined => {
      const of = (field: { of(value: bigint): bigint }) => Number(field.of(entry));
      const root = f.GCR3_TRP_14.of(entry) | f.GCR3_TRP_30.of(entry) | f.GCR3_TRP_51.of(entry);
      if (of(f.MODE) || f.HOST_TRP.of(entry) || of(f.GLX) === 3 || of(f.GUEST_PAGING_MODE) > 1)
        return "EINVAL";
      if (of(f.V) && of(f.GV) && root === 0n) return "EINVAL";
      return of(f.GUEST_PAGING_MODE) === 1 && !fiveLevels ? "EOPNOTSUPP" : undefined;
    };
    const judge = (entry: bigint): void => {
      expect(host.under(evil, entry), Dte.print(entry)).toBe(expected(entry));
    };
    const places = [0, GCR3, host.base(evil) + GCR3, host.base(other) + GCR3, 2 ** 40];
    for (const place of places)
      for (let levels = 0; levels < 4; levels++)
        for (let flags = 0; flags < 32; flags++)
          judge(
            Dte.make({
              ...{ ...STANDARD, ...gcr3Fields(BigInt(place)), GLX: levels, GUEST_PAGING_MODE: levels & 1 },
              ...{ V: flags & 1, TV: (flags >> 1) & 1, GV: (flags >> 2) & 1, GIOV: (flags >> 3) & 1 },
              I: (flags >> 4) & 1,
            }),
          );
    const entry = Dte.make({ ...STANDARD, ...gcr3Fields(BigInt(GCR3)) });
    for (let bit = 0n; bit < 256n; bit++) judge(entry ^ (1n << bit));
    for (const root of places) judge(entry | f.HOST_TRP.put(BigInt(root)) | f.MODE.put(3n));
    expect(host.witness.seen.moved).toBeGreaterThan(100);
    expect(host.witness.seen.tables).toBeGreaterThan(500);
    expect(host.close()).toEqual([]);
  });

  it("stop nothing and reach nothing by any command", () => {
    const host = new Host();
    const [evil, other] = host.vmms;
    const { random } = host;
    const entry = Dte.make({ ...STANDARD, ...gcr3Fields(BigInt(GCR3)) });
    let taken = 0;
    for (let round = 0; round < 400; round++) {
      const any = [0, 32, 64, 96].reduce((all, at) => all | (BigInt(random.next()) << BigInt(at)), 0n);
      const opcodes = [...Object.values(Opcode), random.below(16)];
      const opcode = BigInt(opcodes[random.below(opcodes.length)]!) << 60n;
      const reserved = random.below(4) === 0 ? 0n : InvalidatePages.reserved | (0xfn << 60n);
      const guests = random.below(2) === 0 ? InvalidatePages.fields.GN.put(1n) : 0n;
      const { done, error } = evil.calls.commandAmd(viommuOf(evil), [(any & ~reserved) | opcode | guests]);
      expect([done, error?.code]).toEqual(error ? [0, "EINVAL"] : [1, undefined]);
      taken += done;
      if (round % 40 === 0) for (const vmm of [evil, other]) expect(host.under(vmm, entry)).toBeUndefined();
    }
    expect(taken).toBeGreaterThan(20);
    expect(host.close()).toEqual([]);
  });

  it("a host that leaves out its own tables below a guest's is found out", () => {
    const undo = lie(AmdNestedDomain, "fields", (is) => ({ ...is, ...(is.GV && { MODE: 0, HOST_TRP: 0 }) }));
    try {
      const host = new Host();
      const [evil, other] = host.vmms;
      host.under(evil, Dte.make({ ...STANDARD, ...gcr3Fields(BigInt(host.base(other) + GCR3)) }));
      expect(host.close()).not.toEqual([]);
    } finally {
      undo();
    }
  });
});
