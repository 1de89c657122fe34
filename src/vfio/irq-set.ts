/** struct vfio_irq_set: its checks and its data, in the order of linux/vfio.h's description of SET_IRQS. */
import type { Call } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  VFIO_IRQ_SET_ACTION_TYPE_MASK,
  VFIO_IRQ_SET_DATA_BOOL,
  VFIO_IRQ_SET_DATA_EVENTFD,
  VFIO_IRQ_SET_DATA_NONE,
  VFIO_IRQ_SET_DATA_TYPE_MASK,
  VfioIrqSet,
} from "../uapi/vfio.ts";
import { hex, readArgument } from "./argument.ts";

/** What SET_IRQS brings, a value a vector: nothing, booleans, or descriptors of eventfds (-1: none). */
export type IrqData =
  | { readonly kind: "none" }
  | { readonly kind: "bool"; readonly values: Uint8Array }
  | { readonly kind: "eventfd"; readonly values: Int32Array };

export interface IrqRequest {
  readonly index: number;
  /** One VFIO_IRQ_SET_ACTION_*, unless the caller gave none or several. */
  readonly action: number;
  readonly start: number;
  readonly count: number;
  readonly data: IrqData;
}

/** Says how many vectors an index has. */
interface Counted {
  /** Indices: 0 up to it. */
  readonly indices: number;
  count(index: number): number;
}

const MAX_U32 = 0xffff_ffff;

/** Reads a request; its range lies within the index. EINVAL, EFAULT. `object` names the device. */
export const readIrqSet = (call: Call, at: bigint, irqs: Counted, object: string): IrqRequest => {
  const minimum = VfioIrqSet.fieldEnd("count");
  const { argsz, flags, index, start, count } = readArgument(call, at, VfioIrqSet, minimum);
  const wrong = (reason: string) => new LinuxError("EINVAL", reason, object);
  if (index >= irqs.indices) throw wrong(`interrupt index ${index}: it has 0 to ${irqs.indices - 1}`);
  if (count >= MAX_U32 - start) throw wrong(`vectors ${start} + ${count} go beyond 32 bits`);
  if (flags & ~(VFIO_IRQ_SET_DATA_TYPE_MASK | VFIO_IRQ_SET_ACTION_TYPE_MASK))
    throw wrong(`flags ${hex(flags)}: one DATA flag (1, 2, 4) and one ACTION flag (8, 16, 32) are known`);
  const vectors = irqs.count(index);
  if (start >= vectors || start + count > vectors)
    throw wrong(`vectors ${start} to ${start + count}: interrupt index ${index} has ${vectors}`);
  const width = elementWidth(flags & VFIO_IRQ_SET_DATA_TYPE_MASK);
  if (width === undefined)
    throw wrong(`flags ${hex(flags)}: exactly one of DATA_NONE, BOOL, EVENTFD is needed`);
  if (argsz - minimum < count * width)
    throw wrong(`argsz is ${argsz}; ${count} vectors need ${minimum + count * width}`);
  const bytes = new Uint8Array(count * width);
  call.memory.read(at + BigInt(minimum), bytes);
  const action = flags & VFIO_IRQ_SET_ACTION_TYPE_MASK;
  return { index, action, start, count, data: dataOf(width, bytes) };
};

const elementWidth = (kind: number): number | undefined => {
  switch (kind) {
    case VFIO_IRQ_SET_DATA_NONE:
      return 0;
    case VFIO_IRQ_SET_DATA_BOOL:
      return 1;
    case VFIO_IRQ_SET_DATA_EVENTFD:
      return 4;
    default:
      return undefined;
  }
};

const dataOf = (width: number, bytes: Uint8Array): IrqData => {
  if (width === 0) return { kind: "none" };
  return width === 1
    ? { kind: "bool", values: bytes }
    : { kind: "eventfd", values: new Int32Array(bytes.buffer) };
};
