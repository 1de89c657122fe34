/* Shared anonymous memory of the program, which devices are to reach as well. */
#include <errno.h>
#include <sys/mman.h>

#include "adopt.h"
#include "shim.h"

/*
 * It gets a memfd from the start, whose descriptor stays open for the daemon to find, until the mapping is gone. Too
 * many, and the mapping is made as the program asked: reached through system calls then.
 */
#define SHARED_MAPPINGS 256
static struct shared_mapping {
    struct span span;
    int fd;
} shared_mappings[SHARED_MAPPINGS];

static struct shared_mapping *free_shared_mapping(void)
{
    for (int i = 0; i < SHARED_MAPPINGS; i++)
        if (!shared_mappings[i].span.end)
            return &shared_mappings[i];
    return NULL;
}

static int shared_memfd(size_t len)
{
    int fd = (int)raw_memfd_create("softiommu shared", MFD_CLOEXEC);
    if (fd < 0)
        return fd;
    if (raw_ftruncate(fd, (off_t)((len + PAGE - 1) & ~(PAGE - 1))) < 0) {
        raw_close(fd);
        return -ENOMEM;
    }
    int kept = shim_keep_fd(fd);
    if (kept < 0)
        raw_close(fd);
    return kept;
}

long adopt_mmap_shared_anonymous(void *addr, size_t len, int prot, int flags)
{
    uint64_t before = adopt_lock();
    struct shared_mapping *mapping = free_shared_mapping();
    int fd = mapping && len > 0 ? shared_memfd(len) : -1;
    long result = fd < 0 ? raw_mmap(addr, len, prot, flags, -1, 0) : raw_mmap(addr, len, prot, flags & ~MAP_ANONYMOUS, fd, 0);
    bool mapped = !(result < 0 && result > -4096);
    if (fd >= 0 && mapped)
        *mapping = (struct shared_mapping){{(uint64_t)result, (uint64_t)result + ((len + PAGE - 1) & ~(PAGE - 1))}, fd};
    else if (fd >= 0)
        shim_drop_fd(fd);
    adopt_unlock(before);
    return result;
}

void adopt_renumber(int from, int to)
{
    uint64_t before = adopt_lock();
    for (int i = 0; i < SHARED_MAPPINGS; i++)
        if (shared_mappings[i].span.end && shared_mappings[i].fd == from)
            shared_mappings[i].fd = to;
    adopt_unlock(before);
}

void adopt_munmap(void *addr, size_t len)
{
    uint64_t start = (uint64_t)addr, end = start + ((len + PAGE - 1) & ~(PAGE - 1));
    bool any = false;
    for (int i = 0; i < SHARED_MAPPINGS && !any; i++)
        any = shared_mappings[i].span.end && shared_mappings[i].span.start < end && shared_mappings[i].span.end > start;
    if (!any)
        return;
    uint64_t before = adopt_lock();
    for (int i = 0; i < SHARED_MAPPINGS; i++) {
        struct span *span = &shared_mappings[i].span;
        if (!span->end || span->start >= end || span->end <= start)
            continue;
        if (span->start >= start && span->end <= end) {
            shim_drop_fd(shared_mappings[i].fd);
            span->end = 0;
        } else if (span->start >= start) {
            span->start = end;
        } else if (span->end <= end) {
            span->end = start;
        }
    }
    adopt_unlock(before);
}
