/**
 * A function to try DMA with: a handful of registers, a buffer of its own, and spare BARs beside them. Software writes
 * addresses and a length, then a command; the function makes the requests, with a PASID if it is told to, and says in
 * STATUS how they ended. A request that stalls is made again when the unit says so. It keeps translations of its own and asks
 * for pages where its driver turns that on (ATS, PRI).
 */
import { Access, NO_PASID, TranslateStatus } from "../../hardware/unit.ts";
import { bit, bits, layout } from "../../uapi/layout.ts";
import { ats, pasid, pri } from "../capabilities.ts";
import type { Capability } from "../config.ts";
import { type BarShape, Endpoint, type FunctionContext } from "../pci-function.ts";

/** BAR 0. 64-bit addresses are two dwords, low first. */
export const TestRegister = {
  IDENTITY: 0x00,
  /** Writing a `TestCommand` begins; while one is under way it is ignored. */
  COMMAND: 0x04,
  SOURCE: 0x08,
  DESTINATION: 0x10,
  /** Bytes, up to `TEST_BUFFER_BYTES`. */
  LENGTH: 0x18,
  /** Of the requests; see `TestPasid`. */
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
export const TestPasid = layout("test function PASID", 4, {
  Value: bits(0, 19, "PASID of the requests"),
  Execute: bit(29, "reads are for execution"),
  Privileged: bit(30, "requests are privileged"),
  Valid: bit(31, "requests carry it"),
});

const IDS = { vendorId: 0x1234, deviceId: 0xd0a1, classCode: 0xff_00_00 } as const;
const MSIX_BAR = 2;
const PENDING = 0x800;
/** What its requests can be. A function without ATS asks for no pages either. */
export interface TestAbilities {
  /** Bits of PASIDs, 0 for none; default 20. */
  readonly pasidBits?: number;
  /** Requests for execution, privileged requests; both by default. */
  readonly execute?: boolean;
  readonly privileged?: boolean;
  /** Keeps translations; default true. */
  readonly deviceTlb?: boolean;
  /** Pages it can ask for at a time, 0 for none; default 32. */
  readonly pageRequests?: number;
}

const capabilitiesOf = (abilities: TestAbilities): Capability[] => {
  const {
    pasidBits = 20,
    execute = true,
    privileged = true,
    deviceTlb = true,
    pageRequests = 32,
  } = abilities;
  return [
    ...(pasidBits > 0 ? [pasid(pasidBits, { execute, privileged })] : []),
    ...(deviceTlb ? [ats()] : []),
    ...(deviceTlb && pageRequests > 0 ? [pri(pageRequests)] : []),
  ];
};

const word = (offset: number): number => offset / 4;

export class TestFunction extends Endpoint {
  readonly #registers = new Uint32Array(word(TestRegister.END));
  readonly #image = new Uint8Array(this.#registers.buffer);
  readonly #buffer = new Uint8Array(TEST_BUFFER_BYTES);
  /** A command was begun; what an earlier one deferred is void. */
  #run = 0;
  /** Bytes of the present request that are done, and whether COPY is at its second one. */
  #at = 0;
  #writing = false;

  /** `spare`: further BARs, which read as zero; index 3 or above. */
  constructor(context: FunctionContext, spare: readonly BarShape[] = [], abilities: TestAbilities = {}) {
    super(
      {
        model: "test",
        ...IDS,
        interruptPin: 1,
        msiVectorsLg2: 2,
        msix: { vectors: TEST_VECTORS, bar: MSIX_BAR, table: 0, pending: PENDING },
        capabilities: capabilitiesOf(abilities),
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
    this.#at = 0;
    this.#writing = command === TestCommand.WRITE;
    this.#registers[word(TestRegister.DONE)] = 0;
    if (!this.#isPossible(command)) {
      this.#end(TestStatus.REFUSED);
      return;
    }
    this.#registers[word(TestRegister.STATUS)] = TestStatus.BUSY;
    this.drive(false);
    this.#soon();
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

  #soon(): void {
    const run = this.#run;
    this.scheduler.defer(() => {
      if (run === this.#run) this.#step();
    });
  }

  /** Makes the present request, or goes on with it. */
  #step(): void {
    const command = this.#get(TestRegister.COMMAND);
    if (command === TestCommand.INTERRUPT) {
      this.#end(TestStatus.DONE);
      return;
    }
    const status = this.#request(command);
    this.#at += this.dma.done;
    this.#registers[word(TestRegister.DONE)] = this.#at;
    if (status === TranslateStatus.stalled) {
      const run = this.#run;
      this.dma.park((ok) => {
        if (run !== this.#run) return;
        if (ok) this.#soon();
        else this.#end(TestStatus.FAULT);
      });
    } else if (status === TranslateStatus.fault) this.#end(TestStatus.FAULT);
    else if (command === TestCommand.COPY && !this.#writing) {
      this.#writing = true;
      this.#at = 0;
      this.#soon();
    } else this.#end(TestStatus.DONE);
  }

  #request(command: number): TranslateStatus {
    const outside = this.#writing ? TestRegister.DESTINATION : TestRegister.SOURCE;
    const inside = this.#writing ? TestRegister.SOURCE : TestRegister.DESTINATION;
    const from = (command === TestCommand.COPY ? 0 : this.#get(inside)) + this.#at;
    const length = this.#get(TestRegister.LENGTH) - this.#at;
    const part = this.#buffer.subarray(from, from + length);
    const low = this.#get(outside) + this.#at;
    const high = this.#get(outside + 4) + (low > 0xffff_ffff ? 1 : 0);
    const words = [this.#get(TestRegister.PASID)];
    const { Valid, Value, Execute, Privileged } = TestPasid.fields;
    const tag = Valid.get(words) ? Value.get(words) : NO_PASID;
    const privileged = Privileged.get(words) ? Access.privileged : 0;
    const executed = Execute.get(words) ? Access.execute : 0;
    return this.#writing
      ? this.dma.write(low, high, part, tag, privileged)
      : this.dma.read(low, high, part, tag, privileged | executed);
  }

  #end(status: number): void {
    this.#registers[word(TestRegister.STATUS)] = status;
    this.signal(this.#get(TestRegister.VECTOR));
    this.drive(true);
  }
}
