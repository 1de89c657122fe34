/**
 * A function (1234:11e9) to try translation services with (ATS and page requests): it moves one page of 4 KiB between
 * memory and itself, and asks for the page when it is not there. Its commands are those of `edu`, as far as it has them.
 */
import { NO_PASID } from "../../hardware/unit.ts";
import { Endpoint, type FunctionContext } from "../pci-function.ts";
import { requestCapabilities } from "./requests.ts";
import { Transfer } from "./transfer.ts";

/** BAR 0. */
export const AtsTestRegister = {
  /** 64 bits; the page's address in memory. */
  ADDRESS: 0x0,
  /** An `AtsTestCommand`; reads with START as long as it is under way. */
  COMMAND: 0x8,
  END: 0xc,
} as const;
export const AtsTestCommand = { START: 1, TO_MEMORY: 2 } as const;
export const ATS_TEST_BYTES = 4096;

const IDS = { vendorId: 0x1234, deviceId: 0x11e9, classCode: 0xff_00_00 } as const;
const COMMANDS = AtsTestCommand.START | AtsTestCommand.TO_MEMORY;
const PAGES = 32;

export class AtsTestFunction extends Endpoint {
  readonly #registers = new Uint32Array(AtsTestRegister.END / 4);
  readonly #image = new Uint8Array(this.#registers.buffer);
  readonly #page = new Uint8Array(ATS_TEST_BYTES);
  readonly #transfer = new Transfer(this.dma, this.scheduler);

  constructor(context: FunctionContext) {
    super(
      {
        model: "ats-test",
        ...IDS,
        capabilities: requestCapabilities({ pasidBits: 0, pageRequests: PAGES }),
        bars: [{ index: 0, kind: "mem32", size: 4096 }],
      },
      context,
    );
  }

  protected readBar(_index: number, offset: number, into: Uint8Array): void {
    into.fill(0);
    if (offset < AtsTestRegister.END) into.set(this.#image.subarray(offset, offset + into.length));
  }

  protected writeBar(_index: number, offset: number, data: Uint8Array): void {
    if (((offset | data.length) & 3) !== 0) return;
    const view = new DataView(data.buffer, data.byteOffset, data.length);
    for (let at = 0; at < data.length; at += 4) this.#write(offset + at, view.getUint32(at, true));
  }

  protected resetModel(): void {
    this.#transfer.cancel();
    this.#registers.fill(0);
    this.#page.fill(0);
  }

  /** While a page is moved, what is written is nothing. */
  #write(offset: number, value: number): void {
    const { COMMAND } = AtsTestRegister;
    const at = COMMAND / 4;
    if (offset > COMMAND || this.#registers[at]! & AtsTestCommand.START) return;
    this.#registers[offset / 4] = offset === COMMAND ? value & COMMANDS : value;
    if (offset !== COMMAND || (value & AtsTestCommand.START) === 0) return;
    const lo = this.#registers[0]!;
    const hi = this.#registers[1]!;
    const tag = { pasid: NO_PASID, readExtra: 0, writeExtra: 0 };
    const write = (value & AtsTestCommand.TO_MEMORY) !== 0;
    this.#transfer.begin(
      { write, lo, hi, buffer: this.#page, tag },
      {
        end: () => {
          this.#registers[at]! &= ~AtsTestCommand.START;
        },
      },
    );
  }
}
