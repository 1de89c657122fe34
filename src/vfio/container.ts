/**
 * /dev/vfio/vfio: a container of groups. It is nothing until a group is in it and an IOMMU type is set; then calls it
 * does not know itself go to that IOMMU, by its type and never by number alone (linux/vfio.h, "IOCTLs for VFIO file
 * descriptor"). It lives as long as its file or a group in it.
 */
import type { Group } from "../iommu/core.ts";
import type { Call, KernelFile } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  VFIO_API_VERSION,
  VFIO_CHECK_EXTENSION,
  VFIO_DMA_CC_IOMMU,
  VFIO_GET_API_VERSION,
  VFIO_SET_IOMMU,
  VFIO_TYPE1_IOMMU,
  __VFIO_RESERVED_TYPE1_NESTING_IOMMU as VFIO_TYPE1_NESTING_IOMMU,
  VFIO_TYPE1v2_IOMMU,
  VFIO_UNMAP_ALL,
  VFIO_UPDATE_VADDR,
} from "../uapi/vfio.ts";
import { hex } from "./argument.ts";
import type { VfioContext } from "./context.ts";
import { Nesting, nestingDisabled } from "./nesting/nesting.ts";
import { nestingCall } from "./nesting/nesting-calls.ts";
import { Type1 } from "./type1.ts";
import { type1Call } from "./type1-calls.ts";

export class Container implements KernelFile {
  readonly name: string;
  readonly #context: VfioContext;
  readonly #groups = new Set<Group>();
  #iommu: Type1 | Nesting | undefined;
  #open = true;

  /** `number` names it in messages. */
  constructor(context: VfioContext, number: number) {
    this.#context = context;
    this.name = `container ${number}`;
    context.live.containers += 1;
    if (context.events.on) context.events.emit("open", { container: this.name });
  }

  /** With the IOMMU type, where that changes what requests mean. */
  get kind(): string {
    return this.#iommu instanceof Nesting ? "vfio-container:nesting" : "vfio-container";
  }
  /** The IOMMU that SET_IOMMU chose. */
  get iommu(): Type1 | Nesting | undefined {
    return this.#iommu;
  }

  ioctl(call: Call, request: number, argument: bigint): number {
    switch (request) {
      case VFIO_GET_API_VERSION:
        return VFIO_API_VERSION;
      case VFIO_CHECK_EXTENSION:
        return this.#extension(argument);
      case VFIO_SET_IOMMU:
        return this.#setIommu(call, argument);
    }
    const iommu = this.#iommu;
    if (!iommu)
      throw new LinuxError(
        "EINVAL",
        `request ${hex(request)} needs an IOMMU; ${this.#groups.size === 0 ? "put a group into the container (GROUP_SET_CONTAINER), then call" : "call"} SET_IOMMU first`,
        this.name,
      );
    const answer =
      iommu instanceof Nesting
        ? nestingCall(iommu, call, request, argument)
        : type1Call(iommu, call, request, argument);
    if (answer === undefined)
      throw new LinuxError(
        "ENOTTY",
        `request ${hex(request)} means nothing to a container of type ${typeOf(iommu)}`,
        this.name,
      );
    return answer;
  }

  /** The group joins; when the container has an IOMMU, its devices are attached. Throws what the IOMMU throws. */
  add(group: Group): void {
    this.#iommu?.attach(group);
    this.#groups.add(group);
  }

  /** The group leaves; with the last one the IOMMU goes. */
  remove(group: Group): void {
    if (!this.#groups.delete(group)) return;
    this.#iommu?.detach(group);
    if (this.#groups.size > 0) return;
    this.#iommu = undefined;
    this.#settle();
  }

  close(): void {
    this.#open = false;
    this.#settle();
  }

  #settle(): void {
    if (this.#open || this.#groups.size > 0) return;
    this.#context.live.containers -= 1;
    if (this.#context.events.on) this.#context.events.emit("close", { container: this.name });
  }

  #extension(id: bigint): number {
    switch (Number(id)) {
      case VFIO_TYPE1_IOMMU:
      case VFIO_TYPE1v2_IOMMU:
      case VFIO_UNMAP_ALL:
      case VFIO_UPDATE_VADDR:
        return 1;
      case VFIO_TYPE1_NESTING_IOMMU:
        return this.#context.vsva2020 && nestingDisabled(this.#context) === undefined ? 1 : 0;
      case VFIO_DMA_CC_IOMMU:
        return this.#iommu?.coherent ? 1 : 0;
      default:
        return 0;
    }
  }

  #setIommu(call: Call, type: bigint): number {
    if (this.#groups.size === 0)
      throw new LinuxError(
        "EINVAL",
        "the container has no group; GROUP_SET_CONTAINER comes first",
        this.name,
      );
    if (this.#iommu)
      throw new LinuxError(
        "EINVAL",
        "the container has an IOMMU already; it goes with the last group",
        this.name,
      );
    const iommu = this.#make(call, type);
    const attached: Group[] = [];
    try {
      for (const group of this.#groups) {
        iommu.attach(group);
        attached.push(group);
      }
    } catch (error) {
      for (const group of attached) iommu.detach(group);
      throw error;
    }
    this.#iommu = iommu;
    return 0;
  }

  #make(call: Call, type: bigint): Type1 | Nesting {
    const context = this.#context;
    switch (Number(type)) {
      case VFIO_TYPE1_IOMMU:
        return new Type1(context, 1, this.name);
      case VFIO_TYPE1v2_IOMMU:
        return new Type1(context, 2, this.name);
      case VFIO_TYPE1_NESTING_IOMMU:
        if (context.vsva2020) return new Nesting(context, this.name, call.task);
    }
    const offered = [`${VFIO_TYPE1_IOMMU} (type 1)`, `${VFIO_TYPE1v2_IOMMU} (type 1 version 2)`];
    if (context.vsva2020) offered.push(`${VFIO_TYPE1_NESTING_IOMMU} (nesting)`);
    throw new LinuxError(
      "EINVAL",
      `IOMMU type ${type} is not offered; the types are ${offered.join(", ")}`,
      this.name,
    );
  }
}

const typeOf = (iommu: Type1 | Nesting): number => {
  if (iommu instanceof Nesting) return VFIO_TYPE1_NESTING_IOMMU;
  return iommu.version === 1 ? VFIO_TYPE1_IOMMU : VFIO_TYPE1v2_IOMMU;
};
