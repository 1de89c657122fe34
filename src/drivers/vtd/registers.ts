/** How the driver reaches a VT-d unit: register reads and writes, and commands that are done when GSTS says so (§11.4.4). */
import { GCMD_ONE_SHOT, Register } from "../../hardware/vtd/spec.ts";
import { LinuxError } from "../../uapi/errno.ts";

export interface RegisterFile {
  mmioRead(offset: number, width: 4 | 8): bigint;
  mmioWrite(offset: number, width: 4 | 8, value: bigint): void;
}

export class Registers {
  readonly #file: RegisterFile;
  readonly #name: string;

  constructor(file: RegisterFile, name: string) {
    this.#file = file;
    this.#name = name;
  }

  read32(offset: number): number {
    return Number(this.#file.mmioRead(offset, 4));
  }
  read64(offset: number): bigint {
    return this.#file.mmioRead(offset, 8);
  }
  write32(offset: number, value: number): void {
    this.#file.mmioWrite(offset, 4, BigInt(value >>> 0));
  }
  write64(offset: number, value: bigint): void {
    this.#file.mmioWrite(offset, 8, value);
  }

  /** Sets or clears one bit of GCMD and sees it take effect. Throws EIO when the unit does not follow. */
  command(bit: number, set: boolean): void {
    const standing = this.read32(Register.GSTS) & ~GCMD_ONE_SHOT;
    this.write32(Register.GCMD, set ? standing | bit : standing & ~bit);
    const followed = ((this.read32(Register.GSTS) & bit) !== 0) === set;
    if (!followed)
      throw new LinuxError(
        "EIO",
        `GSTS does not show command bit 0x${(bit >>> 0).toString(16)} as done`,
        this.#name,
      );
  }
}
