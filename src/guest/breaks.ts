/**
 * Faults of a VMM, injected on purpose, to show that what finds them would: each is a real mistake of one that forwards a
 * guest's unit to its host.
 */
import { Opcode as AmdOpcode, InvalidateIotlb, InvalidatePages } from "../hardware/amdvi/queue-spec.ts";
import { Opcode, StreamCommand } from "../hardware/smmuv3/queue-spec.ts";
import { FRAME_BYTES } from "../memory/host-memory.ts";
import type { BackEnd } from "../viommu/by-domain.ts";
import type { CommandBackEnd } from "../viommu/commands.ts";
import { ContainerCalls } from "../viommu/container-calls.ts";
import {
  type FirstStage,
  HostCalls,
  type HostMapping,
  type InvalidationCount,
} from "../viommu/host-calls.ts";
import type { WindowCalls } from "../viommu/tce/windows.ts";
import type { BackEnd as ZpciBackEnd } from "../viommu/zpci/back-end.ts";

/** By name: what the VMM does wrong. */
export const VMM_BREAKS = {
  "stale-iotlb":
    "the VMM tells the guest that its invalidations, or its requests to unmap, are done, and does not tell the host",
  "wrong-page": "the VMM maps the page after the guest's own",
  "wrong-pasid": "the VMM takes a PASID for the one after it when it tells the host about the guest's tables",
  "lost-response": "the VMM loses the guest's answers to page requests",
} as const;
export type VmmBreak = keyof typeof VMM_BREAKS;

export const isVmmBreak = (name: string): name is VmmBreak => Object.hasOwn(VMM_BREAKS, name);

/** Calls of a VMM that is wrong about pages, PASIDs or answers, or forgets to unmap. */
export class MistakenCalls extends HostCalls {
  readonly mistakes: ReadonlySet<VmmBreak>;

  constructor(mistakes: ReadonlySet<VmmBreak>, ...calls: ConstructorParameters<typeof HostCalls>) {
    super(...calls);
    this.mistakes = mistakes;
  }

  override map(ioas: number, mapping: HostMapping): void {
    const off = this.mistakes.has("wrong-page") ? FRAME_BYTES : 0;
    const length = Math.max(FRAME_BYTES, mapping.length - off);
    super.map(ioas, { ...mapping, va: mapping.va + off, length });
  }

  override unmap(ioas: number, iova: number, length: number): void {
    if (!this.mistakes.has("stale-iotlb")) super.unmap(ioas, iova, length);
  }

  override attach(device: number, table: number, pasid?: number): void {
    super.attach(device, table, this.#mistaken(pasid));
  }
  override detach(device: number, pasid?: number): void {
    super.detach(device, this.#mistaken(pasid));
  }

  override command(viommu: number, commands: readonly bigint[]): InvalidationCount {
    return super.command(viommu, this.mistakes.has("wrong-pasid") ? commands.map(nextContext) : commands);
  }

  override commandAmd(viommu: number, commands: readonly bigint[]): InvalidationCount {
    return super.commandAmd(viommu, this.mistakes.has("wrong-pasid") ? commands.map(nextPasid) : commands);
  }

  override respond(fd: number, cookie: number, code: number): void {
    if (!this.mistakes.has("lost-response")) super.respond(fd, cookie, code);
  }

  #mistaken(pasid: number | undefined): number | undefined {
    return pasid !== undefined && this.mistakes.has("wrong-pasid") ? pasid + 1 : pasid;
  }
}

/** The same of a VMM with the interface of 2020. */
export class MistakenContainerCalls extends ContainerCalls {
  readonly mistakes: ReadonlySet<VmmBreak>;

  constructor(mistakes: ReadonlySet<VmmBreak>, ...calls: ConstructorParameters<typeof ContainerCalls>) {
    super(...calls);
    this.mistakes = mistakes;
  }

  override map(container: number, mapping: HostMapping): void {
    const off = this.mistakes.has("wrong-page") ? FRAME_BYTES : 0;
    const length = Math.max(FRAME_BYTES, mapping.length - off);
    super.map(container, { ...mapping, va: mapping.va + off, length });
  }

  override bind(container: number, pasid: number, table: FirstStage): void {
    super.bind(container, this.mistakes.has("wrong-pasid") ? pasid + 1 : pasid, table);
  }

  override respond(...answer: Parameters<ContainerCalls["respond"]>): void {
    if (!this.mistakes.has("lost-response")) super.respond(...answer);
  }
}

const opcodeOf = (command: bigint): number => Number(StreamCommand.fields.OPCODE.of(command));

/** A CFGI_CD that names the SubstreamID after its own. */
const nextContext = (command: bigint): bigint =>
  opcodeOf(command) === Opcode.CFGI_CD ? command + StreamCommand.fields.SSID.put(1n) : command;

/** An AMD-Vi unit's invalidation of guest addresses that names the PASID after its own. */
const nextPasid = (command: bigint): bigint => {
  if (InvalidatePages.fields.GN.of(command) === 0n) return command;
  if (Number(InvalidatePages.fields.OPCODE.of(command)) === AmdOpcode.INVALIDATE_IOMMU_PAGES)
    return command + InvalidatePages.fields.PASID.put(1n);
  // Of one that fits in the lowest part of three.
  return command + InvalidateIotlb.fields.PASID_7.put(1n);
};

/** Of an SMMUv3's commands those about its TLB, or a function's own. */
export const isTlbCommand = (command: bigint): boolean => {
  const opcode = opcodeOf(command);
  return (opcode >= Opcode.TLBI_NH_ALL && opcode <= Opcode.TLBI_NSNH_ALL) || opcode === Opcode.ATC_INV;
};

/** A back end whose host's TLBs forget nothing: `about` says which commands are about them. */
export const rememberingTlb = (
  backEnd: CommandBackEnd,
  about: (command: bigint) => boolean,
): CommandBackEnd => ({
  get held() {
    return backEnd.held;
  },
  reread: (first, end) => backEnd.reread(first, end),
  command(commands) {
    const others = commands.filter((command) => !about(command));
    return others.length > 0 ? backEnd.command(others) : { done: commands.length };
  },
});

/** A back end that forgets nothing. */
export const remembering = (backEnd: BackEnd): BackEnd => ({
  get held() {
    return backEnd.held;
  },
  reread: (what) => backEnd.reread(what),
  forget: (list) => ({ done: list.length }),
});

/** Calls of a VMM whose unmapping does not happen. */
export const rememberingTces = (calls: WindowCalls): WindowCalls => ({
  allocateIoas: () => calls.allocateIoas(),
  allocateHwpt: (...wanted) => calls.allocateHwpt(...wanted),
  attach: (...what) => calls.attach(...what),
  destroy: (id) => calls.destroy(id),
  allowIovas: (...what) => calls.allowIovas(...what),
  map: (...what) => calls.map(...what),
  unmap: () => {},
});

/** A back end that takes no refresh. */
export const rememberingRefreshes = (backEnd: ZpciBackEnd): ZpciBackEnd => ({
  get held() {
    return backEnd.held;
  },
  reread: (rid) => backEnd.reread(rid),
  refresh: () => {},
});
