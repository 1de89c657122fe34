/**
 * The back end that copies the tables of a guest with an AMD-Vi unit into mappings of the host when the guest invalidates
 * (`viommu/shadow`): host tables, guest tables, and guest tables above host tables. The guest's commands end here. Where a
 * PASID's table is, is in GCR3 tables, of which its invalidations are about, too (48882, revision 3.07, §2.4.3).
 */
import { encodedLg2 } from "../../hardware/amdvi/command-buffer.ts";
import { Command, InvalidatePages, Opcode } from "../../hardware/amdvi/queue-spec.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { Forget } from "../by-domain.ts";
import type { CommandBackEnd } from "../commands.ts";
import { forEvery } from "../every.ts";
import type { InvalidationCount } from "../host-calls.ts";
import { ShadowBackEnd, type ShadowOptions } from "../shadow/by-domain.ts";

const WORD = 2 ** 32;
const PAGE_LG2 = 12;
const EVERYTHING: Forget = { domain: undefined, pasid: undefined, range: undefined, leavesOnly: false };
const words = new Uint32Array(Command.words);

export class AmdShadow implements CommandBackEnd {
  readonly #devices: ShadowOptions["devices"];
  readonly #copies: ShadowBackEnd;

  /** Maps all of the guest's RAM once; devices get what the guest's tables say. */
  constructor(options: ShadowOptions) {
    this.#devices = options.devices;
    this.#copies = new ShadowBackEnd(options);
  }

  /** Mappings. */
  get held(): number {
    return this.#copies.held;
  }

  /** When it is about all devices, all that was copied is read again, too. */
  reread(first: number, end: number): void {
    const concerned = this.#devices.filter(({ rid }) => rid >= first && rid < end);
    forEvery(concerned, ({ rid }) => this.#copies.reread({ rid }));
    if (end === Number.POSITIVE_INFINITY) this.#forget(EVERYTHING);
  }

  command(commands: readonly bigint[]): InvalidationCount {
    for (const [done, command] of commands.entries())
      try {
        this.#perform(command);
      } catch (error) {
        if (!(error instanceof LinuxError)) throw error;
        return { done, error };
      }
    return { done: commands.length };
  }

  /** What functions remember themselves, the host has them forget when it unmaps. */
  #perform(command: bigint): void {
    Command.toWords(command, words);
    if (Command.fields.OPCODE.get(words) !== Opcode.INVALIDATE_IOMMU_PAGES) return;
    const request = requestOf();
    if (request.pasid !== undefined) this.#copies.reread({ pasid: request.pasid });
    this.#forget(request);
  }

  #forget(request: Forget): void {
    const { error } = this.#copies.forget([request]);
    if (error) throw error;
  }
}

/** §2.4.3 What the command in `words` asks for. */
const requestOf = (): Forget => {
  const { DOMAIN, PASID, GN, PDE, S } = InvalidatePages.fields;
  const [lo, hi] = [words[2]! & 0xffff_f000, words[3]!];
  const lg2 = S.get(words) ? encodedLg2(lo, hi) : PAGE_LG2;
  const length = 2 ** lg2;
  const start = Math.floor((hi * WORD + (lo >>> 0)) / length) * length;
  return {
    domain: DOMAIN.get(words),
    pasid: GN.get(words) ? PASID.get(words) : undefined,
    range: lg2 === 64 ? undefined : { start, length },
    leavesOnly: PDE.get(words) === 0,
  };
};
