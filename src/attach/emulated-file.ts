/**
 * A kernel file that clients hold descriptors of. Each descriptor is one end of a socket pair; ours stays here. Its
 * hang-up says that the last duplicate is gone, whoever had it. The real poll, select and epoll of the client see the
 * socket, so the socket is kept in the state that the file reports: one doorbell message in it is POLLIN, and a full
 * send buffer takes POLLOUT away. The library takes the doorbell out when a read finds nothing more; when there is
 * nothing more for another reason, `retract` does. A file without poll is always ready, as on Linux. Left out: a socket
 * that can be written also reports POLLWRBAND, and POLLWRNORM where the file has POLLOUT alone.
 */
import { closeSync } from "node:fs";
import type { DeviceNode, KernelFile } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import { fillSocket, namedPair, sendBytes, socketCookie } from "./syscalls.ts";

const POLLIN = 1;
const POLLOUT = 4;

export class EmulatedFile {
  readonly file: KernelFile;
  /** What was opened; undefined for a file that an ioctl made. */
  readonly node: DeviceNode | undefined;
  /** SO_COOKIE of the client's end. */
  readonly cookie: number;
  /** Our end. */
  readonly fd: number;
  /** The client's end, until it is sent. */
  #theirs: number;
  readonly #doorbell = new Uint32Array(1);
  #rung = false;
  #closed = false;
  /** Takes the doorbell out of the client's end, which only processes have that hold it; false when nobody did. */
  retract: (() => boolean) | undefined;

  constructor(
    file: KernelFile,
    node: DeviceNode | undefined,
    ends: { readonly ours: number; readonly theirs: number },
  ) {
    this.file = file;
    this.node = node;
    this.fd = ends.ours;
    this.#theirs = ends.theirs;
    this.cookie = socketCookie(ends.theirs);
    if (file.poll !== undefined && (file.poll() & POLLOUT) === 0) fillSocket(ends.theirs);
    file.onReady = () => this.#update();
    this.ring();
  }

  get theirs(): number {
    return this.#theirs;
  }

  /** The client has its end now, or never will. */
  releaseTheirs(): void {
    if (this.#theirs >= 0) closeSync(this.#theirs);
    this.#theirs = -1;
  }

  get readable(): boolean {
    return this.file.poll === undefined || (this.file.poll() & POLLIN) !== 0;
  }

  #update(): void {
    if (this.#closed) return;
    if (this.readable) this.ring();
    else if (this.#rung && this.retract?.()) this.#rung = false;
  }

  /** Puts the doorbell in when there is something to read and none is due. */
  ring(): void {
    if (this.#closed || this.#rung || !this.readable) return;
    this.#doorbell[0] = this.#doorbell[0]! + 1;
    this.#rung = sendBytes(this.fd, new Uint8Array(this.#doorbell.buffer)) > 0;
  }

  /** The doorbell was taken by mistake: it is due again if there still is something to read. */
  ringAgain(): void {
    this.#rung = false;
    this.ring();
  }

  /** After a read: the generation up to which doorbells must be taken out, or undefined. */
  quiet(): number | undefined {
    if (this.#doorbell[0] === 0 || this.readable) return undefined;
    this.#rung = false;
    return this.#doorbell[0]!;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.file.onReady = undefined;
    this.releaseTheirs();
    closeSync(this.fd);
    this.file.close();
  }
}

/** The files of all clients, by cookie. */
export class FileTable {
  readonly #byCookie = new Map<number, EmulatedFile>();
  readonly #prefix: string;
  readonly #most: number;
  #made = 0;

  /** `prefix`: how the names of all our ends begin, without the NUL of an abstract name. `most`: files at a time. */
  constructor(prefix: string, most: number) {
    this.#prefix = prefix;
    this.#most = most;
  }

  get size(): number {
    return this.#byCookie.size;
  }

  get(cookie: number): EmulatedFile | undefined {
    return this.#byCookie.get(cookie);
  }

  /** Makes the pair. Throws ENFILE, and closes `file`, when clients have too many. */
  add(file: KernelFile, node?: DeviceNode): EmulatedFile {
    const full = this.#byCookie.size >= this.#most;
    const ends = full ? undefined : namedPair(`\0${this.#prefix}${this.#made}`);
    if (ends === undefined || typeof ends === "number") {
      file.close();
      throw new LinuxError(
        "ENFILE",
        `clients have ${this.#byCookie.size} files open; the daemon can hold no more`,
      );
    }
    this.#made += 1;
    const emulated = new EmulatedFile(file, node, ends);
    this.#byCookie.set(emulated.cookie, emulated);
    return emulated;
  }

  remove(emulated: EmulatedFile): void {
    this.#byCookie.delete(emulated.cookie);
    emulated.close();
  }

  *[Symbol.iterator](): Iterator<EmulatedFile> {
    yield* this.#byCookie.values();
  }
}
