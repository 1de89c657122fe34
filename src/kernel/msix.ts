/** How a driver sets up a function's MSI-X: entries of its table, unmasked, and then the whole (PCIe §7.7.2). */
import { findCapability } from "../pci/capability-list.ts";
import type { PciFunction } from "../pci/function.ts";
import { CapabilityId, MsixCapability, MsixControl, MsixEntry, MsixLocation } from "../pci/spec.ts";

/** Writes the entry of a vector of a function that has MSI-X. */
export const programMsix = (pci: PciFunction, vector: number, address: bigint, data: number): void => {
  const capability = findCapability(pci, CapabilityId.MSIX)!;
  const location = [pci.configRead(capability + MsixCapability.TABLE, 4)];
  const entry = new DataView(new ArrayBuffer(MsixEntry.BYTES));
  entry.setBigUint64(MsixEntry.ADDRESS, address, true);
  entry.setUint32(MsixEntry.DATA, data, true);
  const at = MsixLocation.fields.Offset.get(location) + vector * MsixEntry.BYTES;
  pci.barWrite(MsixLocation.fields.BIR.get(location), at, new Uint8Array(entry.buffer));
};

export const enableMsix = (pci: PciFunction): void => {
  const at = findCapability(pci, CapabilityId.MSIX)! + MsixCapability.MESSAGE_CONTROL;
  pci.configWrite(at, 2, pci.configRead(at, 2) | MsixControl.fields.Enable.mask);
};
