/**
 * Faults injected on purpose, to show that what finds them would. Each is a real one: something between the parties of
 * the machine does not do its work, and neither party is told.
 */

import { Opcode as AmdOpcode, ENTRY_BYTES } from "../hardware/amdvi/queue-spec.ts";
import { Register as AmdRegister, RingBase } from "../hardware/amdvi/spec.ts";
import { COMMAND_BYTES, Opcode } from "../hardware/smmuv3/queue-spec.ts";
import { QueueBase, Register as SmmuRegister } from "../hardware/smmuv3/spec.ts";
import { Register as TceRegister } from "../hardware/tce/spec.ts";
import {
  DESCRIPTOR_BYTES,
  DescriptorType,
  IqaRegister,
  Register,
  WIDE_DESCRIPTOR_BYTES,
} from "../hardware/vtd/spec.ts";
import { Instruction, Register as ZpciRegister } from "../hardware/zpci/spec.ts";
import { type PasidOwner, PasidSet, Pasids } from "../iommu/pasids.ts";
import type { Task } from "../kernel/call.ts";
import type { HostMemory } from "../memory/host-memory.ts";

/** By name: what does not work. */
export const BREAKS = {
  "skip-flush": "the driver's invalidations of the IOTLB are lost on their way to the unit",
  "skip-rmp": "the unit does not look into the reverse map table",
  "wrong-owner": "the kernel lets any program use the PASIDs of others",
} as const;
export type Break = keyof typeof BREAKS;

export const isBreak = (name: string): name is Break => Object.hasOwn(BREAKS, name);

/** PASIDs whose owner is not asked for. */
export class UnguardedPasids extends Pasids {
  override grant(_task: Task, owner: PasidOwner): PasidSet | undefined {
    return owner instanceof PasidSet ? owner : undefined;
  }
}

/** The registers of a unit as its driver reaches them. */
interface UnitRegisters {
  mmioRead(offset: number, width: 4 | 8): bigint;
  mmioWrite(offset: number, width: 4 | 8, value: bigint): void;
}

/** Where queue entries lie that the write of a tail adds. */
type Entries = (value: number) => Iterable<number>;

/** A unit that finds each entry which is added to its queue, by writes of this register, as `lose` leaves it. */
const losing = (
  unit: UnitRegisters,
  tail: number,
  entries: Entries,
  lose: (at: number) => void,
): UnitRegisters => ({
  mmioRead: (offset, width) => unit.mmioRead(offset, width),
  mmioWrite(offset, width, value) {
    if (offset === tail) for (const at of entries(Number(value))) lose(at);
    unit.mmioWrite(offset, width, value);
  },
});

const TYPE_MASK = 0xf;
const OPCODE_MASK = 0xff;

/** Types of descriptors that make the IOTLB forget. */
const FLUSHES: ReadonlySet<number> = new Set([DescriptorType.iotlb, DescriptorType.pasidIotlb]);

/** A VT-d unit to which IOTLB invalidations (§6.5.2.3, §6.5.2.4) of its queue come as waits that ask for nothing. */
export const losingFlushes = (unit: UnitRegisters, memory: HostMemory): UnitRegisters =>
  losing(
    unit,
    Register.IQT,
    function* (tail) {
      const queue = unit.mmioRead(Register.IQA, 8);
      const base = Number(IqaRegister.fields.IQA.of(queue));
      const bytes = 4096 << Number(IqaRegister.fields.QS.of(queue));
      const step = IqaRegister.fields.DW.of(queue) ? WIDE_DESCRIPTOR_BYTES : DESCRIPTOR_BYTES;
      const first = Number(unit.mmioRead(Register.IQT, 8));
      for (let at = first; at !== tail; at = (at + step) % bytes) yield base + at;
    },
    (at) => {
      if (!memory.load64(at) || !FLUSHES.has(memory.lo & TYPE_MASK)) return;
      memory.store64(at, DescriptorType.wait, 0);
      memory.store64(at + 8, 0, 0);
    },
  );

const isTlbInvalidation = (opcode: number): boolean =>
  (opcode >= Opcode.TLBI_NH_ALL && opcode <= Opcode.TLBI_NSNH_ALL) || opcode === Opcode.ATC_INV;

/** An SMMUv3 to which invalidations of its TLB and of functions' (§4.4, §4.5.1) come as hints to prefetch nothing. */
export const losingTlbInvalidations = (unit: UnitRegisters, memory: HostMemory): UnitRegisters =>
  losing(
    unit,
    SmmuRegister.CMDQ_PROD,
    function* (prod) {
      const queue = Number(unit.mmioRead(SmmuRegister.CMDQ_BASE, 8));
      const entries = 2 ** (queue & QueueBase.LOG2SIZE);
      const base = queue - (queue & QueueBase.LOG2SIZE);
      const first = Number(unit.mmioRead(SmmuRegister.CMDQ_PROD, 4));
      for (let at = first; at !== prod; at = (at + 1) % (2 * entries))
        yield base + (at % entries) * COMMAND_BYTES;
    },
    (at) => {
      if (!memory.load64(at) || !isTlbInvalidation(memory.lo & OPCODE_MASK)) return;
      memory.store64(at, Opcode.PREFETCH_CONFIG, 0);
      memory.store64(at + 8, 0, 0);
    },
  );

const AMD_OPCODE_SHIFT = 28;
const { COMPLETION_WAIT, INVALIDATE_IOMMU_PAGES, INVALIDATE_IOTLB_PAGES } = AmdOpcode;

/** An AMD-Vi unit to which invalidations of pages, its own and functions' (§2.4.3, §2.4.4), come as waits for nothing. */
export const losingPageInvalidations = (unit: UnitRegisters, memory: HostMemory): UnitRegisters =>
  losing(
    unit,
    AmdRegister.CMDBUF_TAIL,
    function* (tail) {
      const ring = unit.mmioRead(AmdRegister.CMDBUF_BASE, 8);
      const base = Number(RingBase.fields.BASE.of(ring));
      const bytes = ENTRY_BYTES * 2 ** Number(RingBase.fields.LEN.of(ring));
      const first = Number(unit.mmioRead(AmdRegister.CMDBUF_TAIL, 4));
      for (let at = first; at !== tail; at = (at + ENTRY_BYTES) % bytes) yield base + at;
    },
    (at) => {
      const opcode = memory.load64(at) ? memory.hi >>> AMD_OPCODE_SHIFT : 0;
      if (opcode !== INVALIDATE_IOMMU_PAGES && opcode !== INVALIDATE_IOTLB_PAGES) return;
      memory.store64(at, 0, COMPLETION_WAIT << AMD_OPCODE_SHIFT);
      memory.store64(at + 8, 0, 0);
    },
  );

/** A zPCI unit to which Refresh PCI Translations does not come. */
export const losingRefreshes = (unit: UnitRegisters): UnitRegisters => ({
  mmioRead: (offset, width) => unit.mmioRead(offset, width),
  mmioWrite(offset, width, value) {
    if (offset === ZpciRegister.INSTRUCTION && Number(value) === Instruction.RPCIT) return;
    unit.mmioWrite(offset, width, value);
  },
});

/** A POWER host bridge to which invalidations of TCEs (TCE_KILL) do not come. */
export const losingKills = (unit: UnitRegisters): UnitRegisters => ({
  mmioRead: (offset, width) => unit.mmioRead(offset, width),
  mmioWrite(offset, width, value) {
    if (offset !== TceRegister.TCE_KILL) unit.mmioWrite(offset, width, value);
  },
});
