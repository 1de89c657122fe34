/**
 * Who may do what with a page (IHI 0070, §3.13; DDI 0487, D8.4): an access is unprivileged or privileged, and a read, a
 * write or an instruction fetch. The walkers deny by the entries; what read, write and privilege make of each other
 * (WXN, PAN, pages that the unprivileged write) is here.
 */
import { Permission } from "../../pagetable/format.ts";
import { Access } from "../unit.ts";
import type { Context, Stream } from "./config.ts";
import { StreamWorld } from "./spec.ts";

/** What can be granted, and wanted. */
export const Right = {
  read: 1,
  write: 2,
  execute: 4,
  privilegedRead: 8,
  privilegedWrite: 16,
  privilegedExecute: 32,
} as const;
export const EVERY_RIGHT = 63;

const { read, write, execute, user, privilegedExecute } = Permission;

const PRIVILEGED_SHIFT = 3;
const PRIVCFG = { unprivileged: 2, privileged: 3 } as const;
const INSTCFG = { data: 2, instruction: 3 } as const;

/** §3.13.1 Whether a transaction counts as privileged, and as an instruction fetch: as it came, unless the stream overrides. */
export const isPrivileged = (access: number, { privilege }: Stream): boolean =>
  privilege === PRIVCFG.privileged ||
  (privilege !== PRIVCFG.unprivileged && (access & Access.privileged) !== 0);
export const isInstruction = (access: number, { instruction }: Stream): boolean =>
  (access & (Access.write | Access.atomic)) === 0 &&
  (instruction === INSTCFG.instruction || (instruction !== INSTCFG.data && (access & Access.execute) !== 0));
/** Whether a transaction only reads. */
export const isRead = (access: number): boolean => (access & (Access.write | Access.atomic)) === 0;

/** The rights that a transaction of the stream wants. In a world without privileges everything counts as privileged. */
export const wantOf = (access: number, stream: Stream, twoRanges: boolean): number => {
  const data = isInstruction(access, stream)
    ? Right.execute
    : (access & (Access.write | Access.atomic) ? Right.write : 0) |
      (access & (Access.read | Access.atomic) || isRead(access) ? Right.read : 0);
  const privileged = isPrivileged(access, stream) || (stream.world === StreamWorld.el2 && !twoRanges);
  return privileged ? data << PRIVILEGED_SHIFT : data;
};

/** `Permission` bits a walk for these rights needs. */
export const needOf = (want: number): number =>
  (want & (Right.read | Right.privilegedRead) ? read : 0) |
  (want & (Right.write | Right.privilegedWrite) ? write : 0) |
  (want & (Right.read | Right.write) ? user : 0) |
  (want & Right.execute ? read | execute : 0) |
  (want & Right.privilegedExecute ? read | privilegedExecute : 0);

/** The rights that a page grants of which the entries leave `allowed`; `context`: of stage 1, if there is one. */
export const rightsOf = (allowed: number, context: Context | undefined): number => {
  const reads = (allowed & read) !== 0;
  const writes = (allowed & write) !== 0;
  const shared = (allowed & user) !== 0;
  const never = context?.writeNeverExecutes === true;
  const kept = context?.privilegedAccessNever === true && shared;
  const sharedWrites = shared && writes;
  return (
    (shared && reads ? Right.read : 0) |
    (sharedWrites ? Right.write : 0) |
    ((allowed & execute) !== 0 && reads && !(never && sharedWrites) ? Right.execute : 0) |
    (reads && !kept ? Right.privilegedRead : 0) |
    (writes && !kept ? Right.privilegedWrite : 0) |
    ((allowed & privilegedExecute) !== 0 &&
    reads &&
    !(never && writes) &&
    !(context?.privileges === true && sharedWrites)
      ? Right.privilegedExecute
      : 0)
  );
};
