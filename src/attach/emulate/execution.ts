/**
 * One instruction at work: its operands, read and written with the widths and the partial-register rules of 64-bit
 * mode (Intel SDM volume 1, 3.4.1.1: an 8- or 16-bit result keeps the rest of the register, a 32-bit one clears the
 * upper half). Values are unsigned BigInts of the operand's width; vectors are byte arrays.
 */
import { type Bus, type CpuState, GREG_OF } from "./cpu.ts";
import type { Decoded, Operand } from "./decode.ts";

const scratch = new BigUint64Array(1);
const scratchBytes = new Uint8Array(scratch.buffer);

export const widthMask = (size: number): bigint => (1n << BigInt(size * 8)) - 1n;

export class Execution {
  readonly cpu: CpuState;
  readonly decoded: Decoded;
  readonly bus: Bus;

  constructor(cpu: CpuState, decoded: Decoded, bus: Bus) {
    this.cpu = cpu;
    this.decoded = decoded;
    this.bus = bus;
  }

  operand(i: number): Operand {
    const operand = this.decoded.operands[i];
    if (operand === undefined) throw new RangeError(`${this.decoded.text} has no operand ${i}`);
    return operand;
  }

  /** Effective address plus segment base: the linear address of the memory operand. */
  address(): bigint {
    return this.linear(this.effective());
  }

  effective(): bigint {
    const { base, index, scale, displacement, ripRelative, bits } = this.decoded.address;
    let sum = displacement;
    if (ripRelative) sum += this.cpu.rip;
    if (base >= 0) sum += this.register(base, bits);
    if (index >= 0) sum += this.register(index, bits) * scale;
    return BigInt.asUintN(bits, sum);
  }

  private register(index: number, bits: number): bigint {
    const word = this.cpu.words[GREG_OF[index]!]!;
    return bits === 64 ? word : word & 0xffff_ffffn;
  }

  linear(effective: bigint): bigint {
    const { segment } = this.decoded.address;
    if (segment === "none") return effective;
    return BigInt.asUintN(64, effective + (segment === "fs" ? this.cpu.fsBase : this.cpu.gsBase));
  }

  /** Width in bytes of operand `i`; an immediate has the width of operand 0. */
  size(i: number): number {
    const operand = this.operand(i);
    return operand.kind === "immediate" ? this.size(0) : operand.kind === "mask" ? 8 : operand.size;
  }

  load(i: number): bigint {
    const operand = this.operand(i);
    switch (operand.kind) {
      case "general":
        return this.loadGeneral(operand.offset, operand.size);
      case "memory":
        return this.loadMemory(this.address(), operand.size);
      case "immediate":
        return operand.value & widthMask(this.size(0));
      default:
        throw new RangeError(`${this.decoded.text}: operand ${i} is not an integer`);
    }
  }

  store(i: number, value: bigint): void {
    const operand = this.operand(i);
    if (operand.kind === "general") this.storeGeneral(operand.offset, operand.size, value);
    else if (operand.kind === "memory") this.storeMemory(this.address(), operand.size, value);
    else throw new RangeError(`${this.decoded.text}: operand ${i} cannot be written`);
  }

  loadMemory(address: bigint, size: number): bigint {
    scratch[0] = 0n;
    this.bus.read(address, scratchBytes.subarray(0, size));
    return scratch[0]!;
  }

  storeMemory(address: bigint, size: number, value: bigint): void {
    scratch[0] = value;
    this.bus.write(address, scratchBytes.subarray(0, size));
  }

  loadGeneral(offset: number, size: number): bigint {
    scratch[0] = 0n;
    for (let i = 0; i < size; i++) scratchBytes[i] = this.cpu.bytes[offset + i]!;
    return scratch[0]!;
  }

  storeGeneral(offset: number, size: number, value: bigint): void {
    if (size >= 4) {
      this.cpu.words[offset >> 3] = value & widthMask(size);
      return;
    }
    scratch[0] = value;
    for (let i = 0; i < size; i++) this.cpu.bytes[offset + i] = scratchBytes[i]!;
  }

  /** The accumulator and its friends by register number, cut to `size` bytes. */
  loadRegister(register: number, size: number): bigint {
    return this.loadGeneral(GREG_OF[register]! * 8, size);
  }
  storeRegister(register: number, size: number, value: bigint): void {
    this.storeGeneral(GREG_OF[register]! * 8, size, value);
  }

  /** Bytes of a vector or memory operand. */
  loadBytes(i: number, length: number): Uint8Array {
    const operand = this.operand(i);
    const bytes = new Uint8Array(length);
    if (operand.kind === "vector") this.cpu.vectors.read(operand.index, bytes);
    else if (operand.kind === "memory") this.bus.read(this.address(), bytes);
    else throw new RangeError(`${this.decoded.text}: operand ${i} is neither vector nor memory`);
    return bytes;
  }

  storeBytes(i: number, bytes: Uint8Array): void {
    const operand = this.operand(i);
    if (operand.kind === "vector") this.cpu.vectors.write(operand.index, bytes, this.decoded.zeroesUpper);
    else if (operand.kind === "memory") this.bus.write(this.address(), bytes);
    else throw new RangeError(`${this.decoded.text}: operand ${i} is neither vector nor memory`);
  }
}
