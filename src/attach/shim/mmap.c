/*
 * Mappings. An emulated file answers mmap with segments: memory, which is a range of a memfd the daemon sends, and
 * traps, which stay PROT_NONE. A mapping keeps its file open, as on Linux, through a kept duplicate of the descriptor;
 * where the daemon must know how long pages are mapped, it sends a descriptor more, which lives as long as they do: in
 * this process, in its forked children, in what is left of the mapping when a part of it goes.
 * Everything else passes, after telling adopt.c and trap.c which addresses change hands.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <sys/mman.h>

#include "core.h"
#include "lock.h"

#define PAGE 4096u
#define MAX_MAPPINGS 1024
#define MAX_SEGMENTS 64

struct mapping {
    uintptr_t start;
    uintptr_t end; /* 0: a free slot */
    int keep_fd;
    int hold_fd; /* tells the daemon that the pages are mapped; -1: it need not know */
};

static struct mapping mappings[MAX_MAPPINGS];
static int mapping_count;
static int lock_word;

static struct {
    void *(*mmap)(void *, size_t, int, int, int, off_t);
    int (*munmap)(void *, size_t);
    void *(*mremap)(void *, size_t, size_t, int, ...);
    int (*madvise)(void *, size_t, int);
} real;

void mmap_init(void)
{
    real.mmap = shim_next("mmap64");
    real.munmap = shim_next("munmap");
    real.mremap = shim_next("mremap");
    real.madvise = shim_next("madvise");
}

/* ---- the table ----------------------------------------------------------------------------------------- */

static uint64_t fork_signals;

void mappings_fork_prepare(void)
{
    fork_signals = lock_take(&lock_word);
}

void mappings_fork_done(void)
{
    lock_give(&lock_word, fork_signals);
}

static bool add_mapping(const struct mapping *value)
{
    for (int i = 0; i < MAX_MAPPINGS; i++)
        if (!mappings[i].end) {
            mappings[i] = *value;
            __atomic_add_fetch(&mapping_count, 1, __ATOMIC_RELAXED);
            return true;
        }
    return false;
}

/* A kept duplicate, or -errno. */
static int keep_copy(int fd)
{
    long duplicate = raw_fcntl(fd, F_DUPFD_CLOEXEC, 3);
    return duplicate < 0 ? (int)duplicate : shim_keep_fd((int)duplicate);
}

void mappings_renumber(int from, int to)
{
    uint64_t before = lock_take(&lock_word);
    for (int i = 0; i < MAX_MAPPINGS; i++) {
        if (mappings[i].end && mappings[i].keep_fd == from)
            mappings[i].keep_fd = to;
        if (mappings[i].end && mappings[i].hold_fd == from)
            mappings[i].hold_fd = to;
    }
    lock_give(&lock_word, before);
}

static void drop_descriptors(const struct mapping *m)
{
    if (m->keep_fd >= 0)
        shim_drop_fd(m->keep_fd);
    if (m->hold_fd >= 0)
        shim_drop_fd(m->hold_fd);
}

/* Adds [start, end) with duplicates of the descriptors. Returns 0 or -errno. */
static int add_part(const struct mapping *whole, uintptr_t start, uintptr_t end)
{
    struct mapping part = {start, end, keep_copy(whole->keep_fd), -1};
    int result = part.keep_fd < 0 ? part.keep_fd : 0;
    if (result == 0 && whole->hold_fd >= 0) {
        part.hold_fd = keep_copy(whole->hold_fd);
        result = part.hold_fd < 0 ? part.hold_fd : 0;
    }
    if (result == 0 && !add_mapping(&part))
        result = -ENOMEM;
    if (result < 0)
        drop_descriptors(&part);
    return result;
}

static void cut_mapping(struct mapping *m, uintptr_t start, uintptr_t end)
{
    bool head = m->start < start, tail = m->end > end;
    if (head && tail) {
        add_part(m, end, m->end); /* without a descriptor the tail stays mapped, and is not counted */
        m->end = start;
    } else if (head) {
        m->end = start;
    } else if (tail) {
        m->start = end;
    } else {
        drop_descriptors(m);
        *m = (struct mapping){0};
        __atomic_sub_fetch(&mapping_count, 1, __ATOMIC_RELAXED);
    }
}

/* Under the lock. */
static void cut_mappings(uintptr_t start, uintptr_t end)
{
    for (int i = 0; i < MAX_MAPPINGS; i++)
        if (mappings[i].end && mappings[i].start < end && mappings[i].end > start)
            cut_mapping(&mappings[i], start, end);
}

static uintptr_t page_end(uintptr_t start, size_t len)
{
    return start + ((len + PAGE - 1) & ~(uintptr_t)(PAGE - 1));
}

static void forget_mappings(void *addr, size_t len)
{
    if (!__atomic_load_n(&mapping_count, __ATOMIC_RELAXED))
        return;
    uint64_t before = lock_take(&lock_word);
    cut_mappings((uintptr_t)addr, page_end((uintptr_t)addr, len));
    lock_give(&lock_word, before);
}

static bool maps_emulated(void *addr, size_t len)
{
    if (!__atomic_load_n(&mapping_count, __ATOMIC_RELAXED))
        return false;
    uintptr_t start = (uintptr_t)addr, end = start + len;
    bool found = false;
    uint64_t before = lock_take(&lock_word);
    for (int i = 0; i < MAX_MAPPINGS && !found; i++)
        found = mappings[i].end && mappings[i].start < end && mappings[i].end > start;
    lock_give(&lock_word, before);
    return found;
}

/* The addresses are about to be given up. */
static void forget(void *addr, size_t len)
{
    adopt_munmap(addr, len);
    trap_unmap(addr, len);
    forget_mappings(addr, len);
}

/* ---- an emulated file's mapping ------------------------------------------------------------------------ */

static long place_segment(char *base, const struct mmap_segment *s, const struct exchange *x, int prot, int flags,
                          uint64_t cookie, int keep_fd)
{
    if (s->kind == SEGMENT_TRAP)
        return trap_map(base + s->offset, s->length, prot, flags, cookie, keep_fd, s->fd_offset);
    if (s->fd_index >= x->header.fds)
        return -EIO;
    return raw_mmap(base + s->offset, s->length, prot, (flags & (MAP_SHARED | MAP_PRIVATE)) | MAP_FIXED,
                    x->fds[s->fd_index], (off_t)s->fd_offset);
}

/* Reserves the range, then fills it. hold_fd is the daemon's, or -1. */
static long place(void *addr, size_t len, int prot, int flags, int fd, uint64_t cookie, const struct exchange *x,
                  const struct mmap_segment *segments, size_t count, int hold_fd)
{
    int placing = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE | MAP_32BIT);
    if (flags & MAP_FIXED)
        forget(addr, len);
    long base = raw_mmap(addr, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | placing, -1, 0);
    if (base < 0 && base > -4096)
        return base;
    struct mapping whole = {.keep_fd = fd, .hold_fd = hold_fd};
    uint64_t before = lock_take(&lock_word);
    long result = add_part(&whole, (uintptr_t)base, page_end((uintptr_t)base, len));
    lock_give(&lock_word, before);
    for (size_t i = 0; i < count && result >= 0; i++)
        result = place_segment((char *)base, &segments[i], x, prot, flags, cookie, fd);
    if (result < 0 && result > -4096) {
        raw_munmap((void *)base, len);
        forget((void *)base, len);
        return result;
    }
    return base;
}

static long map_emulated(void *addr, size_t len, int prot, int flags, int fd, uint64_t cookie, off_t offset)
{
    if (len == 0 || offset & (PAGE - 1) || ((flags & MAP_FIXED) && (uintptr_t)addr & (PAGE - 1)))
        return -EINVAL;
    struct mmap_body body = {
        .file = {.cookie = cookie, .fd = fd},
        .length = (len + PAGE - 1) & ~(uint64_t)(PAGE - 1),
        .offset = (uint64_t)offset,
        .protection = (uint32_t)prot,
        .flags = (uint32_t)flags,
    };
    trap_table(&body.windows, &body.windows_used);
    struct mmap_segment segments[MAX_SEGMENTS];
    struct exchange x = {
        .op = OP_MMAP, .send = {{&body, sizeof body}}, .nsend = 1, .reply = segments, .reply_size = sizeof segments};
    long result = shim_exchange_restarting(&x);
    int hold_fd = result > 0 && x.header.fds > 0 ? x.fds[x.header.fds - 1] : -1;
    if (result >= 0)
        result = place(addr, len, prot, flags, fd, cookie, &x, segments, x.header.length / sizeof segments[0], hold_fd);
    for (uint32_t i = 0; i < x.header.fds; i++)
        raw_close(x.fds[i]);
    return result;
}

EXPORT void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
    if (!attached())
        return real.mmap(addr, len, prot, flags, fd, offset);
    bool anonymous = flags & MAP_ANONYMOUS;
    uint64_t cookie = anonymous ? 0 : emulated_cookie(fd, true);
    if (cookie)
        return (void *)result_of(map_emulated(addr, len, prot, flags, fd, cookie, offset));
    if ((flags & MAP_FIXED) && len)
        forget(addr, len);
    if (anonymous && flags & MAP_HUGETLB)
        return (void *)result_of(huge_mmap_anonymous(addr, len, prot, flags));
    if (anonymous && (flags & MAP_TYPE) == MAP_SHARED)
        return (void *)result_of(adopt_mmap_shared_anonymous(addr, len, prot, flags));
    return real.mmap(addr, len, prot, flags, fd, offset);
}

EXPORT void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
    __attribute__((alias("mmap64")));

EXPORT int munmap(void *addr, size_t len)
{
    /* Forgotten first: as soon as the range is free another thread may be given it, and its windows must stay. */
    if (attached() && len && !((uintptr_t)addr & (PAGE - 1)))
        forget(addr, len);
    return real.munmap(addr, len);
}

/* Under the lock: the mapping that holds all of [start, end). */
static struct mapping *mapping_of(uintptr_t start, uintptr_t end)
{
    for (int i = 0; i < MAX_MAPPINGS; i++)
        if (mappings[i].end && mappings[i].start <= start && mappings[i].end >= end)
            return &mappings[i];
    return NULL;
}

/* Linux moves and shrinks such a mapping, and does not let it grow. */
static long why_not_movable(void *old, size_t old_size, size_t new_size, int flags)
{
    uintptr_t start = (uintptr_t)old, end = page_end(start, old_size);
    uint64_t before = lock_take(&lock_word);
    bool found = mapping_of(start, end) != NULL;
    lock_give(&lock_word, before);
    if (!found || page_end(start, new_size) > end)
        return -EFAULT;
    return flags & MREMAP_DONTUNMAP ? -EINVAL : 0;
}

static long move_emulated(void *old, size_t old_size, size_t new_size, int flags, void *target)
{
    uintptr_t start = (uintptr_t)old, end = page_end(start, old_size);
    uint64_t before = lock_take(&lock_word);
    struct mapping *m = mapping_of(start, end);
    long result = m ? raw_mremap(old, old_size, new_size, flags, target) : -EFAULT;
    if (result == (long)start) {
        trap_unmap((char *)start + new_size, end - page_end(start, new_size));
        cut_mappings(page_end(start, new_size), end);
    } else if (result >= 0 || result <= -4096) {
        trap_move(old, new_size, (void *)result);
        trap_unmap(old, old_size);
        add_part(m, (uintptr_t)result, page_end((uintptr_t)result, new_size));
        cut_mappings(start, end);
    }
    lock_give(&lock_word, before);
    return result;
}

EXPORT void *mremap(void *old, size_t old_size, size_t new_size, int flags, ...)
{
    void *target = NULL;
    long result;
    if (flags & MREMAP_FIXED) {
        va_list list;
        va_start(list, flags);
        target = va_arg(list, void *);
        va_end(list);
    }
    if (!attached())
        return real.mremap(old, old_size, new_size, flags, target);
    bool emulated = maps_emulated(old, old_size ? old_size : 1);
    if (emulated && (result = why_not_movable(old, old_size, new_size, flags)) < 0)
        return (void *)result_of(result);
    if (flags & MREMAP_FIXED)
        forget(target, new_size);
    if (emulated)
        return (void *)result_of(move_emulated(old, old_size, new_size, flags, target));
    if (adopt_mremap(old, old_size, new_size, flags, target, &result))
        return (void *)result_of(result);
    return real.mremap(old, old_size, new_size, flags, target);
}

EXPORT int madvise(void *addr, size_t len, int advice)
{
    int result;
    if (attached() && (trap_madvise(addr, len, advice, &result) || adopt_madvise(addr, len, advice, &result)))
        return (int)result_of(result);
    return real.madvise(addr, len, advice);
}
