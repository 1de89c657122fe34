/**
 * A function's memory BARs among physical addresses, as a peer's requests reach them (PCIe §2.4, peer-to-peer): what a
 * device reads and writes there the function answers, while it decodes memory. A request that makes the function write
 * to a BAR again, which writes to a BAR again, ends after a few turns.
 */
import type { HostMemory } from "../memory/host-memory.ts";
import type { Bar, PciFunction } from "./function.ts";
import { Command, Header } from "./spec.ts";

const PAGE_BYTES = 4096;
/** Requests that cause each other. */
const MOST_NESTED = 8;

let nested = 0;

/** Whether it was answered. */
const reach = (pci: PciFunction, access: () => void): boolean => {
  if (nested === MOST_NESTED || (pci.configRead(Header.COMMAND, 2) & Command.MEMORY_SPACE) === 0)
    return false;
  nested += 1;
  try {
    access();
  } finally {
    nested -= 1;
  }
  return true;
};

const showBar = (memory: HostMemory, pci: PciFunction, { index, base, size }: Bar): (() => void) =>
  memory.addWindow(base, Math.ceil(size / PAGE_BYTES) * PAGE_BYTES, {
    name: `BAR ${index} of ${pci.name}`,
    read: (offset, into) => reach(pci, () => pci.barRead(index, offset, into)),
    write: (offset, data) => reach(pci, () => pci.barWrite(index, offset, data)),
  });

/** Shows the function's memory BARs; the disposer takes them away. */
export const showBars = (memory: HostMemory, pci: PciFunction): (() => void) => {
  const windows = pci.bars.filter(({ kind }) => kind !== "io").map((bar) => showBar(memory, pci, bar));
  return () => {
    for (const remove of windows) remove();
  };
};
