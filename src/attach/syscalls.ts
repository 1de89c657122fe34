/**
 * The system calls of the daemon's end: SOCK_SEQPACKET sockets with descriptors in their messages, epoll, and
 * questions about another process. Like base/libc.ts a failed call returns minus errno. Messages are built and
 * received in one mapped arena, so that a call costs no allocation; what `receive` leaves there is valid until the
 * next one.
 */
import koffi from "koffi";
import { MapFlag, mmap, must, Prot, viewOf } from "../base/libc.ts";

const c = koffi.load(null);

const native = {
  socket: c.func("socket", "int", ["int", "int", "int"]),
  socketpair: c.func("socketpair", "int", ["int", "int", "int", "void *"]),
  bind: c.func("bind", "int", ["int", "void *", "uint"]),
  listen: c.func("listen", "int", ["int", "int"]),
  accept4: c.func("accept4", "int", ["int", "int64_t", "int64_t", "int"]),
  getsockopt: c.func("getsockopt", "int", ["int", "int", "int", "void *", "void *"]),
  recvmsg: c.func("recvmsg", "int64_t", ["int", "int64_t", "int"]),
  sendmsg: c.func("sendmsg", "int64_t", ["int", "int64_t", "int"]),
  send: c.func("send", "int64_t", ["int", "void *", "size_t", "int"]),
  write: c.func("write", "int64_t", ["int", "void *", "size_t"]),
  read: c.func("read", "int64_t", ["int", "int64_t", "size_t"]),
  preadv2: c.func("preadv2", "int64_t", ["int", "int64_t", "int", "int64_t", "int"]),
  poll: c.func("poll", "int", ["void *", "ulong", "int"]),
  ppoll: c.func("ppoll", "int", ["void *", "ulong", "void *", "int64_t"]),
  setsockopt: c.func("setsockopt", "int", ["int", "int", "int", "void *", "uint"]),
  recv: c.func("recv", "int64_t", ["int", "void *", "size_t", "int"]),
  epollCreate: c.func("epoll_create1", "int", ["int"]),
  epollCtl: c.func("epoll_ctl", "int", ["int", "int", "int", "void *"]),
  epollWait: c.func("epoll_wait", "int", ["int", "int64_t", "int", "int"]),
  prlimit: c.func("prlimit64", "int", ["int", "int", "int64_t", "void *"]),
  capget: c.func("capget", "int", ["void *", "void *"]),
};

const result = (value: number): number => (value < 0 ? -koffi.errno() : value);

const AF_UNIX = 1;
const SOCK_SEQPACKET = 5;
const SOCK_CLOEXEC = 0o2000000;
const SOCK_NONBLOCK = 0o4000;
const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
const SO_PEERCRED = 17;
const SO_COOKIE = 57;
const SCM_RIGHTS = 1;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_TRUNC = 0x20;
const MSG_CMSG_CLOEXEC = 0x40000000;

/** `name` with a leading NUL is an abstract name. */
const socketAddress = (name: string): Buffer => {
  const bytes = Buffer.from(name);
  if (bytes.length > 107) throw new RangeError(`a socket name of ${bytes.length} bytes; 107 is the most`);
  const address = Buffer.alloc(2 + bytes.length + (name.startsWith("\0") ? 0 : 1));
  address.writeUInt16LE(AF_UNIX, 0);
  bytes.copy(address, 2);
  return address;
};

/** A listening SEQPACKET socket, not blocking. */
export const listenAt = (name: string): number => {
  const fd = must("socket", result(native.socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)));
  const address = socketAddress(name);
  must("bind", result(native.bind(fd, address, address.length)));
  must("listen", result(native.listen(fd, 4096)));
  return fd;
};

export const accept = (fd: number): number => result(native.accept4(fd, 0, 0, SOCK_CLOEXEC | SOCK_NONBLOCK));

const pair = new Int32Array(2);

/** A connected pair; ours (not blocking) carries `name`, theirs is what a client gets. -errno when out of descriptors. */
export const namedPair = (name: string): { readonly ours: number; readonly theirs: number } | number => {
  const failed = result(native.socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair));
  if (failed < 0) return failed;
  const address = socketAddress(name);
  must("bind", result(native.bind(pair[0]!, address, address.length)));
  return { ours: pair[0]!, theirs: pair[1]! };
};

const optionValue = new Uint32Array(4);
const optionLength = new Uint32Array(1);

/** SO_COOKIE: the identity of a socket; 0 when the descriptor is no socket. */
export const socketCookie = (fd: number): number => {
  optionLength[0] = 8;
  if (native.getsockopt(fd, SOL_SOCKET, SO_COOKIE, optionValue, optionLength) < 0) return 0;
  return optionValue[1]! * 0x1_0000_0000 + optionValue[0]!;
};

/** Who connected, as the kernel knows it. */
export const peerOf = (fd: number): { readonly pid: number; readonly uid: number } => {
  optionLength[0] = 12;
  must("getsockopt", result(native.getsockopt(fd, SOL_SOCKET, SO_PEERCRED, optionValue, optionLength)));
  return { pid: optionValue[0]!, uid: optionValue[1]! };
};

// ---- the arena --------------------------------------------------------------------------------------------------

const HEADERS = 0; // msghdr at 0 and 64, iovec at 128, 144 and 160
const COUNTED = 176; // what an eventfd had counted
const RECEIVED_CONTROL = 256;
const SENT_CONTROL = 512;
const EVENTS = 1024;
/** Most that one `epollWait` collects. */
export const MAX_EVENTS = 64;
const RECEIVED = 4096;
const RECEIVE_BYTES = 72 * 1024;
const SENT = RECEIVED + RECEIVE_BYTES;
const SEND_BYTES = 72 * 1024;
const ARENA_BYTES = SENT + SEND_BYTES;
const CONTROL_BYTES = 128; // room for 16 descriptors and their header

const openArena = () => {
  const base = must(
    "mmap",
    mmap(0, ARENA_BYTES, Prot.read | Prot.write, MapFlag.private | MapFlag.anonymous, -1, 0),
  );
  const memory = viewOf(base, ARENA_BYTES);
  const view = new DataView(memory);
  const pointer = (at: number, offset: number): void => view.setBigUint64(at, BigInt(base + offset), true);
  pointer(HEADERS + 16, 128); // received: msg_iov
  pointer(128, RECEIVED);
  view.setUint32(136, RECEIVE_BYTES, true);
  view.setUint32(HEADERS + 24, 1, true); // msg_iovlen
  pointer(HEADERS + 32, RECEIVED_CONTROL);
  pointer(64 + 16, 144); // sent
  pointer(144, SENT);
  view.setUint32(64 + 24, 1, true);
  pointer(64 + 32, SENT_CONTROL);
  pointer(160, COUNTED); // of an eventfd
  view.setUint32(168, 8, true);
  return { base, memory, view };
};
const arena = openArena();

/** Bytes of a message before its body. */
const HEADER_BYTES = 32;

/** What the last `receive` got; valid until the next. */
export const received = {
  /** From the body on; may reach beyond it. */
  body: new DataView(arena.memory, RECEIVED + HEADER_BYTES, RECEIVE_BYTES - HEADER_BYTES),
  view: new DataView(arena.memory, RECEIVED, RECEIVE_BYTES),
  bytes: new Uint8Array(arena.memory, RECEIVED, RECEIVE_BYTES),
  fds: [] as number[],
};

/** What `reply` sends. */
export const outgoing = {
  view: new DataView(arena.memory, SENT, SEND_BYTES),
  bytes: new Uint8Array(arena.memory, SENT, SEND_BYTES),
};

const takeDescriptors = (length: number): void => {
  const { view } = arena;
  let at = RECEIVED_CONTROL;
  const end = at + length;
  while (at + 16 <= end) {
    const size = view.getUint32(at, true);
    if (size < 16 || at + size > end) return;
    if (view.getInt32(at + 8, true) === SOL_SOCKET && view.getInt32(at + 12, true) === SCM_RIGHTS)
      for (let fd = at + 16; fd + 4 <= at + size; fd += 4) received.fds.push(view.getInt32(fd, true));
    at += (size + 7) & ~7;
  }
};

/** One message into `received`: its length, 0 at the end, -errno (-EMSGSIZE: it was longer than any message of ours). */
export const receive = (fd: number): number => {
  const { view } = arena;
  view.setUint32(HEADERS + 40, CONTROL_BYTES, true);
  if (received.fds.length > 0) received.fds = [];
  const length = native.recvmsg(fd, arena.base + HEADERS, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (length < 0) return -koffi.errno();
  const control = view.getUint32(HEADERS + 40, true);
  if (control > 0) takeDescriptors(control);
  return view.getUint32(HEADERS + 48, true) & MSG_TRUNC ? -90 : length;
};

/** Sends the first `length` bytes of `outgoing` with descriptors (16 at most); -errno when it does not go at once. */
export const sendOutgoing = (fd: number, length: number, fds: readonly number[]): number => {
  const { view } = arena;
  view.setUint32(152, length, true);
  let control = 0;
  if (fds.length > 0) {
    view.setUint32(SENT_CONTROL, 16 + 4 * fds.length, true);
    view.setUint32(SENT_CONTROL + 4, 0, true);
    view.setInt32(SENT_CONTROL + 8, SOL_SOCKET, true);
    view.setInt32(SENT_CONTROL + 12, SCM_RIGHTS, true);
    for (const [i, sent] of fds.entries()) view.setInt32(SENT_CONTROL + 16 + 4 * i, sent, true);
    control = 16 + ((4 * fds.length + 7) & ~7);
  }
  view.setUint32(64 + 40, control, true);
  const sent = native.sendmsg(fd, arena.base + 64, MSG_DONTWAIT | MSG_NOSIGNAL);
  return sent < 0 ? -koffi.errno() : sent;
};

/** A short message that must not wait. */
export const sendBytes = (fd: number, bytes: Uint8Array): number =>
  result(native.send(fd, bytes, bytes.length, MSG_DONTWAIT | MSG_NOSIGNAL));

/** Sends until nothing more goes: the other end must never read, then this one never is writable. */
export const fillSocket = (fd: number): void => {
  optionValue[0] = 0; // the kernel makes it the least it allows
  native.setsockopt(fd, SOL_SOCKET, SO_SNDBUF, optionValue, 4);
  while (sendBytes(fd, new Uint8Array(1)) > 0);
};

/** Throws away every message that waits; how many. */
export const drainSocket = (fd: number): number => {
  let messages = 0;
  while (native.recv(fd, new Uint8Array(4), 4, MSG_DONTWAIT) > 0) messages += 1;
  return messages;
};

// ---- epoll ------------------------------------------------------------------------------------------------------

export const Epoll = { in: 1, out: 4, err: 8, hup: 0x10, rdhup: 0x2000, edge: 0x80000000 } as const;

export const epollCreate = (): number => must("epoll_create1", result(native.epollCreate(0o2000000)));

const control = new DataView(new ArrayBuffer(12));

export const epollAdd = (epoll: number, fd: number, events: number, tag: number): number => {
  control.setUint32(0, events >>> 0, true);
  control.setUint32(4, fd, true);
  control.setUint32(8, tag, true);
  return result(native.epollCtl(epoll, 1, fd, control));
};
export const epollDelete = (epoll: number, fd: number): number =>
  result(native.epollCtl(epoll, 2, fd, control));

/** How many descriptors are ready (read with `readyFd`…), 0 after the timeout, -errno. */
export const epollWait = (epoll: number, milliseconds: number): number =>
  result(native.epollWait(epoll, arena.base + EVENTS, MAX_EVENTS, milliseconds));

const pauseEpoll = new Int32Array(2);
const pauseTime = new BigInt64Array(2);
/** Sleeps until something is ready, some microseconds at most (timer slack comes on top); collects nothing. */
export const epollPause = (epoll: number, microseconds: number): void => {
  pauseEpoll[0] = epoll;
  pauseEpoll[1] = Epoll.in;
  pauseTime[1] = BigInt(microseconds * 1000);
  native.ppoll(pauseEpoll, 1, pauseTime, 0);
};
export const readyEvents = (i: number): number => arena.view.getUint32(EVENTS + 12 * i, true);
export const readyFd = (i: number): number => arena.view.getUint32(EVENTS + 12 * i + 4, true);
export const readyTag = (i: number): number => arena.view.getUint32(EVENTS + 12 * i + 8, true);

// ---- eventfds ---------------------------------------------------------------------------------------------------

const polled = new DataView(new ArrayBuffer(8));
const one = new BigUint64Array([1n]);

/** Which of these events poll(2) reports now. */
export const readyNow = (fd: number, events: number): number => {
  polled.setInt32(0, fd, true);
  polled.setUint16(4, events, true);
  polled.setUint16(6, 0, true);
  return native.poll(polled, 1, 0) === 1 ? polled.getUint16(6, true) : 0;
};

/** Whether adding one to an eventfd would not wait. */
export const eventfdHasRoom = (fd: number): boolean => (readyNow(fd, Epoll.out) & Epoll.out) !== 0;
export const writeOne = (fd: number): boolean => native.write(fd, one, 8) === 8;

const RWF_NOWAIT = 8;
const EAGAIN = 11;

/** Takes what an eventfd has counted, if anything: never waits, whoever else reads it. */
export const takeEventfd = (fd: number): void => {
  const got = result(native.preadv2(fd, arena.base + 160, 1, -1, RWF_NOWAIT));
  // Before Linux 5.8 eventfds do not know reads that never wait.
  if (got < 0 && got !== -EAGAIN && (readyNow(fd, Epoll.in) & Epoll.in) !== 0)
    native.read(fd, arena.base + COUNTED, 8);
};

// ---- another process --------------------------------------------------------------------------------------------

const RLIMIT_NOFILE = 7;
const RLIMIT_MEMLOCK = 8;
const limits = new Uint32Array(4);

const limitOf = (pid: number, resource: number): number => {
  if (native.prlimit(pid, resource, 0, limits) < 0) return 0;
  const [lo, hi] = [limits[0]!, limits[1]!];
  return hi === 0xffffffff && lo === 0xffffffff ? Number.POSITIVE_INFINITY : hi * 0x1_0000_0000 + lo;
};

/** RLIMIT_MEMLOCK of a process in bytes, Infinity when unlimited; 0 when it cannot be asked. */
export const memlockOf = (pid: number): number => limitOf(pid, RLIMIT_MEMLOCK);

/** RLIMIT_NOFILE of a process; 0 when it cannot be asked. */
export const descriptorLimitOf = (pid: number): number => limitOf(pid, RLIMIT_NOFILE);
/** How many descriptors this process may have. */
export const descriptorLimit = (): number => descriptorLimitOf(0);

const LINUX_CAPABILITY_VERSION_3 = 0x20080522;
const capabilityHeader = new Uint32Array(2);
const capabilityData = new Uint32Array(6);

/** The effective set of a process, capability n as bit n; -1 when there is no such process. */
export const effectiveCapabilities = (pid: number): number => {
  capabilityHeader[0] = LINUX_CAPABILITY_VERSION_3;
  capabilityHeader[1] = pid;
  if (native.capget(capabilityHeader, capabilityData) < 0) return -1;
  return capabilityData[3]! * 2 ** 32 + capabilityData[0]!;
};
