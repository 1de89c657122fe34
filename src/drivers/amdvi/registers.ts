/** How the driver reaches an AMD-Vi unit (48882, revision 3.07, §3.4): CONTROL as a set of bits, and what STATUS says. */
import { type Capabilities, completeCapabilities } from "../../hardware/amdvi/capabilities.ts";
import { ControlRegister, MsiCapability, Register } from "../../hardware/amdvi/spec.ts";
import type { Message } from "../../kernel/msi.ts";
import { RegisterAccess } from "../register-file.ts";

type ControlBits = Parameters<typeof ControlRegister.make>[0];

export class Registers extends RegisterAccess {
  /** What the feature registers say; `deviceTlb` is told by the unit's PCI capability (IotlbSup). */
  capabilities(deviceTlb: boolean): Capabilities {
    const efr = this.read64(Register.EXT_FEATURE);
    const efr2 = this.read64(Register.EXT_FEATURE2);
    return completeCapabilities({ efr, efr2, deviceTlb });
  }

  /** Exactly these bits of CONTROL from now on. */
  control(bits: ControlBits): void {
    this.write64(Register.CONTROL, ControlRegister.make(bits));
  }

  /** Disables and enables what stopped (§3.4.11): it goes on where it was. */
  restart(enable: "EVENT_LOG_EN" | "CMD_BUF_EN" | "PPR_LOG_EN"): void {
    const control = this.read64(Register.CONTROL);
    this.write64(Register.CONTROL, control & ~ControlRegister.fields[enable].put(1n));
    this.write64(Register.CONTROL, control);
  }

  get status(): number {
    return this.read32(Register.STATUS);
  }
  /** Clears these bits of STATUS. */
  acknowledge(bits: number): void {
    this.write32(Register.STATUS, bits);
  }

  /** §3.4.8 The one message of the unit's interrupts. */
  enableMessages({ address, data }: Message): void {
    this.write32(Register.MSI_ADDRESS, Number(address & 0xffff_ffffn));
    this.write32(Register.MSI_ADDRESS + 4, Number(address >> 32n));
    this.write32(Register.MSI_DATA, data);
    this.write32(Register.MSI_CAPABILITY, Number(MsiCapability.make({ EN: true })));
  }
}
