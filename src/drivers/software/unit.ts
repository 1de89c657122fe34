/**
 * What stands in the place of an IOMMU before a device made by software: its driver looks every address up in the domain
 * that the device has, as a driver does that pins and reads pages itself. No registers, no caches, no PASIDs.
 */
import type { EventSink } from "../../base/events.ts";
import { Access, type IommuUnit, NO_PASID, type Transaction, TranslateStatus } from "../../hardware/unit.ts";
import { explainWalk } from "../../pagetable/explain.ts";
import { Permission, WalkFault } from "../../pagetable/format.ts";
import type { ExplainStep } from "../../pagetable/step.ts";
import { WalkResult } from "../../pagetable/walker.ts";
import { type SoftwareDomain, softwareFormat, walkSoftware } from "./domain.ts";

/** Codes of its faults beside those of a walk. */
export const SoftwareFault = { blocked: 100, pasid: 101 } as const;

const needOf = (access: number): number =>
  (access & Access.write ? Permission.write : Permission.read) | Permission.user;
const addressOf = ({ hi, lo }: Transaction): bigint => (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);

export class SoftwareUnit implements IommuUnit {
  readonly name: string;
  /** Nothing stalls. */
  onResume: (token: number, ok: boolean) => void = () => {};
  /** Undefined: every access is refused; "identity": none is translated. */
  domain: SoftwareDomain | "identity" | undefined;
  readonly #events: EventSink;
  readonly #result = new WalkResult();

  constructor(name: string, events: EventSink) {
    this.name = name;
    this.#events = events;
  }

  translate(request: Transaction): TranslateStatus {
    const { domain } = this;
    const result = this.#result;
    if (request.pasid !== NO_PASID) return this.#refuse(request, SoftwareFault.pasid);
    if (domain === undefined) return this.#refuse(request, SoftwareFault.blocked);
    if (domain === "identity") {
      request.pa = Number(addressOf(request));
      request.span = Number.MAX_SAFE_INTEGER;
      return TranslateStatus.ok;
    }
    const { lo, hi, access } = request;
    const fault = walkSoftware(domain.memory, domain.root, lo, hi, needOf(access), result);
    if (fault !== WalkFault.none) return this.#refuse(request, fault);
    request.pa = result.pa;
    request.span = result.span;
    return TranslateStatus.ok;
  }

  *explain(request: Transaction): Generator<ExplainStep> {
    const { domain } = this;
    const what = "software";
    if (request.pasid !== NO_PASID)
      yield refusal(what, SoftwareFault.pasid, "a device made by software has no PASIDs");
    else if (domain === undefined)
      yield refusal(what, SoftwareFault.blocked, "the device has no domain, so nothing is mapped");
    else if (domain === "identity")
      yield { what, outcome: { ok: true, pa: Number(addressOf(request)), span: Number.MAX_SAFE_INTEGER } };
    else {
      const { memory, root } = domain;
      const walk = explainWalk(softwareFormat, memory, root, addressOf(request), needOf(request.access));
      const { fault, reason, pa, span } = yield* walk;
      yield fault === WalkFault.none
        ? { what, note: reason, outcome: { ok: true, pa, span } }
        : refusal(what, fault, reason);
    }
  }

  mmioRead(): bigint {
    return 0n;
  }
  mmioWrite(): void {}
  reset(): void {}

  #refuse(request: Transaction, code: number): TranslateStatus {
    request.fault = code;
    if (this.#events.on) {
      const { rid, pasid, access } = request;
      let reason = "";
      for (const { outcome } of this.explain(request)) if (outcome && !outcome.ok) reason = outcome.reason;
      this.#events.emit("fault", {
        unit: this.name,
        rid,
        pasid,
        address: addressOf(request),
        access,
        code,
        reason,
      });
    }
    return TranslateStatus.fault;
  }
}

const refusal = (what: string, code: number, reason: string): ExplainStep => ({
  what,
  outcome: { ok: false, code, reason },
});
