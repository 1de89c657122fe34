/** How the driver reaches an SMMUv3: register reads and writes, and CR0, which is done when CR0ACK says so (IHI 0070, §6.3.9). */
import {
  type Capabilities,
  capabilitiesOf,
  completeCapabilities,
} from "../../hardware/smmuv3/capabilities.ts";
import { Register } from "../../hardware/smmuv3/spec.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { RegisterAccess } from "../register-file.ts";

export class Registers extends RegisterAccess {
  /** Gives CR0 these bits and sees them take effect. Throws EIO when the unit does not follow. */
  control(bits: number): void {
    this.write32(Register.CR0, bits);
    const followed = this.read32(Register.CR0ACK);
    if (followed !== bits)
      throw new LinuxError(
        "EIO",
        `CR0ACK is 0x${followed.toString(16)} after 0x${bits.toString(16)} was written to CR0`,
        this.name,
      );
  }

  /** Acknowledges these errors of GERROR (§6.3.18), as far as they are active: which were. */
  acknowledge(errors: number): number {
    const acknowledged = this.read32(Register.GERRORN);
    const active = (this.read32(Register.GERROR) ^ acknowledged) & errors;
    if (active !== 0) this.write32(Register.GERRORN, acknowledged ^ active);
    return active;
  }

  /** What the identification registers say. */
  capabilities(): Capabilities {
    return completeCapabilities(
      capabilitiesOf({
        idr0: this.read32(Register.IDR0),
        idr1: this.read32(Register.IDR1),
        idr3: this.read32(Register.IDR3),
        idr5: this.read32(Register.IDR5),
        iidr: this.read32(Register.IIDR),
        aidr: this.read32(Register.AIDR),
      }),
    );
  }
}
