/**
 * One capability of Linux's fault injection: the switches of a folder in debugfs (`failslab`, `fail_page_alloc`), what
 * they say and take as text, and the decision they lead to. Source: Documentation/fault-injection/fault-injection.rst.
 * Left out: the walk of the stack. Nothing that runs here has kernel addresses, so with a required range narrower than
 * all of them nothing matches and nothing fails.
 */
import type { Random } from "../base/clock.ts";
import { LinuxError } from "../uapi/errno.ts";

const MAX_ADDRESS = 2n ** 64n - 1n;
/** Callers that a stack walk looks at. */
const MOST_DEPTH = 32n;

/** An attribute as its file shows and takes it. */
export interface Attribute {
  show(): string;
  /** Throws EINVAL for what is no value of its kind, ERANGE for one that is too large. */
  store(text: string): void;
}

/** What an allocation tells about itself. */
export interface Demand {
  /** Bytes of an object; pages of a run of pages. */
  readonly size: number;
  /** It may wait for memory (GFP_KERNEL); one in a handler of events may not. */
  readonly waits: boolean;
  /** Log2 of the pages; undefined for an object. */
  readonly orderLg2?: number;
}

/** A number as kstrtoull takes it: decimal, 0x or leading 0, an optional sign, one newline at the end. */
export const parseNumber = (text: string, least: bigint, most: bigint): bigint => {
  const found = /^([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)\n?$/.exec(text);
  if (!found || (found[1] === "-" && least >= 0n))
    throw new LinuxError("EINVAL", `"${text.trimEnd()}" is no number that can be written here`);
  const digits = found[2]!;
  const octal = /^0[0-7]+$/.test(digits) ? `0o${digits.slice(1)}` : digits;
  const value = BigInt(octal) * (found[1] === "-" ? -1n : 1n);
  if (value < least || value > most)
    throw new LinuxError("ERANGE", `${value} is not within ${least} and ${most}`);
  return value;
};

/** A switch as kstrtobool takes it. */
const parseSwitch = (text: string): boolean => {
  if (/^([yYtT1]|[oO][nN])/.test(text)) return true;
  if (/^([nNfF0]|[oO][fF])/.test(text)) return false;
  throw new LinuxError("EINVAL", `"${text.trimEnd()}" is neither Y nor N`);
};

class NumberKnob implements Attribute {
  value: bigint;
  readonly #least: bigint;
  readonly #most: bigint;
  readonly #ceiling: bigint;

  constructor(value: bigint, { signed = false, ceiling = MAX_ADDRESS } = {}) {
    this.value = value;
    this.#least = signed ? -(2n ** 31n) : 0n;
    this.#most = signed ? 2n ** 31n - 1n : MAX_ADDRESS;
    this.#ceiling = ceiling;
  }
  show(): string {
    return `${this.value}\n`;
  }
  store(text: string): void {
    this.value = parseNumber(text, this.#least, this.#most);
    if (this.value > this.#ceiling) this.value = this.#ceiling;
  }
}

class AddressKnob extends NumberKnob {
  override show(): string {
    return `0x${this.value.toString(16).padStart(16, "0")}\n`;
  }
}

class SwitchKnob implements Attribute {
  value: boolean;
  constructor(value: boolean) {
    this.value = value;
  }
  show(): string {
    return this.value ? "Y\n" : "N\n";
  }
  store(text: string): void {
    this.value = parseSwitch(text);
  }
}

/** The switches of every capability, and those of one alone. */
export class FaultAttributes {
  readonly probability = new NumberKnob(0n);
  readonly interval = new NumberKnob(1n);
  readonly times = new NumberKnob(1n, { signed: true });
  readonly space = new NumberKnob(0n, { signed: true });
  readonly taskFilter = new SwitchKnob(false);
  readonly requireStart = new AddressKnob(0n);
  readonly requireEnd = new AddressKnob(MAX_ADDRESS);
  readonly ignoreWait = new SwitchKnob(false);
  readonly cacheFilter = new SwitchKnob(false);
  readonly minOrder = new NumberKnob(0n);
  /** By the name of its file. */
  readonly files: ReadonlyMap<string, Attribute>;
  readonly #random: Random;
  #calls = 0n;

  constructor(kind: "slab" | "pages", random: Random) {
    this.#random = random;
    this.files = new Map<string, Attribute>([
      ["probability", this.probability],
      ["interval", this.interval],
      ["times", this.times],
      ["space", this.space],
      ["verbose", new NumberKnob(2n)],
      ["verbose_ratelimit_interval_ms", new NumberKnob(0n)],
      ["verbose_ratelimit_burst", new NumberKnob(10n)],
      ["task-filter", this.taskFilter],
      ["stacktrace-depth", new NumberKnob(MOST_DEPTH, { ceiling: MOST_DEPTH })],
      ["require-start", this.requireStart],
      ["require-end", this.requireEnd],
      ["reject-start", new AddressKnob(0n)],
      ["reject-end", new AddressKnob(0n)],
      ["ignore-gfp-wait", this.ignoreWait],
      ...(kind === "slab"
        ? ([["cache-filter", this.cacheFilter]] as const)
        : ([
            ["ignore-gfp-highmem", new SwitchKnob(false)],
            ["min-order", this.minOrder],
          ] as const)),
    ]);
  }

  /** Whether an allocation of this kind can fail at all: what holds for `fail-nth` too. */
  reaches({ waits, orderLg2 = 0 }: Demand): boolean {
    return !(this.ignoreWait.value && waits) && !this.cacheFilter.value && orderLg2 >= this.minOrder.value;
  }

  /** Whether anything can fail without `fail-nth`. */
  get armed(): boolean {
    return this.probability.value > 0n;
  }

  /** Decides over an allocation that it reaches. `chosen`: the task was marked (`make-it-fail`). */
  decide(size: number, chosen: boolean): boolean {
    if (!this.armed || this.times.value === 0n) return false;
    if (this.taskFilter.value && !chosen) return false;
    if (this.requireStart.value > 0n || this.requireEnd.value < MAX_ADDRESS) return false;
    if (this.space.value > BigInt(size)) {
      this.space.value -= BigInt(size);
      return false;
    }
    this.#calls += 1n;
    if (this.interval.value > 1n && this.#calls % this.interval.value !== 0n) return false;
    if (BigInt(this.#random.below(100)) >= this.probability.value) return false;
    if (this.times.value > 0n) this.times.value -= 1n;
    return true;
  }
}
