/**
 * Vector registers in an XSAVE area, the form in which Linux saves them in a signal frame (Intel SDM volume 1, 13.4,
 * standard format). A component whose bit in XSTATE_BV is clear reads as zero; writing to one sets the bit.
 */
import type { VectorState } from "./cpu.ts";

/** Where the components of AVX-512 lie, CPUID leaf 0Dh; 0: the CPU has none. */
export interface XsaveLayout {
  readonly opmask: number;
  readonly zmmHigh: number;
  readonly highZmm: number;
}

const XMM = 160;
const SOFTWARE_RESERVED = 464;
/** FP_XSTATE_MAGIC1: the frame has more than the 512 bytes of FXSAVE. */
const MAGIC = 0x46505853;
const XSTATE_BV = 512;
const YMM_HIGH = 576;
const AVX_END = 832;

const Component = { sse: 1, avx: 2, opmask: 5, zmmHigh: 6, highZmm: 7 } as const;

/** Bytes of the area that hold the registers above. */
export const xsaveSize = (layout: XsaveLayout): number =>
  layout.highZmm === 0 ? AVX_END : layout.highZmm + 1024;

export class XsaveArea implements VectorState {
  readonly bytes: Uint8Array;
  /** Set once a register was written. */
  dirty = false;
  private readonly layout: XsaveLayout;
  private readonly view: DataView;
  private readonly extended: boolean;

  constructor(bytes: Uint8Array, layout: XsaveLayout) {
    this.bytes = bytes;
    this.layout = layout;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.extended = this.view.getUint32(SOFTWARE_RESERVED, true) === MAGIC;
  }

  read(index: number, into: Uint8Array): void {
    into.fill(0);
    for (const { component, at, from, length } of this.parts(index, into.length)) {
      if (this.present(component)) into.set(this.bytes.subarray(at, at + length), from);
    }
  }

  write(index: number, data: Uint8Array, zeroRest: boolean): void {
    this.dirty = true;
    for (const { component, at, from, length } of this.parts(index, zeroRest ? 64 : data.length)) {
      const piece = data.subarray(from, from + length);
      if (piece.length > 0) this.make(component);
      if (zeroRest && this.present(component)) this.bytes.fill(0, at, at + length);
      this.bytes.set(piece, at);
    }
  }

  readMask(index: number): bigint {
    if (this.layout.opmask === 0 || !this.present(Component.opmask)) return 0n;
    return this.view.getBigUint64(this.layout.opmask + index * 8, true);
  }

  writeMask(index: number, value: bigint): void {
    if (this.layout.opmask === 0) return;
    this.dirty = true;
    this.make(Component.opmask);
    this.view.setBigUint64(this.layout.opmask + index * 8, value, true);
  }

  /** The pieces of the first `length` bytes of a register, lowest first. */
  private parts(index: number, length: number): Part[] {
    const { zmmHigh, highZmm } = this.layout;
    if (index >= 16) {
      if (highZmm === 0) return [];
      return [{ component: Component.highZmm, at: highZmm + (index - 16) * 64, from: 0, length }];
    }
    const parts: Part[] = [
      { component: Component.sse, at: XMM + index * 16, from: 0, length: Math.min(16, length) },
    ];
    if (length > 16 && this.extended) {
      parts.push({ component: Component.avx, at: YMM_HIGH + index * 16, from: 16, length: 16 });
    }
    if (length > 32 && zmmHigh !== 0) {
      parts.push({ component: Component.zmmHigh, at: zmmHigh + index * 32, from: 32, length: 32 });
    }
    return parts;
  }

  private present(component: number): boolean {
    if (!this.extended) return component === Component.sse;
    return ((this.view.getUint32(XSTATE_BV, true) >>> component) & 1) === 1;
  }

  private make(component: number): void {
    if (this.present(component) || !this.extended) return;
    const [start, length] = this.extent(component);
    this.bytes.fill(0, start, start + length);
    this.view.setUint32(XSTATE_BV, this.view.getUint32(XSTATE_BV, true) | (1 << component), true);
  }

  private extent(component: number): readonly [start: number, length: number] {
    if (component === Component.sse) return [XMM, 256];
    if (component === Component.avx) return [YMM_HIGH, 256];
    if (component === Component.opmask) return [this.layout.opmask, 64];
    return component === Component.zmmHigh ? [this.layout.zmmHigh, 512] : [this.layout.highZmm, 1024];
  }
}

interface Part {
  readonly component: number;
  /** Offset in the area. */
  readonly at: number;
  /** Offset in the register. */
  readonly from: number;
  readonly length: number;
}
