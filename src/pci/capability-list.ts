/** The capability lists of a function's physical config space (PCIe §7.5.1.1.11 and §7.6), read as software does. */
import type { PciFunction } from "./function.ts";
import {
  CONFIG_BYTES,
  ExtendedHeader,
  FIRST_CAPABILITY,
  FIRST_EXTENDED_CAPABILITY,
  Header,
  Status,
} from "./spec.ts";

/** A config space. */
export type Configured = Pick<PciFunction, "configSize" | "configRead">;

export interface ListedCapability {
  readonly id: number;
  readonly at: number;
}

/** A list cannot be longer than the space has dwords; one that is, goes round in circles. */
const walk = (
  first: number,
  limit: number,
  entry: (at: number) => { id: number; next: number },
): ListedCapability[] => {
  const found: ListedCapability[] = [];
  for (let at = first; at !== 0 && found.length < limit; ) {
    const { id, next } = entry(at);
    found.push({ id, at });
    at = next;
  }
  return found;
};

export const capabilitiesOf = (pci: Configured): ListedCapability[] => {
  if (!(pci.configRead(Header.STATUS, 2) & Status.CAPABILITIES_LIST)) return [];
  return walk(pci.configRead(Header.CAPABILITIES_POINTER, 1) & ~3, CONFIG_BYTES / 4, (at) => {
    const next = pci.configRead(at + 1, 1) & ~3;
    return { id: pci.configRead(at, 1), next: next < FIRST_CAPABILITY ? 0 : next };
  });
};

export const extendedCapabilitiesOf = (pci: Configured): ListedCapability[] => {
  if (pci.configSize <= CONFIG_BYTES || pci.configRead(FIRST_EXTENDED_CAPABILITY, 4) === 0) return [];
  return walk(FIRST_EXTENDED_CAPABILITY, pci.configSize / 4, (at) => {
    const header = [pci.configRead(at, 4)];
    const next = ExtendedHeader.fields.Next.get(header) & ~3;
    return {
      id: ExtendedHeader.fields.Id.get(header),
      next: next < FIRST_EXTENDED_CAPABILITY ? 0 : next,
    };
  });
};

/** Offset of the capability, or undefined. */
export const findCapability = (pci: Configured, id: number): number | undefined =>
  capabilitiesOf(pci).find((capability) => capability.id === id)?.at;
