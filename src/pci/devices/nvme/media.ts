/**
 * What holds the blocks of a namespace: memory, filled where it was written, or a file with holes. Offsets and lengths
 * are bytes and lie inside; the controller has checked them. File access is synchronous and bounded by the controller's
 * chunk.
 */
import {
  closeSync,
  constants,
  fdatasyncSync,
  fstatSync,
  ftruncateSync,
  openSync,
  readSync,
  writeSync,
} from "node:fs";
import { type CheckedNamespace, checkSize } from "./options.ts";

/** Each operation says whether it succeeded; a file can fail under us. */
export interface Media {
  readonly size: number;
  read(offset: number, into: Uint8Array): boolean;
  write(offset: number, data: Uint8Array): boolean;
  zero(offset: number, length: number): boolean;
  /** What was written is safe from a crash of the host. */
  flush(): boolean;
  /** Bytes in use, for Identify (NUSE). */
  used(): number;
  close(): void;
}

const DEFAULT_SIZE = 2 ** 30;
const CHUNK = 2 ** 20;

export class MemoryMedia implements Media {
  readonly size: number;
  readonly #chunks = new Map<number, Uint8Array>();

  constructor(size: number) {
    this.size = size;
  }

  read(offset: number, into: Uint8Array): boolean {
    this.#eachChunk(offset, into.length, (index, from, at, count) => {
      const chunk = this.#chunks.get(index);
      if (chunk) into.set(chunk.subarray(from, from + count), at);
      else into.fill(0, at, at + count);
    });
    return true;
  }

  write(offset: number, data: Uint8Array): boolean {
    this.#eachChunk(offset, data.length, (index, from, at, count) => {
      let chunk = this.#chunks.get(index);
      if (!chunk) this.#chunks.set(index, (chunk = new Uint8Array(CHUNK)));
      chunk.set(at === 0 && count === data.length ? data : data.subarray(at, at + count), from);
    });
    return true;
  }

  zero(offset: number, length: number): boolean {
    this.#eachChunk(offset, length, (index, from, _at, count) => {
      if (count === CHUNK) this.#chunks.delete(index);
      else this.#chunks.get(index)?.fill(0, from, from + count);
    });
    return true;
  }

  flush(): boolean {
    return true;
  }

  used(): number {
    return Math.min(this.size, this.#chunks.size * CHUNK);
  }

  close(): void {
    this.#chunks.clear();
  }

  #eachChunk(
    offset: number,
    length: number,
    visit: (index: number, from: number, at: number, count: number) => void,
  ): void {
    for (let at = 0; at < length; ) {
      const from = (offset + at) % CHUNK;
      const count = Math.min(CHUNK - from, length - at);
      visit(Math.floor((offset + at) / CHUNK), from, at, count);
      at += count;
    }
  }
}

const ZEROES = new Uint8Array(64 * 1024);

export class FileMedia implements Media {
  readonly size: number;
  readonly #fd: number;
  readonly #there = new Uint8Array(ZEROES.length);
  #open = true;

  /** Opens or makes the file; grows it with a hole to `size`. Throws what open(2) says, or a RangeError. */
  constructor(path: string, size: number | undefined, blockSize: number) {
    this.#fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o644);
    try {
      const has = fstatSync(this.#fd).size;
      this.size = size ?? (has || DEFAULT_SIZE);
      checkSize(this.size, blockSize);
      if (has < this.size) ftruncateSync(this.#fd, this.size);
    } catch (error) {
      closeSync(this.#fd);
      throw error;
    }
  }

  read(offset: number, into: Uint8Array): boolean {
    return this.#succeeds(() => {
      for (let at = 0; at < into.length; ) {
        const got = readSync(this.#fd, into, at, into.length - at, offset + at);
        if (got === 0) {
          into.fill(0, at); // somebody made the file shorter: a hole
          break;
        }
        at += got;
      }
    });
  }

  write(offset: number, data: Uint8Array): boolean {
    return this.#succeeds(() => {
      for (let at = 0; at < data.length; ) at += writeSync(this.#fd, data, at, data.length - at, offset + at);
    });
  }

  /** Holes stay holes. */
  zero(offset: number, length: number): boolean {
    for (let at = 0; at < length; at += ZEROES.length) {
      const count = Math.min(ZEROES.length, length - at);
      const there = this.#there.subarray(0, count);
      if (!this.read(offset + at, there)) return false;
      const zeroes = count === ZEROES.length ? ZEROES : ZEROES.subarray(0, count);
      if (Buffer.compare(there, zeroes) !== 0 && !this.write(offset + at, zeroes)) return false;
    }
    return true;
  }

  flush(): boolean {
    return this.#succeeds(() => fdatasyncSync(this.#fd));
  }

  used(): number {
    if (!this.#open) return 0;
    return Math.min(this.size, fstatSync(this.#fd).blocks * 512);
  }

  close(): void {
    if (this.#open) closeSync(this.#fd);
    this.#open = false;
  }

  /** An error of the file system is a media error of this device; it must not end the machine. */
  #succeeds(access: () => void): boolean {
    if (!this.#open) return false;
    try {
      access();
      return true;
    } catch {
      return false;
    }
  }
}

export const openMedia = ({ file, size, blockSize }: CheckedNamespace): Media =>
  file === undefined ? new MemoryMedia(size ?? DEFAULT_SIZE) : new FileMedia(file, size, blockSize);
