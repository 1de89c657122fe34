/**
 * The register file of an AMD-Vi unit (48882, revision 3.07, §3.4) as storage: which words exist, which bits software may
 * write or clears by writing 1, and what they are after reset. What a write sets in motion is in `unit.ts`.
 */
import {
  fixedRegister,
  type RegisterWord,
  RegisterWords,
  registerNames,
  wideRegister,
} from "../register-words.ts";
import type { Capabilities } from "./capabilities.ts";
import {
  ControlRegister,
  DeviceTableBase,
  ExclusionBase,
  MSI_CAPABILITY_ID,
  MsiCapability,
  POINTER_MASK,
  REGISTER_BYTES,
  Register,
  RingBase,
  STATUS_CLEARED,
} from "./spec.ts";

const ALL = 0xffff_ffff;

const named = (reserved: bigint): bigint => ~reserved & ((1n << 64n) - 1n);

/** Bits of CONTROL that the unit has. */
const controlBits = (unit: Capabilities): bigint => {
  const { fields } = ControlRegister;
  const without = (has: boolean, ...names: (keyof typeof fields)[]) =>
    has
      ? 0n
      : names.reduce((mask, name) => mask | fields[name].put((1n << BigInt(fields[name].width)) - 1n), 0n);
  const missing =
    without(unit.pageRequests, "PPR_LOG_EN", "PPR_INT_EN", "PPR_EN") |
    without(unit.autoResponse, "PPR_AUTO_RSP_EN") |
    without(unit.guestTranslation, "GT_EN") |
    without(unit.gcr3Guest, "GCR3_TRP_MODE") |
    without(unit.accessed, "HAD_UPDATE");
  return named(ControlRegister.reserved) & ~missing;
};

const wordsOf = (unit: Capabilities): RegisterWord[] => {
  const pointer = { writable: POINTER_MASK };
  const words: RegisterWord[] = [
    ...wideRegister(Register.DEVTAB_BASE, named(DeviceTableBase.reserved)),
    ...wideRegister(Register.CMDBUF_BASE, named(RingBase.reserved)),
    ...wideRegister(Register.EVTLOG_BASE, named(RingBase.reserved)),
    ...wideRegister(Register.CONTROL, controlBits(unit)),
    ...wideRegister(Register.EXCL_BASE, named(ExclusionBase.reserved)),
    ...wideRegister(Register.EXCL_LIMIT, ExclusionBase.fields.BASE.put(0xf_ffff_ffff_f000n)),
    ...fixedRegister(Register.EXT_FEATURE, unit.efr),
    ...fixedRegister(Register.EXT_FEATURE2, unit.efr2),
    { offset: Register.CMDBUF_HEAD, ...pointer },
    { offset: Register.CMDBUF_TAIL, ...pointer },
    { offset: Register.EVTLOG_HEAD, ...pointer },
    { offset: Register.EVTLOG_TAIL, ...pointer },
    { offset: Register.STATUS, clear: STATUS_CLEARED },
  ];
  if (unit.pageRequests)
    words.push(
      ...wideRegister(Register.PPRLOG_BASE, named(RingBase.reserved)),
      { offset: Register.PPRLOG_HEAD, ...pointer },
      { offset: Register.PPRLOG_TAIL, ...pointer },
    );
  if (unit.msi)
    words.push(
      {
        offset: Register.MSI_CAPABILITY,
        writable: MsiCapability.fields.EN.mask,
        reset: Number(MsiCapability.make({ ID: MSI_CAPABILITY_ID, WIDE: true })),
      },
      { offset: Register.MSI_ADDRESS, writable: 0xffff_fffc },
      { offset: Register.MSI_ADDRESS + 4, writable: ALL },
      { offset: Register.MSI_DATA, writable: 0xffff },
    );
  return words;
};

export class RegisterFile extends RegisterWords {
  constructor(unit: Capabilities) {
    super(REGISTER_BYTES, wordsOf(unit));
  }

  /** The page address (bits 51:12) in a 64-bit register. */
  page(offset: number): number {
    const lower = (this.words[offset / 4]! & 0xffff_f000) >>> 0;
    return (this.words[offset / 4 + 1]! & 0xf_ffff) * 0x1_0000_0000 + lower;
  }
}

/** The name of the register at an offset, for people. */
export const registerName = registerNames(Register);
