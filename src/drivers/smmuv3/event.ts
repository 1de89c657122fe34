/** What an event record of the unit (IHI 0070, §7.3) says to whoever is above the driver. */
import { EventClass, EventCode, EventRecord } from "../../hardware/smmuv3/queue-spec.ts";
import { type FaultReason, RequestPermission, type UnrecoverableFault } from "../../iommu/driver.ts";

/** `ADDRESS` or `FETCH`, exact. */
const addressOf = (record: Uint32Array, { word }: { readonly word: number }): bigint =>
  (BigInt(record[word + 1]!) << 32n) | BigInt(record[word]!);

export const inputAddress = (record: Uint32Array): bigint => addressOf(record, EventRecord.fields.ADDRESS);

export const permissionsOf = (record: Uint32Array): number => {
  const { RNW, IND, PNU } = EventRecord.fields;
  const fetches = IND.get(record) ? RequestPermission.execute : RequestPermission.read;
  const privileged = PNU.get(record) ? RequestPermission.privileged : 0;
  return (RNW.get(record) ? fetches : RequestPermission.write) | privileged;
};

const REASONS: ReadonlyMap<number, FaultReason> = new Map([
  [EventCode.F_STREAM_DISABLED, "pasid-invalid"],
  [EventCode.C_BAD_SUBSTREAMID, "pasid-invalid"],
  [EventCode.F_CD_FETCH, "pasid-fetch"],
  [EventCode.C_BAD_CD, "bad-pasid-entry"],
  [EventCode.F_WALK_EABT, "walk-abort"],
  [EventCode.F_TRANSLATION, "entry"],
  [EventCode.F_ADDR_SIZE, "address-range"],
  [EventCode.F_ACCESS, "accessed-flag"],
  [EventCode.F_PERMISSION, "permission"],
]);

/** Events whose record has the address and the kind of the access. */
const WITH_ADDRESS: ReadonlySet<number> = new Set([
  EventCode.F_WALK_EABT,
  EventCode.F_TRANSLATION,
  EventCode.F_ADDR_SIZE,
  EventCode.F_ACCESS,
  EventCode.F_PERMISSION,
]);

/** Stage 2 is not the guest's: what it kept from being fetched is what counts, and the access itself has no reason there. */
const STAGE2_REASONS: ReadonlyMap<number, FaultReason> = new Map([
  [EventClass.cd, "pasid-fetch"],
  [EventClass.table, "walk-abort"],
]);

/** An event that is not waiting. Where stage 2 kept something from being fetched, the guest's address of it is told. */
export const faultOf = (record: Uint32Array): UnrecoverableFault => {
  const { TYPE, SSV, SSID, S2, CLASS, FETCH } = EventRecord.fields;
  const tagged = SSV.get(record) === 1 || TYPE.get(record) === EventCode.C_BAD_SUBSTREAMID;
  const behind = S2.get(record) ? STAGE2_REASONS.get(CLASS.get(record)) : undefined;
  const own = S2.get(record) ? undefined : REASONS.get(TYPE.get(record));
  return {
    ...(tagged && { pasid: SSID.get(record) }),
    ...(WITH_ADDRESS.has(TYPE.get(record)) && { address: inputAddress(record) }),
    permissions: WITH_ADDRESS.has(TYPE.get(record)) ? permissionsOf(record) : 0,
    reason: behind ?? own ?? "unknown",
    ...(behind && { fetch: addressOf(record, FETCH) }),
  };
};
