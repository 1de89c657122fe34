/** An address space that descriptors of a queue's file are carried out in: a process's own, or one of an iommufd. */
import type { UserMemory } from "../kernel/call.ts";

export interface Space {
  readonly pasid: number;
  /** A program with this memory is about to submit a descriptor. Throws EPERM when the space is not its. */
  prepare(descriptor: Uint8Array, memory: UserMemory): void;
  /** It has been submitted, or was turned away. */
  submitted(): void;
  /** A file uses it no more. */
  leave(): void;
}
