/**
 * Set Features and Get Features (§5.13, §5.21): values of one dword, and the host identifier, which is data. Nothing is
 * saveable. Values return to their defaults at a controller reset. A feature that namespaces have each is set for all of
 * them by the NSIDs 0 and 0xffffffff.
 */
import { ALL_NAMESPACES } from "./namespace.ts";
import { Feature, StatusCode } from "./spec.ts";

/** Select of Get Features (CDW10 bits 10:8). */
const Select = { CURRENT: 0, DEFAULT: 1, SAVED: 2, CAPABILITIES: 3 } as const;
/** Answer to Select.CAPABILITIES. */
const CHANGEABLE = 1 << 2;
const PER_NAMESPACE = 1 << 1;

interface Declared {
  readonly value: number;
  /** Bits that may be set; any other one set is an invalid field. */
  readonly mask: number;
  readonly perNamespace?: boolean;
}

/** Events for critical warnings can be asked for; none of the notices, of which Identify has none (OAES is 0). */
const CRITICAL_WARNINGS = 0xff;

/** §5.21.1. A power state other than 0 and errors for deallocated blocks do not exist here. */
const declared = new Map<number, Declared>([
  [Feature.ARBITRATION, { value: 0, mask: 0xffff_ff07 }],
  [Feature.POWER_MANAGEMENT, { value: 0, mask: 0xe0 }],
  [Feature.ERROR_RECOVERY, { value: 0, mask: 0xffff, perNamespace: true }],
  [Feature.VOLATILE_WRITE_CACHE, { value: 1, mask: 1 }],
  [Feature.INTERRUPT_COALESCING, { value: 0, mask: 0xffff }],
  [Feature.WRITE_ATOMICITY, { value: 0, mask: 1 }],
  [Feature.ASYNC_EVENTS, { value: 0, mask: CRITICAL_WARNINGS }],
]);

const VECTOR_MASK = 0xffff;
const COALESCING_DISABLED = 1 << 16;
/** Temperature Threshold, §5.21.1.4. */
const TMPTH = 0xffff;
const TMPSEL = 0xf;
const THSEL = 0x3;
const ALL_SENSORS = 0xf;
const OVER = 0;
const UNDER = 1;
const OVER_DEFAULT = 343;

export const HOST_IDENTIFIER_BYTES = 16;
/** Host Identifier, CDW11: the 128-bit form. */
export const EXTENDED_HOST_IDENTIFIER = 1;

export interface FeatureLimits {
  readonly queues: number;
  readonly vectors: number;
  readonly namespaces: number;
}

export class Features {
  /** Result dword of the last `get` or `set` that succeeded. */
  result = 0;
  readonly hostIdentifier = new Uint8Array(HOST_IDENTIFIER_BYTES);
  readonly #limits: FeatureLimits;
  readonly #values = new Map<number, number>();
  /** Of features that namespaces have each: by feature, by number of the namespace less one. */
  readonly #ofNamespaces = new Map<number, Uint32Array>();
  readonly #coalescing: Uint32Array;
  #over = OVER_DEFAULT;
  #under = 0;

  constructor(limits: FeatureLimits) {
    this.#limits = limits;
    this.#coalescing = new Uint32Array(limits.vectors);
    this.reset();
  }

  reset(): void {
    for (const [id, { value, perNamespace }] of declared) {
      if (perNamespace) this.#ofNamespaces.set(id, new Uint32Array(this.#limits.namespaces).fill(value));
      else this.#values.set(id, value);
    }
    this.#coalescing.fill(0);
    this.#over = OVER_DEFAULT;
    this.#under = 0;
    this.hostIdentifier.fill(0);
  }

  /** Current value of a feature of one dword. */
  value(id: number): number {
    return this.#values.get(id) ?? 0;
  }

  /** A composite temperature (kelvin) is outside the thresholds. */
  outside(temperature: number): boolean {
    return temperature >= this.#over || temperature <= this.#under;
  }

  /** `hasQueues`: an I/O queue exists. Returns the status. */
  set(id: number, value: number, nsid: number, hasQueues: boolean): number {
    this.result = 0;
    const simple = declared.get(id);
    const all = nsid === 0 || nsid === ALL_NAMESPACES;
    if (!all) {
      if (nsid > this.#limits.namespaces) return StatusCode.INVALID_NAMESPACE;
      if (!simple?.perNamespace) return StatusCode.FEATURE_NOT_PER_NAMESPACE;
    }
    if (simple) {
      if (value & ~simple.mask) return StatusCode.INVALID_FIELD;
      const each = this.#ofNamespaces.get(id);
      if (!each) this.#values.set(id, value);
      else if (all) each.fill(value);
      else each[nsid - 1] = value;
      return StatusCode.SUCCESS;
    }
    switch (id) {
      case Feature.NUMBER_OF_QUEUES:
        return this.#setQueues(value, hasQueues);
      case Feature.INTERRUPT_VECTOR:
        return this.#setVector(value);
      case Feature.TEMPERATURE_THRESHOLD:
        return this.#setTemperature(value);
      default:
        return StatusCode.INVALID_FIELD;
    }
  }

  /** Without a namespace (NSID 0), namespace 1 answers for a feature that each has. Returns the status. */
  get(id: number, select: number, argument: number, nsid: number): number {
    if (select > Select.CAPABILITIES) return StatusCode.INVALID_FIELD;
    const simple = declared.get(id);
    if (select === Select.CAPABILITIES) {
      if (!simple && !compound.has(id)) return StatusCode.INVALID_FIELD;
      this.result = CHANGEABLE | (simple?.perNamespace ? PER_NAMESPACE : 0);
      return StatusCode.SUCCESS;
    }
    const current = select === Select.CURRENT;
    if (simple) {
      const each = this.#ofNamespaces.get(id);
      const at = Math.max(nsid, 1) - 1;
      if (each && at >= each.length) return StatusCode.INVALID_NAMESPACE;
      this.result = current ? (each?.[at] ?? this.value(id)) : simple.value;
      return StatusCode.SUCCESS;
    }
    switch (id) {
      case Feature.NUMBER_OF_QUEUES:
        this.result = this.#granted();
        return StatusCode.SUCCESS;
      case Feature.INTERRUPT_VECTOR:
        return this.#getVector(argument & VECTOR_MASK, current);
      case Feature.TEMPERATURE_THRESHOLD:
        return this.#getTemperature(argument, current);
      default:
        return StatusCode.INVALID_FIELD;
    }
  }

  /** We give all we have, whatever is asked for (§5.21.1.7 allows more than requested). */
  #granted(): number {
    const last = this.#limits.queues - 1;
    return ((last << 16) | last) >>> 0;
  }

  #setQueues(value: number, hasQueues: boolean): number {
    if (hasQueues) return StatusCode.COMMAND_SEQUENCE;
    if (value >>> 16 === 0xffff || (value & 0xffff) === 0xffff) return StatusCode.INVALID_FIELD;
    this.result = this.#granted();
    return StatusCode.SUCCESS;
  }

  #setVector(value: number): number {
    const vector = value & VECTOR_MASK;
    if (vector >= this.#limits.vectors) return StatusCode.INVALID_FIELD;
    this.#coalescing[vector] = value & COALESCING_DISABLED;
    return StatusCode.SUCCESS;
  }

  #getVector(vector: number, current: boolean): number {
    if (vector >= this.#limits.vectors) return StatusCode.INVALID_FIELD;
    this.result = vector | (current ? this.#coalescing[vector]! : 0);
    return StatusCode.SUCCESS;
  }

  #setTemperature(value: number): number {
    const sensor = (value >>> 16) & TMPSEL;
    const kind = (value >>> 20) & THSEL;
    if ((sensor !== 0 && sensor !== ALL_SENSORS) || kind > UNDER) return StatusCode.INVALID_FIELD;
    if (kind === OVER) this.#over = value & TMPTH;
    else this.#under = value & TMPTH;
    return StatusCode.SUCCESS;
  }

  #getTemperature(argument: number, current: boolean): number {
    const kind = (argument >>> 20) & THSEL;
    if ((argument >>> 16) & TMPSEL || kind > UNDER) return StatusCode.INVALID_FIELD;
    if (kind === OVER) this.result = current ? this.#over : OVER_DEFAULT;
    else this.result = current ? this.#under : 0;
    return StatusCode.SUCCESS;
  }
}

const compound: ReadonlySet<number> = new Set([
  Feature.NUMBER_OF_QUEUES,
  Feature.INTERRUPT_VECTOR,
  Feature.TEMPERATURE_THRESHOLD,
  Feature.HOST_IDENTIFIER,
]);
