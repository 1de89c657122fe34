/**
 * A PCI function in the hands of VFIO: what all its open files share. The first one resets the function and sets it up
 * (bus mastering off, memory decoding on), the last one takes the interrupts away, resets it again and puts its
 * config space back as it was. Opened on an iommufd, the first one binds it there and the last one takes it back.
 */
import type { Device } from "../iommu/core.ts";
import type { IommufdContext } from "../iommufd/context.ts";
import { bindDevice, type DeviceObject } from "../iommufd/device.ts";
import { extendedCapabilitiesOf, findCapability } from "../pci/capability-list.ts";
import type { PciFunction } from "../pci/function.ts";
import {
  AtsCapability,
  CapabilityId,
  Command,
  DeviceCapabilities,
  DeviceControl,
  ExpressCapability,
  ExtendedCapabilityId,
  Header,
  PasidCapability,
  PriCapability,
} from "../pci/spec.ts";
import { VirtualConfig } from "./config-space.ts";
import type { VfioContext } from "./context.ts";
import { FaultRegion } from "./fault-region.ts";
import { Ioeventfds } from "./ioeventfds.ts";
import { FAULT_IRQ_INDEX, Interrupts } from "./irqs.ts";
import { LowPower } from "./low-power.ts";

interface SavedRegister {
  readonly offset: number;
  readonly width: 1 | 2 | 4;
  readonly value: number;
}

/** State that exists while a file is open. */
interface Enabled {
  readonly config: VirtualConfig;
  readonly irqs: Interrupts;
  readonly lowPower: LowPower;
  readonly ioeventfds: Ioeventfds;
  readonly faults: FaultRegion | undefined;
  readonly original: readonly SavedRegister[];
}

export class PciDevice {
  readonly device: Device;
  readonly pci: PciFunction;
  readonly name: string;
  readonly #context: VfioContext;
  #files = 0;
  #enabled: Enabled | undefined;
  #bound: DeviceObject | undefined;

  constructor(context: VfioContext, device: Device) {
    this.#context = context;
    this.device = device;
    this.pci = device.function;
    this.name = device.name;
  }

  /** A file of it is open. */
  get opened(): boolean {
    return this.#files > 0;
  }
  /** What it is in the iommufd that it is bound to. */
  get bound(): DeviceObject | undefined {
    return this.#bound;
  }
  /** The function can be reset alone. */
  get resettable(): boolean {
    const express = findCapability(this.pci, CapabilityId.EXPRESS);
    if (express === undefined) return false;
    const capabilities = this.pci.configRead(express + ExpressCapability.DEVICE_CAPABILITIES, 4);
    return (capabilities & DeviceCapabilities.fields.FunctionLevelReset.mask) !== 0;
  }
  get config(): VirtualConfig {
    return this.#enabled!.config;
  }
  get irqs(): Interrupts {
    return this.#enabled!.irqs;
  }

  get lowPower(): LowPower {
    return this.#enabled!.lowPower;
  }
  get ioeventfds(): Ioeventfds {
    return this.#enabled!.ioeventfds;
  }
  /** Where its user is told of faults, while a file is open. */
  get faults(): FaultRegion | undefined {
    return this.#enabled?.faults;
  }

  /** With an iommufd the first file binds it. Throws EBUSY while its group's DMA has another owner, ENOMEM. */
  open(iommufd?: IommufdContext): void {
    const faults = this.#files === 0 && !iommufd ? this.#makeFaults() : undefined;
    if (this.#files === 0 && iommufd) this.#bound = bindDevice(iommufd, this.device);
    this.#files += 1;
    if (this.#files > 1) return;
    const original = saveConfig(this.pci);
    const translations = saveTranslations(this.pci);
    this.pci.reset();
    restoreConfig(this.pci, translations);
    const command = this.pci.configRead(Header.COMMAND, 2);
    const decode = Command.MEMORY_SPACE | Command.IO_SPACE;
    this.pci.configWrite(
      Header.COMMAND,
      2,
      (command | decode) & ~(Command.BUS_MASTER | Command.INTERRUPT_DISABLE),
    );
    const irqs = new Interrupts(this.#context, this.pci, faults !== undefined);
    const hooks = {
      reset: () => this.reset(),
      disableIntx: (disabled: boolean) => irqs.disableIntx(disabled),
      msiActive: () => irqs.msiActive,
    };
    const pasid = this.#context.vsva2020 && !this.pci.isVirtual;
    const config = new VirtualConfig(this.pci, hooks, { pasid });
    const lowPower = new LowPower(this.#context);
    const ioeventfds = new Ioeventfds(this.#context, this.pci, config, irqs.msixTable);
    this.#enabled = { config, irqs, lowPower, ioeventfds, faults, original };
  }

  close(): void {
    this.#files -= 1;
    if (this.#files > 0 || !this.#enabled) return;
    const { irqs, lowPower, ioeventfds, faults, original } = this.#enabled;
    faults?.close();
    ioeventfds.close();
    irqs.close();
    lowPower.exit();
    this.#enabled = undefined;
    // Translations are the IOMMU driver's: they are to be as they are now, whatever they were when it was opened.
    const translations = saveTranslations(this.pci);
    this.pci.reset();
    restoreConfig(this.pci, original);
    restoreConfig(this.pci, translations);
    this.#bound?.unbind();
    this.#bound = undefined;
  }

  /** The user is asked to close it, if it wants to be asked (interrupt index REQ). */
  askBack(): void {
    this.#enabled?.irqs.request();
  }

  /**
   * Function-level reset; what VFIO and its user have set in config space, and the interrupts, are set again. Page requests
   * that wait are denied: the function will not know of them.
   */
  reset(): void {
    this.faults?.answer(() => true, "invalid");
    const saved = [...saveTranslations(this.pci), ...saveConfig(this.pci)];
    this.pci.reset();
    restoreConfig(this.pci, saved);
    this.#enabled?.irqs.restore();
    if (this.#context.events.on)
      this.#context.events.emit("device", { device: this.name, what: "reset by its user" });
  }

  /** Opened through its group on a machine with the interface of 2020 it has a fault region. Throws ENOMEM. */
  #makeFaults(): FaultRegion | undefined {
    const { faultMemory } = this.#context;
    return (
      faultMemory &&
      new FaultRegion(faultMemory, this.name, () => {
        const eventfd = this.#enabled?.irqs.single(FAULT_IRQ_INDEX);
        return eventfd && (() => eventfd.signal());
      })
    );
  }
}

/** Registers that VFIO and its user set and a reset loses, in the order in which they are put back. */
const saveConfig = (pci: PciFunction): SavedRegister[] => {
  const places: [offset: number, width: 1 | 2 | 4][] = [
    [Header.CACHE_LINE_SIZE, 1],
    [Header.LATENCY_TIMER, 1],
    ...Array.from({ length: 6 }, (_, bar): [number, 4] => [Header.BASE_ADDRESS + 4 * bar, 4]),
    [Header.INTERRUPT_LINE, 1],
  ];
  const saved = places.map(([offset, width]) => ({ offset, width, value: pci.configRead(offset, width) }));
  const express = findCapability(pci, CapabilityId.EXPRESS);
  if (express !== undefined) {
    const offset = express + ExpressCapability.DEVICE_CONTROL;
    const reset = DeviceControl.fields.InitiateFunctionLevelReset.mask;
    saved.push({ offset, width: 2, value: pci.configRead(offset, 2) & ~reset });
  }
  saved.push({ offset: Header.COMMAND, width: 2, value: pci.configRead(Header.COMMAND, 2) });
  return saved;
};

/** What the IOMMU's driver has turned on in the function, whoever uses it: PASIDs before translations and page requests. */
const TRANSLATION_REGISTERS: readonly (readonly [id: number, offset: number, width: 2 | 4])[] = [
  [ExtendedCapabilityId.PASID, PasidCapability.CONTROL, 2],
  [ExtendedCapabilityId.PRI, PriCapability.OUTSTANDING_ALLOCATION, 4],
  [ExtendedCapabilityId.PRI, PriCapability.CONTROL, 2],
  [ExtendedCapabilityId.ATS, AtsCapability.CONTROL, 2],
];
const saveTranslations = (pci: PciFunction): SavedRegister[] => {
  const places = new Map(extendedCapabilitiesOf(pci).map(({ id, at }) => [id, at]));
  return TRANSLATION_REGISTERS.flatMap(([id, inside, width]) => {
    const at = places.get(id);
    if (at === undefined) return [];
    return [{ offset: at + inside, width, value: pci.configRead(at + inside, width) }];
  });
};

const restoreConfig = (pci: PciFunction, saved: readonly SavedRegister[]): void => {
  for (const { offset, width, value } of saved) pci.configWrite(offset, width, value);
};
