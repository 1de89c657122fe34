/**
 * The contract of a PCI function as the rest of the machine sees it. Models live in `devices/`; they extend
 * `Endpoint` (pci-function.ts), which gives them config space, BARs, MSI and DMA.
 */
import type { FaultRecord, TranslateStatus } from "../hardware/unit.ts";

export interface PciAddress {
  readonly segment: number;
  readonly bus: number;
  readonly device: number;
  readonly function: number;
}

export type BarKind = "mem32" | "mem64" | "io";

export interface Bar {
  readonly index: number;
  readonly kind: BarKind;
  /** Bytes, a power of two. */
  readonly size: number;
  readonly prefetchable: boolean;
  /** Host physical address where firmware placed it. */
  readonly base: number;
  /** False: VFIO offers no mmap of it (the machine file's option). */
  readonly mappable: boolean;
  /** VFIO offers no mmap of pages with the vector table (the machine file's option). */
  readonly sparse?: boolean;
}

/** An expansion ROM: what firmware may run before the operating system does. */
export interface Rom {
  /** Bytes, a power of two from 2 KiB to 16 MiB. */
  readonly size: number;
  /** Where firmware placed it. */
  readonly base: number;
  /** As many bytes as it has. */
  readonly contents: Uint8Array;
}

/** A function. Its message-signalled interrupts are ordinary writes through its unit. */
export interface PciFunction {
  readonly address: PciAddress;
  /** "0000:01:00.0" */
  readonly name: string;
  readonly rid: number;
  /** Name of the model, "nvme". */
  readonly model: string;
  readonly bars: readonly Bar[];
  readonly rom?: Rom | undefined;
  /** A virtual function (SR-IOV), which shares its PASID capability with its physical one (PCIe §7.8.9). */
  readonly isVirtual?: boolean;
  /** Made by software upon a part of a function: it is on no bus itself. */
  readonly mediated?: boolean;
  /** Bytes of config space: 256 or 4096. */
  readonly configSize: number;
  /** The physical config space: what the bus sees. Width 1, 2 or 4; naturally aligned. */
  configRead(offset: number, width: 1 | 2 | 4): number;
  configWrite(offset: number, width: 1 | 2 | 4, value: number): void;
  /** Any width and alignment a CPU can make (1 … 64 bytes). A model answers all-ones or ignores what it does not know. */
  barRead(bar: number, offset: number, into: Uint8Array): void;
  barWrite(bar: number, offset: number, data: Uint8Array): void;
  /** A non-posted write of 64 bytes (ENQCMD); false: to be tried again. Absent: nothing takes such. */
  barEnqueue?(bar: number, offset: number, command: Uint8Array): boolean;
  /**
   * Function-level reset: registers, queues and parked operations are gone. Config space is as firmware left it: BARs
   * placed, memory decoding on, bus mastering off. What else software had set there it must set again.
   */
  reset(): void;
  /** Interrupt line (INTx) asserted? Level; `onIntx` is told when it changes. */
  readonly intx: boolean;
  onIntx: (asserted: boolean) => void;
}

/** What a function uses to reach memory: each access goes through its unit. */
export interface DmaPort {
  /**
   * OK, fault (nothing more was transferred; why is in `lastFault`), or stalled: `park` must be called with how to go on.
   * `extra`: `Access.execute` and `Access.privileged`, with a PASID only.
   */
  read(lo: number, hi: number, into: Uint8Array, pasid?: number, extra?: number): TranslateStatus;
  write(lo: number, hi: number, data: Uint8Array, pasid?: number, extra?: number): TranslateStatus;
  /**
   * After `stalled`: `resume(true)` = try the same access again, later; `resume(false)` = it has failed. It may be called
   * before `park` returns.
   */
  park(resume: (ok: boolean) => void): void;
  /** Accesses may ask for pages that are not there, and stall until they have come (PRI). Otherwise those are faults. */
  asksForPages: boolean;
  /** Bytes of the last access that were moved before it ended; a resumed one may go on from there. */
  readonly done: number;
  /** Drops every parked operation (reset, unplug). */
  dropParked(): void;
  /** Sends an interrupt message. */
  message(lo: number, hi: number, data: number): TranslateStatus;
  readonly lastFault: FaultRecord | undefined;
}
