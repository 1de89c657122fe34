/**
 * Guests on one SMMUv3 that put anything into their stream table entries, context descriptors, stage 1 tables and
 * commands: what their functions reach, and what the unit fetches for them, is what their owners' system calls gave them.
 */
import { describe, expect, it } from "vitest";
import { ManualClock, Random } from "../src/base/clock.ts";
import { silent } from "../src/base/events.ts";
import { WorkQueue } from "../src/base/scheduler.ts";
import { SmmuDomain } from "../src/drivers/smmuv3/domain.ts";
import { SmmuNestedDomain } from "../src/drivers/smmuv3/nested-domain.ts";
import { Opcode } from "../src/hardware/smmuv3/queue-spec.ts";
import { Cd, Config, Ste } from "../src/hardware/smmuv3/spec.ts";
import type { Break } from "../src/machine/breaks.ts";
import { parseMachine } from "../src/machine/file.ts";
import { Machine } from "../src/machine/machine.ts";
import { PRESETS } from "../src/machine/presets.ts";
import { LinuxError } from "../src/uapi/errno.ts";
import * as iommufd from "../src/uapi/iommufd.ts";
import { GUEST_STE_BITS } from "../src/uapi/vendor/smmuv3.ts";
import { ArmGuest, MEMORY, PAGE } from "./support/arm-guest.ts";
import { lie } from "./support/lie.ts";
import { Witness } from "./support/witness.ts";

const SECOND = "0000:09:00.0";
const FUNCTIONS = ["0000:03:00.0", SECOND] as const;
/** The unit's own messages: a function's go through the tables. */
const DOORBELL = { start: 0xfee0_0000, end: 0xfef0_0000 };
const ADDRESSES = [0x5000, 0x6000, 0x20_0000, 0x4000_0000, 0x12_3456_7000];
/** Pages in which a guest's tables and context descriptors are. */
const TABLE_PAGES = 16;

/** A machine with two test functions, each of which a guest has. */
class Host {
  readonly random: Random;
  readonly scheduler = new WorkQueue();
  readonly witness = new Witness({ units: DOORBELL });
  readonly machine: Machine;
  readonly tenants: readonly [Tenant, Tenant];

  constructor(seed: number, broken: ReadonlySet<Break> = new Set()) {
    this.random = new Random(seed);
    const preset = PRESETS.get("smmuv3")!.replaceAll("    can-stall: [0000:03:00.0]\n", "");
    this.machine = new Machine(parseMachine(`${preset}  - model: test\n    at: ${SECOND}\n`, "smmuv3"), {
      events: silent,
      clock: new ManualClock(),
      scheduler: this.scheduler,
      broken,
      unitMemory: this.witness.unitMemory,
    });
    this.witness.watch(this.machine);
    const names = [...this.machine.core.devices.keys()];
    const [first, second] = FUNCTIONS.map((name) => new Tenant(this, names.indexOf(name)));
    this.tenants = [first!, second!];
    first!.foreign = second!.base;
    second!.foreign = first!.base;
  }

  pick<T>(list: readonly T[]): T {
    return list[this.random.below(list.length)]!;
  }

  /** What the oracle objected to. */
  close(): readonly string[] {
    for (const { guest } of this.tenants) guest.task.exit();
    this.scheduler.run();
    this.witness.stop();
    expect(Object.entries(this.machine.live()).filter(([, count]) => count !== 0)).toEqual([]);
    this.machine.close();
    return this.witness.objections;
  }
}

class Tenant {
  readonly guest: ArmGuest;
  /** Where another guest's memory is on the host. */
  foreign = 0;
  readonly #host: Host;
  readonly #viommu: number;
  readonly #parent: number;
  readonly #contexts: number;
  readonly #tables: readonly number[];
  readonly #nested: number;

  constructor(host: Host, device: number) {
    this.#host = host;
    const { machine, scheduler, witness } = host;
    this.guest = new ArmGuest(undefined, undefined, { machine, scheduler, device });
    const { guest } = this;
    witness.owns(guest.task, MEMORY.va, MEMORY.bytes);
    this.#parent = guest.nestParent();
    this.#viommu = guest.viommu(this.#parent);
    guest.vdevice(this.#viommu, 1n);
    this.#tables = [guest.table(), guest.table()];
    this.#contexts = guest.contexts(this.#tables);
    this.#nested = guest.nested(this.#viommu, guest.stage1(this.#contexts, 1));
    guest.client.attachTo(guest.device, this.#nested);
  }

  /** Where its memory is on the host. */
  get base(): number {
    return this.guest.task.memory.physical(MEMORY.va);
  }

  /** Its entry when it means no harm. */
  get entry(): bigint {
    return Ste.make(this.guest.stage1(this.#contexts, 1));
  }

  attach(): void {
    const { client, device } = this.guest;
    const chance = this.#host.random.below(8);
    if (chance === 0) client.detachFrom(device);
    else client.attachTo(device, chance === 1 ? this.#parent : this.#nested);
  }

  /** A page of its memory, of the other's on the host, or of nobody's. */
  #target(): number {
    const { pick, random } = { pick: this.#host.pick.bind(this.#host), random: this.#host.random };
    const offset = PAGE * random.below(MEMORY.bytes / PAGE);
    return pick([MEMORY.ipa, MEMORY.ipa, this.foreign, this.base, 0x1_0000_0000]) + offset;
  }

  map(): void {
    try {
      this.guest.map(this.#host.pick(this.#tables), this.#host.pick(ADDRESSES), this.#target());
    } catch {
      // Its tables lead out of its memory, or it has none left for more of them.
      this.restore();
    }
  }

  /** Any word of its tables and descriptors. */
  corrupt(): void {
    const { random } = this.#host;
    const at = MEMORY.ipa + 8 * random.below((TABLE_PAGES * PAGE) / 8);
    const bit = 1n << BigInt(random.below(64));
    const target = BigInt(this.#target());
    // A leaf, a table, a leaf that is clean until it is written (DBM).
    const leaves = [target | 0xc41n, target | 3n, target | 0xc3n | (1n << 51n)];
    this.guest.store64(at, this.#host.pick([this.guest.load64(at) ^ bit, ...leaves]));
  }

  /** A context descriptor with anything in it, tables of the unit's own updates included. */
  describe(): void {
    const { random } = this.#host;
    const bytes = new Uint8Array(Cd.bytes);
    const half = (): number => random.below(2);
    const value = Cd.make({
      ...{ V: true, AA64: half(), A: half(), R: half(), S: half(), HA: half(), HD: half() },
      ...{ T0SZ: this.#host.pick([25, random.below(64)]), TG0: random.below(4), EPD0: half() },
      ...{ T1SZ: this.#host.pick([25, random.below(64)]), TG1: random.below(4), EPD1: half() },
      ...{
        IPS: random.below(8),
        ASID: random.below(4),
        AFFD: half(),
        WXN: half(),
        PAN: half(),
        TBI0: half(),
      },
      ...{ TTB0: this.#host.pick([...this.#tables, this.#target()]), TTB1: this.#target(), HAD0: half() },
    });
    Cd.write(bytes, random.below(4) === 0 ? value ^ (1n << BigInt(random.below(512))) : value);
    this.guest.write(this.#contexts + Cd.bytes * random.below(2), bytes);
    const changed = 5n | (1n << 32n);
    this.guest.invalidate(this.#viommu, [changed | 1n]);
  }

  restore(): void {
    this.guest.write(MEMORY.ipa, new Uint8Array(TABLE_PAGES * PAGE));
    this.#tables.forEach((table, index) => {
      this.guest.context(this.#contexts, index, table);
    });
  }

  /** Commands, of which many are none. */
  command(): void {
    const { random } = this.#host;
    const opcode = this.#host.pick([...Object.values(Opcode), random.below(256)]);
    const any = (BigInt(random.next()) << 96n) | (BigInt(random.next()) << 32n);
    const plain = [0x30n, 0x11n | (5n << 32n), 4n | (1n << 32n), 6n | (1n << 32n)];
    const list = [this.#host.pick(plain), BigInt(opcode) | any, BigInt(opcode) | (1n << 32n)];
    this.guest.invalidate(this.#viommu, [this.#host.pick(list), this.#host.pick(list)]);
  }

  /** Its function comes under this entry for a while; the errno when the host does not take it. */
  stream(entry: bigint): string | undefined {
    const { client, device, fd } = this.guest;
    try {
      const made = this.guest.nestedOf(this.#viommu, entry);
      client.attachTo(device, made);
      for (let count = 0; count < 2; count++) this.dma();
      client.attachTo(device, this.#nested);
      const bytes = iommufd.IommuDestroy.bytes({ size: iommufd.IommuDestroy.size, id: made });
      this.guest.task.ioctl(fd, iommufd.IOMMU_DESTROY, bytes);
      return undefined;
    } catch (error) {
      if (error instanceof LinuxError) return error.code;
      throw error;
    }
  }

  /** Of its own entry some fields, or some bits. */
  evilEntry(): bigint {
    const { random } = this.#host;
    const { CONFIG, S1FMT, S1CDMAX, S1CONTEXTPTR, S1DSS, S1STALLD, EATS } = Ste.fields;
    let entry = this.entry;
    const put = ({ first, width, lg2 }: typeof CONFIG, value: number | bigint): void => {
      const mask = (1n << BigInt(width)) - 1n;
      entry &= ~(mask << BigInt(first));
      entry |= ((BigInt(value) >> BigInt(lg2)) & mask) << BigInt(first);
    };
    for (let changes = 1 + random.below(3); changes > 0; changes--) {
      const changed = this.#host.pick([
        CONFIG,
        S1FMT,
        S1CDMAX,
        S1CONTEXTPTR,
        S1DSS,
        S1STALLD,
        EATS,
        undefined,
      ]);
      if (changed === undefined) entry ^= 1n << BigInt(random.below(128));
      else put(changed, changed === S1CONTEXTPTR ? this.#target() : random.below(2 ** changed.width));
    }
    return entry;
  }

  /** The owner takes all of the memory, or gives it back. */
  balloon(): void {
    const { client, fd, ioas } = this.guest;
    const bytes = iommufd.IommuIoasUnmap.bytes({
      size: iommufd.IommuIoasUnmap.size,
      ioas_id: ioas,
      iova: BigInt(MEMORY.ipa),
      length: BigInt(MEMORY.bytes),
    });
    this.guest.task.ioctl(fd, iommufd.IOMMU_IOAS_UNMAP, bytes);
    this.dma();
    client.mapAt(fd, ioas, MEMORY.ipa, MEMORY.va, MEMORY.bytes);
  }

  dma(): void {
    const address = this.#host.pick([...ADDRESSES, ...ADDRESSES, this.#target()]);
    const pasid = this.#host.pick([undefined, 0, 0, 1, 1, 2]);
    this.guest.dma(address, "written by a guest's function", pasid);
  }

  step(): void {
    const chance = this.#host.random.below(100);
    if (chance < 47) this.dma();
    else if (chance < 73) this.map();
    else if (chance < 77) this.corrupt();
    else if (chance < 79) this.describe();
    else if (chance < 83) this.restore();
    else if (chance < 89) this.command();
    else if (chance < 93) this.stream(this.evilEntry());
    else if (chance < 96) this.balloon();
    else this.attach();
  }
}

describe("guests on one SMMUv3, judged on every access and every fetch by the owners' system calls alone", () => {
  it("reach nothing outside of their grants, whatever is in their tables, entries and commands", () => {
    const seen = { moved: 0, tables: 0, hostTables: 0 };
    for (let seed = 1; seed <= 6; seed++) {
      const host = new Host(seed);
      for (let step = 0; step < 400; step++) host.pick(host.tenants).step();
      expect(host.close(), `seed ${seed}`).toEqual([]);
      seen.moved += host.witness.seen.moved;
      seen.tables += host.witness.seen.tables;
      seen.hostTables += host.witness.seen.hostTables;
    }
    expect(seen.moved).toBeGreaterThan(50);
    expect(seen.tables).toBeGreaterThan(1000);
    expect(seen.hostTables).toBeGreaterThan(1000);
  });

  it("reach nothing by a stream table entry of any kind; the host takes those that are a guest's to ask for", () => {
    const host = new Host(1);
    const [tenant] = host.tenants;
    const places = [undefined, tenant.foreign, tenant.base, 0x1_0000_0000];
    const { CONFIG, S1CONTEXTPTR, EATS } = Ste.fields;
    const judge = (entry: bigint): void => {
      const mine = (entry & ~GUEST_STE_BITS) === 0n && EATS.of(entry) < 2n;
      const config = [Config.abort, Config.bypass, Config.stage1].some(
        (one) => BigInt(one) === CONFIG.of(entry),
      );
      const taken = (entry & 1n) === 0n || (mine && config);
      expect(tenant.stream(entry), Ste.print(entry)).toBe(taken ? undefined : "EIO");
    };
    for (let config = 0; config < 8; config++)
      for (let format = 0; format < 4; format++)
        for (const most of [0, 1, 7, 20, 31])
          for (const place of places)
            for (let two = 0; two < 4; two++)
              judge(
                Ste.make({
                  ...{ V: true, CONFIG: config, S1FMT: format, S1CDMAX: most, S1DSS: two, EATS: two },
                  S1CONTEXTPTR: place ?? Number(S1CONTEXTPTR.of(tenant.entry)),
                }),
              );
    for (let bit = 0n; bit < 128n; bit++) judge(tenant.entry ^ (1n << bit));
    expect(host.close()).toEqual([]);
  });

  describe("a broken host is found out", () => {
    const play = (broken?: ReadonlySet<Break>): readonly string[] => {
      const host = new Host(1, broken);
      for (let step = 0; step < 400; step++) host.pick(host.tenants).step();
      return host.close();
    };

    it("one whose invalidations are lost", () => {
      expect(play(new Set(["skip-flush"] as const))).not.toEqual([]);
    });

    it.each([
      [
        "that leaves out stage 2",
        () =>
          lie(SmmuNestedDomain, "steFields", (is) => ({
            ...is,
            ...(is.CONFIG === Config.nested && { CONFIG: Config.stage1 }),
          })),
      ],
      [
        "that gives two guests one VMID",
        () => lie(SmmuDomain, "stage2Fields", (is) => ({ ...is, S2VMID: 1 })),
      ],
      [
        "that says of stage 2 that it begins at the next frame",
        () => lie(SmmuDomain, "stage2Fields", (is) => ({ ...is, S2TTB: Number(is.S2TTB) + PAGE })),
      ],
    ])("one %s", (_, sabotage) => {
      const undo = sabotage();
      try {
        expect(play()).not.toEqual([]);
      } finally {
        undo();
      }
    });
  });
});
