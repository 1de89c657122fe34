/**
 * A function to try DMA with: a handful of registers, a buffer of its own, and spare BARs beside them. Software writes
 * addresses and a length, then a command; the function makes the requests, with a PASID if it is told to, and says in
 * STATUS how they ended. A request that stalls is made again when the unit says so. It keeps translations of its own and asks
 * for pages where its driver turns that on (ATS, PRI).
 */
import { type BarShape, Endpoint, type FunctionContext } from "../pci-function.ts";
import { type RequestAbilities, requestCapabilities, tagOf } from "./requests.ts";
import { Transfer } from "./transfer.ts";

/** BAR 0. 64-bit addresses are two dwords, low first. */
export const TestRegister = {
  IDENTITY: 0x00,
  /** Writing a `TestCommand` begins; while one is under way it is ignored. */
  COMMAND: 0x04,
  SOURCE: 0x08,
  DESTINATION: 0x10,
  /** Bytes, up to `TEST_BUFFER_BYTES`. */
  LENGTH: 0x18,
  /** Of the requests; see `RequestPasid`. */
  PASID: 0x1c,
  /** A `TestStatus`. Writing anything lowers the interrupt line. */
  STATUS: 0x20,
  /** Bytes of the last request that were moved. */
  DONE: 0x24,
  /** Interrupt vector signalled at the end. */
  VECTOR: 0x28,
  END: 0x2c,
  /** The buffer; READ and WRITE use offsets in it as their destination and source. */
  BUFFER: 0x1_0000,
} as const;
export const TEST_IDENTITY = 0x5446_0001;
export const TEST_BUFFER_BYTES = 64 * 1024;
/** How many MSI-X vectors it has. */
export const TEST_VECTORS = 4;

export const TestCommand = {
  /** Memory at SOURCE into the buffer at DESTINATION. */
  READ: 1,
  /** The buffer at SOURCE into memory at DESTINATION. */
  WRITE: 2,
  /** Memory at SOURCE to memory at DESTINATION, through the start of the buffer. */
  COPY: 3,
  /** Nothing but the interrupt. */
  INTERRUPT: 4,
} as const;
export const TestStatus = { IDLE: 0, BUSY: 1, DONE: 2, FAULT: 3, REFUSED: 4 } as const;

const IDS = { vendorId: 0x1234, deviceId: 0xd0a1, classCode: 0xff_00_00 } as const;
const MSIX_BAR = 2;
const PENDING = 0x800;

const word = (offset: number): number => offset / 4;

export class TestFunction extends Endpoint {
  readonly #registers = new Uint32Array(word(TestRegister.END));
  readonly #image = new Uint8Array(this.#registers.buffer);
  readonly #buffer = new Uint8Array(TEST_BUFFER_BYTES);
  readonly #transfer = new Transfer(this.dma, this.scheduler);
  /** A command was begun; what an earlier one deferred is void. */
  #run = 0;

  /** `spare`: further BARs, which read as zero; index 3 or above. */
  constructor(context: FunctionContext, spare: readonly BarShape[] = [], abilities: RequestAbilities = {}) {
    super(
      {
        model: "test",
        ...IDS,
        interruptPin: 1,
        msiVectorsLg2: 2,
        msix: { vectors: TEST_VECTORS, bar: MSIX_BAR, table: 0, pending: PENDING },
        capabilities: requestCapabilities(abilities),
        bars: [
          { index: 0, kind: "mem32", size: 2 * TestRegister.BUFFER },
          { index: MSIX_BAR, kind: "mem32", size: 4096 },
          ...spare,
        ],
      },
      context,
    );
    this.resetModel();
  }

  protected readBar(index: number, offset: number, into: Uint8Array): void {
    into.fill(0);
    if (index !== 0) return;
    const inBuffer = offset - TestRegister.BUFFER;
    if (inBuffer >= 0) into.set(this.#buffer.subarray(inBuffer, inBuffer + into.length));
    else into.set(this.#image.subarray(offset, offset + into.length));
  }

  protected writeBar(index: number, offset: number, data: Uint8Array): void {
    if (index !== 0) return;
    const inBuffer = offset - TestRegister.BUFFER;
    if (inBuffer >= 0) this.#buffer.set(data, inBuffer);
    else if (((offset | data.length) & 3) === 0) {
      const view = new DataView(data.buffer, data.byteOffset, data.length);
      for (let at = 0; at < data.length; at += 4) this.#write(offset + at, view.getUint32(at, true));
    }
  }

  protected resetModel(): void {
    this.#run += 1;
    this.#transfer.cancel();
    this.#registers.fill(0);
    this.#registers[word(TestRegister.IDENTITY)] = TEST_IDENTITY;
    this.#buffer.fill(0);
  }

  #write(offset: number, value: number): void {
    const { IDENTITY, COMMAND, STATUS, DONE, END } = TestRegister;
    if (offset === COMMAND) this.#begin(value);
    else if (offset === STATUS) this.drive(false);
    else if (offset !== IDENTITY && offset !== DONE && offset < END) this.#registers[word(offset)] = value;
  }

  #get(offset: number): number {
    return this.#registers[word(offset)]!;
  }

  #begin(command: number): void {
    if (this.#get(TestRegister.STATUS) === TestStatus.BUSY) return;
    this.#registers[word(TestRegister.COMMAND)] = command;
    this.#run += 1;
    this.#registers[word(TestRegister.DONE)] = 0;
    if (!this.#isPossible(command)) {
      this.#end(TestStatus.REFUSED);
      return;
    }
    this.#registers[word(TestRegister.STATUS)] = TestStatus.BUSY;
    this.drive(false);
    if (command === TestCommand.INTERRUPT) this.#interruptSoon();
    else this.#move(command, command === TestCommand.WRITE);
  }

  /** What lies in the buffer must fit there. */
  #isPossible(command: number): boolean {
    const length = this.#get(TestRegister.LENGTH);
    const inside = (register: number) =>
      this.#get(register + 4) === 0 && this.#get(register) + length <= TEST_BUFFER_BYTES;
    switch (command) {
      case TestCommand.READ:
        return inside(TestRegister.DESTINATION);
      case TestCommand.WRITE:
        return inside(TestRegister.SOURCE);
      case TestCommand.COPY:
        return length <= TEST_BUFFER_BYTES;
      default:
        return command === TestCommand.INTERRUPT;
    }
  }

  #interruptSoon(): void {
    const run = this.#run;
    this.scheduler.defer(() => {
      if (run === this.#run) this.#end(TestStatus.DONE);
    });
  }

  /** Makes the one request of a command, or one of the two of COPY. */
  #move(command: number, write: boolean): void {
    const outside = write ? TestRegister.DESTINATION : TestRegister.SOURCE;
    const inside = write ? TestRegister.SOURCE : TestRegister.DESTINATION;
    const from = command === TestCommand.COPY ? 0 : this.#get(inside);
    this.#transfer.begin(
      {
        write,
        lo: this.#get(outside),
        hi: this.#get(outside + 4),
        buffer: this.#buffer.subarray(from, from + this.#get(TestRegister.LENGTH)),
        tag: tagOf(this.#get(TestRegister.PASID)),
      },
      {
        moved: (bytes) => {
          this.#registers[word(TestRegister.DONE)] = bytes;
        },
        end: (ok) => {
          if (!ok) this.#end(TestStatus.FAULT);
          else if (command === TestCommand.COPY && !write) this.#move(command, true);
          else this.#end(TestStatus.DONE);
        },
      },
    );
  }

  #end(status: number): void {
    this.#registers[word(TestRegister.STATUS)] = status;
    this.signal(this.#get(TestRegister.VECTOR));
    this.drive(true);
  }
}
