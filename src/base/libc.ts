/**
 * The few calls of the C library that Node does not offer, through koffi: mappings, memfds, the memory and the
 * descriptors of another process. Thin: arguments are the C arguments, an address is a number (user addresses fit
 * 2^53), a failed call returns **minus errno**. `must` turns that into a `SystemError` where failing is not expected.
 * x86-64 Linux only.
 */
import koffi from "koffi";

const c = koffi.load(null);

/** A call of the C library that failed although it should not have. */
export class SystemError extends Error {
  readonly call: string;
  readonly errno: number;
  constructor(call: string, errno: number) {
    super(`${call}: errno ${errno}`);
    this.name = "SystemError";
    this.call = call;
    this.errno = errno;
  }
}

/** The value of a call, or a `SystemError` that names it. */
export const must = (call: string, value: number): number => {
  if (value < 0) throw new SystemError(call, -value);
  return value;
};

export const Prot = { none: 0, read: 1, write: 2, exec: 4 } as const;
export const MapFlag = {
  shared: 0x01,
  private: 0x02,
  fixed: 0x10,
  anonymous: 0x20,
  noReserve: 0x4000,
} as const;
export const MFD_CLOEXEC = 1;
export const FallocateMode = { keepSize: 1, punchHole: 2 } as const;
export const Fcntl = { getFd: 1, getFlags: 3, addSeals: 1033 } as const;

const value = (result: number): number => (result < 0 ? -koffi.errno() : result);

const native = {
  mmap: c.func("mmap", "int64_t", ["int64_t", "size_t", "int", "int", "int", "int64_t"]),
  munmap: c.func("munmap", "int", ["int64_t", "size_t"]),
  mprotect: c.func("mprotect", "int", ["int64_t", "size_t", "int"]),
  memfd: c.func("memfd_create", "int", ["str", "uint"]),
  ftruncate: c.func("ftruncate64", "int", ["int", "int64_t"]),
  fallocate: c.func("fallocate64", "int", ["int", "int", "int64_t", "int64_t"]),
  lseek: c.func("lseek64", "int64_t", ["int", "int64_t", "int"]),
  close: c.func("close", "int", ["int"]),
  fcntl: c.func("fcntl64", "int", ["int", "int", "int64_t"]),
  ioctl: c.func("ioctl", "int", ["int", "uint64_t", "void *"]),
  readv: c.func("process_vm_readv", "int64_t", ["int", "void *", "ulong", "void *", "ulong", "ulong"]),
  writev: c.func("process_vm_writev", "int64_t", ["int", "void *", "ulong", "void *", "ulong", "ulong"]),
  syscall: c.func("syscall", "int64_t", ["int64_t", "int64_t", "int64_t", "int64_t", "int64_t"]),
};

const SYS_PIDFD_OPEN = 434;
const SYS_PIDFD_GETFD = 438;

/** The address of the new mapping. `fd` -1: none. */
export const mmap = (
  address: number,
  length: number,
  prot: number,
  flags: number,
  fd: number,
  offset: number,
): number => value(native.mmap(address, length, prot, flags, fd, offset));
export const munmap = (address: number, length: number): number => value(native.munmap(address, length));
export const mprotect = (address: number, length: number, prot: number): number =>
  value(native.mprotect(address, length, prot));
export const memfdCreate = (name: string, flags: number): number => value(native.memfd(name, flags));
export const ftruncate = (fd: number, length: number): number => value(native.ftruncate(fd, length));
export const fallocate = (fd: number, mode: number, offset: number, length: number): number =>
  value(native.fallocate(fd, mode, offset, length));
/** `whence` 3: the next data at or after `offset`; 4: the next hole. */
export const lseek = (fd: number, offset: number, whence: number): number =>
  value(native.lseek(fd, offset, whence));
export const close = (fd: number): number => value(native.close(fd));
export const fcntl = (fd: number, command: number, argument: number): number =>
  value(native.fcntl(fd, command, argument));
/** ioctl(2) with a structure that the call reads and writes. */
export const ioctl = (fd: number, request: number, argument: NodeJS.ArrayBufferView): number =>
  value(native.ioctl(fd, request, argument));

/** A descriptor (closed on exec) that names the process `pid` for as long as it is open. */
export const pidfdOpen = (pid: number): number => value(native.syscall(SYS_PIDFD_OPEN, pid, 0, 0, 0));
/** Our own duplicate of the descriptor `fd` of another process. Needs the right to ptrace it. */
export const pidfdGetfd = (pidfd: number, fd: number): number =>
  value(native.syscall(SYS_PIDFD_GETFD, pidfd, fd, 0, 0));
/** An ArrayBuffer over mapped memory. The mapping must outlive every use of it. */
export const viewOf = (address: number, length: number): ArrayBuffer => koffi.view(BigInt(address), length);

const scratchBytes = 256 * 1024;
let scratch: { readonly address: number; readonly bytes: Uint8Array } | undefined;
const theScratch = () => {
  if (scratch === undefined) {
    const flags = MapFlag.private | MapFlag.anonymous;
    const address = must("mmap", mmap(0, scratchBytes, Prot.read | Prot.write, flags, -1, 0));
    scratch = { address, bytes: new Uint8Array(viewOf(address, scratchBytes)) };
  }
  return scratch;
};
const local = new BigUint64Array(2);
const remote = new BigUint64Array(2);
const aim = (here: number, there: number, length: number): void => {
  local[0] = BigInt(here);
  remote[0] = BigInt(there);
  local[1] = remote[1] = BigInt(length);
};

/**
 * Reads another process's memory as that process could; returns the bytes read (fewer when a page on the way is not
 * readable), or minus errno when there were none.
 */
export const processRead = (pid: number, va: number, into: Uint8Array): number => {
  const { address, bytes } = theScratch();
  let done = 0;
  while (done < into.length) {
    const chunk = Math.min(into.length - done, scratchBytes);
    aim(address, va + done, chunk);
    const got = value(native.readv(pid, local, 1, remote, 1, 0));
    if (got < 0) return done > 0 ? done : got;
    into.set(bytes.subarray(0, got), done);
    done += got;
    if (got < chunk) break;
  }
  return done;
};

/** Writes another process's memory as that process could; returns like `processRead`. */
export const processWrite = (pid: number, va: number, data: Uint8Array): number => {
  const { address, bytes } = theScratch();
  let done = 0;
  while (done < data.length) {
    const chunk = Math.min(data.length - done, scratchBytes);
    bytes.set(data.subarray(done, done + chunk));
    aim(address, va + done, chunk);
    const put = value(native.writev(pid, local, 1, remote, 1, 0));
    if (put < 0) return done > 0 ? done : put;
    done += put;
    if (put < chunk) break;
  }
  return done;
};
