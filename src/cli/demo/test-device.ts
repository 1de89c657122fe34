/** The driver of the test function, as part of the demo's program: registers through the device file. */
import { TestCommand, TestRegister, TestStatus } from "../../pci/devices/test-function.ts";
import type { Program } from "./program.ts";

const BAR = 0;

export class TestDevice {
  readonly #program: Program;
  readonly #bar: bigint;
  readonly #settle: () => void;

  /** `settle` lets the machine do what it was told to. */
  constructor(program: Program, settle: () => void) {
    this.#program = program;
    this.#bar = program.regionOffset(BAR);
    this.#settle = settle;
  }

  /** The device reads so many bytes at an address into its buffer. */
  fetch(iova: number, length: number): boolean {
    return this.#run(TestCommand.READ, TestRegister.SOURCE, iova, length);
  }

  /** The device writes what is in its buffer to an address. */
  store(iova: number, length: number): boolean {
    return this.#run(TestCommand.WRITE, TestRegister.DESTINATION, iova, length);
  }

  /** What is in its buffer, read by the CPU. */
  buffer(length: number): string {
    const bytes = new Uint8Array(length);
    this.#program.task.pread(this.#program.device, this.#bar + BigInt(TestRegister.BUFFER), bytes);
    return Buffer.from(bytes).toString();
  }

  #run(command: number, register: number, iova: number, length: number): boolean {
    const other = register === TestRegister.SOURCE ? TestRegister.DESTINATION : TestRegister.SOURCE;
    this.#set(other, 0);
    this.#set(register, iova);
    this.#set(register + 4, Math.floor(iova / 2 ** 32));
    this.#set(TestRegister.LENGTH, length);
    this.#set(TestRegister.COMMAND, command);
    this.#settle();
    return this.#get(TestRegister.STATUS) === TestStatus.DONE;
  }

  #set(register: number, value: number): void {
    const bytes = new Uint8Array(Uint32Array.of(value >>> 0).buffer);
    this.#program.task.pwrite(this.#program.device, this.#bar + BigInt(register), bytes);
  }

  #get(register: number): number {
    const bytes = new Uint8Array(4);
    this.#program.task.pread(this.#program.device, this.#bar + BigInt(register), bytes);
    return new DataView(bytes.buffer).getUint32(0, true);
  }
}
