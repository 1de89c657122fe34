/** Event registers of a unit (revision 4.1, §11.4.10): control, data, address and upper address, one after the other. */
import { EventControl } from "../../hardware/vtd/spec.ts";
import type { Message } from "../../kernel/msi.ts";
import type { Registers } from "./registers.ts";

/** Programs the message of an event whose control register is at `control`, and unmasks it. */
export const enableEvent = (registers: Registers, control: number, { address, data }: Message): void => {
  registers.write32(control + 4, data);
  registers.write32(control + 8, Number(address & 0xffff_ffffn));
  registers.write32(control + 12, Number(address >> 32n));
  registers.write32(control, registers.read32(control) & ~EventControl.IM);
};
