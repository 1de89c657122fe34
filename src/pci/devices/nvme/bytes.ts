/** Little-endian numbers in the structures a controller returns. */
export const store64 = (bytes: Uint8Array, at: number, value: number): void => {
  new DataView(bytes.buffer, bytes.byteOffset).setBigUint64(at, BigInt(value), true);
};
