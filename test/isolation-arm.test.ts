/**
 * Two guests on one SMMUv3 that put anything into their stage 1, their context descriptors and their commands: what their
 * functions reach is what their owners' system calls gave them, and nothing else.
 */
import { expect, it } from "vitest";
import { Random } from "../src/base/clock.ts";
import { PRESETS } from "../src/machine/presets.ts";
import * as iommufd from "../src/uapi/iommufd.ts";
import { ArmGuest, MEMORY, PAGE } from "./support/arm-guest.ts";
import { Witness } from "./support/witness.ts";

const SECOND = "0000:09:00.0";
const FUNCTIONS = ["0000:03:00.0", SECOND] as const;
const ADDRESSES = [0x5000, 0x6000, 0x20_0000, 0x4000_0000, 0x12_3456_7000];

class Tenant {
  readonly guest: ArmGuest;
  readonly #name: string;
  readonly #random: Random;
  readonly #witness: Witness;
  readonly #viommu: number;
  readonly #parent: number;
  readonly #contexts: number;
  readonly #tables: readonly number[];
  readonly #nested: number;
  /** Where another guest's memory is on the host, and in its guest. */
  foreign = 0;

  constructor(guest: ArmGuest, name: string, random: Random, witness: Witness) {
    this.guest = guest;
    this.#name = name;
    this.#random = random;
    this.#witness = witness;
    witness.owns(guest.task, MEMORY.va, MEMORY.bytes);
    this.#parent = guest.nestParent();
    this.#viommu = guest.viommu(this.#parent);
    guest.vdevice(this.#viommu, 1n);
    this.#tables = [guest.table(), guest.table()];
    this.#contexts = guest.contexts(this.#tables);
    this.#nested = guest.nested(this.#viommu, guest.stage1(this.#contexts, 1));
    this.attach();
  }

  get base(): number {
    return this.guest.task.memory.physical(MEMORY.va);
  }

  attach(): void {
    const { client, device } = this.guest;
    const chance = this.#random.below(8);
    if (chance === 0) client.detachFrom(device);
    else client.attachTo(device, chance === 1 ? this.#parent : this.#nested);
  }

  #pick<T>(list: readonly T[]): T {
    return list[this.#random.below(list.length)]!;
  }

  /** A page of its memory, of the other's on the host, or of nobody's. */
  #target(): number {
    const offset = PAGE * this.#random.below(MEMORY.bytes / PAGE);
    return this.#pick([MEMORY.ipa, MEMORY.ipa, this.foreign, this.base, 0x1_0000_0000]) + offset;
  }

  map(): void {
    try {
      this.guest.map(this.#pick(this.#tables), this.#pick(ADDRESSES), this.#target());
    } catch {
      // Its tables lead out of its memory, or it has none left for more of them.
      this.restore();
    }
  }

  /** Any word of its first pages, where its tables and descriptors are. */
  corrupt(): void {
    const at = MEMORY.ipa + 8 * this.#random.below((16 * PAGE) / 8);
    const was = this.guest.load64(at);
    const bit = 1n << BigInt(this.#random.below(64));
    this.guest.store64(
      at,
      this.#pick([was ^ bit, BigInt(this.#target()) | 0xc41n, BigInt(this.#target()) | 3n]),
    );
  }

  restore(): void {
    this.guest.write(MEMORY.ipa, new Uint8Array(16 * PAGE));
    this.#tables.forEach((table, index) => {
      this.guest.context(this.#contexts, index, table);
    });
  }

  /** Commands, of which some are none. */
  command(): void {
    const commands = [0x30n, 0x11n | (5n << 32n), BigInt(this.#random.next()), 0x4n | (1n << 32n)];
    this.guest.invalidate(this.#viommu, [this.#pick(commands), this.#pick(commands)]);
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
    const address = this.#pick([...ADDRESSES, ...ADDRESSES, this.#target()]);
    const pasid = this.#pick([undefined, 0, 0, 1, 1, 2]);
    this.#witness.judgeWalk(this.#name, address, true, pasid);
    this.guest.dma(address, "written by a guest's function", pasid);
  }

  step(): void {
    const chance = this.#random.below(100);
    if (chance < 50) this.dma();
    else if (chance < 79) this.map();
    else if (chance < 83) this.corrupt();
    else if (chance < 87) this.restore();
    else if (chance < 93) this.command();
    else if (chance < 96) this.balloon();
    else this.attach();
  }
}

it("guests on one SMMUv3 reach nothing outside of their grants, whatever is in their tables", () => {
  const seen = { moved: 0, tables: 0 };
  for (let seed = 1; seed <= 6; seed++) {
    const random = new Random(seed);
    const preset = PRESETS.get("smmuv3")!.replaceAll("    can-stall: [0000:03:00.0]\n", "");
    const first = new ArmGuest(`${preset}  - model: test\n    at: ${SECOND}\n`);
    const { machine } = first;
    first.task.exit();
    const witness = new Witness(machine);
    const device = (name: string): number => [...machine.core.devices.keys()].indexOf(name);
    const tenants = FUNCTIONS.map((name) => {
      const guest = new ArmGuest(undefined, undefined, { guest: first, device: device(name) });
      return new Tenant(guest, name, random, witness);
    });
    for (const [index, tenant] of tenants.entries()) tenant.foreign = tenants[1 - index]!.base;
    for (let step = 0; step < 400; step++) tenants[random.below(2)]!.step();
    for (const { guest } of tenants) guest.task.exit();
    witness.stop();
    first.close();
    expect(witness.objections, `seed ${seed}`).toEqual([]);
    seen.moved += witness.seen.moved;
    seen.tables += witness.seen.tables;
  }
  expect(seen.moved).toBeGreaterThan(50);
  expect(seen.tables).toBeGreaterThan(200);
});
