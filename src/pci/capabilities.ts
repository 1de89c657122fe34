/**
 * The capabilities a function can have, as declarations for its config space: power management, MSI, MSI-X, PCI
 * Express with function-level reset, a vendor's own, device serial number, error reporting, PASID, ATS, PRI. PCI Express Base Specification 5.0, §7.5 to §7.9.
 * What they do is in `pci-function.ts`, `msi.ts` and `msix.ts`.
 */
import type { Capability, ConfigRegister } from "./config.ts";
import {
  AtsCapability,
  AtsControl,
  AtsFlags,
  CapabilityId,
  DeviceCapabilities,
  DeviceControl,
  DeviceStatus,
  ErrorBits,
  ErrorCapability,
  ExpressCapability,
  ExpressFlags,
  ExtendedCapabilityId,
  Link,
  LinkState,
  MsiCapability,
  MsiControl,
  MsixCapability,
  MsixControl,
  MsixLocation,
  PasidCapability,
  PasidControl,
  PasidFlags,
  PowerCapability,
  PowerControl,
  PriCapability,
  PriControl,
  PriStatus,
  SerialNumber,
  VendorCapability,
} from "./spec.ts";

/** D0 and D3hot; nothing is lost on the way back. */
export const powerManagement = (): Capability => ({
  id: CapabilityId.PM,
  bytes: PowerCapability.BYTES,
  registers: [
    { offset: PowerCapability.PMC, width: 2, value: 3 }, // version 3 of the interface, no PME
    {
      offset: PowerCapability.PMCSR,
      width: 4,
      value: Number(PowerControl.make({ NoSoftReset: true })),
      writable: PowerControl.fields.PowerState.mask,
    },
  ],
});

/** `vectorsLg2` up to 5. */
export const msi = (vectorsLg2: number): Capability => {
  const vectors = 2 ** (2 ** vectorsLg2) - 1;
  return {
    id: CapabilityId.MSI,
    bytes: MsiCapability.BYTES,
    registers: [
      {
        offset: MsiCapability.MESSAGE_CONTROL,
        width: 2,
        value: Number(
          MsiControl.make({ MultipleMessageCapable: vectorsLg2, Address64: true, PerVectorMasking: true }),
        ),
        writable: MsiControl.fields.Enable.mask | MsiControl.fields.MultipleMessageEnable.mask,
      },
      { offset: MsiCapability.ADDRESS, width: 4, value: 0, writable: 0xffff_fffc },
      { offset: MsiCapability.UPPER_ADDRESS, width: 4, value: 0, writable: 0xffff_ffff },
      { offset: MsiCapability.DATA, width: 2, value: 0, writable: 0xffff },
      { offset: MsiCapability.MASK, width: 4, value: 0, writable: vectors },
      { offset: MsiCapability.PENDING, width: 4, value: 0 },
    ],
  };
};

/** Where a function keeps its vector table and pending bits. */
export interface MsixPlace {
  /** 1 to 2048. */
  readonly vectors: number;
  readonly bar: number;
  /** Offsets within the BAR, multiples of 8. */
  readonly table: number;
  readonly pending: number;
}

export const msix = ({ vectors, bar, table, pending }: MsixPlace): Capability => ({
  id: CapabilityId.MSIX,
  bytes: MsixCapability.BYTES,
  registers: [
    {
      offset: MsixCapability.MESSAGE_CONTROL,
      width: 2,
      value: Number(MsixControl.make({ TableSize: vectors - 1 })),
      writable: MsixControl.fields.Enable.mask | MsixControl.fields.FunctionMask.mask,
    },
    {
      offset: MsixCapability.TABLE,
      width: 4,
      value: Number(MsixLocation.make({ BIR: bar, Offset: table })),
    },
    {
      offset: MsixCapability.PBA,
      width: 4,
      value: Number(MsixLocation.make({ BIR: bar, Offset: pending })),
    },
  ],
});

const SPEED_8_GT = 3;
const LANES = 4;

/** An endpoint on a link of 4 lanes at 8 GT/s, with function-level reset. */
export const express = (): Capability => ({
  id: CapabilityId.EXPRESS,
  bytes: ExpressCapability.BYTES,
  registers: [
    {
      offset: ExpressCapability.CAPABILITIES,
      width: 2,
      value: Number(ExpressFlags.make({ CapabilityVersion: 2 })),
    },
    {
      offset: ExpressCapability.DEVICE_CAPABILITIES,
      width: 4,
      value: Number(
        DeviceCapabilities.make({
          MaxPayloadSupported: 1,
          ExtendedTag: true,
          RoleBasedErrors: true,
          FunctionLevelReset: true,
        }),
      ),
    },
    {
      offset: ExpressCapability.DEVICE_CONTROL,
      width: 2,
      value: Number(DeviceControl.make({ RelaxedOrdering: true, NoSnoop: true, MaxReadRequestSize: 2 })),
      writable: Object.values(DeviceControl.fields).reduce((all, { mask }) => all | mask, 0),
    },
    {
      offset: ExpressCapability.DEVICE_STATUS,
      width: 2,
      value: 0,
      clears: DeviceStatus.fields.Errors.mask,
    },
    {
      offset: ExpressCapability.LINK_CAPABILITIES,
      width: 4,
      value: Number(Link.make({ MaxSpeed: SPEED_8_GT, MaxWidth: LANES })),
    },
    {
      offset: ExpressCapability.LINK_STATUS,
      width: 2,
      value: Number(LinkState.make({ Speed: SPEED_8_GT, Width: LANES })),
    },
    { offset: ExpressCapability.LINK_CAPABILITIES_2, width: 4, value: 0b1110 }, // 2.5, 5 and 8 GT/s
    { offset: ExpressCapability.LINK_CONTROL_2, width: 2, value: SPEED_8_GT },
  ],
});

/** What a vendor keeps for itself: `bytes` of it, which software may write. */
export const vendorSpecific = (bytes: Uint8Array): Capability => ({
  id: CapabilityId.VENDOR,
  bytes: VendorCapability.DATA + bytes.length,
  registers: [
    { offset: VendorCapability.LENGTH, width: 1, value: VendorCapability.DATA + bytes.length },
    ...Array.from(bytes, (value, i): ConfigRegister => {
      return { offset: VendorCapability.DATA + i, width: 1, value, writable: 0xff };
    }),
  ],
});

/** Advanced error reporting. No model makes an error of the link: what there is is the registers. */
export const errorReporting = (): Capability => ({
  id: ExtendedCapabilityId.ERRORS,
  version: 2,
  bytes: ErrorCapability.BYTES,
  registers: [
    {
      offset: ErrorCapability.UNCORRECTABLE_STATUS,
      width: 4,
      value: 0,
      clears: ErrorBits.UNCORRECTABLE,
    },
    { offset: ErrorCapability.UNCORRECTABLE_MASK, width: 4, value: 0, writable: ErrorBits.UNCORRECTABLE },
    {
      offset: ErrorCapability.UNCORRECTABLE_SEVERITY,
      width: 4,
      value: ErrorBits.FATAL,
      writable: ErrorBits.UNCORRECTABLE,
    },
    { offset: ErrorCapability.CORRECTABLE_STATUS, width: 4, value: 0, clears: ErrorBits.CORRECTABLE },
    {
      offset: ErrorCapability.CORRECTABLE_MASK,
      width: 4,
      value: ErrorBits.ADVISORY,
      writable: ErrorBits.CORRECTABLE,
    },
    { offset: ErrorCapability.CONTROL, width: 4, value: 0 },
  ],
});

/** The 64-bit EUI of the device. */
export const serialNumber = (low: number, high: number): Capability => ({
  id: ExtendedCapabilityId.SERIAL_NUMBER,
  version: 1,
  bytes: SerialNumber.BYTES,
  registers: [
    { offset: SerialNumber.LOW, width: 4, value: low },
    { offset: SerialNumber.HIGH, width: 4, value: high },
  ],
});

/** What requests with a PASID can be, beside reads and writes. */
export interface PasidKinds {
  /** For execution; privileged. Both by default. */
  readonly execute?: boolean;
  readonly privileged?: boolean;
}

/** Requests may carry PASIDs of `width` bits. What the function cannot do software cannot allow. */
export const pasid = (width: number, { execute = true, privileged = true }: PasidKinds = {}): Capability => ({
  id: ExtendedCapabilityId.PASID,
  version: 1,
  bytes: PasidCapability.BYTES,
  registers: [
    {
      offset: PasidCapability.CAPABILITY,
      width: 2,
      value: Number(PasidFlags.make({ Execute: execute, Privileged: privileged, MaxWidth: width })),
    },
    {
      offset: PasidCapability.CONTROL,
      width: 2,
      value: 0,
      writable: Number(PasidControl.make({ Enable: true, Execute: execute, Privileged: privileged })),
    },
  ],
});

/** Asks its unit for translations, of whole pages, and keeps them. */
export const ats = (): Capability => ({
  id: ExtendedCapabilityId.ATS,
  version: 1,
  bytes: AtsCapability.BYTES,
  registers: [
    {
      offset: AtsCapability.CAPABILITY,
      width: 2,
      value: Number(AtsFlags.make({ PageAlignedRequest: true, GlobalInvalidate: true })),
    },
    {
      offset: AtsCapability.CONTROL,
      width: 2,
      value: 0,
      writable: Object.values(AtsControl.fields).reduce((all, { mask }) => all | mask, 0),
    },
  ],
});

/** Asks for pages, up to `capacity` at a time, and wants answers with the PASIDs of its requests. */
export const pri = (capacity: number): Capability => ({
  id: ExtendedCapabilityId.PRI,
  version: 1,
  bytes: PriCapability.BYTES,
  registers: [
    {
      offset: PriCapability.CONTROL,
      width: 2,
      value: 0,
      writable: PriControl.fields.Enable.mask | PriControl.fields.Reset.mask,
    },
    {
      offset: PriCapability.STATUS,
      width: 2,
      value: Number(PriStatus.make({ Stopped: true, PasidRequired: true })),
      clears: PriStatus.fields.ResponseFailure.mask | PriStatus.fields.UnexpectedGroup.mask,
    },
    { offset: PriCapability.OUTSTANDING_CAPACITY, width: 4, value: capacity },
    { offset: PriCapability.OUTSTANDING_ALLOCATION, width: 4, value: 0, writable: 0xffff_ffff },
  ],
});
