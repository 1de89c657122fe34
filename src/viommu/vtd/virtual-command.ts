/**
 * The virtual command registers of a VT-d unit that a VMM shows (revision 4.1, §11.4): the guest asks for PASIDs and gives
 * them back, because its numbers must be the host's, which are given out for the whole machine. A command is done when its
 * write has returned. Left out: commands that take time, other commands.
 */
import {
  Register,
  VccapRegister,
  VcmdRegister,
  VcrspRegister,
  VirtualCommand,
  VirtualStatus,
} from "../../hardware/vtd/spec.ts";
import { LinuxError } from "../../uapi/errno.ts";

/** Who has PASIDs for the guest. Both throw the `LinuxError`s of the host. */
export interface PasidService {
  allocate(): number;
  free(pasid: number): void;
}

const BYTES = 8;
const WORD_BITS = 32n;

export class VirtualCommands {
  readonly #pasids: PasidService;
  /** Why a command was not done. */
  readonly #refused: (error: LinuxError) => void;
  #command = 0n;
  #response = 0n;

  constructor(pasids: PasidService, refused: (error: LinuxError) => void) {
    this.#pasids = pasids;
    this.#refused = refused;
  }

  /** Undefined: it is no register of these. */
  read(offset: number, width: 4 | 8): bigint | undefined {
    const register = offset - (offset % BYTES);
    const value = this.#value(register);
    if (value === undefined || width > BYTES - (offset % BYTES)) return undefined;
    const shifted = value >> BigInt(8 * (offset % BYTES));
    return BigInt.asUintN(8 * width, shifted);
  }

  write(offset: number, width: 4 | 8, value: bigint): void {
    if (offset === Register.VCMD + 4 && width === 4)
      this.#command = (value << WORD_BITS) | BigInt.asUintN(32, this.#command);
    if (offset !== Register.VCMD) return;
    this.#command = width === 8 ? value : ((this.#command >> WORD_BITS) << WORD_BITS) | value;
    this.#response = this.#carryOut();
  }

  #value(register: number): bigint | undefined {
    switch (register) {
      case Register.VCMD:
        return this.#command;
      case Register.VCRSP:
        return this.#response;
      case Register.VCCAP:
        return VccapRegister.make({ PAS: true });
      default:
        return undefined;
    }
  }

  #carryOut(): bigint {
    const { CMD, PASID } = VcmdRegister.fields;
    try {
      switch (Number(CMD.of(this.#command))) {
        case VirtualCommand.allocatePasid:
          return VcrspRegister.make({ SC: VirtualStatus.success, PASID: this.#pasids.allocate() });
        case VirtualCommand.freePasid:
          this.#pasids.free(Number(PASID.of(this.#command)));
          return VcrspRegister.make({ SC: VirtualStatus.success });
        default:
          return VcrspRegister.make({ SC: VirtualStatus.unknownCommand });
      }
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      this.#refused(error);
      return VcrspRegister.make({ SC: VirtualStatus.refused });
    }
  }
}
