/** What a function's requests, with a PASID or without, go through: what table entries of either mode say, decoded. */
import type { Levels } from "./abilities.ts";

export interface SecondStage {
  /** Host physical address of the top table. */
  readonly root: number;
  readonly levels: Levels;
  /** The unit sets accessed and dirty bits. */
  readonly accessedDirty: boolean;
}

export interface FirstStage {
  /** Address of the top table: host physical, or the guest's when it is nested. */
  readonly root: bigint;
  readonly levels: 4 | 5;
  readonly supervisor: boolean;
  readonly extendedAccessed: boolean;
  readonly writeProtect: boolean;
}

export interface Translation {
  /** Domain id. */
  readonly id: number;
  /** Neither: pass-through. Both: nested. */
  readonly first?: FirstStage;
  readonly second?: SecondStage;
  /** Accesses snoop whatever the function asks for. */
  readonly snoop: boolean;
}

/** Whether table entries say the same of both. */
export const isSame = (one: Translation, other: Translation): boolean =>
  one.id === other.id &&
  one.snoop === other.snoop &&
  one.first?.root === other.first?.root &&
  one.first?.levels === other.first?.levels &&
  one.first?.supervisor === other.first?.supervisor &&
  one.first?.extendedAccessed === other.first?.extendedAccessed &&
  one.first?.writeProtect === other.first?.writeProtect &&
  one.second?.root === other.second?.root &&
  one.second?.levels === other.second?.levels &&
  one.second?.accessedDirty === other.second?.accessedDirty;
