/**
 * A function with nothing but BARs, which remember what is written to them, and the capabilities it is asked to show.
 * It never makes a request.
 */
import type { Capability } from "../config.ts";
import { type BarShape, Endpoint, type FunctionContext } from "../pci-function.ts";

/** Unassigned numbers, and the class of a device that fits no other (0xff). */
const IDS = { vendorId: 0x1234, deviceId: 0xba2e, classCode: 0xff_00_00 } as const;
const LARGEST_BAR = 16 * 1024 * 1024;

export class BareFunction extends Endpoint {
  /** What was written, by BAR; made at the first write. */
  readonly #contents = new Map<number, Uint8Array>();

  /** Throws a RangeError for shapes that cannot be; BARs have up to 16 MiB. */
  constructor(context: FunctionContext, bars: readonly BarShape[], capabilities: readonly Capability[] = []) {
    for (const { index, size } of bars)
      if (size > LARGEST_BAR)
        throw new RangeError(`bare: BAR ${index} has ${size} bytes; up to ${LARGEST_BAR} are possible`);
    super({ model: "bare", ...IDS, bars, capabilities }, context);
  }

  protected readBar(index: number, offset: number, into: Uint8Array): void {
    const content = this.#contents.get(index);
    if (content) into.set(content.subarray(offset, offset + into.length));
    else into.fill(0);
  }

  protected writeBar(index: number, offset: number, data: Uint8Array): void {
    let content = this.#contents.get(index);
    if (!content) {
      content = new Uint8Array(this.bars.find((bar) => bar.index === index)?.size ?? 0);
      this.#contents.set(index, content);
    }
    content.set(data, offset);
  }

  protected resetModel(): void {
    this.#contents.clear();
  }
}
