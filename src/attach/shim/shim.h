/*
 * What the files of the preload library share. Every function here may be called from a signal handler in any
 * thread: nothing allocates, takes a libc lock or touches errno unless it says so.
 *
 *   shim.c     start-up, control connections, requests
 *   files.c    which descriptors are emulated             calls.c    calls on them
 *   stream.c   FILE and dprintf on them
 *   route.c    paths to the shadow tree                   open.c, status.c, folders.c  calls with paths
 *   mmap.c     mappings of emulated files                 exec.c     the environment survives exec
 *   proc.c     /proc/PID/status                           huge.c     huge pages where there are none
 *   adopt.c    private memory moved onto memfds           trap.c     accesses to BARs
 *   adopted.c  madvise and mremap of such memory          shared.c   shared anonymous memory
 *   stacks.c   stacks, which are not adopted              signals.c  the handlers of faults stay ours
 *   dl.c       libraries that are loaded later
 */
#ifndef SOFTIOMMU_SHIM_H
#define SOFTIOMMU_SHIM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "protocol.h"

/* Put in front of every interposed function; everything else is built with hidden visibility. */
#define EXPORT __attribute__((visibility("default")))

/* ---- requests (shim.c) --------------------------------------------------------------------------------- */

/*
 * Sends one request on the calling thread's control connection and waits for its answer. Returns the value of the
 * reply (>= 0, -errno, or -EIO when the daemon cannot be reached); at most reply_size bytes of payload are stored
 * in reply. Descriptors are borrowed from send_fds, and received close-on-exec into recv_fds: *nrecv is the room on
 * entry and the number on return (both may be NULL). Restarts and cancellation are not dealt with here.
 *
 * Op numbers: OP_ADOPT_FIRST.. belong to adopt.c, OP_TRAP_FIRST.. to trap.c. Number yours in your own file or header.
 * The daemon's end exports `handlers` from process-memory.ts and traps.ts, see src/attach/connection.ts.
 *
 * A handler that interrupts a request of its own thread uses another connection of the thread, so it may always ask.
 */
long shim_request(uint32_t op, const void *body, size_t length, void *reply, size_t reply_size, const int *send_fds,
                  int nsend, int *recv_fds, int *nrecv);

/* False when the program runs without a daemon (SOFTIOMMU_SOCKET is not set): then nothing is touched. */
bool shim_attached(void);

/* Moves a descriptor to a high number, close-on-exec, that the program cannot close by accident. Returns the new
 * number or -errno; the old number is closed. In a forked child it stays open unless dropped. */
int shim_keep_fd(int fd);
void shim_drop_fd(int fd);
bool shim_is_kept(int fd);
/* The program is about to put another file at this number: what we keep there moves. 0, or -errno. */
int shim_make_way(int fd);

/* The function of this name in the next library (libc). Not async-signal-safe: call it from *_init. */
void *shim_next(const char *name);

/* ---- stacks.c, adopt.c, adopted.c, shared.c ------------------------------------------------------------ */

/* Called once, from the library's constructor, in an attached program. */
void stacks_init(void);
/* Moves private anonymous memory onto memfds and tells the daemon. 0, or -errno; va and len are whole pages. */
int adopt_range(uint64_t va, uint64_t len);
/* A descriptor of ours is about to get to another process, which cannot adopt for this one: what devices may be given
 * of this memory later is adopted now. */
void adopt_before_sharing(void);
/* In the SIGSEGV handler, before the traps: 1 = it was ours, retry the instruction. */
int adopt_fault(void *addr);
/* After the real munmap succeeded (or before a MAP_FIXED mapping replaces the range). */
void adopt_munmap(void *addr, size_t len);
/* Before the real madvise: true = *result (0 or -errno) is the answer, do not make the real call. */
bool adopt_madvise(void *addr, size_t len, int advice, int *result);
/* Before the real mremap: true = *result (address or -errno) is the answer. */
bool adopt_mremap(void *old, size_t old_size, size_t new_size, int flags, void *new_address, long *result);
/* MAP_SHARED|MAP_ANONYMOUS: a mapping of a memfd instead. The address or -errno as raw_mmap gives it. */
void adopt_renumber(int from, int to);
long adopt_mmap_shared_anonymous(void *addr, size_t len, int prot, int flags);
/* Before no mapping of the file may be made that can be written: the daemon makes its own. */
void adopt_seal(int fd);
/* pthread_atfork. */
void adopt_fork_prepare(void);
void adopt_fork_parent(void);
void adopt_fork_child(void);

/* ---- trap.c, signals.c --------------------------------------------------------------------------------- */

void trap_init(void);
/* [addr, addr+len) is reserved, PROT_NONE, for an emulated file: accesses are forwarded. keep_fd is a kept
 * descriptor of the file (cookie its SO_COOKIE), owned by the caller. Returns 0 or -errno. */
int trap_map(void *addr, size_t len, int prot, int flags, uint64_t cookie, int keep_fd, uint64_t file_offset);
/* Where the windows are, for the daemon: the table, and how many of its slots were used. */
void trap_table(uint64_t *table, uint64_t *count);
/* Any part of the address space was unmapped or replaced; ranges that are not traps are ignored. */
void trap_unmap(void *addr, size_t len);
/* The kernel has moved [from, from+len) to `to`. */
void trap_move(void *from, size_t len, void *to);
/* Before the real madvise: true = *result (0 or -errno) is the answer, do not make the real call. */
bool trap_madvise(void *addr, size_t len, int advice, int *result);
/* A kept descriptor has another number now. */
void trap_renumber(int from, int to);
/* In the SIGSEGV/SIGILL handler: 1 = served, the context is advanced. */
int trap_fault(siginfo_t *info, void *ucontext);

/* Installs the handlers; called after stacks_init and trap_init. */
void signals_init(void);

/* ---- system calls that bypass everything (raw.h has the general form) -------------------------------------
 * They return -errno instead of setting errno. */
#include "raw.h"

#endif
