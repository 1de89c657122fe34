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
  VFIO_TYPE1v2_IOMMU,
  VFIO_UNMAP_ALL,
  VFIO_UPDATE_VADDR,
} from "../uapi/vfio.ts";
import { hex } from "./argument.ts";
import type { VfioContext } from "./context.ts";
import { Type1 } from "./type1.ts";
import { type1Call } from "./type1-calls.ts";

export class Container implements KernelFile {
  readonly kind = "vfio-container";
  readonly name: string;
  readonly #context: VfioContext;
  readonly #groups = new Set<Group>();
  #type1: Type1 | undefined;
  #open = true;

  /** `number` names it in messages. */
  constructor(context: VfioContext, number: number) {
    this.#context = context;
    this.name = `container ${number}`;
    context.live.containers += 1;
    if (context.events.on) context.events.emit("open", { container: this.name });
  }

  /** The IOMMU that SET_IOMMU chose. */
  get iommu(): Type1 | undefined {
    return this.#type1;
  }

  ioctl(call: Call, request: number, argument: bigint): number {
    switch (request) {
      case VFIO_GET_API_VERSION:
        return VFIO_API_VERSION;
      case VFIO_CHECK_EXTENSION:
        return this.#extension(argument);
      case VFIO_SET_IOMMU:
        return this.#setIommu(argument);
    }
    if (!this.#type1)
      throw new LinuxError(
        "EINVAL",
        `request ${hex(request)} needs an IOMMU; ${this.#groups.size === 0 ? "put a group into the container (GROUP_SET_CONTAINER), then call" : "call"} SET_IOMMU first`,
        this.name,
      );
    const answer = type1Call(this.#type1, call, request, argument);
    if (answer === undefined)
      throw new LinuxError(
        "ENOTTY",
        `request ${hex(request)} means nothing to a container of type ${this.#type1.version === 1 ? VFIO_TYPE1_IOMMU : VFIO_TYPE1v2_IOMMU}`,
        this.name,
      );
    return answer;
  }

  /** The group joins; when the container has an IOMMU, its devices are attached. Throws what the IOMMU throws. */
  add(group: Group): void {
    this.#type1?.attach(group);
    this.#groups.add(group);
  }

  /** The group leaves; with the last one the IOMMU goes. */
  remove(group: Group): void {
    if (!this.#groups.delete(group)) return;
    this.#type1?.detach(group);
    if (this.#groups.size > 0) return;
    this.#type1 = undefined;
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
      case VFIO_DMA_CC_IOMMU:
        return this.#type1?.coherent ? 1 : 0;
      default:
        return 0;
    }
  }

  #setIommu(type: bigint): number {
    if (this.#groups.size === 0)
      throw new LinuxError(
        "EINVAL",
        "the container has no group; GROUP_SET_CONTAINER comes first",
        this.name,
      );
    if (this.#type1)
      throw new LinuxError(
        "EINVAL",
        "the container has an IOMMU already; it goes with the last group",
        this.name,
      );
    const chosen = Number(type);
    if (chosen !== VFIO_TYPE1_IOMMU && chosen !== VFIO_TYPE1v2_IOMMU)
      throw new LinuxError(
        "EINVAL",
        `IOMMU type ${type} is not offered; ${VFIO_TYPE1_IOMMU} (type 1) and ${VFIO_TYPE1v2_IOMMU} (type 1 version 2) are`,
        this.name,
      );
    const type1 = new Type1(this.#context, chosen === VFIO_TYPE1_IOMMU ? 1 : 2, this.name);
    const attached: Group[] = [];
    try {
      for (const group of this.#groups) {
        type1.attach(group);
        attached.push(group);
      }
    } catch (error) {
      for (const group of attached) type1.detach(group);
      throw error;
    }
    this.#type1 = type1;
    return 0;
  }
}
