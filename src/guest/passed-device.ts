/**
 * A device of the host in a guest: its registers as the guest reaches them through the VMM, and the config space that the
 * VMM makes for it. Capabilities that only the host may switch (PASID, ATS, PRI) are shown with what the host tells of
 * them, and switching them in the guest changes nothing on the host. Left out: everything else of a config space.
 */
import { ats, pasid, pri } from "../pci/capabilities.ts";
import { ConfigSpace, type ConfigWidth } from "../pci/config.ts";
import { Command, EXTENDED_CONFIG_BYTES, Header } from "../pci/spec.ts";
import * as vfio from "../uapi/vfio.ts";
import type { DeviceInfo, HostCalls } from "../viommu/host-calls.ts";

/** Pages it may ask for at once, in the guest's view. */
const PAGE_REQUESTS = 64;

export class PassedDevice {
  readonly rid: number;
  /** The guest's name of it: "0000:00:01.0". */
  readonly name: string;
  readonly fd: number;
  /** In the iommufd. */
  readonly id: number;
  readonly configSize = EXTENDED_CONFIG_BYTES;
  readonly info: DeviceInfo;
  readonly #calls: HostCalls;
  readonly #config = new ConfigSpace(EXTENDED_CONFIG_BYTES);
  readonly #bar: bigint;
  #asks = false;

  /** Binds the device and lets it be a bus master. */
  constructor(calls: HostCalls, fd: number, rid: number) {
    const two = (value: number): string => value.toString(16).padStart(2, "0");
    this.rid = rid;
    this.name = `0000:${two(rid >> 8)}:${two((rid >> 3) & 0x1f)}.${rid & 7}`;
    this.fd = fd;
    this.#calls = calls;
    this.id = calls.bind(fd);
    this.info = calls.hardwareInfo(this.id);
    if (this.info.pasidBits > 0) this.#config.add(pasid(this.info.pasidBits));
    if (this.info.ats) this.showPageRequests();
    const command = new Uint8Array(Uint16Array.of(Command.MEMORY_SPACE | Command.BUS_MASTER).buffer);
    const config = calls.regionOffset(fd, vfio.VFIO_PCI_CONFIG_REGION_INDEX);
    calls.task.pwrite(fd, config + BigInt(Header.COMMAND), command);
    this.#bar = calls.regionOffset(fd, vfio.VFIO_PCI_BAR0_REGION_INDEX);
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

  /** BAR 0. */
  read(offset: number, into: Uint8Array): void {
    this.#calls.task.pread(this.fd, this.#bar + BigInt(offset), into);
  }
  write(offset: number, data: Uint8Array): void {
    this.#calls.task.pwrite(this.fd, this.#bar + BigInt(offset), data);
  }
}
