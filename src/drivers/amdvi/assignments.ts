/**
 * What the functions behind an AMD-Vi unit have been given, and how tables say it (48882, revision 3.07, §2.2.2, §2.2.6):
 * a version 1 table in the device table entry, or tables of processors in the function's GCR3 table, where PASID 0 is for
 * requests without one. The two do not go together: with both, one would lie above the other.
 */
import { NO_PASID } from "../../hardware/unit.ts";
import type { Domain, Requester } from "../../iommu/driver.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { AtsSwitch } from "../function-services.ts";
import { EVERYTHING, type Range } from "../range.ts";
import type { AmdDevice } from "./device.ts";
import { BLOCKING, type DeviceTable, type DteValues } from "./device-table.ts";
import { AmdDomain } from "./domain.ts";
import { NO_PASID_ENTRY } from "./gcr3-table.ts";
import type { Invalidations } from "./invalidations.ts";
import { AmdNestedDomain } from "./nested-domain.ts";

export interface AssignmentsContext {
  /** Of the unit. */
  readonly name: string;
  readonly table: DeviceTable;
  readonly invalidations: Invalidations;
  /** The unit is told of what is added, too. */
  readonly flushesAdded: boolean;
  /** Domain id of what passes untranslated. */
  readonly identityId: number;
  /** Takes what the unit has reported: a function may not have answered. */
  serve(): void;
  /** Domain ids of guests' tables above a domain. */
  guestsAbove(domain: AmdDomain): Iterable<number>;
}

export class Assignments {
  readonly #context: AssignmentsContext;
  readonly #devices = new Map<Requester, AmdDevice>();
  readonly #byRid = new Map<number, AmdDevice>();

  constructor(context: AssignmentsContext) {
    this.#context = context;
  }

  get devices(): Iterable<AmdDevice> {
    return this.#devices.values();
  }
  find(requester: Requester): AmdDevice | undefined {
    return this.#devices.get(requester);
  }
  byRid(rid: number): AmdDevice | undefined {
    return this.#byRid.get(rid);
  }

  /** The function comes, blocked. */
  admit(device: AmdDevice): void {
    this.#devices.set(device.requester, device);
    this.#byRid.set(device.rid, device);
    this.#writeEntry(device);
  }

  /** The function goes; it has been given nothing any more. */
  expel(device: AmdDevice): void {
    this.#devices.delete(device.requester);
    this.#byRid.delete(device.rid);
  }

  /** Requests without PASID go to the domain from now on. Throws EINVAL, EBUSY, ENODEV when they cannot. */
  attach(device: AmdDevice, domain: Domain): void {
    const before = device.domain;
    if (before === domain) return;
    this.#check(device, domain);
    // Which translations a function keeps of a guest's PASIDs nobody knows.
    if (device.ats && (before.kind === "nested" || domain.kind === "nested")) device.ats.on = false;
    count(domain, 1);
    device.domain = domain;
    if (isGuest(domain)) device.gcr3!.set(NO_PASID_ENTRY, domain.root);
    this.#writeEntry(device);
    const forget = (): void => this.#forgetPasid(device, NO_PASID_ENTRY);
    if (!isGuest(domain)) device.gcr3?.clear(NO_PASID_ENTRY, forget);
    else if (isGuest(before)) forget();
    if (device.ats?.on) this.#flushDevice(device, NO_PASID, EVERYTHING);
    count(before, -1);
  }

  /** Requests with the PASID go to the domain from now on. Throws EINVAL, EOPNOTSUPP, ENODEV, ENOMEM. */
  attachPasid(device: AmdDevice, domain: Domain, pasid: number): void {
    if (!(domain instanceof AmdDomain))
      throw new LinuxError("EOPNOTSUPP", `a PASID cannot be given ${domain.name}`, device.name);
    this.#checkPasid(device, domain, pasid);
    const before = device.pasids.get(pasid);
    if (before === domain) return;
    const first = !device.hasPasids;
    device.gcr3!.reserve(pasid);
    domain.users += 1;
    device.pasids.set(pasid, domain);
    device.gcr3!.set(pasid, domain.root);
    if (first && !isGuest(device.domain)) this.#writeEntry(device);
    if (before || this.#context.flushesAdded) this.#forgetPasid(device, pasid);
    if (before) before.users -= 1;
  }

  detachPasid(device: AmdDevice, pasid: number): void {
    const before = device.pasids.get(pasid);
    if (!before) return;
    device.pasids.delete(pasid);
    device.gcr3!.clear(pasid, () => this.#forgetPasid(device, pasid));
    if (!device.hasPasids && !isGuest(device.domain)) this.#writeEntry(device);
    before.users -= 1;
  }

  /** What the unit and functions know of a domain's addresses goes. */
  flush(domain: AmdDomain, range: Range): void {
    const { invalidations, guestsAbove } = this.#context;
    if (domain.table === "host") invalidations.pages(domain.id, range);
    for (const id of guestsAbove(domain)) invalidations.pages(id, range);
    for (const device of this.#devices.values()) {
      if (isAbove(device.domain, domain)) restart(device.ats);
      if (device.domain === domain) this.#flushUse(device, domain, NO_PASID, range);
      for (const [pasid, given] of device.pasids)
        if (given === domain) this.#flushUse(device, domain, pasid, range);
    }
  }

  /** Entries say of the domain what it is now, and nothing is remembered of before. */
  refresh(domain: AmdDomain): void {
    for (const device of this.#devices.values())
      if (device.domain === domain || isAbove(device.domain, domain)) this.#writeEntry(device);
    this.flush(domain, EVERYTHING);
  }

  /** The function does not answer invalidations: what it says was translated is refused from now on. */
  distrust(device: AmdDevice): void {
    if (!device.ats) return;
    device.ats.on = false;
    device.ats = undefined;
    this.#writeEntry(device);
  }

  #flushUse(device: AmdDevice, domain: AmdDomain, pasid: number, range: Range): void {
    if (domain.table === "guest")
      this.#context.invalidations.guestPages(
        device.gcr3!.domainId,
        pasid === NO_PASID ? NO_PASID_ENTRY : pasid,
        range,
      );
    if (device.ats?.on) this.#flushDevice(device, pasid, range);
  }

  #forgetPasid(device: AmdDevice, pasid: number): void {
    this.#context.invalidations.guestPages(device.gcr3!.domainId, pasid, EVERYTHING);
    if (pasid !== NO_PASID_ENTRY && device.ats?.on) this.#flushDevice(device, pasid, EVERYTHING);
  }

  /** That the function did not answer is in the event log, which must have room for it. */
  #flushDevice(device: AmdDevice, pasid: number, range: Range): void {
    const { serve, invalidations } = this.#context;
    serve();
    invalidations.deviceTlb(device.rid, pasid, range);
    serve();
  }

  #check(device: AmdDevice, domain: Domain): void {
    if (device.hasPasids && !(isGuest(domain) || domain.kind === "identity" || domain.kind === "blocked"))
      throw new LinuxError(
        "EBUSY",
        `PASIDs of the device have domains; ${domain.name} has no place for them`,
        device.name,
      );
    requirePageRequests(device, domain);
  }

  #checkPasid(device: AmdDevice, domain: AmdDomain, pasid: number): void {
    const { bits } = device.pasid;
    if (pasid <= NO_PASID_ENTRY || pasid >= 2 ** bits)
      throw new LinuxError("EINVAL", `PASID ${pasid}: the device has 1 to ${2 ** bits - 1}`, device.name);
    if (domain.table !== "guest")
      throw new LinuxError(
        "EINVAL",
        `${domain.name} has a version 1 table, which PASIDs cannot have: allocate it for PASIDs`,
        device.name,
      );
    if (device.domain.kind === "nested" || (device.domain.kind === "paging" && !isGuest(device.domain)))
      throw new LinuxError(
        "EINVAL",
        `the device has ${device.domain.name}, beside which there is no place for PASIDs`,
        device.name,
      );
    requirePageRequests(device, domain);
  }

  /** Makes the device table entry what the function has now. It asks for translations only while they are given. */
  #writeEntry(device: AmdDevice): void {
    const { table, invalidations } = this.#context;
    const entry = this.#entryOf(device);
    const { ats } = device;
    const translations = ats !== undefined && givesTranslations(device);
    if (ats && !translations) ats.on = false;
    table.write(device.rid, { ...entry, I: translations });
    invalidations.device(device.rid);
    if (ats && translations) ats.on = true;
  }

  #entryOf(device: AmdDevice): DteValues {
    const { domain, gcr3 } = device;
    const allowed: DteValues = {
      V: true,
      TV: true,
      IR: true,
      IW: true,
      PPR: device.pri,
      GPRP: device.pasid.bits > 0,
    };
    if (isGuest(domain) || device.hasPasids)
      return { ...allowed, ...gcr3!.fields, DOMAIN: gcr3!.domainId, GIOV: domain.kind !== "identity" };
    if (domain instanceof AmdDomain) return { ...allowed, ...domain.hostFields, DOMAIN: domain.id };
    if (domain instanceof AmdNestedDomain) {
      const fields = domain.fields;
      return { ...fields, PPR: device.pri && fields.PPR === true };
    }
    if (domain.kind === "identity") return { ...allowed, DOMAIN: this.#context.identityId };
    return BLOCKING;
  }
}

const isGuest = (domain: Domain): domain is AmdDomain =>
  domain instanceof AmdDomain && domain.table === "guest";

const isAbove = (domain: Domain, parent: AmdDomain): boolean =>
  domain instanceof AmdNestedDomain && domain.parent === parent;

const reportsFaults = (domain: Domain): boolean =>
  (domain instanceof AmdDomain || domain instanceof AmdNestedDomain) && domain.faults;

/** Whether the function can have translations of its own: a guest's as the guest wants. */
const givesTranslations = ({ domain, hasPasids }: AmdDevice): boolean =>
  domain instanceof AmdNestedDomain ? domain.ats : domain instanceof AmdDomain || hasPasids;

/** PCIe §10.5.1: what a function kept is gone when its translations are switched on again. */
const restart = (ats: AtsSwitch | undefined): void => {
  if (!ats?.on) return;
  ats.on = false;
  ats.on = true;
};

const requirePageRequests = ({ pri, name }: AmdDevice, domain: Domain): void => {
  if (reportsFaults(domain) && !pri)
    throw new LinuxError(
      "ENODEV",
      `${domain.name} reports page faults, and the device makes no page requests (PRI)`,
      name,
    );
};

const count = (domain: Domain, more: number): void => {
  if (domain instanceof AmdDomain || domain instanceof AmdNestedDomain) domain.users += more;
};
