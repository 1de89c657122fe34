/** Functions that can have PASIDs, translation requests and page requests, for tests of drivers. They do nothing themselves. */
import { ManualClock } from "../base/clock.ts";
import { silent } from "../base/events.ts";
import { WorkQueue } from "../base/scheduler.ts";
import type { HostMemory } from "../memory/host-memory.ts";
import { ats, pasid, pri } from "../pci/capabilities.ts";
import { HostBridge } from "../pci/dma.ts";
import type { PciFunction } from "../pci/function.ts";
import { Endpoint } from "../pci/pci-function.ts";
import { placement } from "../pci/placement.ts";

class PlainFunction extends Endpoint {
  protected override readBar(_index: number, _offset: number, into: Uint8Array): void {
    into.fill(0);
  }
  protected override writeBar(): void {}
  protected override resetModel(): void {}
}

/** What a function has; by default all of it. */
export interface FunctionOptions {
  /** Bits of PASIDs; 0: none. */
  readonly pasidBits?: number;
  readonly ats?: boolean;
  readonly pri?: boolean;
}

/** The only function of its bus. */
export const plainFunction = (
  memory: HostMemory,
  bus: number,
  { pasidBits = 20, ats: hasAts = true, pri: hasPri = true }: FunctionOptions = {},
): PciFunction => {
  const shape = {
    model: "plain",
    vendorId: 0x1234,
    deviceId: 1,
    classCode: 0xff0000,
    bars: [],
    capabilities: [
      ...(pasidBits > 0 ? [pasid(pasidBits)] : []),
      ...(hasAts ? [ats()] : []),
      ...(hasPri ? [pri(32)] : []),
    ],
  };
  return new PlainFunction(shape, {
    address: { segment: 0, bus, device: 0, function: 0 },
    bridge: new HostBridge({ memory }),
    barBase: placement({ mem32: { start: 0, end: 0 }, mem64: { start: 0, end: 0 } }),
    scheduler: new WorkQueue(),
    clock: new ManualClock(),
    events: silent,
  });
};
