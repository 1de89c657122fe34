/**
 * What a guest's tables say of its devices: root and context entries (Intel VT-d revision 4.1, §9.1 and §9.3) read with
 * the code of the unit itself, and second-stage tables, page after page. Everything read here is the guest's: it may be
 * malformed, cyclic or change meanwhile.
 */
import type { Capabilities } from "../../hardware/vtd/capabilities.ts";
import { describeFault } from "../../hardware/vtd/faults.ts";
import { TranslationType } from "../../hardware/vtd/spec.ts";
import { Context, configure, readContext, type TranslationConfig } from "../../hardware/vtd/translate.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { Permission, WalkFault } from "../../pagetable/format.ts";
import { type Walker, WalkResult } from "../../pagetable/walker.ts";

/** What the requests of a device go through. */
export type Translation =
  | { readonly kind: "blocked"; readonly why: string }
  | { readonly kind: "passThrough"; readonly domain: number }
  | { readonly kind: "stage"; readonly domain: number; readonly stage: GuestStage };

/** One table of a guest. Two of them are the same when they have the same key. */
export interface GuestStage {
  readonly key: string;
  readonly table: number;
  readonly walker: Walker;
  /** First address beyond those it translates. */
  readonly end: number;
  /** Log2 of the bytes that an entry of a level covers. */
  readonly shifts: readonly number[];
}

/** A page of a guest's table, or how many bytes from an address on have none. */
export type Found =
  | {
      readonly page: true;
      readonly start: number;
      readonly length: number;
      readonly target: number;
      readonly readable: boolean;
      readonly writable: boolean;
    }
  | { readonly page: false; readonly end: number };

const WORD = 2 ** 32;

export class GuestTables {
  readonly #memory: HostMemory;
  readonly #config: TranslationConfig;
  readonly #context = new Context();
  readonly #walk = new WalkResult();

  constructor(memory: HostMemory, capabilities: Capabilities) {
    this.#memory = memory;
    this.#config = configure(capabilities);
  }

  /** What the tables under this root say of a device. */
  translationOf(root: number, rid: number): Translation {
    const context = this.#context;
    const fault = readContext(this.#memory, this.#config, root, rid, context);
    if (fault !== 0) return { kind: "blocked", why: describeFault(fault) };
    const { domain, aw, table } = context;
    if (context.translationType === TranslationType.passThrough) return { kind: "passThrough", domain };
    const stage = {
      key: `second ${table} ${aw}`,
      table,
      walker: this.#config.walkers[aw]!,
      end: 2 ** this.#config.widths[aw]!,
      shifts: this.#config.formats[aw]!.levels.map(({ shift }) => shift),
    };
    return { kind: "stage", domain, stage };
  }

  /** The page around an address, or where the hole around it ends. A page that may not be used is a hole. */
  find({ walker, table, shifts }: GuestStage, iova: number): Found {
    const walk = this.#walk;
    const [lo, hi] = [iova % WORD, Math.floor(iova / WORD)];
    let fault = walker(this.#memory, table, lo, hi, Permission.read, walk);
    if (fault === WalkFault.read) fault = walker(this.#memory, table, lo, hi, Permission.write, walk);
    if (fault !== 0) {
      const bytes = 2 ** (shifts[walk.level] ?? shifts[0]!);
      return { page: false, end: (Math.floor(iova / bytes) + 1) * bytes };
    }
    const length = 2 ** walk.lg2;
    const before = length - walk.span;
    return {
      page: true,
      start: iova - before,
      length,
      target: walk.pa - before,
      readable: (walk.allowed & Permission.read) !== 0,
      writable: (walk.allowed & Permission.write) !== 0,
    };
  }
}
