/**
 * The CRC of the accelerator's CRC operations: CRC-32C, most significant bit first inside. By default data and CRC are
 * reflected and the CRC inverted, as iSCSI has it; the flags of an operation turn either off.
 */
const POLYNOMIAL = 0x1edc_6f41;

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let register = byte << 24;
  for (let step = 0; step < 8; step++)
    register = register & 0x8000_0000 ? (register << 1) ^ POLYNOMIAL : register << 1;
  return register;
});

const reflect = (value: number, width: number): number => {
  let reflected = 0;
  for (let at = 0; at < width; at++) if (value & (1 << at)) reflected |= 1 << (width - 1 - at);
  return reflected >>> 0;
};
const REFLECTED = Uint8Array.from({ length: 256 }, (_, byte) => reflect(byte, 8));
const AS_IS = Uint8Array.from({ length: 256 }, (_, byte) => byte);

export interface CrcOptions {
  /** The seed and the result are as they are. */
  readonly plainCrc: boolean;
  /** The data is not reflected. */
  readonly plainData: boolean;
}

export class Crc {
  #register: number;
  readonly #options: CrcOptions;

  constructor(seed: number, options: CrcOptions) {
    this.#options = options;
    this.#register = options.plainCrc ? seed : ~reflect(seed, 32);
  }

  add(bytes: Uint8Array): void {
    const order = this.#options.plainData ? AS_IS : REFLECTED;
    let register = this.#register;
    for (let at = 0; at < bytes.length; at++)
      register = (register << 8) ^ TABLE[(register >>> 24) ^ order[bytes[at]!]!]!;
    this.#register = register;
  }

  get value(): number {
    return this.#options.plainCrc ? this.#register >>> 0 : ~reflect(this.#register, 32) >>> 0;
  }
}
