/**
 * Translation vectors: one JSON object a line that programs a unit through its registers and memory, makes a function
 * access memory, and says what happened. The same format serves every unit; what is particular to one is in its own
 * file beside this. Addresses and values are hex strings, sizes and lengths numbers of bytes.
 */

export type Hex = string;

export interface AccessUnderTest {
  readonly iova: Hex;
  readonly length: number;
  readonly write: boolean;
  /** Overrides the vector's requester. */
  readonly requester?: Hex;
}

export interface Segment {
  readonly pa: Hex;
  readonly length: number;
}

/** What an access did, and the state of the unit's fault reporting right after it. */
export interface Expectation {
  /** `unbacked`: translated to where no memory is. */
  readonly result: "ok" | "fault" | "unbacked";
  /** Where the first byte landed or came from. */
  readonly pa?: Hex;
  /** A marker that was read there. */
  readonly data?: Hex;
  /** Instead of `pa`, of an access over several frames. */
  readonly segments?: readonly Segment[];
  /** Of a fault: what had landed before. */
  readonly partial?: readonly Segment[];
  readonly landed?: "outside memory";
  /** The unit's own; absent: nothing is recorded. */
  readonly fault?: Readonly<Record<string, unknown>>;
}

export type Step =
  | { readonly mmio: readonly [offset: Hex, size: 4 | 8, value: Hex] }
  | { readonly read: readonly [offset: Hex, size: 4 | 8, value: Hex] }
  | { readonly mem64: readonly [pa: Hex, value: Hex] }
  | { readonly check64: readonly [pa: Hex, value: Hex] }
  | { readonly access: AccessUnderTest; readonly expect: Expectation; readonly either?: readonly string[] };

export interface Vector {
  readonly name: string;
  readonly unit: "vtd" | "smmuv3" | "amdvi";
  readonly config: Readonly<Record<string, unknown>>;
  /** Capability registers as read back at the start. */
  readonly registers: Readonly<Record<string, Hex>>;
  readonly setup: readonly Step[];
  readonly requester: Hex;
  readonly access: AccessUnderTest;
  readonly expect: Expectation;
  readonly after?: readonly Step[];
  /** The outcome is one of several legal ones. */
  readonly either?: readonly string[];
  /** Where the recording is believed to differ from the specification: `result: …` or `record: …`, joined by `; `. */
  readonly deviation?: string;
  readonly note?: string;
}

/** Vectors of a file's text, one a line. SyntaxError, with the line, for what is not JSON or not a vector. */
export const parseVectors = (text: string): Vector[] => {
  const vectors: Vector[] = [];
  for (const [index, line] of text.split("\n").entries()) {
    if (line.trim() === "") continue;
    let parsed: unknown;
    try {
      parsed = JSON.parse(line);
    } catch (error) {
      throw new SyntaxError(`line ${index + 1}: ${(error as Error).message}`);
    }
    if (!isVector(parsed))
      throw new SyntaxError(`line ${index + 1}: not a vector (name, unit, setup, access, expect)`);
    vectors.push(parsed);
  }
  return vectors;
};

const isVector = (value: unknown): value is Vector =>
  typeof value === "object" &&
  value !== null &&
  "name" in value &&
  "unit" in value &&
  "setup" in value &&
  Array.isArray(value.setup) &&
  "access" in value &&
  "expect" in value;
