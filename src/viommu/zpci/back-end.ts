/**
 * What stands behind PCI translation of a virtual s390: it makes the host do what the guest's anchors say. A nested one gives
 * them to the host, a shadowing one copies the tables into mappings. Errors are `LinuxError`s of the host.
 */
import type { Parameters, Stage } from "../../hardware/zpci/parameters.ts";

/** Parameters of a function whose requests are translated. */
export type TableParameters = Parameters & { readonly stage: Stage };

/** What requests of a function are to the guest now. */
export type FunctionState =
  | { readonly kind: "blocked" }
  /** Guest physical addresses. */
  | { readonly kind: "identity" }
  | { readonly kind: "tables"; readonly parameters: TableParameters };

export interface BackEnd {
  /** What the host holds because of the guest's tables: mappings, or HWPTs. */
  readonly held: number;
  /** The guest registered something else for a function. Throws what the host refused; then the function has what it had. */
  reread(rid: number): void;
  /** Entries of [start, end) have changed. Throws what the host refused; what it could not take is not valid. */
  refresh(rid: number, start: number, end: number): void;
}
