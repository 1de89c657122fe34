/** An SMMUv3 with its driver on host memory, for tests: accesses are made through the unit. */
import { ManualClock, Random } from "../../base/clock.ts";
import { silent } from "../../base/events.ts";
import { WorkQueue } from "../../base/scheduler.ts";
import { type CachePolicy, type SmmuCapabilities, SmmuV3Unit } from "../../hardware/smmuv3/unit.ts";
import { Access, NO_PASID, Transaction, TranslateStatus } from "../../hardware/unit.ts";
import type { DriverBench } from "../../iommu/driver.suite.ts";
import type { Requester } from "../../iommu/driver.ts";
import { MsiController } from "../../kernel/msi.ts";
import { Banks } from "../../memory/banks.ts";
import { TestFunction } from "../../pci/devices/test-function.ts";
import { HostBridge } from "../../pci/dma.ts";
import { placement } from "../../pci/placement.ts";
import { messagesInto, rationed } from "../rig-memory.suite.ts";
import { SmmuDriver, type SmmuFirmware } from "./driver.ts";

export interface SmmuBench extends DriverBench {
  readonly driver: SmmuDriver;
  readonly unit: SmmuV3Unit;
  readonly scheduler: WorkQueue;
  /** Stalled accesses that ended: by token, whether to try again. */
  readonly resumed: Map<number, boolean>;
  /** Makes an access, without taking up what the unit reports. */
  request(device: Requester, iova: number, write: boolean, pasid?: number): Transaction & { status: number };
}

export interface BenchOptions {
  readonly capabilities?: SmmuCapabilities;
  readonly cache?: CachePolicy;
  readonly canStall?: boolean;
  /** What else firmware says. */
  readonly firmware?: Pick<SmmuFirmware, "messagesPass" | "remembersAbsent">;
  readonly devices?: readonly [Requester, Requester];
}

export const DEVICES: readonly [Requester, Requester] = [
  { rid: 0x100, name: "0000:01:00.0" },
  { rid: 0x218, name: "0000:02:03.0" },
];

/** The same function, with a PASID capability of 20 bits. */
export const withPasids = ({ rid, name }: Requester): Requester => {
  const bridge = new HostBridge({ memory: new Banks({ ram: [] }) });
  const address = { segment: 0, bus: rid >>> 8, device: (rid >>> 3) & 31, function: rid & 7 };
  const made = new TestFunction({
    address,
    bridge,
    barBase: placement({
      mem32: { start: 0xc000_0000, end: 0xfe00_0000 },
      mem64: { start: 2 ** 37, end: 2 ** 38 },
    }),
    scheduler: new WorkQueue(),
    clock: new ManualClock(),
  });
  return Object.defineProperty(made, "name", { value: name });
};

export const smmuBench = (options: BenchOptions = {}): SmmuBench => {
  const { capabilities, cache = "normal", canStall = false, devices = DEVICES, firmware } = options;
  const memory = new Banks({ ram: [{ start: 0, length: 2 ** 28 }] });
  const msi = new MsiController(memory);
  const unit = new SmmuV3Unit({
    name: "smmu0",
    memory,
    events: silent,
    interrupt: messagesInto(memory),
    capabilities: { msi: true, ...capabilities },
    cache,
    random: new Random(1),
  });
  const limitFrames = rationed(memory);
  const scheduler = new WorkQueue();
  const driver = new SmmuDriver({
    name: "smmu0",
    unit,
    memory,
    msi,
    scheduler,
    events: silent,
    firmware: { ...firmware, covers: () => true, canStall: () => canStall },
  });
  const resumed = new Map<number, boolean>();
  unit.onResume = (token, ok) => resumed.set(token, ok);
  const request: SmmuBench["request"] = (device, iova, write, pasid = NO_PASID) => {
    const transaction = new Transaction();
    transaction.rid = device.rid;
    transaction.pasid = pasid;
    transaction.lo = iova >>> 0;
    transaction.hi = Math.floor(iova / 2 ** 32);
    transaction.access = write ? Access.write : Access.read;
    return Object.assign(transaction, { status: unit.translate(transaction) });
  };
  return {
    driver,
    unit,
    memory,
    devices,
    scheduler,
    resumed,
    request,
    access(device, iova, write) {
      const { status, pa } = request(device, iova, write);
      scheduler.run();
      return status === TranslateStatus.ok ? pa : "fault";
    },
    limitFrames,
    close() {
      driver.close();
      msi.close();
      memory.close();
    },
  };
};
