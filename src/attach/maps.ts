/**
 * What the kernel says lies at an address of another process: /proc/PID/maps, asked one mapping at a time
 * (PROCMAP_QUERY, Linux 6.11) or read as text. The file is bound to the address space it was opened for: after exec or
 * exit it answers nothing, so an answer is never about somebody else. Leaves out: smaps.
 */
import { closeSync, openSync, readSync } from "node:fs";
import * as libc from "../base/libc.ts";

export interface Vma {
  readonly start: number;
  readonly end: number;
  /** `Prot` bits. */
  readonly prot: number;
  readonly shared: boolean;
  /** Of `start` in the file, in bytes. */
  readonly offset: number;
  readonly major: number;
  readonly minor: number;
  /** 0: no file. */
  readonly inode: number;
  /** The file's path, or "[stack]", "[heap]", "[anon:…]", or empty. */
  readonly name: string;
}

// linux/fs.h: struct procmap_query and its flags.
const PROCMAP_QUERY = 0xc0686611;
const QUERY_COVERING_OR_NEXT = 0x10;
const VMA_SHARED = 8;
const AT = {
  size: 0,
  flags: 8,
  address: 16,
  start: 24,
  end: 32,
  vmaFlags: 40,
  offset: 56,
  inode: 64,
} as const;
const AT_MAJOR = 72;
const AT_MINOR = 76;
const AT_NAME_SIZE = 80;
const AT_NAME = 88;
const QUERY_BYTES = 104;
const NAME_BYTES = 512;
const ENOTTY = 25;
const ENAMETOOLONG = 36;

interface Query {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly name: Buffer;
  readonly nameAddress: bigint;
}
let shared: Query | undefined;
const theQuery = (): Query => {
  if (shared === undefined) {
    const flags = libc.MapFlag.private | libc.MapFlag.anonymous;
    const address = libc.must("mmap", libc.mmap(0, 4096, libc.Prot.read | libc.Prot.write, flags, -1, 0));
    const buffer = libc.viewOf(address, 4096);
    shared = {
      bytes: new Uint8Array(buffer, 0, QUERY_BYTES),
      view: new DataView(buffer, 0, QUERY_BYTES),
      name: Buffer.from(buffer, 1024, NAME_BYTES),
      nameAddress: BigInt(address + 1024),
    };
  }
  return shared;
};

const LINE = /^([0-9a-f]+)-([0-9a-f]+) (.)(.)(.)(.) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)$/;

/** One line of /proc/PID/maps; undefined when it is not one. */
export const parseVma = (line: string): Vma | undefined => {
  const match = LINE.exec(line);
  if (match === null) return undefined;
  const [, start, end, read, write, exec, share, offset, major, minor, inode, name] = match;
  return {
    start: Number.parseInt(start!, 16),
    end: Number.parseInt(end!, 16),
    prot: (read === "r" ? 1 : 0) | (write === "w" ? 2 : 0) | (exec === "x" ? 4 : 0),
    shared: share === "s",
    offset: Number.parseInt(offset!, 16),
    major: Number.parseInt(major!, 16),
    minor: Number.parseInt(minor!, 16),
    inode: Number(inode),
    name: name!,
  };
};

/** A descriptor, or -1. */
export const openOr = (path: string, flags: string): number => {
  try {
    return openSync(path, flags);
  } catch {
    return -1;
  }
};

export class Maps {
  readonly #fd: number;
  #asks: boolean;

  /** Without mappings when the process is gone or may not be looked at. `text`: never asks PROCMAP_QUERY. */
  constructor(pid: number, text = false) {
    this.#fd = openOr(`/proc/${pid}/maps`, "r");
    this.#asks = !text;
  }

  /** Whether the process could be looked at. */
  get readable(): boolean {
    return this.#fd >= 0;
  }

  /** The mapping that contains `va`, or else the next above it; undefined when there is none. */
  at(va: number): Vma | undefined {
    if (!this.#asks) return this.all().find(({ end }) => end > va);
    const { bytes, view, name, nameAddress } = theQuery();
    bytes.fill(0);
    view.setUint32(AT.size, QUERY_BYTES, true);
    view.setUint32(AT.flags, QUERY_COVERING_OR_NEXT, true);
    view.setBigUint64(AT.address, BigInt(va), true);
    view.setUint32(AT_NAME_SIZE, NAME_BYTES, true);
    view.setBigUint64(AT_NAME, nameAddress, true);
    let result = libc.ioctl(this.#fd, PROCMAP_QUERY, bytes);
    if (result === -ENAMETOOLONG) {
      // The path is only for people.
      view.setUint32(AT_NAME_SIZE, 0, true);
      view.setBigUint64(AT_NAME, 0n, true);
      result = libc.ioctl(this.#fd, PROCMAP_QUERY, bytes);
    }
    if (result === -ENOTTY) {
      this.#asks = false;
      return this.at(va);
    }
    if (result < 0) return undefined;
    const nameSize = view.getUint32(AT_NAME_SIZE, true);
    const flags = view.getUint32(AT.vmaFlags, true);
    return {
      start: Number(view.getBigUint64(AT.start, true)),
      end: Number(view.getBigUint64(AT.end, true)),
      prot: flags & 7,
      shared: (flags & VMA_SHARED) !== 0,
      offset: Number(view.getBigUint64(AT.offset, true)),
      major: view.getUint32(AT_MAJOR, true),
      minor: view.getUint32(AT_MINOR, true),
      inode: Number(view.getBigUint64(AT.inode, true)),
      name: nameSize > 1 ? name.toString("latin1", 0, nameSize - 1) : "",
    };
  }

  /** Every mapping, ascending; empty when the address space is gone. */
  all(): Vma[] {
    const parts: Buffer[] = [];
    let length = 0;
    for (;;) {
      const part = Buffer.alloc(65536);
      let got: number;
      try {
        got = readSync(this.#fd, part, 0, part.length, length);
      } catch {
        return []; // ESRCH: reaped; half a list would be worse than none
      }
      if (got === 0) break;
      parts.push(part.subarray(0, got));
      length += got;
    }
    const vmas: Vma[] = [];
    for (const line of Buffer.concat(parts).toString("latin1").split("\n")) {
      const vma = parseVma(line);
      if (vma !== undefined) vmas.push(vma);
    }
    return vmas;
  }

  close(): void {
    if (this.#fd >= 0) closeSync(this.#fd);
  }
}
