/**
 * The invalidations a VT-d driver asks for (revision 4.1, §6.5.2), each done when the call returns. Ranges are told by
 * pages where one descriptor can say it, which must be naturally aligned, else for the whole domain, PASID or function.
 */
import {
  PageGroupResponse,
  PasidCacheGranularity,
  PasidCacheInvalidate,
  PasidDeviceTlbInvalidate,
  PasidIotlbGranularity,
  PasidIotlbInvalidate,
  ResponseCode,
} from "../../hardware/vtd/scalable-spec.ts";
import {
  ContextCacheInvalidate,
  DescriptorType,
  DeviceTlbInvalidate,
  Granularity,
  IotlbInvalidate,
} from "../../hardware/vtd/spec.ts";
import type { PageResponse } from "../../iommu/driver.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { coverage, type Range, sized } from "../range.ts";
import type { InvalidationQueue } from "./queue.ts";

const codes: { readonly [code in PageResponse["code"]]: number } = ResponseCode;

export class Invalidations {
  readonly #queue: InvalidationQueue;
  readonly #maximumAddressMask: number;
  readonly #words = new Uint32Array(4);

  constructor(queue: InvalidationQueue, maximumAddressMask: number) {
    this.#queue = queue;
    this.#maximumAddressMask = maximumAddressMask;
  }

  context(granularity: number, domainId: number, rid: number): void {
    const { G, DID, SID } = ContextCacheInvalidate.fields;
    const words = this.#begin(DescriptorType.contextCache);
    G.set(words, granularity);
    DID.set(words, domainId);
    SID.set(words, rid);
    this.#queue.submit(words);
  }

  /** Everything of a domain, or of all. */
  iotlb(granularity: number, domainId: number): void {
    const { G, DW, DR, DID } = IotlbInvalidate.fields;
    const words = this.#begin(DescriptorType.iotlb);
    G.set(words, granularity);
    DW.set(words, 1);
    DR.set(words, 1);
    DID.set(words, domainId);
    this.#queue.submit(words);
  }

  /** Second-stage addresses. */
  iotlbRange(domainId: number, range: Range): void {
    const { page, lg2 } = coverage(range);
    if (lg2 > this.#maximumAddressMask) {
      this.iotlb(Granularity.domain, domainId);
      return;
    }
    const { G, DW, DR, DID, ADDR, AM, IH } = IotlbInvalidate.fields;
    const words = this.#begin(DescriptorType.iotlb);
    G.set(words, Granularity.page);
    DW.set(words, 1);
    DR.set(words, 1);
    DID.set(words, domainId);
    ADDR.set(words, page);
    AM.set(words, lg2);
    IH.set(words, range.leavesOnly ? 1 : 0);
    this.#queue.submit(words);
  }

  pasidCache(granularity: number, domainId: number, pasid: number): void {
    const { G, DID, PASID } = PasidCacheInvalidate.fields;
    const words = this.#begin(DescriptorType.pasidCache);
    G.set(words, granularity);
    DID.set(words, domainId);
    PASID.set(words, pasid);
    this.#queue.submit(words);
  }

  /** Every PASID table entry. */
  pasidCacheAll(): void {
    this.pasidCache(PasidCacheGranularity.global, 0, 0);
  }

  /** Addresses of a first stage that requests with the PASID go through. */
  pasidIotlb(domainId: number, pasid: number, range: Range): void {
    const { G, DID, PASID, ADDR, AM, IH } = PasidIotlbInvalidate.fields;
    const { page, lg2 } = coverage(range);
    const words = this.#begin(DescriptorType.pasidIotlb);
    DID.set(words, domainId);
    PASID.set(words, pasid);
    if (lg2 > this.#maximumAddressMask) G.set(words, PasidIotlbGranularity.pasid);
    else {
      G.set(words, PasidIotlbGranularity.page);
      ADDR.set(words, page);
      AM.set(words, lg2);
      IH.set(words, range.leavesOnly ? 1 : 0);
    }
    this.#queue.submit(words);
  }

  /**
   * What the function's own TLB knows, of requests without PASID (`pasid` undefined) or with one. False: the function did
   * not answer.
   */
  deviceTlb(rid: number, pasid: number | undefined, range: Range): boolean {
    const { page, lg2 } = coverage(range);
    const address = sized(page, lg2);
    const large = lg2 > 0 ? 1 : 0;
    if (pasid === undefined) {
      const { SID, ADDR, S } = DeviceTlbInvalidate.fields;
      const words = this.#begin(DescriptorType.deviceTlb);
      SID.set(words, rid);
      ADDR.set(words, address);
      S.set(words, large);
    } else {
      const { SID, PASID, ADDR, S } = PasidDeviceTlbInvalidate.fields;
      const words = this.#begin(DescriptorType.pasidDeviceTlb);
      SID.set(words, rid);
      PASID.set(words, pasid);
      ADDR.set(words, address);
      S.set(words, large);
    }
    try {
      this.#queue.submit(this.#words);
      return true;
    } catch (error) {
      if (error instanceof LinuxError && error.code === "EIO") return false;
      throw error;
    }
  }

  /** §7.7.1 The answer to a group of page requests. */
  respond(rid: number, { pasid, group, code }: PageResponse): void {
    const { SID, PP, PASID, LPIG, PRGI, RC } = PageGroupResponse.fields;
    const words = this.#begin(DescriptorType.pageGroupResponse);
    SID.set(words, rid);
    PP.set(words, pasid === undefined ? 0 : 1);
    PASID.set(words, pasid ?? 0);
    LPIG.set(words, 1);
    PRGI.set(words, group);
    RC.set(words, codes[code]);
    this.#queue.submit(words);
  }

  /** Page requests that functions have made are in their queue when this returns. */
  drainPageRequests(): void {
    this.#queue.drain();
  }

  #begin(type: number): Uint32Array {
    const { TYPE } = ContextCacheInvalidate.fields;
    this.#words.fill(0);
    TYPE.set(this.#words, type);
    return this.#words;
  }
}
