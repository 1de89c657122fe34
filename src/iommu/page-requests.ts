/**
 * Page requests from a unit to whoever owns the device's domain: requests of a group are collected until the last one
 * has come, then the group goes to the handler of the device's PASID, or else to that of the device. A group nobody
 * handles, or of which a request found no memory, is answered `invalid`.
 */
import { allocateAtomic } from "../kernel/allocations.ts";
import type { IommuDriver, PageRequest, PageResponse, Requester } from "./driver.ts";

export interface PageRequestGroup {
  readonly device: Requester;
  readonly pasid: number | undefined;
  /** The device's number for it. */
  readonly number: number;
  readonly requests: readonly PageRequest[];
  /** Answers all of them, once. */
  respond(code: PageResponse["code"]): void;
}

export type PageRequestHandler = (group: PageRequestGroup) => void;

/** Requests of a group that are kept for its last one: a device that sends more gets an answer at once. */
const MOST_PARTIAL = 1024;
const NO_PASID = -1;

interface DeviceRequests {
  readonly handlers: Map<number, PageRequestHandler>;
  /** By group number; undefined stands for a request that found no memory. */
  readonly partial: Map<number, (PageRequest | undefined)[]>;
  partialCount: number;
}

export class PageRequests {
  readonly #driver: IommuDriver;
  readonly #devices = new Map<Requester, DeviceRequests>();

  constructor(driver: IommuDriver) {
    this.#driver = driver;
    driver.onPageRequest = (device, request) => this.#take(device, request);
    driver.onPageRequestsLost = () => this.#discard();
  }

  /** From now on groups of the device's PASID go to the handler, until `unhandle`. */
  handle(device: Requester, pasid: number | undefined, handler: PageRequestHandler): void {
    let known = this.#devices.get(device);
    if (!known) {
      known = { handlers: new Map(), partial: new Map(), partialCount: 0 };
      this.#devices.set(device, known);
    }
    known.handlers.set(pasid ?? NO_PASID, handler);
  }

  unhandle(device: Requester, pasid: number | undefined): void {
    const known = this.#devices.get(device);
    known?.handlers.delete(pasid ?? NO_PASID);
    if (known?.handlers.size === 0) this.#devices.delete(device);
  }

  /** What had come of groups that will never be whole is forgotten. */
  #discard(): void {
    for (const known of this.#devices.values()) {
      known.partial.clear();
      known.partialCount = 0;
    }
  }

  #take(device: Requester, request: PageRequest): void {
    const known = this.#devices.get(device);
    const kept = hasMemory();
    if (known && !request.last) {
      collect(known, request, kept);
      return;
    }
    const handler = known?.handlers.get(request.pasid ?? NO_PASID) ?? known?.handlers.get(NO_PASID);
    const respond = (code: PageResponse["code"]): void =>
      this.#driver.respond?.(device, {
        group: request.group,
        code,
        ...(request.pasid !== undefined && { pasid: request.pasid }),
      });
    const before = known ? collected(known, request.group) : [];
    if (!handler || !before || !kept) {
      if (request.last) respond("invalid");
      return;
    }
    const { pasid, group: number } = request;
    handler({ device, pasid, number, requests: [...before, request], respond });
  }
}

/** Whether there is memory for one more request. */
const hasMemory = (): boolean => {
  try {
    allocateAtomic("a page request");
    return true;
  } catch {
    return false;
  }
};

/** Keeps a request until the last of its group has come. */
const collect = (known: DeviceRequests, request: PageRequest, kept: boolean): void => {
  if (known.partialCount >= MOST_PARTIAL) return;
  known.partialCount += 1;
  const before = known.partial.get(request.group);
  if (before) before.push(kept ? request : undefined);
  else known.partial.set(request.group, [kept ? request : undefined]);
};

/** Takes out what came before the last request of a group; undefined: some of it was lost. */
const collected = (known: DeviceRequests, group: number): PageRequest[] | undefined => {
  const all = known.partial.get(group) ?? [];
  known.partial.delete(group);
  known.partialCount -= all.length;
  const kept = all.filter((request) => request !== undefined);
  return kept.length === all.length ? kept : undefined;
};

const routers = new WeakMap<IommuDriver, PageRequests>();

/** The one of this driver. */
export const pageRequestsOf = (driver: IommuDriver): PageRequests => {
  let router = routers.get(driver);
  if (!router) {
    router = new PageRequests(driver);
    routers.set(driver, router);
  }
  return router;
};
