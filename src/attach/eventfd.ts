/**
 * Signalling a client's eventfd as a driver does: never waiting. A plain write waits when the counter is full, and the
 * client decides when it is. The kernel's own way, which saturates, is reached through asynchronous I/O: a read of
 * nothing whose completion signals the eventfd (IOCB_FLAG_RESFD, io_submit(2)). Where there is no asynchronous I/O,
 * the eventfd is asked first whether it has room.
 */
import { openSync } from "node:fs";
import koffi from "koffi";
import { MapFlag, mmap, must, Prot, viewOf } from "../base/libc.ts";
import { eventfdHasRoom, writeOne } from "./syscalls.ts";

const syscall = koffi
  .load(null)
  .func("syscall", "int64_t", ["int64_t", "int64_t", "int64_t", "int64_t", "int64_t", "int64_t"]);

const SYS_IO_SETUP = 206;
const SYS_IO_GETEVENTS = 208;
const SYS_IO_SUBMIT = 209;
const IOCB_CMD_PREAD = 0;
const IOCB_FLAG_RESFD = 1;
/** Completions that may lie unread in the ring. */
const DEPTH = 64;

// Offsets in one mapped page: the context, the pointer to the control block, the block, completions read back.
const CONTEXT = 0;
const POINTER = 8;
const BLOCK = 64;
const COMPLETIONS = 1024;
const COMPLETION_BYTES = 32;
const ARENA_BYTES = COMPLETIONS + DEPTH * COMPLETION_BYTES;
const BLOCK_RESFD = BLOCK + 60;

interface Aio {
  readonly context: number;
  readonly base: number;
  readonly view: DataView;
  unread: number;
}

const openAio = (): Aio | undefined => {
  const flags = MapFlag.private | MapFlag.anonymous;
  const base = must("mmap", mmap(0, ARENA_BYTES, Prot.read | Prot.write, flags, -1, 0));
  const view = new DataView(viewOf(base, ARENA_BYTES));
  if (syscall(SYS_IO_SETUP, DEPTH, base + CONTEXT, 0, 0, 0) < 0) return undefined;
  view.setBigUint64(POINTER, BigInt(base + BLOCK), true);
  view.setUint16(BLOCK + 16, IOCB_CMD_PREAD, true);
  view.setUint32(BLOCK + 20, openSync("/dev/null", "r"), true);
  view.setUint32(BLOCK + 56, IOCB_FLAG_RESFD, true);
  return { context: Number(view.getBigUint64(CONTEXT, true)), base, view, unread: 0 };
};

let aio: Aio | undefined;
let opened = false;

const submit = (to: Aio, fd: number): boolean => {
  if (to.unread === DEPTH) {
    syscall(SYS_IO_GETEVENTS, to.context, 0, DEPTH, to.base + COMPLETIONS, 0);
    to.unread = 0;
  }
  to.view.setUint32(BLOCK_RESFD, fd, true);
  if (syscall(SYS_IO_SUBMIT, to.context, 1, to.base + POINTER, 0, 0) !== 1) return false;
  to.unread += 1;
  return true;
};

/** Adds one to the counter, unless it is full. False: it was full, or is no eventfd. */
export const signalEventfd = (fd: number): boolean => {
  if (!opened) {
    opened = true;
    aio = openAio();
  }
  if (aio !== undefined && submit(aio, fd)) return true;
  return eventfdHasRoom(fd) && writeOne(fd);
};
