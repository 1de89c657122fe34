/**
 * Accesses that failed for good, told to whoever gave the device's PASID its tables: the handler of the PASID, or else that
 * of the device. Where there is neither nobody wants to know; drivers keep reports of their own.
 */
import type { IommuDriver, Requester, UnrecoverableFault } from "./driver.ts";

export type FaultHandler = (fault: UnrecoverableFault) => void;

const NO_PASID = -1;

export class UnrecoverableFaults {
  /** By device and PASID. */
  readonly #handlers = new Map<Requester, Map<number, FaultHandler>>();

  constructor(driver: IommuDriver) {
    driver.onFault = (device, fault) => {
      const known = this.#handlers.get(device);
      const handler = known?.get(fault.pasid ?? NO_PASID) ?? known?.get(NO_PASID);
      handler?.(fault);
    };
  }

  /** From now on faults of the device's PASID go to the handler, until `unhandle`. */
  handle(device: Requester, pasid: number | undefined, handler: FaultHandler): void {
    let known = this.#handlers.get(device);
    if (!known) {
      known = new Map();
      this.#handlers.set(device, known);
    }
    known.set(pasid ?? NO_PASID, handler);
  }

  unhandle(device: Requester, pasid: number | undefined): void {
    const known = this.#handlers.get(device);
    known?.delete(pasid ?? NO_PASID);
    if (known?.size === 0) this.#handlers.delete(device);
  }
}

const routers = new WeakMap<IommuDriver, UnrecoverableFaults>();

/** The one of this driver. */
export const unrecoverableFaultsOf = (driver: IommuDriver): UnrecoverableFaults => {
  let router = routers.get(driver);
  if (!router) {
    router = new UnrecoverableFaults(driver);
    routers.set(driver, router);
  }
  return router;
};
