/** What a benchmark reports: one figure of ours beside its baseline, taken in one run. */
export interface BenchRow {
  readonly name: string;
  readonly ours: number;
  readonly baseline: number;
  /** Of `ours` and `baseline`: "ns", "MB/s". */
  readonly unit: string;
  /** Ours by the baseline: the middle one of all rounds where they were taken in turns. */
  readonly ratio: number;
  /** The ratio that it should not exceed. */
  readonly target?: number;
}

/** The middle one; of an even number, the upper middle. */
export const median = (figures: readonly number[]): number =>
  [...figures].sort((a, b) => a - b)[figures.length >> 1] as number;
