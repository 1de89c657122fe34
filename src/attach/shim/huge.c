/*
 * Memory in huge pages where the computer has none reserved: ordinary pages stand in, aligned and rounded as huge ones
 * are. A program that maps a buffer for a device in huge pages then runs as it would elsewhere. Leaves out: hugetlbfs
 * files, shmget, and what /proc and /sys say of huge pages.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "core.h"

#ifndef MFD_HUGETLB
#define MFD_HUGETLB 4u
#endif
#define SIZE_SHIFT 26 /* MAP_HUGE_SHIFT, MFD_HUGE_SHIFT */
#define SIZE_MASK 63u
#define USUAL_SIZE (UINT64_C(2) << 20)

static int (*real_memfd_create)(const char *, unsigned);

void huge_init(void)
{
    real_memfd_create = shim_next("memfd_create");
}

static bool is_zero(const char *path)
{
    char text[32] = "";
    long fd = raw_openat(AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return true;
    long n = raw_read((int)fd, text, sizeof text - 1);
    raw_close((int)fd);
    return n <= 0 || atol(text) == 0;
}

/* Asked each time: somebody may reserve some meanwhile. */
static bool has_none(void)
{
    return is_zero("/proc/sys/vm/nr_hugepages") && is_zero("/proc/sys/vm/nr_overcommit_hugepages");
}

static bool failed(long result)
{
    return result < 0 && result > -4096;
}

/* An aligned place for `length` bytes, reserved; -errno. */
static long reserve_aligned(uint64_t length, uint64_t alignment)
{
    long base = raw_mmap(NULL, length + alignment, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (failed(base))
        return base;
    uint64_t start = ((uint64_t)base + alignment - 1) & ~(alignment - 1);
    if (start > (uint64_t)base)
        raw_munmap((void *)base, start - (uint64_t)base);
    raw_munmap((void *)(start + length), (uint64_t)base + alignment - start);
    return (long)start;
}

long huge_mmap_anonymous(void *addr, size_t len, int prot, int flags)
{
    unsigned shift = (unsigned)flags >> SIZE_SHIFT & SIZE_MASK;
    uint64_t size = shift ? UINT64_C(1) << shift : USUAL_SIZE;
    uint64_t length = (len + size - 1) & ~(size - 1);
    int ordinary = flags & ~(MAP_HUGETLB | (int)(SIZE_MASK << SIZE_SHIFT));
    long result = raw_mmap(addr, len, prot, flags, -1, 0);
    if (result != -ENOMEM || len == 0 || length < len || !has_none())
        return result;
    bool fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE);
    if (fixed && (uint64_t)addr & (size - 1))
        return -EINVAL;
    long place = fixed ? (long)addr : reserve_aligned(length, size);
    if (failed(place))
        return place;
    if (!fixed)
        ordinary |= MAP_FIXED;
    if ((flags & MAP_TYPE) == MAP_SHARED)
        return adopt_mmap_shared_anonymous((void *)place, length, prot, ordinary);
    return raw_mmap((void *)place, length, prot, ordinary, -1, 0);
}

EXPORT int memfd_create(const char *name, unsigned flags)
{
    if (attached() && flags & MFD_HUGETLB && has_none())
        flags &= ~(MFD_HUGETLB | SIZE_MASK << SIZE_SHIFT);
    return real_memfd_create(name, flags);
}
