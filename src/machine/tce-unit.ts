/** From the description of a POWER host bridge to silicon and the driver that runs it. */
import { Random } from "../base/clock.ts";
import { TceDriver } from "../drivers/tce/driver.ts";
import { IodaAddr, PES, Register, Table, WINDOWS } from "../hardware/tce/spec.ts";
import { TceUnit } from "../hardware/tce/unit.ts";
import { MSI_BASE, MSI_BYTES } from "../kernel/msi.ts";
import { losingKills } from "./breaks.ts";
import { TCE_PAGES, type UnitDescription } from "./schema.ts";
import type { PoweredUnit, UnitSocket } from "./unit-socket.ts";

export const powerOnTce = (
  given: Extract<UnitDescription, { readonly model: "tce" }>,
  { memory, unitMemory, msi, events, interrupt, seed, behind, extensions, broken }: UnitSocket,
): PoweredUnit => {
  const { name } = given;
  const pageLg2s = given["page-sizes"].map((size) => TCE_PAGES[size]);
  const unit = new TceUnit({
    name,
    memory: unitMemory,
    events,
    interrupt,
    pageLg2s,
    messages: { start: MSI_BASE, length: MSI_BYTES },
    cache: given.cache,
    random: new Random(seed),
  });
  const driver = new TceDriver({
    name,
    unit: broken.has("skip-flush") ? losingKills(unit) : unit,
    memory,
    msi,
    events,
    firmware: { pageLg2s, covers: (device) => behind.has(device.name) },
    apertures: extensions.includes("apertures"),
  });
  const select = (window: number) =>
    unit.mmioWrite(Register.IODA_ADDR, 8, IodaAddr.make({ TSEL: Table.TVT, TADR: window }));
  return {
    unit,
    driver,
    sysfs: { name },
    saveRegisters: () => {
      const saved: { [register: string]: bigint } = {};
      for (let window = 0; window < PES * WINDOWS; window++) {
        select(window);
        const tve = unit.mmioRead(Register.IODA_DATA0, 8);
        if (tve !== 0n) saved[`TVT${window}`] = tve;
      }
      return { ...saved, RTT_BAR: unit.mmioRead(Register.RTT_BAR, 8) };
    },
    restoreRegisters: ({ RTT_BAR, ...saved }) => {
      for (let window = 0; window < PES * WINDOWS; window++) {
        const tve = saved[`TVT${window}`];
        if (tve === undefined) continue;
        select(window);
        unit.mmioWrite(Register.IODA_DATA0, 8, tve);
      }
      if (RTT_BAR !== undefined) unit.mmioWrite(Register.RTT_BAR, 8, RTT_BAR);
    },
  };
};
