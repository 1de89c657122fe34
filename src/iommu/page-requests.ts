/**
 * Page requests from a unit to whoever owns the device's domain: requests of a group are collected until the last one
 * has come, then the group goes to the handler of the device's PASID, or else to that of the device. A group nobody
 * handles, or of which a request found no memory or no room, is answered `invalid`.
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

/** Requests of a device that are kept for the last ones of their groups, and groups: more of a group make it incomplete. */
const MOST_PARTIAL = 1024;
const NO_PASID = -1;

/** What has come of a group. */
interface Partial {
  readonly requests: PageRequest[];
  /** One found no memory, or no room: the group cannot be handled any more. */
  incomplete: boolean;
}

interface DeviceRequests {
  readonly handlers: Map<number, PageRequestHandler>;
  /** By group number. */
  readonly partial: Map<number, Partial>;
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
    else if (known) forgetUnhandled(known);
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
    const handler = known && handlerOf(known, request);
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

const handlerOf = ({ handlers }: DeviceRequests, { pasid }: PageRequest): PageRequestHandler | undefined =>
  handlers.get(pasid ?? NO_PASID) ?? handlers.get(NO_PASID);

/** Keeps a request until the last of its group has come. */
const collect = (known: DeviceRequests, request: PageRequest, kept: boolean): void => {
  const { partial } = known;
  let group = partial.get(request.group);
  if (!group) {
    if (partial.size >= MOST_PARTIAL) return;
    group = { requests: [], incomplete: false };
    partial.set(request.group, group);
  }
  if (!kept || known.partialCount >= MOST_PARTIAL) {
    group.incomplete = true;
    return;
  }
  known.partialCount += 1;
  group.requests.push(request);
};

/** Takes out what came before the last request of a group; undefined: some of it was lost. */
const collected = (known: DeviceRequests, number: number): readonly PageRequest[] | undefined => {
  const group = known.partial.get(number);
  if (!group) return [];
  known.partial.delete(number);
  known.partialCount -= group.requests.length;
  return group.incomplete ? undefined : group.requests;
};

/** A handler has gone: what came for it is not to be taken for a part of a later group with the same number. */
const forgetUnhandled = (known: DeviceRequests): void => {
  for (const [number, { requests }] of known.partial)
    if (requests[0] && !handlerOf(known, requests[0])) collected(known, number);
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
