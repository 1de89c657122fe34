/*
 * What private memory promises and an adopted mapping, which is shared, does not by itself: MADV_DONTNEED gives zeros, a
 * mapping moves and grows, and what it leaves behind is zeros.
 */
#include <errno.h>
#include <sys/mman.h>

#include "adopt.h"
#include "shim.h"

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

/* Fresh zeros in place of adopted mappings of [start, end). */
static long renew(uint64_t start, uint64_t end)
{
    struct adopt_vma vma;
    while (start < end && adopt_maps_next(&adopt_file, start, end, &vma)) {
        long result = raw_mmap((void *)vma.start, vma.end - vma.start, vma.prot,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
        if (result < 0 && result > -4096)
            return result;
        start = vma.end;
    }
    return 0;
}

bool adopt_madvise(void *addr, size_t len, int advice, int *result)
{
    if (advice == MADV_DONTFORK)
        adopt_any_dontfork = true;
    bool discards = advice == MADV_DONTNEED || advice == MADV_DONTNEED_LOCKED;
    if (!__atomic_load_n(&adopt_any, __ATOMIC_ACQUIRE) || !(discards || advice == MADV_FREE || advice == MADV_REMOVE))
        return false;
    struct adopt_vma vma;
    uint64_t start = (uint64_t)addr, end = start + ((len + PAGE - 1) & ~(PAGE - 1));
    if (start & (PAGE - 1) || end <= start)
        return false;
    uint64_t before = adopt_lock();
    bool ours = adopt_maps_next(&adopt_file, start, end, &vma);
    if (ours && advice == MADV_REMOVE) {
        *result = -EINVAL; /* as for private memory */
    } else if (ours) {
        *result = (int)raw_madvise(addr, len, MADV_DONTNEED);
        if (advice == MADV_FREE)
            *result = 0; /* may keep its contents */
        else if (*result == 0)
            *result = (int)renew(start, end);
    }
    adopt_unlock(before);
    return ours;
}

/* Moves a range that is one mapping, or page by page one that is not. */
static long move_mapping(uint64_t from, uint64_t length, uint64_t to)
{
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    long result = raw_mremap((void *)from, length, length, flags, (void *)to);
    for (uint64_t done = 0; result == -EFAULT && length > PAGE && done < length; done += PAGE) {
        long page = raw_mremap((void *)(from + done), PAGE, PAGE, flags, (void *)(to + done));
        if (page < 0 && page > -4096)
            return page;
        if (done + PAGE == length)
            return 0;
    }
    return result < 0 && result > -4096 ? result : 0;
}

/* Moves a range of several mappings to fresh addresses, and lets it grow by private zeros. */
static long move_pieces(uint64_t old, uint64_t old_size, uint64_t new_size)
{
    long target = raw_mmap(NULL, new_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (target < 0 && target > -4096)
        return target;
    for (uint64_t at = old, end = old + old_size; at < end;) {
        struct adopt_vma vma = {.start = end, .end = end};
        if (!adopt_maps_next(&adopt_file, at, end, &vma))
            vma.start = vma.end = end;
        uint64_t stop = vma.start > at ? vma.start : vma.end;
        long result = move_mapping(at, stop - at, (uint64_t)target + (at - old));
        if (result < 0)
            return result;
        at = stop;
    }
    return target;
}

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

/* What stays behind would share the pages that moved; private memory leaves zeros. */
static long move_and_leave_zeros(uint64_t start, uint64_t size, int flags, void *target)
{
    long result = raw_mremap((void *)start, size, size, flags, target);
    if (result < 0 && result > -4096)
        return result;
    long left = renew(start, start + size);
    return left < 0 ? left : result;
}

/*
 * The kernel moves and grows an adopted mapping as any other; behind each range the memfd has fresh zeros. It does not
 * grow what adoption has made several mappings of; glibc copies then, others are not prepared for it.
 */
bool adopt_mremap(void *old, size_t old_size, size_t new_size, int flags, void *new_address, long *result)
{
    uint64_t start = (uint64_t)old, size = (old_size + PAGE - 1) & ~(PAGE - 1);
    uint64_t wanted = (new_size + PAGE - 1) & ~(PAGE - 1);
    bool stays = flags & MREMAP_DONTUNMAP && wanted == size;
    bool grows = flags == MREMAP_MAYMOVE && wanted > size;
    if (!__atomic_load_n(&adopt_any, __ATOMIC_ACQUIRE) || !(stays || grows) || size == 0 || start & (PAGE - 1))
        return false;
    uint64_t before = adopt_lock();
    struct adopt_vma vma;
    bool ours = adopt_maps_next(&adopt_file, start, start + size, &vma) && (stays || vma.end - vma.start < size);
    if (ours && stays)
        *result = move_and_leave_zeros(start, size, flags, new_address);
    else if (ours)
        *result = move_pieces(start, size, wanted);
    adopt_unlock(before);
    return ours;
}
