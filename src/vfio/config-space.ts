/**
 * A function's config space as its user sees it: like the physical one, except where the user must not change the
 * host's setting or would see what it must not use. Per bit it is decided whether the value is the physical or a
 * virtual one, and whether the user may write it. BARs can be sized and set without moving; interrupts belong to
 * SET_IRQS, so MSI and MSI-X cannot be turned on here; unknown capabilities are not in the lists, and that of PASIDs is
 * only where users have PASIDs; what it enables is the host's.
 * What a vendor keeps in a capability of its own is the user's to read and write; masks and severities of errors are
 * the user's own copies. Left out: writes to VPD and to registers outside any capability, which are dropped.
 */

import { capabilitiesOf, extendedCapabilitiesOf, type ListedCapability } from "../pci/capability-list.ts";
import type { Bar, PciFunction } from "../pci/function.ts";
import {
  BarBits,
  CapabilityId,
  Command,
  DeviceCapabilities,
  DeviceControl,
  ErrorBits,
  ErrorCapability,
  ExpressCapability,
  ExtendedCapabilityId,
  ExtendedHeader,
  Header,
  MsiCapability,
  MsiControl,
  PowerCapability,
  PowerControl,
  RomBits,
  VendorCapability,
} from "../pci/spec.ts";

/** Further capability ids, PCI Code and ID Assignment §2. */
const CapabilityIdMore = {
  VPD: 0x03,
  SUBSYSTEM: 0x0d,
  SATA: 0x12,
  ADVANCED_FEATURES: 0x13,
} as const;
/** Capabilities that are shown; what VFIO does not know is not. */
const SHOWN: ReadonlySet<number> = new Set([
  ...Object.values(CapabilityId),
  ...Object.values(CapabilityIdMore),
]);

const D3_HOT = 3;

/** What the config space cannot decide itself. */
export interface ConfigHooks {
  /** The user wrote 1 to "initiate function-level reset". */
  reset(): void;
  /** The user changed the command register's interrupt disable bit. */
  disableIntx(disabled: boolean): void;
  /** SET_IRQS has set MSI up: the user may turn it off and on. */
  msiActive(): boolean;
}

export class VirtualConfig {
  readonly size: number;
  readonly #pci: PciFunction;
  readonly #hooks: ConfigHooks;
  /** Extended capabilities that are not shown, because the user could not use them. */
  readonly #hidden: ReadonlySet<number>;
  /** Virtual values; only bits in `#virtual` count. */
  readonly #values: Uint8Array;
  readonly #virtual: Uint8Array;
  readonly #writable: Uint8Array;
  /** Offsets of capabilities with a meaning here; -1: the function has none. */
  #power = -1;
  #express = -1;
  #msi = -1;

  /** `pasid`: the PASID capability is shown, to be read only. */
  constructor(pci: PciFunction, hooks: ConfigHooks, { pasid = false }: { readonly pasid?: boolean } = {}) {
    this.#pci = pci;
    this.#hooks = hooks;
    this.#hidden = new Set(pasid ? [] : [ExtendedCapabilityId.PASID]);
    this.size = pci.configSize;
    this.#values = new Uint8Array(this.size);
    this.#virtual = new Uint8Array(this.size);
    this.#writable = new Uint8Array(this.size);
    for (let at = 0; at < this.size; at += 4) put(this.#values, at, 4, pci.configRead(at, 4));
    this.#declareHeader();
    this.#declareCapabilities(capabilitiesOf(pci));
    this.#declareExtended(extendedCapabilitiesOf(pci));
  }

  /** Accesses reach a BAR of this kind: its decoding is on, and the function is not asleep. */
  decodes({ kind }: Pick<Bar, "kind">): boolean {
    const bit = kind === "io" ? Command.IO_SPACE : Command.MEMORY_SPACE;
    return this.#awake && (this.#pci.configRead(Header.COMMAND, 2) & bit) !== 0;
  }
  get #awake(): boolean {
    if (this.#power < 0) return true;
    const state = PowerControl.fields.PowerState;
    return (this.#pci.configRead(this.#power + PowerCapability.PMCSR, 2) & state.mask) !== D3_HOT;
  }

  /** Any range within the space. */
  read(offset: number, into: Uint8Array): void {
    eachUnit(offset, into.length, (at, width, done) => {
      const physical = this.#pci.configRead(at, width);
      const virtual = get(this.#virtual, at, width);
      put(into, done, width, (physical & ~virtual) | (get(this.#values, at, width) & virtual));
    });
  }

  write(offset: number, data: Uint8Array): void {
    eachUnit(offset, data.length, (at, width, done) => this.#writeUnit(at, width, get(data, done, width)));
  }

  #writeUnit(at: number, width: 1 | 2 | 4, value: number): void {
    const before = get(this.#values, at, width);
    const virtual = get(this.#virtual, at, width);
    let writable = get(this.#writable, at, width);
    if (this.#msi >= 0 && !this.#hooks.msiActive()) {
      const enable = MsiControl.fields.Enable.mask;
      writable &= ~placed(enable, this.#msi + MsiCapability.MESSAGE_CONTROL, at, width);
    }
    const mine = virtual & writable;
    put(this.#values, at, width, (before & ~mine) | (value & mine));
    const through = writable & ~virtual;
    if (through) {
      const physical = this.#pci.configRead(at, width);
      this.#pci.configWrite(at, width, ((physical & ~through) | (value & through)) >>> 0);
    }
    this.#react(at, width, before);
  }

  /** Some bits mean something beyond their value. */
  #react(at: number, width: 1 | 2 | 4, before: number): void {
    const disable = placed(Command.INTERRUPT_DISABLE, Header.COMMAND, at, width);
    const now = get(this.#values, at, width);
    if ((before ^ now) & disable) this.#hooks.disableIntx((now & disable) !== 0);
    if (this.#express < 0) return;
    const control = this.#express + ExpressCapability.DEVICE_CONTROL;
    const reset = placed(DeviceControl.fields.InitiateFunctionLevelReset.mask, control, at, width);
    if (now & reset) {
      put(this.#values, at, width, now & ~reset);
      this.#hooks.reset();
    }
  }

  /** Bits of the register at `at`: virtual ones, and those the user may write. */
  #declare(at: number, width: 1 | 2 | 4, virtual: number, writable: number): void {
    put(this.#virtual, at, width, virtual);
    put(this.#writable, at, width, writable);
  }

  #declareHeader(): void {
    this.#declare(Header.VENDOR_ID, 4, 0xffff_ffff, 0);
    const { IO_SPACE, MEMORY_SPACE, BUS_MASTER, PARITY_ERROR_RESPONSE, SERR, INTERRUPT_DISABLE } = Command;
    const command = IO_SPACE | MEMORY_SPACE | BUS_MASTER | PARITY_ERROR_RESPONSE | SERR | INTERRUPT_DISABLE;
    this.#declare(Header.COMMAND, 2, INTERRUPT_DISABLE, command);
    this.#declare(Header.CACHE_LINE_SIZE, 1, 0, 0xff);
    this.#declare(Header.LATENCY_TIMER, 1, 0, 0xff);
    for (let bar = 0; bar < 6; bar += 1) this.#declare(Header.BASE_ADDRESS + 4 * bar, 4, 0xffff_ffff, 0);
    for (const bar of this.#pci.bars) this.#declareBar(bar);
    this.#declareRom();
    this.#declare(Header.CAPABILITIES_POINTER, 1, 0xff, 0);
    this.#declare(Header.INTERRUPT_LINE, 1, 0xff, 0xff);
    this.#declare(Header.INTERRUPT_PIN, 1, 0xff, 0);
    put(this.#values, Header.COMMAND, 2, get(this.#values, Header.COMMAND, 2) & ~INTERRUPT_DISABLE);
  }

  /** The user may write the address bits at and above the size. */
  #declareBar({ index, kind, size }: Bar): void {
    const at = Header.BASE_ADDRESS + 4 * index;
    const flags = kind === "io" ? BarBits.IO_FLAGS : BarBits.MEMORY_FLAGS;
    const low = size >= 2 ** 32 ? 0 : ~(size - 1);
    this.#declare(at, 4, 0xffff_ffff, (low & ~flags) >>> 0);
    if (kind === "mem64")
      this.#declare(at + 4, 4, 0xffff_ffff, size > 2 ** 32 ? ~(size / 2 ** 32 - 1) >>> 0 : 0xffff_ffff);
  }

  /** It can be sized, set and turned on without moving or being turned on; its region is read as one likes. */
  #declareRom(): void {
    const { rom } = this.#pci;
    const writable = rom ? ((~(rom.size - 1) & RomBits.ADDRESS) | RomBits.ENABLE) >>> 0 : 0;
    this.#declare(Header.EXPANSION_ROM, 4, 0xffff_ffff, writable);
    if (!rom) put(this.#values, Header.EXPANSION_ROM, 4, 0);
  }

  #declareCapabilities(list: readonly ListedCapability[]): void {
    const shown = list.filter(({ id }) => SHOWN.has(id));
    put(this.#values, Header.CAPABILITIES_POINTER, 1, shown[0]?.at ?? 0);
    shown.forEach(({ id, at }, index) => {
      this.#declare(at + 1, 1, 0xff, 0);
      put(this.#values, at + 1, 1, shown[index + 1]?.at ?? 0);
      if (id === CapabilityId.PM) {
        this.#power = at;
        this.#declare(at + PowerCapability.PMCSR, 2, 0, PowerControl.fields.PowerState.mask);
      }
      if (id === CapabilityId.MSI) this.#declareMsi(at);
      if (id === CapabilityId.EXPRESS) this.#declareExpress(at);
      if (id === CapabilityId.VENDOR) this.#declareVendor(at);
    });
  }

  /** Address, data and number of vectors are the user's to set and mean nothing: SET_IRQS decides. */
  #declareMsi(at: number): void {
    this.#msi = at;
    const control = this.#pci.configRead(at + MsiCapability.MESSAGE_CONTROL, 2);
    const { Enable, MultipleMessageEnable, Address64, PerVectorMasking } = MsiControl.fields;
    const given = MultipleMessageEnable.mask;
    this.#declare(at + MsiCapability.MESSAGE_CONTROL, 2, given, given | Enable.mask);
    const wide = (control & Address64.mask) !== 0;
    this.#declare(at + MsiCapability.ADDRESS, 4, 0xffff_ffff, 0xffff_fffc);
    if (wide) this.#declare(at + MsiCapability.UPPER_ADDRESS, 4, 0xffff_ffff, 0xffff_ffff);
    const data = at + (wide ? MsiCapability.DATA : MsiCapability.UPPER_ADDRESS);
    this.#declare(data, 2, 0xffff, 0xffff);
    if (control & PerVectorMasking.mask) this.#declare(data + 4, 4, 0xffff_ffff, 0xffff_ffff);
  }

  #declareVendor(at: number): void {
    const end = at + this.#pci.configRead(at + VendorCapability.LENGTH, 1);
    for (let byte = at + VendorCapability.DATA; byte < end; byte += 1) this.#declare(byte, 1, 0, 0xff);
  }

  #declareExpress(at: number): void {
    const { MaxPayloadSize, MaxReadRequestSize, InitiateFunctionLevelReset, ...others } =
      DeviceControl.fields;
    const through = Object.values(others).reduce((all, { mask }) => all | mask, 0);
    const capabilities = this.#pci.configRead(at + ExpressCapability.DEVICE_CAPABILITIES, 4);
    const canReset = (capabilities & DeviceCapabilities.fields.FunctionLevelReset.mask) !== 0;
    const virtual =
      MaxPayloadSize.mask | MaxReadRequestSize.mask | (canReset ? InitiateFunctionLevelReset.mask : 0);
    this.#declare(at + ExpressCapability.DEVICE_CONTROL, 2, virtual, virtual | through);
    if (canReset) this.#express = at;
  }

  /** The list has no way round its first entry: hidden, that one becomes an empty header. */
  #declareExtended(list: readonly ListedCapability[]): void {
    const shown = list.filter(({ id }, index) => index === 0 || !this.#hidden.has(id));
    shown.forEach(({ id, at }, index) => {
      this.#declare(at, 4, 0xffff_ffff, 0);
      const next = shown[index + 1]?.at ?? 0;
      const version = this.#pci.configRead(at + 2, 1) & 0xf;
      const header = this.#hidden.has(id)
        ? ExtendedHeader.make({ Next: next })
        : ExtendedHeader.make({ Id: id, Version: version, Next: next });
      put(this.#values, at, 4, Number(header));
      if (id === ExtendedCapabilityId.ERRORS) this.#declareErrors(at);
    });
    for (const { id, at } of list)
      if (this.#hidden.has(id) && at !== list[0]!.at) {
        this.#declare(at, 4, 0xffff_ffff, 0);
        put(this.#values, at, 4, 0);
      }
  }

  #declareErrors(at: number): void {
    const { UNCORRECTABLE_MASK, UNCORRECTABLE_SEVERITY, CORRECTABLE_MASK } = ErrorCapability;
    for (const register of [UNCORRECTABLE_MASK, UNCORRECTABLE_SEVERITY])
      this.#declare(at + register, 4, 0xffff_ffff, ErrorBits.UNCORRECTABLE);
    this.#declare(at + CORRECTABLE_MASK, 4, 0xffff_ffff, ErrorBits.CORRECTABLE);
  }
}

/** A mask of the register at `register` as it lies within an access at `at`. */
const placed = (mask: number, register: number, at: number, width: number): number => {
  const shift = (register - at) * 8;
  if (shift >= 32 || shift <= -32) return 0;
  const bits = shift >= 0 ? mask << shift : mask >>> -shift;
  return width === 4 ? bits >>> 0 : bits & (2 ** (8 * width) - 1);
};

const get = (bytes: Uint8Array, at: number, width: number): number => {
  let value = 0;
  for (let i = width - 1; i >= 0; i -= 1) value = value * 256 + bytes[at + i]!;
  return value;
};

const put = (bytes: Uint8Array, at: number, width: number, value: number): void => {
  for (let i = 0; i < width; i += 1) bytes[at + i] = value >>> (8 * i);
};

/** Cuts a range into the naturally aligned accesses a bus makes: `done` bytes lie before each. */
const eachUnit = (
  offset: number,
  length: number,
  access: (at: number, width: 1 | 2 | 4, done: number) => void,
): void => {
  for (let done = 0; done < length; ) {
    const at = offset + done;
    const left = length - done;
    const width = at % 4 === 0 && left >= 4 ? 4 : at % 2 === 0 && left >= 2 ? 2 : 1;
    access(at, width, done);
    done += width;
  }
};
