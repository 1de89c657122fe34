/**
 * A guest whose software means harm: registers, device table entries, GCR3 and page tables and commands with anything in
 * them, on a host that nests and by copies. Its VMM goes on, and leaves nothing on the host.
 */
import fc from "fast-check";
import { expect, it } from "vitest";
import { GUEST_RIDS, GuestRig } from "../../../test/support/guest-rig.ts";
import { gcr3Fields } from "../../drivers/amdvi/gcr3-table.ts";
import { Command, ENTRY_BYTES, Opcode } from "../../hardware/amdvi/queue-spec.ts";
import { ControlRegister, Dte, Gcr3Entry, Register, RingBase, Status } from "../../hardware/amdvi/spec.ts";

const [TABLE, COMMANDS, EVENTS, PPRS, GCR3, PAGES] = [
  0x10_0000, 0x20_0000, 0x20_1000, 0x20_2000, 0x20_3000, 0x20_4000,
];
const RING_LG2 = 8;
const ON = ControlRegister.make({
  ...{ IOMMU_EN: true, EVENT_LOG_EN: true, CMD_BUF_EN: true, GT_EN: true, PPR_LOG_EN: true, PPR_EN: true },
});

/** Where things are, where nothing is, and anything else. */
const words = fc.oneof(
  fc.constantFrom(0n, GCR3, PAGES, TABLE, COMMANDS, 2 ** 24, 2 ** 45).map((at) => BigInt(at) | 0x7n),
  fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
);
const bits = fc.integer({ min: 0, max: 255 });
const steps = fc.oneof(
  fc.record({ what: fc.constant("register" as const), at: fc.nat(0x2100), value: words }),
  fc.record({
    what: fc.constant("entry" as const),
    rid: fc.constantFrom(...GUEST_RIDS, 0x18),
    flip: fc.array(bits, { maxLength: 3 }),
  }),
  fc.record({ what: fc.constant("table" as const), at: fc.nat(2 * 512 - 1), value: words }),
  fc.record({
    what: fc.constant("command" as const),
    opcode: fc.oneof(fc.constantFrom(...Object.values(Opcode)), fc.nat(15)),
    low: words,
    high: words,
  }),
  fc.record({ what: fc.constant("dma" as const), device: fc.nat(1), at: words }),
);
type Step = typeof steps extends fc.Arbitrary<infer T> ? T : never;

class Attack {
  readonly rig: GuestRig;
  #tail = 0;

  constructor(follow: "nested" | "shadow") {
    const edit = (text: string): string => `${text}extensions: [amd-nesting]\n`;
    this.rig = new GuestRig("amd", follow, { edit, shows: "amdvi" });
    for (const rid of GUEST_RIDS) this.#entry(rid, []);
    this.#store(GCR3, Gcr3Entry.make({ V: true, ADDR: PAGES }));
    this.#store(PAGES, BigInt(PAGES) | 7n);
    this.#on();
    // The tables are followed: what is tried is not refused as a whole.
    expect(this.#fetched(0, 0)).toBe("done");
  }

  #fetched(index: number, at: number): string {
    const device = this.rig.devices[index]!;
    device.fetch(at, 8);
    return this.rig.settle(device);
  }
  #set(register: number, value: bigint): void {
    this.rig.vmm.iommu.mmioWrite(register, 8, value);
  }
  #on(): void {
    const ring = (at: number): bigint => RingBase.make({ BASE: at, LEN: RING_LG2 });
    this.#set(Register.DEVTAB_BASE, BigInt(TABLE));
    this.#set(Register.CMDBUF_BASE, ring(COMMANDS));
    this.#set(Register.EVTLOG_BASE, ring(EVENTS));
    this.#set(Register.PPRLOG_BASE, ring(PPRS));
    this.#set(Register.CONTROL, 0n);
    this.#set(Register.CONTROL, ON);
    this.#tail = 0;
  }
  #store(at: number, value: bigint): void {
    this.rig.vmm.memory.store64(at, Number(value & 0xffff_ffffn), Number(value >> 32n));
  }
  #entry(rid: number, flip: readonly number[]): void {
    const bytes = new Uint8Array(Dte.bytes);
    const tables = { GV: true, GIOV: true, ...gcr3Fields(BigInt(GCR3)) };
    const entry = Dte.make({ V: true, TV: true, IR: true, IW: true, DOMAIN: 3, ...tables });
    Dte.write(
      bytes,
      flip.reduce((value, bit) => value ^ (1n << BigInt(bit)), entry),
    );
    this.rig.vmm.memory.writeBytes(TABLE + rid * Dte.bytes, bytes);
  }

  do(step: Step): void {
    switch (step.what) {
      case "register":
        this.#set(step.at - (step.at % 8), step.value);
        this.#on();
        return;
      case "entry":
        this.#entry(step.rid, step.flip);
        return;
      case "table":
        this.#store(GCR3 + 8 * step.at, step.value);
        return;
      case "command":
        this.#command(step.opcode, step.low, step.high);
        return;
      case "dma":
        expect(["done", "fault", "refused"]).toContain(
          this.#fetched(step.device, Number(BigInt.asUintN(52, step.at))),
        );
    }
  }

  #command(opcode: number, low: bigint, high: bigint): void {
    const { OPCODE } = Command.fields;
    const bytes = new Uint8Array(ENTRY_BYTES);
    const command = ((high << 64n) | low) & ~OPCODE.put(15n);
    Command.write(bytes, command | OPCODE.put(BigInt(opcode)));
    this.rig.vmm.memory.writeBytes(COMMANDS + this.#tail, bytes);
    this.#tail = (this.#tail + ENTRY_BYTES) % (ENTRY_BYTES * 2 ** RING_LG2);
    this.#set(Register.CMDBUF_TAIL, BigInt(this.#tail));
    const status = Number(this.rig.vmm.iommu.mmioRead(Register.STATUS, 8));
    if ((status & Status.CMD_BUF_RUN) === 0) this.#on();
  }
}

it.each(["nested", "shadow"] as const)(
  "%s: whatever the guest does, its VMM goes on and leaves nothing",
  (follow) => {
    fc.assert(
      fc.property(fc.array(steps, { minLength: 1, maxLength: 30 }), (program) => {
        const attack = new Attack(follow);
        for (const step of program) attack.do(step);
        expect(attack.rig.close()).toEqual({});
      }),
      { numRuns: 8 },
    );
  },
);
