/**
 * A host whose queues for faults are as small as can be, with functions that count what became of each of their accesses,
 * and a VMM on it that reaches it by encoded system calls. Interrupts of the unit arrive when the test lets them, so that
 * queues fill up.
 */
import { silent } from "../../src/base/events.ts";
import { AmdDriver } from "../../src/drivers/amdvi/driver.ts";
import { SmmuDriver } from "../../src/drivers/smmuv3/driver.ts";
import { TceDriver } from "../../src/drivers/tce/driver.ts";
import { VtdDriver } from "../../src/drivers/vtd/driver.ts";
import { ZpciDriver } from "../../src/drivers/zpci/driver.ts";
import { AmdViUnit } from "../../src/hardware/amdvi/unit.ts";
import { PageResponse } from "../../src/hardware/ats.ts";
import { ABORTED } from "../../src/hardware/smmuv3/faults.ts";
import { SmmuV3Unit } from "../../src/hardware/smmuv3/unit.ts";
import { TceUnit } from "../../src/hardware/tce/unit.ts";
import { type IommuUnit, TranslateStatus } from "../../src/hardware/unit.ts";
import { VtdUnit } from "../../src/hardware/vtd/unit.ts";
import { ZpciUnit } from "../../src/hardware/zpci/unit.ts";
import { pageRequestsOf } from "../../src/iommu/page-requests.ts";
import { IommufdSubsystem } from "../../src/iommufd/file.ts";
import { MSI_BASE, MSI_BYTES } from "../../src/kernel/msi.ts";
import { ats, pri } from "../../src/pci/capabilities.ts";
import type { FunctionContext, FunctionShape } from "../../src/pci/pci-function.ts";
import { Command, Header } from "../../src/pci/spec.ts";
import { VfioSubsystem } from "../../src/vfio/subsystem.ts";
import { ModelHost, TestEndpoint } from "./model-host.ts";

/** Those whose functions can wait for pages; and those that tell errors and nothing else. */
export type Vendor = "vtd" | "smmuv3" | "amdvi";
export type PlainVendor = "zpci" | "tce";

/** Stalls that the SMMUv3 can have; further ones wait without a record. */
export const STALL_MAX = 48;
/** Page requests a function can have asked for at a time. */
const CAPACITY = 256;

interface Operation {
  readonly iova: number;
  readonly pasid: number;
  /** Of which life of the function, between two resets. */
  readonly life: number;
}

/** A function that reads four bytes here and there, as many at a time as it is told to. */
export class BusyFunction extends TestEndpoint {
  /** Accesses as they were made: retries are accesses too. */
  readonly counts = { done: 0, faulted: 0, stalled: 0 };
  #again: Operation[] = [];
  #life = 0;
  readonly #bytes = new Uint8Array(4);

  begin(iova: number, pasid: number): void {
    this.#try({ iova, pasid, life: this.#life });
  }

  /** Whether the function may make requests, whoever has it. */
  master(on: boolean): void {
    const { MEMORY_SPACE, BUS_MASTER } = Command;
    this.configWrite(Header.COMMAND, 2, on ? MEMORY_SPACE | BUS_MASTER : MEMORY_SPACE);
  }

  /** Goes on with what was answered; false: there was nothing. */
  proceed(): boolean {
    const again = this.#again;
    this.#again = [];
    for (const operation of again) if (operation.life === this.#life) this.#try(operation);
    return again.length > 0;
  }

  protected override resetModel(): void {
    super.resetModel();
    this.#life += 1;
    this.#again = [];
  }

  #try(operation: Operation): void {
    const { iova, pasid } = operation;
    const status = this.dma.read(iova >>> 0, Math.floor(iova / 2 ** 32), this.#bytes, pasid);
    if (status === TranslateStatus.ok) this.counts.done += 1;
    else if (status === TranslateStatus.fault) this.counts.faulted += 1;
    else {
      this.counts.stalled += 1;
      this.dma.park((ok) => {
        if (ok) this.#again.push(operation);
      });
    }
  }
}

/** What was seen at the unit, since power-on. */
export interface UnitCounts {
  /** Refused as configured, which no record tells of (SMMUv3: Config = abort). */
  aborted: number;
  /** Stalls that ended, by how. */
  resumed: number;
  terminated: number;
  /** Groups of page requests that were answered, by how. */
  success: number;
  invalid: number;
}

export class FaultHost {
  readonly vendor: Vendor | PlainVendor;
  readonly host: ModelHost;
  readonly vfio: VfioSubsystem;
  readonly iommufd: IommufdSubsystem;
  readonly functions: readonly BusyFunction[];
  readonly seen: UnitCounts = { aborted: 0, resumed: 0, terminated: 0, success: 0, invalid: 0 };
  readonly #frames: number;
  #driver: SmmuDriver | VtdDriver | AmdDriver | ZpciDriver | TceDriver | undefined;
  /** Interrupts of a unit arrive at once; those of an SMMUv3 and of an AMD-Vi are taken up later anyway. */
  prompt = false;
  #held: (() => void)[] = [];
  #unit: (IommuUnit & Partial<Pick<VtdUnit, "onPageResponse">>) | undefined;

  constructor(vendor: Vendor | PlainVendor) {
    this.vendor = vendor;
    const functions: BusyFunction[] = [];
    this.functions = functions;
    this.host = new ModelHost({
      groups: [["01:00"], ["02:00"]],
      makeEndpoint: (shape, context) => {
        const made = this.#function(shape, context);
        functions.push(made);
        return made;
      },
      power: (memory, msi, scheduler) => {
        const common = { name: "unit0", memory, events: silent };
        const covers = () => true;
        const message = (address: bigint, data: number): void => {
          memory.writeBytes(Number(address), new Uint8Array(Uint32Array.of(data).buffer));
        };
        if (vendor === "smmuv3") {
          const unit = new SmmuV3Unit({
            ...common,
            // What it sets going waits in the scheduler.
            interrupt: message,
            capabilities: {
              ...{ msi: true, stalls: "both", stallMax: STALL_MAX, eventQueueLg2: 3, ats: false },
              ...{ substreamIdBits: 16, twoLevelContexts: true },
            },
          });
          const firmware = { covers, canStall: ({ rid }: { readonly rid: number }) => rid === 0x100 };
          const driver = new SmmuDriver({ ...common, unit, msi, scheduler, firmware });
          this.#driver = driver;
          this.#watch(unit);
          return { unit, driver };
        }
        if (vendor === "amdvi") {
          const unit = new AmdViUnit({ ...common, interrupt: message });
          const firmware = { covers, lastDevice: 0x2ff };
          const driver = new AmdDriver({
            ...{ ...common, unit, msi, scheduler, firmware },
            ...{ nesting: true, logFramesLg2: 0 },
          });
          this.#driver = driver;
          this.#watch(unit);
          return { unit, driver };
        }
        const held = (address: bigint, data: number) => this.#deliver(() => message(address, data));
        if (vendor === "zpci") {
          const unit = new ZpciUnit({ ...common, interrupt: held, msiAddress: MSI_BASE });
          const firmware = { covers, start: 0, end: 2 ** 42 };
          const driver = new ZpciDriver({ ...common, unit, msi, firmware, nesting: true });
          this.#driver = driver;
          this.#watch(unit);
          return { unit, driver };
        }
        if (vendor === "tce") {
          const messages = { start: MSI_BASE, length: MSI_BYTES };
          const unit = new TceUnit({ ...common, interrupt: held, messages });
          const firmware = { covers, pageLg2s: unit.pageLg2s };
          const driver = new TceDriver({ ...common, unit, msi, firmware, apertures: false });
          this.#driver = driver;
          this.#watch(unit);
          return { unit, driver };
        }
        const unit = new VtdUnit({
          ...common,
          interrupt: held,
          capabilities: {
            addressWidths: [39, 48],
            hostAddressWidth: 46,
            deviceTlb: true,
            faultRecords: 1,
            scalable: {
              ...{ firstStage: true, secondStage: true, nested: true, pasidBits: 20, ridPasid: true },
              ...{ secondStageAccessedDirty: true, pageRequests: true },
            },
          },
        });
        const firmware = { hostAddressWidth: 46, covers, reservedMemory: [] };
        const driver = new VtdDriver({ ...common, unit, msi, firmware, pageRequestFramesLg2: 0 });
        this.#driver = driver;
        this.#watch(unit);
        return { unit, driver };
      },
    });
    this.vfio = new VfioSubsystem(this.host);
    this.iommufd = new IommufdSubsystem(this.host);
    if (this.asks || vendor === "smmuv3") pageRequestsOf(this.driver);
    this.#listen();
    this.#frames = this.host.memory.allocated;
  }

  get driver(): SmmuDriver | VtdDriver | AmdDriver | ZpciDriver | TceDriver {
    return this.#driver!;
  }

  /** Functions have ATS and can ask for pages. */
  get asks(): boolean {
    return this.vendor === "vtd" || this.vendor === "amdvi";
  }

  /** Lets interrupts arrive, and what was set going by them happen. */
  interrupt(): boolean {
    const held = this.#held;
    this.#held = [];
    for (const arrive of held) arrive();
    return this.host.scheduler.run() + held.length > 0;
  }

  /** Software has let go of everything: what is left. */
  live(): { readonly [what: string]: number } {
    return {
      ...this.vfio.live(),
      ...this.iommufd.live(),
      domains: this.driver.domains,
      viommus: "viommus" in this.driver ? this.driver.viommus : 0,
      frames: this.host.memory.allocated - this.#frames,
    };
  }

  #deliver(interrupt: () => void): void {
    if (this.prompt) interrupt();
    else this.#held.push(interrupt);
  }

  #function(shape: FunctionShape, context: FunctionContext): BusyFunction {
    const more = this.asks ? [ats(), pri(CAPACITY)] : [];
    return new BusyFunction({ ...shape, capabilities: [...shape.capabilities!, ...more] }, context);
  }

  /** Accesses that end without a record, and page requests' answers. */
  #watch(unit: SmmuV3Unit | VtdUnit | AmdViUnit | ZpciUnit | TceUnit): void {
    const { seen } = this;
    const translate = unit.translate.bind(unit);
    unit.translate = (transaction) => {
      const status = translate(transaction);
      if (status === TranslateStatus.fault && transaction.fault === ABORTED) seen.aborted += 1;
      return status;
    };
    this.#unit = unit;
  }

  /** After the bridge has put itself behind the unit. */
  #listen(): void {
    const { seen } = this;
    const unit = this.#unit!;
    const { onResume, onPageResponse } = unit;
    unit.onResume = (token, ok) => {
      seen[ok ? "resumed" : "terminated"] += 1;
      onResume(token, ok);
    };
    if (!onPageResponse) return;
    unit.onPageResponse = (rid, pasid, group, response) => {
      seen[response === PageResponse.success ? "success" : "invalid"] += 1;
      onPageResponse(rid, pasid, group, response);
    };
  }
}
