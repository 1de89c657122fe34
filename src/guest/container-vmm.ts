/**
 * A modelled VMM that knows the interface of 2020 for virtual SVA alone: each of its devices is the one of a group, in a
 * nesting container of its own. Its guest has a VT-d unit whose PASIDs are the host's.
 */
import { ContainerCalls } from "../viommu/container-calls.ts";
import { MistakenContainerCalls } from "./breaks.ts";
import { boundVtd } from "./virtual-vtd.ts";
import { openNode, VmmProcess, type VmmProcessOptions } from "./vmm-process.ts";

/** A host's function, and the requester id that the guest is to know it by. */
export interface GroupAssignment {
  /** Of its group: "/dev/vfio/7". */
  readonly group: string;
  /** "0000:05:00.0" */
  readonly name: string;
  readonly rid: number;
}

export interface ContainerVmmOptions extends VmmProcessOptions {
  readonly devices: readonly GroupAssignment[];
}

export class ContainerVmm extends VmmProcess<ContainerCalls> {
  constructor(options: ContainerVmmOptions) {
    const { host, record } = options;
    super(options, {
      open(task, broken) {
        const calls =
          broken.size > 0
            ? new MistakenContainerCalls(broken, task, record)
            : new ContainerCalls(task, record);
        const devices = options.devices.map(({ group, name, rid }) => {
          const container = openNode(task, host, "/dev/vfio/vfio");
          return { fd: calls.open(container, openNode(task, host, group), name), rid };
        });
        return { calls, devices };
      },
      show: boundVtd,
    });
  }
}
