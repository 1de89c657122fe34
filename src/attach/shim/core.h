/*
 * Private to the attach core: shim.c, route.c, open.c, status.c, folders.c, files.c, calls.c, stream.c, proc.c, huge.c,
 * mmap.c, exec.c.
 */
#ifndef SOFTIOMMU_CORE_H
#define SOFTIOMMU_CORE_H

#include <errno.h>
#include <sys/uio.h>

#include "shim.h"

/* ---- shim.c -------------------------------------------------------------------------------------------- */

/* Makes the library usable when another library's constructor calls an interposed function before ours ran. */
void shim_init(void);
extern bool shim_initialised;
extern bool shim_is_attached;

static inline bool attached(void)
{
    if (__builtin_expect(!shim_initialised, 0))
        shim_init();
    return shim_is_attached;
}

/* Keeps a descriptor that is this thread's alone: a forked child closes it. Its new number, or -errno. */
int shim_keep_control(int fd);
/* The number is the program's now: it is not closed. */
void shim_release_fd(int fd);

/* Every file looks its libc functions up here, once. */
void dl_init(void);
void open_init(void);
void folders_init(void);
void files_init(void);
void calls_init(void);
void mmap_init(void);
void stream_init(void);
void exec_init(const char *preload, const char *socket);

/* Reads one line of the daemon's configuration ("route ROOT PREFIX", "files NAME"). */
void route_configure(const char *root, const char *prefix);
void files_configure(const char *name);

#define EXCHANGE_FDS PROTOCOL_MAX_FDS
struct exchange {
    uint32_t op;
    uint32_t attempt;
    bool cancellable; /* a signal without SA_RESTART ends the wait */
    struct iovec send[3];
    int nsend;
    const int *send_fds;
    int nsend_fds;
    void *reply;
    size_t reply_size;
    struct reply_header header; /* out */
    int fds[EXCHANGE_FDS];      /* out: header.fds of them, close-on-exec */
};
/* False in a vfork child, which runs in its parent's memory. */
bool shim_own_memory(void);

/* The value of the reply; or -EIO (no daemon), -EMFILE (descriptors lost), -EFAULT (memory to send unreadable). */
long shim_exchange(struct exchange *x);

/* An exchange that adopts what the daemon asks for, as often as it takes within reason. */
long shim_exchange_restarting(struct exchange *x);

static inline long result_of(long value)
{
    if (value < 0 && value > -4096) {
        errno = (int)-value;
        return -1;
    }
    return value;
}

/* ---- files.c ------------------------------------------------------------------------------------------- */

/* SO_COOKIE when fd is an emulated file, 0 when not. `certain` asks the kernel even if it was never seen before. */
uint64_t emulated_cookie(int fd, bool certain);
/* True when fd may be emulated: one load. */
bool maybe_emulated(int fd);
void note_emulated(int fd);
/* Looks through the descriptors that exec left open. */
void files_scan(void);
struct stat;
int emulated_fstat(int fd, uint64_t cookie, struct stat *out);
/* An ioctl was forwarded: files of ours may know memory of this program. */
extern bool calls_made;
/* open(2) of a device node path: a descriptor, -errno, or -ENOTTY-like OPEN_PASS when it is no node. */
#define OPEN_PASS (-4095)
long open_node(const char *path, int flags);
bool kept_range(unsigned from, unsigned *fd);

/* ---- stream.c ------------------------------------------------------------------------------------------ */
/* A stream on an emulated descriptor, which it owns; NULL and errno. Allocates. */
struct _IO_FILE;
struct _IO_FILE *emulated_stream(int fd, const char *mode);

/* ---- proc.c -------------------------------------------------------------------------------------------- */
/* open(2) of /proc/PID/status for reading: a descriptor, -errno, or OPEN_PASS when it is another file. */
long open_status(int dirfd, const char *path, int flags);

/* ---- huge.c -------------------------------------------------------------------------------------------- */
void huge_init(void);
/* mmap(2) with MAP_ANONYMOUS | MAP_HUGETLB: the address or -errno. */
long huge_mmap_anonymous(void *addr, size_t len, int prot, int flags);

/* ---- mmap.c -------------------------------------------------------------------------------------------- */
/* Around fork: the child finds the table whole. */
void mappings_fork_prepare(void);
void mappings_fork_done(void);
/* A kept descriptor has another number now. */
void mappings_renumber(int from, int to);

/* ---- route.c ------------------------------------------------------------------------------------------- */
/* Where the path really lies, in `out` (PATH_MAX bytes), or NULL when it is not routed. */
const char *route(int dirfd, const char *path, char *out);
/* The path a program knows for a path inside a shadow tree, in place. True when it was one. */
bool unroute(char *path, size_t *length);
/* The same without touching it: a part of `shadow`, or `shadow` itself. */
const char *known_path(const char *shadow);
bool under_dev(const char *known);
/* Whether the daemon is asked to open a path of the shadow tree: device nodes and files of debugfs. */
bool is_served(const char *known);
/* The path in /proc of a task's file of fault injection, in `out` (PATH_MAX bytes); false: it is none. */
bool task_attribute(int dirfd, const char *path, char *out);
/* Reads "chr MAJOR MINOR MODE"; false when the file is something else. */
bool read_node(const char *shadow, unsigned *major, unsigned *minor, unsigned *mode);
void note_shadow_fd(int fd);
/* 0: nothing is routed, paths need not be looked at. */
extern int route_count;
extern bool cwd_may_be_shadow;
/* The working folder may have changed. */
void note_cwd(void);

/* ---- status.c ------------------------------------------------------------------------------------------ */
/* Makes the status of a shadow file that of the device node it stands for, if it does. */
void show_node(const char *shadow, struct stat *out);

#endif
