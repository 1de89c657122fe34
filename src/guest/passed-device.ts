/**
 * A device of the host in a guest: its registers as the guest reaches them through the VMM, and the config space that the
 * VMM makes for it. Capabilities that only the host may switch (PASID, ATS, PRI) are shown with what the host tells of
 * them, and switching them in the guest changes nothing on the host; MSI-X is the VMM's. Left out: everything else of a config space.
 */
import type { Scheduler } from "../base/scheduler.ts";
import type { SendMessage } from "../hardware/unit.ts";
import { ats, msix, pasid, pri } from "../pci/capabilities.ts";
import type { Configured } from "../pci/capability-list.ts";
import { ConfigSpace, type ConfigWidth } from "../pci/config.ts";
import {
  CONFIG_BYTES,
  Command,
  EXTENDED_CONFIG_BYTES,
  Header,
  MsixCapability,
  MsixControl,
  Status,
} from "../pci/spec.ts";
import * as vfio from "../uapi/vfio.ts";
import type { DeviceCalls, DeviceInfo } from "../viommu/device-calls.ts";
import { msixPlaceOf, VirtualMsix } from "./virtual-msix.ts";

/** Pages it may ask for at once, in the guest's view. */
const PAGE_REQUESTS = 64;

export interface PassedParts {
  readonly calls: DeviceCalls;
  /** Its file. */
  readonly fd: number;
  /** The guest's requester id for it. */
  readonly rid: number;
  readonly scheduler: Scheduler;
  /** Its messages in the guest. */
  readonly send: SendMessage;
}

export class PassedDevice {
  readonly rid: number;
  /** The guest's name of it: "0000:00:01.0". */
  readonly name: string;
  readonly fd: number;
  /** By which the interface of the host knows it. */
  readonly id: number;
  readonly configSize = EXTENDED_CONFIG_BYTES;
  readonly info: DeviceInfo;
  readonly #calls: DeviceCalls;
  readonly #config = new ConfigSpace(EXTENDED_CONFIG_BYTES);
  /** Where BARs are in its file, once they were asked for. */
  readonly #bars = new Map<number, bigint>();
  readonly #msix: VirtualMsix | undefined;
  #asks = false;

  /** Binds the device and lets it be a bus master. */
  constructor({ calls, fd, rid, scheduler, send }: PassedParts) {
    const two = (value: number): string => value.toString(16).padStart(2, "0");
    this.rid = rid;
    this.name = `0000:${two(rid >> 8)}:${two((rid >> 3) & 0x1f)}.${rid & 7}`;
    this.fd = fd;
    this.#calls = calls;
    const { id, info } = calls.take(fd);
    this.id = id;
    this.info = info;
    this.#config.declare({ offset: Header.STATUS, width: 2, value: Status.CAPABILITIES_LIST });
    if (this.info.pasidBits > 0) this.#config.add(pasid(this.info.pasidBits));
    if (this.info.ats) this.showPageRequests();
    const command = new Uint8Array(Uint16Array.of(Command.MEMORY_SPACE | Command.BUS_MASTER).buffer);
    const config = calls.regionOffset(fd, vfio.VFIO_PCI_CONFIG_REGION_INDEX);
    calls.task.pwrite(fd, config + BigInt(Header.COMMAND), command);
    this.#barAt(vfio.VFIO_PCI_BAR0_REGION_INDEX);
    const place = msixPlaceOf(hostConfig(calls, fd, config));
    if (!place) return;
    const virtual = new VirtualMsix(calls, fd, place, scheduler, send);
    const at = this.#config.add(msix(place)) + MsixCapability.MESSAGE_CONTROL;
    this.#config.onWrite = (offset, width) => {
      if (offset >= at + 2 || offset + width <= at) return;
      const { Enable, FunctionMask } = MsixControl.fields;
      const control = [this.#config.read(at, 2)];
      virtual.control(Enable.get(control) === 1, FunctionMask.get(control) === 1);
    };
    this.#msix = virtual;
  }

  /** The guest sees a function that asks for pages, however the host's does that. Before it boots. */
  showPageRequests(): void {
    if (this.#asks) return;
    this.#asks = true;
    for (const capability of [ats(), pri(PAGE_REQUESTS)]) this.#config.add(capability);
  }

  configRead(offset: number, width: ConfigWidth): number {
    return this.#config.read(offset, width);
  }
  configWrite(offset: number, width: ConfigWidth, value: number): void {
    this.#config.write(offset, width, value);
  }

  barRead(bar: number, offset: number, into: Uint8Array): void {
    if (this.#msix?.covers(bar, offset, into.length)) this.#msix.read(offset, into);
    else this.#calls.task.pread(this.fd, this.#barAt(bar) + BigInt(offset), into);
  }
  barWrite(bar: number, offset: number, data: Uint8Array): void {
    if (this.#msix?.covers(bar, offset, data.length)) this.#msix.write(offset, data);
    else this.#calls.task.pwrite(this.fd, this.#barAt(bar) + BigInt(offset), data);
  }

  #barAt(bar: number): bigint {
    const known = this.#bars.get(bar) ?? this.#calls.regionOffset(this.fd, bar);
    this.#bars.set(bar, known);
    return known;
  }
}

/** The device's config space as the host shows it to the VMM. */
const hostConfig = ({ task }: DeviceCalls, fd: number, config: bigint): Configured => ({
  configSize: CONFIG_BYTES,
  configRead(offset, width) {
    const bytes = new Uint8Array(4);
    task.pread(fd, config + BigInt(offset), bytes.subarray(0, width));
    return new DataView(bytes.buffer).getUint32(0, true);
  },
});
