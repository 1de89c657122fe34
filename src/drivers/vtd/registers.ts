/** How the driver reaches a VT-d unit: register reads and writes, and commands that are done when GSTS says so (§11.4.4). */
import { GCMD_ONE_SHOT, Register } from "../../hardware/vtd/spec.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { RegisterAccess } from "../register-file.ts";

export class Registers extends RegisterAccess {
  /** Sets or clears one bit of GCMD and sees it take effect. Throws EIO when the unit does not follow. */
  command(bit: number, set: boolean): void {
    const standing = this.read32(Register.GSTS) & ~GCMD_ONE_SHOT;
    this.write32(Register.GCMD, set ? standing | bit : standing & ~bit);
    const followed = ((this.read32(Register.GSTS) & bit) !== 0) === set;
    if (!followed)
      throw new LinuxError(
        "EIO",
        `GSTS does not show command bit 0x${(bit >>> 0).toString(16)} as done`,
        this.name,
      );
  }
}
