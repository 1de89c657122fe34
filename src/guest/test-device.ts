/**
 * A guest's driver of the test function (`pci/devices/test-function.ts`): addresses, a PASID and a command go into its
 * registers; when it has ended there is an interrupt, and the status is read then. Without interrupts, or when one does not
 * come, it can be polled.
 */
import { RequestPasid } from "../pci/devices/requests.ts";
import { TestCommand, TestRegister, TestStatus } from "../pci/devices/test-function.ts";
import type { Guest, GuestFunction } from "./guest.ts";

const BAR = 0;
const VECTOR = 0;

/** Its BARs. */
export type TestedFunction = Pick<GuestFunction, "barRead" | "barWrite">;

/** How a request ended; `busy`: it has not. */
export type DmaResult = "done" | "fault" | "refused" | "busy";

export class TestDevice {
  /** Interrupts that came. */
  interrupts = 0;
  readonly #function: TestedFunction;
  /** What the last interrupt found; undefined: it has not come, or nobody listens. */
  #told: DmaResult | undefined;
  #listens = false;

  constructor(device: TestedFunction) {
    this.#function = device;
  }

  /** It is told of what has ended by interrupts of the guest from now on. */
  listen(guest: Guest, device: GuestFunction): void {
    guest.listen(device, VECTOR, () => {
      this.interrupts += 1;
      this.#told = this.poll();
    });
    this.#listens = true;
  }

  /** The device begins to read `length` bytes at an address into its buffer. */
  fetch(address: number, length: number, pasid?: number): void {
    this.#begin(TestCommand.READ, TestRegister.SOURCE, address, length, pasid);
  }

  /** The device begins to write what is in its buffer to an address. */
  store(address: number, length: number, pasid?: number): void {
    this.#begin(TestCommand.WRITE, TestRegister.DESTINATION, address, length, pasid);
  }

  /** How the last request ended, as far as the driver was told; without interrupts it looks. */
  get result(): DmaResult {
    return this.#listens ? (this.#told ?? "busy") : this.poll();
  }

  /** Asks the device. */
  poll(): DmaResult {
    const status = this.#get(TestRegister.STATUS);
    if (status === TestStatus.DONE) return "done";
    if (status === TestStatus.FAULT) return "fault";
    return status === TestStatus.REFUSED ? "refused" : "busy";
  }

  /** Bytes of the last request that were moved. */
  get moved(): number {
    return this.#get(TestRegister.DONE);
  }

  /** Its buffer. */
  read(length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.#function.barRead(BAR, TestRegister.BUFFER, bytes);
    return bytes;
  }
  write(bytes: Uint8Array): void {
    this.#function.barWrite(BAR, TestRegister.BUFFER, bytes);
  }

  #begin(command: number, register: number, address: number, length: number, pasid?: number): void {
    this.#told = undefined;
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
    this.#function.barWrite(BAR, register, new Uint8Array(Uint32Array.of(value >>> 0).buffer));
  }
  #get(register: number): number {
    const bytes = new Uint8Array(4);
    this.#function.barRead(BAR, register, bytes);
    return new DataView(bytes.buffer).getUint32(0, true);
  }
}
