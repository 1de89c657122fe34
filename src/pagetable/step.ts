/** One step of an explained translation: something was looked at, and what it said. */
export interface ExplainStep {
  /** What was looked at: "root entry", "context entry", "SL-PML4E", "IOTLB". */
  readonly what: string;
  /** Level of the table, where there is one (the specification's numbering). */
  readonly level?: number;
  /** Where it was fetched from (host physical), and what was there. */
  readonly address?: number;
  readonly value?: bigint;
  /** The entry's fields, decoded; one per line of output. */
  readonly fields?: readonly DecodedField[];
  /** A remark: why the walk goes on or ends here. */
  readonly note?: string;
  /** Set where it is about something that the unit remembers: whether that is what the tables say. */
  readonly cache?: "same" | "stale";
  /** Set on the last step. */
  readonly outcome?:
    | { readonly ok: true; readonly pa: number; readonly span: number }
    | { readonly ok: false; readonly code: number; readonly reason: string };
}

export interface DecodedField {
  readonly name: string;
  readonly value: bigint;
  readonly meaning?: string;
}
