/** Log pages (§5.14.1) and what they are made of: the error log, SMART counters, firmware slots, command effects. */
import { store64 } from "./bytes.ts";
import { Admin, LogPage, Nvm, statusBits } from "./spec.ts";

export const ERROR_LOG_ENTRIES = 64;
const ERROR_ENTRY_BYTES = 64;
/** §5.14.1.1, figure 197. */
const ErrorEntry = { COUNT: 0, SQID: 8, CID: 10, STATUS: 12, LOCATION: 14, LBA: 16, NSID: 24 } as const;
const NO_LOCATION = 0xffff;

const SMART_BYTES = 512;
/** §5.14.1.2, figure 198. */
const Smart = {
  CRITICAL_WARNING: 0,
  COMPOSITE_TEMPERATURE: 1,
  AVAILABLE_SPARE: 3,
  SPARE_THRESHOLD: 4,
  DATA_READ: 32,
  DATA_WRITTEN: 48,
  READ_COMMANDS: 64,
  WRITE_COMMANDS: 80,
  POWER_CYCLES: 112,
  POWER_ON_HOURS: 128,
  MEDIA_ERRORS: 160,
  ERROR_ENTRIES: 176,
} as const;
/** Data is counted in thousands of 512 bytes. */
const DATA_UNIT = 512_000;
const HOUR = 3600e9;

const FIRMWARE_BYTES = 512;
const EFFECTS_BYTES = 4096;
const NAMESPACES_BYTES = 4096;
/** §5.14.1.5: supported; changes the content of logical blocks. */
const CSUPP = 1;
const LBCC = 2;
const IO_EFFECTS = 1024;

/** Kelvin. */
export const COMPOSITE_TEMPERATURE = 310;
export const COMPOSITE_TEMPERATURE_LIMITS = { warning: 343, critical: 353 } as const;
export const TEMPERATURE_WARNING = 1 << 1;

/** What of a command goes into the error log. */
export interface FailedCommand {
  readonly sqid: number;
  readonly cid: number;
  readonly status: number;
  readonly nsid: number;
  /** First block, exact below 2^53. */
  readonly lba: number;
}

export class Logs {
  readBytes = 0;
  writtenBytes = 0;
  readCommands = 0;
  writeCommands = 0;
  mediaErrors = 0;
  criticalWarning = 0;
  #errors = 0;
  readonly #ring = new Uint8Array(ERROR_LOG_ENTRIES * ERROR_ENTRY_BYTES);

  failed({ sqid, cid, status, nsid, lba }: FailedCommand): void {
    const at = (this.#errors % ERROR_LOG_ENTRIES) * ERROR_ENTRY_BYTES;
    this.#errors += 1;
    const view = new DataView(this.#ring.buffer);
    store64(this.#ring, at + ErrorEntry.COUNT, this.#errors);
    view.setUint16(at + ErrorEntry.SQID, sqid, true);
    view.setUint16(at + ErrorEntry.CID, cid, true);
    view.setUint16(at + ErrorEntry.STATUS, statusBits(status, 0), true);
    view.setUint16(at + ErrorEntry.LOCATION, NO_LOCATION, true);
    store64(this.#ring, at + ErrorEntry.LBA, lba);
    view.setUint32(at + ErrorEntry.NSID, nsid, true);
  }

  /** The page, or undefined for one that does not exist. `now` in nanoseconds since power-on. */
  page(id: number, now: number): Uint8Array | undefined {
    switch (id) {
      case LogPage.ERROR:
        return this.#errorLog();
      case LogPage.SMART:
        return this.#smart(now);
      case LogPage.FIRMWARE:
        return firmwareSlots();
      case LogPage.CHANGED_NAMESPACES:
        return new Uint8Array(NAMESPACES_BYTES);
      case LogPage.EFFECTS:
        return effects();
      default:
        return undefined;
    }
  }

  /** Newest first. */
  #errorLog(): Uint8Array {
    const page = new Uint8Array(this.#ring.length);
    const count = Math.min(this.#errors, ERROR_LOG_ENTRIES);
    for (let entry = 0; entry < count; entry++) {
      const from = ((this.#errors - 1 - entry) % ERROR_LOG_ENTRIES) * ERROR_ENTRY_BYTES;
      page.set(this.#ring.subarray(from, from + ERROR_ENTRY_BYTES), entry * ERROR_ENTRY_BYTES);
    }
    return page;
  }

  #smart(now: number): Uint8Array {
    const page = new Uint8Array(SMART_BYTES);
    page[Smart.CRITICAL_WARNING] = this.criticalWarning;
    new DataView(page.buffer).setUint16(Smart.COMPOSITE_TEMPERATURE, COMPOSITE_TEMPERATURE, true);
    page[Smart.AVAILABLE_SPARE] = 100;
    page[Smart.SPARE_THRESHOLD] = 10;
    store64(page, Smart.DATA_READ, Math.ceil(this.readBytes / DATA_UNIT));
    store64(page, Smart.DATA_WRITTEN, Math.ceil(this.writtenBytes / DATA_UNIT));
    store64(page, Smart.READ_COMMANDS, this.readCommands);
    store64(page, Smart.WRITE_COMMANDS, this.writeCommands);
    store64(page, Smart.POWER_CYCLES, 1);
    store64(page, Smart.POWER_ON_HOURS, Math.floor(now / HOUR));
    store64(page, Smart.MEDIA_ERRORS, this.mediaErrors);
    store64(page, Smart.ERROR_ENTRIES, this.#errors);
    return page;
  }
}

const firmwareSlots = (): Uint8Array => {
  const page = new Uint8Array(FIRMWARE_BYTES);
  page[0] = 1; // slot 1 is active
  page.set(Buffer.from("1.0     "), 8);
  return page;
};

const effects = (): Uint8Array => {
  const page = new Uint8Array(EFFECTS_BYTES);
  for (const opcode of Object.values(Admin)) page[4 * opcode] = CSUPP;
  for (const opcode of Object.values(Nvm)) page[IO_EFFECTS + 4 * opcode] = CSUPP;
  for (const opcode of [Nvm.WRITE, Nvm.WRITE_ZEROES, Nvm.DATASET_MANAGEMENT])
    page[IO_EFFECTS + 4 * opcode]! |= LBCC;
  return page;
};
