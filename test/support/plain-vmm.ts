/**
 * A VMM on a `FaultHost` whose unit knows neither PASIDs nor page requests: both functions, page tables of the host, and where
 * the unit nests (s390) one of the guest's above them. Everything is done by encoded system calls.
 */
import { Iota } from "../../src/hardware/zpci/spec.ts";
import { ModelTask } from "../../src/kernel/model-task.ts";
import * as uapi from "../../src/uapi/iommufd.ts";
import { VFIO_DEVICE_RESET } from "../../src/uapi/vfio.ts";
import { HostCalls } from "../../src/viommu/host-calls.ts";
import type { FaultHost } from "./fault-rig.ts";
import { outcome } from "./vfio-client.ts";

const PAGE = 4096;
const VA = 0x7000_0000;
const PAGES = 16;
/** A region table, a segment table, a page table and a page of the guest's, in pages from the first on. */
const REGIONS = 0;
const SEGMENTS = 4;
const TABLE = 8;
const TARGET = 9;
const EMPTY = 0x420n;
const TABLE_BITS = 7n;

/** Which address the functions of a host can be given: a bridge of POWER has none just above 4 GiB. */
export const iovaOf = ({ vendor }: Pick<FaultHost, "vendor">): number =>
  vendor === "tce" ? 0x4000_0000 : 0x1_0000_0000;

export class PlainVmm {
  readonly task: ModelTask;
  readonly calls: HostCalls;
  readonly devices: readonly { readonly fd: number; readonly id: number }[];
  /** Page tables, each with a page at `iovaOf`; the last one is the guest's, where there is one. */
  readonly tables: readonly number[];
  /** Ids of what can be destroyed, those that others need last. */
  readonly objects: readonly number[];
  readonly #iova: number;

  constructor(host: FaultHost) {
    this.#iova = iovaOf(host);
    this.task = new ModelTask(host.host.memory);
    this.task.memory.map(VA, PAGES * PAGE);
    this.calls = new HostCalls(this.task, this.task.open(host.iommufd.node));
    this.devices = host.functions.map(({ name }) => {
      const fd = this.task.open(host.vfio.deviceNodes.get(name)!);
      return { fd, id: this.calls.bind(fd) };
    });
    const { id } = this.devices[0]!;
    const ioas = this.calls.allocateIoas();
    this.calls.map(ioas, { iova: this.#iova, va: VA, length: PAGES * PAGE });
    const own = [0, 1].map(() => this.calls.allocateHwpt(id, ioas, 0));
    if (host.vendor === "tce") {
      this.tables = own;
      this.objects = [...own, ioas];
      return;
    }
    const parent = this.calls.allocateHwpt(id, ioas, uapi.IOMMU_HWPT_ALLOC_NEST_PARENT);
    const nested = this.calls.allocateAnchored(id, parent, this.#guestTables());
    this.tables = [...own, parent, nested];
    this.objects = [...own, nested, parent, ioas];
  }

  get files(): readonly number[] {
    return [...this.devices.map(({ fd }) => fd), this.calls.iommufd];
  }

  attach(device: number, table: number): void {
    outcome(() => this.calls.attach(this.devices[device]!.fd, table));
  }

  detach(device: number): void {
    outcome(() => this.calls.detach(this.devices[device]!.fd));
  }

  reset(device: number): void {
    this.task.ioctl(this.devices[device]!.fd, VFIO_DEVICE_RESET);
  }

  /** The anchor of a guest's tables that lead from the address to a page. */
  #guestTables(): bigint {
    const at = (page: number): bigint => BigInt(this.#iova + page * PAGE);
    for (let entry = 0; entry < (TABLE * PAGE) / 8; entry++) this.#store(8 * entry, EMPTY);
    this.#store(REGIONS * PAGE + 8 * Math.floor(this.#iova / 2 ** 31), at(SEGMENTS) | TABLE_BITS);
    this.#store(SEGMENTS * PAGE + 8 * (Math.floor(this.#iova / 2 ** 20) % 2048), at(TABLE));
    this.#store(TABLE * PAGE, at(TARGET));
    for (let entry = 1; entry < PAGE / 8; entry++) this.#store(TABLE * PAGE + 8 * entry, 0x400n);
    return Iota.make({ ORIGIN: at(REGIONS), T: true, DT: 1 });
  }

  #store(at: number, entry: bigint): void {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, entry);
    this.task.memory.write(BigInt(VA + at), bytes);
  }
}
