/**
 * The daemon's side of shim/protocol.h: numbers, and the offsets of the fields that a message is taken apart by.
 * A test compiles the header and holds the two equal.
 */
export const PROTOCOL_VERSION = 1;
export const MAX_BODY = 65536;
export const MAX_FDS = 16;

export const Op = {
  cancel: 1,
  open: 2,
  ioctl: 3,
  read: 4,
  write: 5,
  pread: 6,
  pwrite: 7,
  mmap: 8,
  fstat: 9,
  ring: 10,
  seek: 11,
  pages: 12,
} as const;

/** Opens a mailbox for the thread of a connection (mailbox.ts): no business of the kernel's files. */
export const MAILBOX_OP = 50;

export const ReplyFlag = { restart: 1, pass: 2, drain: 8, install: 16 } as const;

export const SegmentKind = { trap: 0, memory: 1 } as const;

/** Offsets and size of a structure of the protocol. */
export const RequestHeader = {
  version: 0,
  op: 4,
  seq: 8,
  tid: 12,
  image: 16,
  length: 24,
  attempt: 28,
  size: 32,
} as const;
export const ReplyHeader = { seq: 0, flags: 4, value: 8, length: 16, fds: 20, size: 24 } as const;
/** `room`: bytes of a message in either direction. */
export const MailboxPage = {
  request: 0,
  length: 4,
  sleeps: 8,
  reply: 64,
  closed: 68,
  looking: 72,
  taken: 76,
  body: 128,
  answer: 2112,
  room: 1984,
  size: 4096,
} as const;
export const Range = { va: 0, length: 8, size: 16 } as const;
export const Install = { at: 0, close_on_exec: 8, size: 16 } as const;
export const FileBody = { cookie: 0, fd: 8, size: 16 } as const;
export const OpenBody = { flags: 0, path_length: 4, size: 8 } as const;
export const IoctlBody = { argument: 16, request: 24, prefetched: 28, size: 32 } as const;
export const TransferBody = {
  va: 16,
  length: 24,
  offset: 32,
  status_flags: 40,
  prefetched: 44,
  size: 48,
} as const;
export const SeekBody = { offset: 16, whence: 24, size: 32 } as const;
export const MmapBody = {
  length: 16,
  offset: 24,
  protection: 32,
  flags: 36,
  windows: 40,
  windows_used: 48,
  size: 56,
} as const;
export const MmapSegment = { kind: 0, fd_index: 4, offset: 8, length: 16, fd_offset: 24, size: 32 } as const;
export const PagesBody = { process: 0, size: 8 } as const;
export const PagesReply = { locked: 0, pinned: 8, size: 16 } as const;
export const FstatReply = { mode: 0, major: 4, minor: 8, pollable: 12, inode: 16, size: 24 } as const;
