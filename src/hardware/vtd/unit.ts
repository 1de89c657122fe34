/**
 * An Intel VT-d remapping unit as silicon.
 */
import type { Random } from "../../base/clock.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import type { UnitContext } from "../unit.ts";

/** What the unit can do; CAP and ECAP are made of it, and nothing is reported that the unit does not do. */
export interface VtdCapabilities {
  /** VER: default 1.0. From major 4 on the queue error record IQERCD exists. */
  readonly version?: { readonly major: number; readonly minor: number };
  /** Address widths of the second stage, any of 39, 48, 57 (SAGAW). */
  readonly addressWidths: readonly (39 | 48 | 57)[];
  /** MGAW: default the largest of `addressWidths`. */
  readonly guestAddressWidth?: number;
  /** Host address width: table addresses beyond it are reserved bits. Not visible in a register (the DMAR table tells it). Default 46. */
  readonly hostAddressWidth?: number;
  /** SLLPS: default both. */
  readonly largePages?: { readonly twoMegabytes: boolean; readonly oneGigabyte: boolean };
  /** ND: lg2 of the number of domains, 4 to 16, even; default 16. */
  readonly domainBits?: number;
  /** NFR: fault recording registers, 1 to 256; default 8. */
  readonly faultRecords?: number;
  /** FRO and IRO: offsets of FRCD and of IVA/IOTLB in bytes, multiples of 16; defaults 0x400 and 0x500. */
  readonly faultRecordOffset?: number;
  readonly iotlbOffset?: number;
  /** MAMV: largest lg2 of pages a page-selective invalidation covers; default 18. */
  readonly maximumAddressMask?: number;
  /** PSI: page-selective invalidation; default true. */
  readonly pageSelective?: boolean;
  /** CM: not-present and faulting entries may be cached; default false. */
  readonly cachingMode?: boolean;
  /** RWBF: default false. */
  readonly writeBufferFlush?: boolean;
  /** ZLR: zero-length reads of write-only pages are allowed; default true. */
  readonly zeroLengthRead?: boolean;
  /** QI, PT, SC, DT, C: defaults true, true, true, false, true. */
  readonly queuedInvalidation?: boolean;
  readonly passThrough?: boolean;
  readonly snoopControl?: boolean;
  readonly deviceTlb?: boolean;
  readonly coherent?: boolean;
  /** IR, EIM: default false. Registers and commands are there, interrupts are not remapped. */
  readonly interruptRemapping?: boolean;
  /** ESRTPS: setting the root pointer invalidates every cache; default true. */
  readonly rootPointerInvalidates?: boolean;
  /** PLMR, PHMR: protected memory regions; default false. */
  readonly protectedMemory?: boolean;
}

export interface VtdOptions extends UnitContext {
  readonly name: string;
  readonly memory: HostMemory;
  readonly capabilities: VtdCapabilities;
  /** `none`: nothing is remembered; `paranoid`: whatever may be forgotten is, at random. Default `normal`. */
  readonly cache?: "normal" | "none" | "paranoid";
  /** Needed by `paranoid`. */
  readonly random?: Random;
}
