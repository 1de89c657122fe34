/**
 * /dev/dsa/wqG.Q (extension `wq-chardev`): a work queue for programs. Whoever opens it and maps its portal submits
 * descriptors with ENQCMD, which are carried out at the program's own addresses; or, after SOFTIOMMU_WQ_USE_PASID, in an
 * address space of an iommufd. A process that got the file from another has not got that one's addresses with it.
 */
import { iommufdOf } from "../iommufd/file.ts";
import type { Call, KernelFile, MapSegment, UserMemory } from "../kernel/call.ts";
import { DESCRIPTOR_BYTES, DescriptorHead, PORTAL_BYTES } from "../pci/devices/dsa/spec.ts";
import { copyStruct, readSize } from "../uapi/copy.ts";
import { LinuxError } from "../uapi/errno.ts";
import { SOFTIOMMU_WQ_USE_PASID, SoftiommuWqUsePasid } from "../uapi/extensions.ts";
import type { Accelerator } from "./accelerator.ts";
import type { IommufdSpaces } from "./iommufd-spaces.ts";
import type { Space } from "./space.ts";

const MAP_SHARED = 1;
/** Any PASID will do. */
const ANY = 0xffff_ffff;

export interface QueueFileContext {
  readonly accelerator: Accelerator;
  readonly iommufds: IommufdSpaces;
  /** Its number. */
  readonly queue: number;
  readonly name: string;
  /** Called once. */
  closed(): void;
}

export class QueueFile implements KernelFile {
  readonly kind = "dsa-queue";
  readonly name: string;
  readonly #context: QueueFileContext;
  #space: Space;
  #open = true;

  /** `space`: that of the process that opens it. */
  constructor(context: QueueFileContext, space: Space) {
    this.#context = context;
    this.name = context.name;
    this.#space = space;
  }

  /** The PASID that its descriptors carry. */
  get pasid(): number {
    return this.#space.pasid;
  }

  ioctl(call: Call, request: number, argument: bigint): number {
    if (request !== SOFTIOMMU_WQ_USE_PASID)
      throw new LinuxError(
        "ENOTTY",
        `request 0x${request.toString(16)} means nothing to a work queue; SOFTIOMMU_WQ_USE_PASID (0x${SOFTIOMMU_WQ_USE_PASID.toString(16)}) does`,
        this.name,
      );
    const layout = SoftiommuWqUsePasid;
    const read = (offset: number, into: Uint8Array) => call.memory.read(argument + BigInt(offset), into);
    const given = layout.read(copyStruct(read, layout, readSize(read), layout.size));
    const iommufd = iommufdOf(call, given.iommufd);
    const wanted = given.pasid === ANY ? undefined : given.pasid;
    if (wanted === 0) throw new LinuxError("EINVAL", "PASID 0 stands for requests without one", this.name);
    const space = this.#context.iommufds.use(call.task, iommufd, given.pt_id, wanted);
    try {
      const answer = new Uint8Array(Uint32Array.of(space.pasid).buffer);
      call.memory.write(argument + BigInt(layout.offsets.pasid), answer);
    } catch (error) {
      space.leave();
      throw error;
    }
    this.#space.leave();
    this.#space = space;
    return 0;
  }

  mmap(_call: Call, offset: bigint, length: number, _protection: number, flags: number): MapSegment[] {
    if ((flags & MAP_SHARED) === 0)
      throw new LinuxError("EINVAL", "a portal can only be mapped MAP_SHARED", this.name);
    if (offset !== 0n || length > PORTAL_BYTES)
      throw new LinuxError(
        "EINVAL",
        `the portal is one page of ${PORTAL_BYTES} bytes at offset 0`,
        this.name,
      );
    return [{ kind: "trap", offset: 0, length: PORTAL_BYTES }];
  }

  trapRead(_offset: bigint, into: Uint8Array): void {
    into.fill(0xff);
  }

  /** A posted write: nothing that a shared queue takes. */
  trapWrite(offset: bigint, data: Uint8Array): void {
    this.#context.accelerator.post(this.#context.queue, Number(offset), data);
  }

  /** The processor puts the PASID of the program into the descriptor, and no privilege. */
  trapEnqueue(_offset: bigint, command: Uint8Array, memory: UserMemory): boolean {
    const space = this.#space;
    space.prepare(command, memory);
    const descriptor = command.slice(0, DESCRIPTOR_BYTES);
    const head = new DataView(descriptor.buffer);
    head.setUint32(0, Number(DescriptorHead.make({ Pasid: space.pasid })), true);
    const taken = this.#context.accelerator.enqueue(this.#context.queue, descriptor);
    space.submitted();
    return taken;
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#space.leave();
    this.#context.closed();
  }
}
