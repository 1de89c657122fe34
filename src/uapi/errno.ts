/** Linux error numbers (asm-generic) and the one error type of system calls. */
export const Errno = {
  EPERM: 1,
  ENOENT: 2,
  ESRCH: 3,
  EINTR: 4,
  EIO: 5,
  ENXIO: 6,
  E2BIG: 7,
  EBADF: 9,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EFAULT: 14,
  EBUSY: 16,
  EEXIST: 17,
  EXDEV: 18,
  ENODEV: 19,
  EINVAL: 22,
  ENFILE: 23,
  EMFILE: 24,
  ENOTTY: 25,
  EFBIG: 27,
  ENOSPC: 28,
  ESPIPE: 29,
  EROFS: 30,
  EDOM: 33,
  ERANGE: 34,
  EDEADLK: 35,
  ENAMETOOLONG: 36,
  ENOSYS: 38,
  EBADE: 52,
  ENODATA: 61,
  ETIME: 62,
  EPROTO: 71,
  EOVERFLOW: 75,
  EBADFD: 77,
  EMSGSIZE: 90,
  EOPNOTSUPP: 95,
  EADDRINUSE: 98,
  ENOBUFS: 105,
  ETIMEDOUT: 110,
  ECANCELED: 125,
} as const;
export type ErrnoName = keyof typeof Errno;

/**
 * A call that Linux would answer with an errno, and why. `reason` is a sentence for a person, naming what was wrong
 * and what would be right; `object` names what it is about ("container 3", "device 0000:01:00.0").
 */
export class LinuxError extends Error {
  readonly code: ErrnoName;
  readonly errno: number;
  readonly reason: string;
  readonly object: string | undefined;

  constructor(code: ErrnoName, reason: string, object?: string) {
    super(`${code}: ${reason}${object ? ` (${object})` : ""}`);
    this.name = "LinuxError";
    this.code = code;
    this.errno = Errno[code];
    this.reason = reason;
    this.object = object;
  }
}
