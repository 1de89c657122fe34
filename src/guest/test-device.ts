/**
 * A guest's driver of the test function (`pci/devices/test-function.ts`): addresses, a PASID and a command go into its
 * registers, the status is read when it has ended.
 */
import { RequestPasid } from "../pci/devices/requests.ts";
import { TestCommand, TestRegister, TestStatus } from "../pci/devices/test-function.ts";

/** BAR 0 as a driver reaches it. */
export interface Bar {
  read(offset: number, into: Uint8Array): void;
  write(offset: number, data: Uint8Array): void;
}

/** How a request ended; `busy`: it has not. */
export type DmaResult = "done" | "fault" | "refused" | "busy";

export class TestDevice {
  readonly #bar: Bar;

  constructor(bar: Bar) {
    this.#bar = bar;
  }

  /** The device begins to read `length` bytes at an address into its buffer. */
  fetch(address: number, length: number, pasid?: number): void {
    this.#begin(TestCommand.READ, TestRegister.SOURCE, address, length, pasid);
  }

  /** The device begins to write what is in its buffer to an address. */
  store(address: number, length: number, pasid?: number): void {
    this.#begin(TestCommand.WRITE, TestRegister.DESTINATION, address, length, pasid);
  }

  get result(): DmaResult {
    const status = this.#get(TestRegister.STATUS);
    if (status === TestStatus.DONE) return "done";
    if (status === TestStatus.FAULT) return "fault";
    return status === TestStatus.REFUSED ? "refused" : "busy";
  }

  /** Its buffer. */
  read(length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.#bar.read(TestRegister.BUFFER, bytes);
    return bytes;
  }
  write(bytes: Uint8Array): void {
    this.#bar.write(TestRegister.BUFFER, bytes);
  }

  #begin(command: number, register: number, address: number, length: number, pasid?: number): void {
    const other = register === TestRegister.SOURCE ? TestRegister.DESTINATION : TestRegister.SOURCE;
    const { Value, Valid } = RequestPasid.fields;
    const tag = new Uint32Array(1);
    if (pasid !== undefined) {
      Value.set(tag, pasid);
      Valid.set(tag, 1);
    }
    this.#set(other, 0);
    this.#set(other + 4, 0);
    this.#set(register, address);
    this.#set(register + 4, Math.floor(address / 2 ** 32));
    this.#set(TestRegister.LENGTH, length);
    this.#set(TestRegister.PASID, tag[0]!);
    this.#set(TestRegister.COMMAND, command);
  }

  #set(register: number, value: number): void {
    this.#bar.write(register, new Uint8Array(Uint32Array.of(value >>> 0).buffer));
  }
  #get(register: number): number {
    const bytes = new Uint8Array(4);
    this.#bar.read(register, bytes);
    return new DataView(bytes.buffer).getUint32(0, true);
  }
}
