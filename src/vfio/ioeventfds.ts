/**
 * Writes that eventfds make (linux/vfio.h, VFIO_DEVICE_IOEVENTFD): when such an eventfd is counted up, a value goes to
 * a place of a BAR, with nobody's call. Left out: other regions, which Linux refuses too.
 */
import type { Call, EventFd } from "../kernel/call.ts";
import type { Bar, PciFunction } from "../pci/function.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  VFIO_DEVICE_IOEVENTFD_8,
  VFIO_DEVICE_IOEVENTFD_16,
  VFIO_DEVICE_IOEVENTFD_32,
  VFIO_DEVICE_IOEVENTFD_64,
  VfioDeviceIoeventfd,
} from "../uapi/vfio.ts";
import { hex, readArgument } from "./argument.ts";
import type { VirtualConfig } from "./config-space.ts";
import type { VfioContext } from "./context.ts";
import { holdEventfd } from "./held-eventfd.ts";
import type { MsixTable } from "./message-vectors.ts";
import { barOf, excludedOf, isBar, regionIndex, withinRegion } from "./regions.ts";

/** Pairs of an eventfd and a write that a device may have. */
export const IOEVENTFD_LIMIT = 1000;

const WIDTHS: ReadonlyMap<number, number> = new Map([
  [VFIO_DEVICE_IOEVENTFD_8, 1],
  [VFIO_DEVICE_IOEVENTFD_16, 2],
  [VFIO_DEVICE_IOEVENTFD_32, 4],
  [VFIO_DEVICE_IOEVENTFD_64, 8],
]);

export class Ioeventfds {
  readonly #context: VfioContext;
  readonly #pci: PciFunction;
  readonly #config: VirtualConfig;
  readonly #table: MsixTable | undefined;
  /** By place and bytes. */
  readonly #held = new Map<string, EventFd>();

  constructor(context: VfioContext, pci: PciFunction, config: VirtualConfig, table: MsixTable | undefined) {
    this.#context = context;
    this.#pci = pci;
    this.#config = config;
    this.#table = table;
  }

  /** VFIO_DEVICE_IOEVENTFD. EINVAL, EEXIST for a second one of the same write, ENODEV to take away what is not there, ENOSPC. */
  set(call: Call, at: bigint): number {
    const minimum = VfioDeviceIoeventfd.fieldEnd("fd");
    const { flags, offset, data, fd } = readArgument(call, at, VfioDeviceIoeventfd, minimum);
    const width = WIDTHS.get(flags);
    if (width === undefined)
      throw this.#error("EINVAL", `flags ${hex(flags)}: one width is needed (1, 2, 4, 8 for 8 to 64 bits)`);
    if (fd < -1) throw this.#error("EINVAL", `descriptor ${fd}: an eventfd or -1 is needed`);
    const bytes = new Uint8Array(BigUint64Array.of(data).buffer).slice(0, width);
    const bar = this.#barAt(offset, width);
    const key = `${offset} ${Buffer.from(bytes).toString("hex")}`;
    if (fd < 0) this.#remove(key);
    else {
      const eventfd = this.#add(key, call, fd);
      eventfd.watch(() => {
        if (this.#config.decodes(bar)) this.#pci.barWrite(bar.index, withinRegion(offset), bytes);
      });
    }
    return 0;
  }

  close(): void {
    for (const eventfd of this.#held.values()) eventfd.close();
    this.#held.clear();
  }

  /** The BAR in which the bytes lie, and not in its vector table. */
  #barAt(offset: bigint, width: number): Bar {
    const [index, at] = [regionIndex(offset), withinRegion(offset)];
    const bar = offset >= 0n && isBar(index) ? barOf(this.#pci, index) : undefined;
    if (!bar || at + width > bar.size)
      throw this.#error("EINVAL", `${width} bytes at ${hex(offset)} are not within a BAR`);
    const { start, end } = excludedOf(this.#table, index);
    if (at < end && at + width > start)
      throw this.#error("EINVAL", `${hex(at)} of BAR ${index} is in the vector table, which SET_IRQS writes`);
    return bar;
  }

  #remove(key: string): void {
    const eventfd = this.#held.get(key);
    if (!eventfd) throw this.#error("ENODEV", "no eventfd makes that write");
    this.#held.delete(key);
    eventfd.close();
  }

  #add(key: string, call: Call, fd: number): EventFd {
    if (this.#held.has(key))
      throw this.#error("EEXIST", "an eventfd makes that write already; -1 takes it away first");
    if (this.#held.size >= IOEVENTFD_LIMIT)
      throw this.#error("ENOSPC", `the device has its ${IOEVENTFD_LIMIT} writes by eventfds`);
    const eventfd = holdEventfd(this.#context, call, fd);
    this.#held.set(key, eventfd);
    return eventfd;
  }

  #error(code: "EINVAL" | "EEXIST" | "ENODEV" | "ENOSPC", reason: string): LinuxError {
    return new LinuxError(code, reason, `device ${this.#pci.name}`);
  }
}
