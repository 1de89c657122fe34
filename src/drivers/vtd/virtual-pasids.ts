/**
 * PASIDs of a unit with virtual commands (revision 4.1, §11.4): not the driver's to choose, because they are numbers of the
 * machine beneath it. Left out: waiting, because VMMs here answer at once.
 */
import {
  EcapRegister,
  Register,
  VccapRegister,
  VcmdRegister,
  VcrspRegister,
  VirtualCommand,
  VirtualStatus,
} from "../../hardware/vtd/spec.ts";
import { LinuxError } from "../../uapi/errno.ts";
import type { RegisterFile } from "../register-file.ts";
import { Registers } from "./registers.ts";

export class VirtualPasids {
  readonly #registers: Registers;
  readonly #name: string;

  constructor(unit: RegisterFile, name: string) {
    this.#registers = new Registers(unit, name);
    this.#name = name;
  }

  /** Whether the unit gives PASIDs out (ECAP.VCS, VCCAP.PAS). */
  static has(unit: RegisterFile): boolean {
    return (
      EcapRegister.fields.VCS.of(unit.mmioRead(Register.ECAP, 8)) !== 0n &&
      VccapRegister.fields.PAS.of(unit.mmioRead(Register.VCCAP, 8)) !== 0n
    );
  }

  /** Throws ENOSPC when it gets none. */
  take(): number {
    const response = this.#ask(VcmdRegister.make({ CMD: VirtualCommand.allocatePasid }));
    if (Number(VcrspRegister.fields.SC.of(response)) !== VirtualStatus.success)
      throw new LinuxError("ENOSPC", "the unit's virtual command gave no PASID", this.#name);
    return Number(VcrspRegister.fields.PASID.of(response));
  }

  /** Throws EINVAL when the unit does not take it back. */
  give(pasid: number): void {
    const response = this.#ask(VcmdRegister.make({ CMD: VirtualCommand.freePasid, PASID: pasid }));
    if (Number(VcrspRegister.fields.SC.of(response)) !== VirtualStatus.success)
      throw new LinuxError("EINVAL", `the unit's virtual command did not take PASID ${pasid}`, this.#name);
  }

  /** The response. Throws EIO when there is none. */
  #ask(command: bigint): bigint {
    this.#registers.write64(Register.VCMD, command);
    const response = this.#registers.read64(Register.VCRSP);
    if (VcrspRegister.fields.IP.of(response) !== 0n)
      throw new LinuxError("EIO", "a virtual command is in progress for ever", this.#name);
    return response;
  }
}
