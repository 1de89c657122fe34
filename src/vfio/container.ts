/**
 * /dev/vfio/vfio: a container of groups. It is nothing until a group is in it and an IOMMU type is set; then calls it
 * does not know itself go to that IOMMU, by its type and never by number alone (linux/vfio.h, "IOCTLs for VFIO file
 * descriptor"). It lives as long as its file or a group in it.
 */
import type { Group } from "../iommu/core.ts";
import type { IommuDriver } from "../iommu/driver.ts";
import type { Call, KernelFile } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  VFIO_API_VERSION,
  VFIO_CHECK_EXTENSION,
  VFIO_DMA_CC_IOMMU,
  VFIO_GET_API_VERSION,
  VFIO_NOIOMMU_IOMMU,
  VFIO_SET_IOMMU,
  VFIO_SPAPR_TCE_IOMMU,
  VFIO_SPAPR_TCE_v2_IOMMU,
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
import { isUnprotected, NoIommu, requireRawio } from "./no-iommu.ts";
import { Spapr } from "./spapr/spapr.ts";
import { spaprCall } from "./spapr/spapr-calls.ts";
import { Type1 } from "./type1.ts";
import { type1Call } from "./type1-calls.ts";

type Iommu = Type1 | Nesting | Spapr | NoIommu;

/** What SET_IOMMU chose. */
interface Chosen {
  readonly type: number;
  readonly iommu: Iommu;
  /** A call that the container itself does not know; `undefined` when the IOMMU does not know it either. */
  readonly call: (call: Call, request: number, argument: bigint) => number | undefined;
}

export class Container implements KernelFile {
  readonly name: string;
  readonly #context: VfioContext;
  readonly #groups = new Set<Group>();
  #chosen: Chosen | undefined;
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
    const { iommu } = this;
    if (iommu instanceof Nesting) return "vfio-container:nesting";
    return iommu instanceof Spapr ? "vfio-container:spapr" : "vfio-container";
  }
  /** The IOMMU that SET_IOMMU chose. */
  get iommu(): Iommu | undefined {
    return this.#chosen?.iommu;
  }
  /** Its groups have no IOMMU. */
  get #unprotected(): boolean {
    return [...this.#groups].some(isUnprotected);
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
    const chosen = this.#chosen;
    if (!chosen)
      throw new LinuxError(
        "EINVAL",
        `request ${hex(request)} needs an IOMMU; ${this.#groups.size === 0 ? "put a group into the container (GROUP_SET_CONTAINER), then call" : "call"} SET_IOMMU first`,
        this.name,
      );
    const answer = chosen.call(call, request, argument);
    if (answer === undefined)
      throw new LinuxError(
        "ENOTTY",
        `request ${hex(request)} means nothing to a container of type ${chosen.type}`,
        this.name,
      );
    return answer;
  }

  /**
   * The group joins; when the container has an IOMMU, its devices are attached. Throws EPERM when only one of it and the
   * groups there are has an IOMMU in front of it, and what the IOMMU throws.
   */
  add(group: Group): void {
    const own = isUnprotected(group);
    if (this.#groups.size > 0 && own !== this.#unprotected)
      throw new LinuxError(
        "EPERM",
        `group ${group.id} has ${own ? "no IOMMU" : "an IOMMU"} in front of it and the container's groups have ${own ? "one" : "none"}; it needs another container`,
        this.name,
      );
    this.iommu?.attach(group);
    this.#groups.add(group);
  }

  /** The group leaves; with the last one the IOMMU goes. */
  remove(group: Group): void {
    if (!this.#groups.delete(group)) return;
    this.iommu?.detach(group);
    if (this.#groups.size > 0) return;
    this.#chosen = undefined;
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

  /** The units of its groups have windows; without groups, one of the machine. */
  get #windowed(): boolean {
    const hasWindows = ({ windows }: IommuDriver): boolean => windows !== undefined;
    if (this.#groups.size === 0) return [...this.#context.core.drivers].some(hasWindows);
    return [...this.#groups].every(({ devices }) => devices.every(({ driver }) => hasWindows(driver)));
  }

  #extension(id: bigint): number {
    if (this.#unprotected) return Number(id) === VFIO_NOIOMMU_IOMMU ? 1 : 0;
    const ofSpapr = Number(id) === VFIO_SPAPR_TCE_IOMMU || Number(id) === VFIO_SPAPR_TCE_v2_IOMMU;
    if (ofSpapr) return this.#windowed ? 1 : 0;
    if (this.iommu instanceof Spapr) return 0;
    switch (Number(id)) {
      case VFIO_TYPE1_IOMMU:
      case VFIO_TYPE1v2_IOMMU:
      case VFIO_UNMAP_ALL:
        return 1;
      case VFIO_UPDATE_VADDR:
        return this.iommu instanceof Type1 && this.iommu.emulated ? 0 : 1;
      case VFIO_TYPE1_NESTING_IOMMU:
        return this.#context.vsva2020 && nestingDisabled(this.#context) === undefined ? 1 : 0;
      case VFIO_DMA_CC_IOMMU:
        return this.iommu?.coherent ? 1 : 0;
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
    if (this.#chosen)
      throw new LinuxError(
        "EINVAL",
        "the container has an IOMMU already; it goes with the last group",
        this.name,
      );
    const chosen = this.#choose(call, Number(type));
    const { iommu } = chosen;
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
    this.#chosen = chosen;
    return 0;
  }

  #choose(call: Call, type: number): Chosen {
    const context = this.#context;
    if (this.#unprotected) return this.#chooseNone(call, type);
    switch (type) {
      case VFIO_TYPE1_IOMMU:
      case VFIO_TYPE1v2_IOMMU: {
        const iommu = new Type1(context, type === VFIO_TYPE1_IOMMU ? 1 : 2, this.name);
        return { type, iommu, call: (...made) => type1Call(iommu, ...made) };
      }
      case VFIO_SPAPR_TCE_IOMMU:
      case VFIO_SPAPR_TCE_v2_IOMMU: {
        if (!this.#windowed) break;
        const iommu = new Spapr(context, type === VFIO_SPAPR_TCE_IOMMU ? 1 : 2, this.name);
        return { type, iommu, call: (...made) => spaprCall(iommu, ...made) };
      }
      case VFIO_TYPE1_NESTING_IOMMU: {
        if (!context.vsva2020) break;
        const iommu = new Nesting(context, this.name, call.task);
        return { type, iommu, call: (...made) => nestingCall(iommu, ...made) };
      }
    }
    const offered = [`${VFIO_TYPE1_IOMMU} (type 1)`, `${VFIO_TYPE1v2_IOMMU} (type 1 version 2)`];
    if (context.vsva2020) offered.push(`${VFIO_TYPE1_NESTING_IOMMU} (nesting)`);
    if (this.#windowed)
      offered.push(`${VFIO_SPAPR_TCE_IOMMU} (sPAPR)`, `${VFIO_SPAPR_TCE_v2_IOMMU} (sPAPR version 2)`);
    throw this.#notOffered(type, offered);
  }

  #chooseNone(call: Call, type: number): Chosen {
    if (type !== VFIO_NOIOMMU_IOMMU) throw this.#notOffered(type, [`${VFIO_NOIOMMU_IOMMU} (no IOMMU)`]);
    requireRawio(call.task, this.name);
    return { type, iommu: new NoIommu(), call: () => undefined };
  }

  #notOffered(type: number, offered: readonly string[]): LinuxError {
    return new LinuxError(
      "EINVAL",
      `IOMMU type ${type} is not offered; ${offered.length === 1 ? "the only type is" : "the types are"} ${offered.join(", ")}`,
      this.name,
    );
  }
}
