/**
 * Faults injected on purpose, to show that what finds them would. Each is a real one: something between the parties of
 * the machine does not do its work, and neither party is told.
 */
import { DescriptorType, IqaRegister, Register } from "../hardware/vtd/spec.ts";
import type { HostMemory } from "../memory/host-memory.ts";

/** By name: what does not work. */
export const BREAKS = {
  "skip-flush": "the driver's invalidations of the IOTLB are lost on their way to the unit",
} as const;
export type Break = keyof typeof BREAKS;

export const isBreak = (name: string): name is Break => Object.hasOwn(BREAKS, name);

/** The registers of a VT-d unit as its driver reaches them. */
interface VtdRegisters {
  mmioRead(offset: number, width: 4 | 8): bigint;
  mmioWrite(offset: number, width: 4 | 8, value: bigint): void;
}

const TYPE_MASK = 0xf;

/** A VT-d unit to which IOTLB invalidations (§6.5.2.3) of its queue come as waits that ask for nothing. */
export const losingFlushes = (unit: VtdRegisters, memory: HostMemory): VtdRegisters => {
  const lose = (at: number): void => {
    if (!memory.load64(at) || (memory.lo & TYPE_MASK) !== DescriptorType.iotlb) return;
    memory.store64(at, DescriptorType.wait, 0);
    memory.store64(at + 8, 0, 0);
  };
  return {
    mmioRead: (offset, width) => unit.mmioRead(offset, width),
    mmioWrite(offset, width, value) {
      if (offset === Register.IQT) {
        const queue = unit.mmioRead(Register.IQA, 8);
        const base = Number(IqaRegister.fields.IQA.of(queue));
        const bytes = 4096 << Number(IqaRegister.fields.QS.of(queue));
        const first = Number(unit.mmioRead(Register.IQT, 8));
        for (let at = first; at !== Number(value); at = (at + 16) % bytes) lose(base + at);
      }
      unit.mmioWrite(offset, width, value);
    },
  };
};
