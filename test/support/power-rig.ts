/** A POWER host bridge with its driver, for a `ModelHost`. */
import { silent } from "../../src/base/events.ts";
import { TceDriver } from "../../src/drivers/tce/driver.ts";
import { TceUnit } from "../../src/hardware/tce/unit.ts";
import { MSI_BASE, MSI_BYTES, type MsiController } from "../../src/kernel/msi.ts";
import type { Banks } from "../../src/memory/banks.ts";

export const powerUp = (memory: Banks, msi: MsiController): { unit: TceUnit; driver: TceDriver } => {
  const name = "phb0";
  const messages = { start: MSI_BASE, length: MSI_BYTES };
  const unit = new TceUnit({ name, memory, events: silent, interrupt: () => {}, messages });
  const firmware = { pageLg2s: unit.pageLg2s, covers: () => true };
  const driver = new TceDriver({ name, unit, memory, msi, events: silent, firmware, apertures: false });
  return { unit, driver };
};
