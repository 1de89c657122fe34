/**
 * What a guest's device table entry asks for, above a version 1 table of the host (48882, revision 3.07, §2.2.2, §2.2.6.4):
 * nothing, what the host's table translates alone, or GCR3 and page tables of the guest's own at addresses that go through
 * it. Linux 7.2 has none of it: the interface is the extension `amd-nesting`.
 *
 * Of the entry only what concerns the guest's translation counts. What it says of interrupts, of exclusion and of which
 * faults are logged is passed over.
 */
import type { Capabilities } from "../../hardware/amdvi/capabilities.ts";
import { Dte } from "../../hardware/amdvi/spec.ts";
import type { NestedDomain, UserData } from "../../iommu/driver.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { IOMMU_HWPT_DATA_AMD_GUEST, IommuHwptAmdGuest } from "../../uapi/vendor/amd.ts";
import { stillUsed } from "../refusals.ts";
import { BLOCKING, type DteValues } from "./device-table.ts";
import type { AmdDomain } from "./domain.ts";

/** The guest that a nested domain is of. */
export interface Guest {
  readonly parent: AmdDomain;
  readonly unit: Capabilities;
  /** The host's domain id for one of the guest's, held until it is released. Throws ENOSPC. */
  hold(guestId: number): number;
  release(guestId: number): void;
}

const f = Dte.fields;
const RESERVED_GLX = 3;
/** Fields of the guest's own tables. */
const TABLES = ["GLX", "GCR3_TRP_14", "GCR3_TRP_30", "GCR3_TRP_51", "GIOV", "GUEST_PAGING_MODE"] as const;

export class AmdNestedDomain implements NestedDomain {
  readonly kind = "nested";
  readonly name: string;
  readonly guest: Guest;
  /** Page faults under it are reported. */
  readonly faults: boolean;
  /** Functions that have it. */
  users = 0;
  readonly #entry: bigint;
  /** Of the guest's tables; undefined: the guest has none. */
  readonly #domainId: number | undefined;

  /**
   * Throws EOPNOTSUPP for another kind of data and for what the unit lacks, EINVAL for its length and what a guest's entry
   * cannot say, ENOSPC, EFAULT.
   */
  constructor(guest: Guest, data: UserData, faults: boolean) {
    this.guest = guest;
    this.faults = faults;
    this.name = `nested above ${guest.parent.name}`;
    if (data.type !== IOMMU_HWPT_DATA_AMD_GUEST)
      throw new LinuxError(
        "EOPNOTSUPP",
        `data of type 0x${data.type.toString(16)}: AMD-Vi takes ${IOMMU_HWPT_DATA_AMD_GUEST} (AMD_GUEST)`,
        this.name,
      );
    this.#entry = Dte.read(data.read(IommuHwptAmdGuest.size));
    requireValid(this.#entry, this.name);
    requireUnit(this.#entry, guest.unit, this.name);
    this.#domainId = this.translates ? guest.hold(this.#guestId) : undefined;
    guest.parent.users += 1;
  }

  get parent(): AmdDomain {
    return this.guest.parent;
  }

  /** The guest's own tables translate. */
  get translates(): boolean {
    return this.#has("V") && this.#has("TV") && this.#has("GV");
  }

  /** The guest has its function's own translations switched on. */
  get ats(): boolean {
    return this.translates && this.#has("I");
  }

  /** What the entry of a function says that has it: of the guest's tables what the guest says, the rest is the host's. */
  get fields(): DteValues {
    const below: DteValues = {
      V: true,
      TV: true,
      IR: true,
      IW: true,
      ...this.parent.hostFields,
      DOMAIN: this.parent.id,
    };
    if (!this.#has("V")) return below;
    if (!this.#has("TV")) return BLOCKING;
    const allowed = { ...below, IR: this.#has("IR"), IW: this.#has("IW"), PPR: this.#has("PPR") };
    if (this.#domainId === undefined) return allowed;
    const ofGuest = Object.fromEntries(TABLES.map((name) => [name, f[name].of(this.#entry)])) as DteValues;
    return { ...allowed, ...ofGuest, GV: true, GPRP: this.#has("GPRP"), DOMAIN: this.#domainId };
  }

  free(): void {
    if (this.users > 0) throw stillUsed(this.name, `${this.users} functions`);
    this.parent.users -= 1;
    if (this.#domainId !== undefined) this.guest.release(this.#guestId);
  }

  get #guestId(): number {
    return Number(f.DOMAIN.of(this.#entry));
  }

  #has(name: "V" | "TV" | "GV" | "IR" | "IW" | "I" | "PPR" | "GPRP"): boolean {
    return f[name].of(this.#entry) === 1n;
  }
}

/** What no entry of a guest's may say. */
const requireValid = (entry: bigint, name: string): void => {
  const refuse = (why: string): never => {
    throw new LinuxError("EINVAL", why, name);
  };
  if (f.MODE.of(entry) !== 0n || f.HOST_TRP.of(entry) !== 0n)
    refuse("Mode and the host page table root are the host's: both must be 0 in a guest's entry");
  if (Number(f.GLX.of(entry)) === RESERVED_GLX) refuse("GLX = 3 is reserved");
  const paging = f.GUEST_PAGING_MODE.of(entry);
  if (paging > 1n) refuse(`guest paging mode ${paging}: 4 levels (0) and 5 levels (1) are possible`);
  const gcr3 = f.GCR3_TRP_14.of(entry) | f.GCR3_TRP_30.of(entry) | f.GCR3_TRP_51.of(entry);
  if (f.V.of(entry) === 1n && f.GV.of(entry) === 1n && gcr3 === 0n)
    refuse("V and GV are set, and the GCR3 table root is 0");
};

const requireUnit = (entry: bigint, unit: Capabilities, name: string): void => {
  const lacks = (
    [
      [f.GUEST_PAGING_MODE.of(entry) === 1n && unit.guestLevels < 5, "guest tables of 5 levels (EFR.GATS)"],
      [f.GLX.of(entry) >= BigInt(unit.gcr3Levels), "GCR3 tables of so many levels (EFR.GLXSup)"],
      [f.GIOV.of(entry) === 1n && !unit.guestIo, "guest tables for requests without PASID (EFR.GIoSup)"],
      [f.GV.of(entry) === 1n && !unit.gcr3Guest, "GCR3 tables at a guest's addresses (EFR2.GCR3TRPMode)"],
    ] as const
  ).find(([asked]) => asked);
  if (lacks) throw new LinuxError("EOPNOTSUPP", `the unit has no ${lacks[1]}`, name);
};
