/**
 * What a guest's stream table entry asks for, above a stage 2 of the host (IHI 0070, §5.2): abort, bypass of stage 1, or a
 * stage 1 whose context descriptors and tables are the guest's own, at addresses that go through stage 2.
 */
import { Config, Ste } from "../../hardware/smmuv3/spec.ts";
import type { NestedDomain, Requester, UserData } from "../../iommu/driver.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { GUEST_STE_BITS, IOMMU_HWPT_DATA_ARM_SMMUV3, IommuHwptArmSmmuv3 } from "../../uapi/vendor/smmuv3.ts";
import { stillUsed } from "../refusals.ts";
import type { SmmuDomain } from "./domain.ts";
import type { SteValues } from "./stream-table.ts";

/** The guest that a nested domain is of. */
export interface Guest {
  readonly parent: SmmuDomain;
  /** The StreamID that the guest has given the function. */
  virtualIdOf(device: Requester): bigint | undefined;
  /** An event of a function of the guest; false: it is not the guest's, or the guest does not want it. Throws ENOMEM. */
  report(virtualId: bigint, record: Uint32Array): boolean;
  /** The unit has lost events, perhaps some of the guest's functions. */
  lose(): void;
}

const fields = Ste.fields;
/** What a guest decides about its own stage 1. */
const GUEST_FIELDS = Object.entries(fields)
  .filter(([, field]) => (GUEST_STE_BITS & (1n << BigInt(field.first))) !== 0n)
  .map(([name]) => name as keyof typeof fields);
/** EATS: full ATS, or none. */
const MOST_EATS = 1n;

export class SmmuNestedDomain implements NestedDomain {
  readonly kind = "nested";
  readonly name: string;
  readonly guest: Guest;
  /** Functions that have it. */
  users = 0;
  /** The guest's entry; 0n: it is not valid, and everything is refused. */
  readonly #entry: bigint;

  /** Throws EINVAL for another kind of data or its length, EIO for what a guest may not ask for, EFAULT. */
  constructor(guest: Guest, data: UserData) {
    this.guest = guest;
    this.name = `nested above ${guest.parent.name}`;
    if (data.type !== IOMMU_HWPT_DATA_ARM_SMMUV3)
      throw new LinuxError(
        "EINVAL",
        `data of type 0x${data.type.toString(16)}: SMMUv3 takes ${IOMMU_HWPT_DATA_ARM_SMMUV3} (ARM_SMMUV3)`,
        this.name,
      );
    const { ste } = IommuHwptArmSmmuv3.read(data.read(IommuHwptArmSmmuv3.size));
    this.#entry = checked(ste[0]! | (ste[1]! << 64n), this.name);
    guest.parent.users += 1;
  }

  get parent() {
    return this.guest.parent;
  }

  /** `Config` of the guest's entry. */
  get config(): number {
    return Number(fields.CONFIG.of(this.#entry));
  }

  /** The guest's own tables translate. */
  get translates(): boolean {
    return this.config === Config.stage1;
  }

  /** The guest has its function's own translations switched on. */
  get ats(): boolean {
    return this.translates && fields.EATS.of(this.#entry) === MOST_EATS;
  }

  /** What the entry of a function says that has it: of stage 1 what the guest says, of stage 2 what the host does. */
  get steFields(): SteValues {
    if (this.config === Config.abort) return { CONFIG: Config.abort };
    const below = this.parent.stage2Fields;
    if (!this.translates) return { CONFIG: Config.stage2, ...below };
    const ofGuest: { [name: string]: bigint } = {};
    for (const name of GUEST_FIELDS) if (name !== "EATS") ofGuest[name] = fields[name].of(this.#entry);
    return { ...ofGuest, ...below, CONFIG: Config.nested };
  }

  free(): void {
    if (this.users > 0) throw stillUsed(this.name, `${this.users} functions`);
    this.parent.users -= 1;
  }
}

const checked = (entry: bigint, name: string): bigint => {
  if (fields.V.of(entry) === 0n) return 0n;
  const foreign = entry & ~GUEST_STE_BITS;
  if (foreign !== 0n)
    throw new LinuxError(
      "EIO",
      `the entry has bits that are not the guest's: ${Ste.print(foreign)}; it may set ${GUEST_FIELDS.join(", ")}`,
      name,
    );
  const config = fields.CONFIG.of(entry);
  if (config !== BigInt(Config.abort) && config !== BigInt(Config.bypass) && config !== BigInt(Config.stage1))
    throw new LinuxError(
      "EIO",
      `Config = ${config}: abort (0), bypass (4) and stage 1 (5) are the guest's to ask for`,
      name,
    );
  const eats = fields.EATS.of(entry);
  if (eats > MOST_EATS)
    throw new LinuxError("EIO", `EATS = ${eats}: no ATS (0) or full ATS (1) is possible`, name);
  return entry;
};
