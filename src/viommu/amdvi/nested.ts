/**
 * The back end for hosts of AMD's that nest (`viommu/nested-commands`), by the extension `amd-nesting`: a nested HWPT for what
 * the guest's device table entry says (IOMMU_HWPT_DATA_AMD_GUEST), and its commands as they are. The guest's GCR3 tables,
 * and with them its PASIDs, are read by the host's units themselves; the host puts its own ids in the place of the guest's.
 *
 * The host takes no command about everything, nor one about host tables, which the guest has not: what is below them, too,
 * is forgotten when devices leave their page tables.
 */
import { Command, InvalidateIotlb, InvalidatePages, Opcode } from "../../hardware/amdvi/queue-spec.ts";
import { Dte } from "../../hardware/amdvi/spec.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { IOMMU_HW_INFO_TYPE_AMD } from "../../uapi/vendor/amd.ts";
import type { CommandBackEnd } from "../commands.ts";
import type { InvalidationCount } from "../host-calls.ts";
import { NestedCommands, type NestedCommandsOptions, type NestingModel } from "../nested-commands.ts";

/** No number of the interface names AMD's vIOMMUs, and hosts take any but 0: that by which they call their units. */
const VIOMMU_TYPE = IOMMU_HW_INFO_TYPE_AMD;

const isAbout = (command: bigint, opcode: number): boolean =>
  Number(Command.fields.OPCODE.of(command)) === opcode;
/** §2.4.3 */
const isAboutHostTables = (command: bigint): boolean =>
  isAbout(command, Opcode.INVALIDATE_IOMMU_PAGES) && InvalidatePages.fields.GN.of(command) === 0n;

const model: NestingModel = {
  viommu: VIOMMU_TYPE,
  allocate: (calls, { id }, viommu, entry, faults) => calls.allocateGuestEntry(id, viommu, entry, faults),
  send: (calls, viommu, commands) => calls.commandAmd(viommu, commands),
  deviceOf: (command) =>
    isAbout(command, Opcode.INVALIDATE_IOTLB_PAGES)
      ? Number(InvalidateIotlb.fields.DEVICE.of(command))
      : undefined,
  translates: (entry) => Dte.fields.GV.of(entry) === 1n,
};

export class AmdNested implements CommandBackEnd {
  readonly #commands: NestedCommands;

  /** Maps all of the guest's RAM; devices get what the guest's entries say. Throws EOPNOTSUPP when the host does not nest. */
  constructor(options: NestedCommandsOptions) {
    this.#commands = new NestedCommands(model, options);
  }

  get viommus(): readonly number[] {
    return this.#commands.viommus;
  }
  get held(): number {
    return this.#commands.held;
  }

  reread(first: number, end: number): void {
    if (end === Number.POSITIVE_INFINITY) this.#commands.renew();
    else this.#commands.reread(first, end);
  }

  command(commands: readonly bigint[]): InvalidationCount {
    for (let done = 0; done < commands.length; ) {
      const forgets = isAboutHostTables(commands[done]!);
      let end = done + 1;
      while (end < commands.length && isAboutHostTables(commands[end]!) === forgets) end += 1;
      const part = forgets ? this.#renew(end - done) : this.#commands.command(commands.slice(done, end));
      if (part.error) return { ...part, done: done + part.done };
      done = end;
    }
    return { done: commands.length };
  }

  /** For so many commands. */
  #renew(count: number): InvalidationCount {
    try {
      this.#commands.renew();
      return { done: count };
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      return { done: 0, error };
    }
  }
}
