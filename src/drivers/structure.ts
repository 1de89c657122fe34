/** Structures of tables that units read, as their drivers write them. */
import type { HostMemory } from "../memory/host-memory.ts";

/** Writes a structure of 64-bit words, its first one, which says whether it is valid, last. */
export const storeStructure = (memory: HostMemory, pa: number, words: Uint32Array): void => {
  for (let at = words.length - 2; at >= 0; at -= 2) memory.store64(pa + 4 * at, words[at]!, words[at + 1]!);
};
