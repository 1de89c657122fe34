/*
 * Baseline of the IOTLB: the same design as src/hardware/iotlb.ts, linear probing over a window of eight entries, keys of
 * page and tag of the address space, one probe for each page size in use, the page a device used last in front. Prints
 * nanoseconds of processor time per lookup.
 *
 *   iotlb ENTRIES LOOKUPS    lookups of ENTRIES pages of four address spaces, in random order
 *   iotlb last LOOKUPS       8-byte steps through pages that a device used last
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { WINDOW = 8, CONTEXTS = 4, PAGE_LG2 = 12 };

struct entry {
    uint32_t key_lo, key_hi, tag, denied;
    double pa;
    uint32_t context, unused;
};

static struct entry *entries;
static uint32_t tags[CONTEXTS];
static uint32_t floor_tag = 1, next_tag = 1, sizes;
static int shift;

static struct {
    double page;
    uint32_t lg2, denied;
} found;

static uint32_t hash(uint32_t tag, uint32_t lo, uint32_t hi)
{
    uint32_t mixed = (lo >> PAGE_LG2) ^ hi * 0x85ebca6bu ^ tag * 0xc2b2ae35u;
    return mixed * 0x9e3779b1u >> shift;
}

static struct entry *find(uint32_t tag, uint32_t lo, uint32_t hi)
{
    struct entry *at = entries + hash(tag, lo, hi);
    for (struct entry *end = at + WINDOW; at < end; at++) {
        if (at->tag == tag && at->key_lo == lo && at->key_hi == hi)
            return at;
        if (at->tag == 0)
            return NULL;
    }
    return NULL;
}

static int lookup(uint32_t context, uint32_t lo, uint32_t hi)
{
    uint32_t tag = tags[context];
    if (tag < floor_tag)
        return 0;
    for (uint32_t left = sizes; left != 0; left &= left - 1) {
        uint32_t lg2 = PAGE_LG2 + (uint32_t)__builtin_ctz(left);
        const struct entry *at = find(tag, (lo & -(1u << lg2)) | lg2, hi);
        if (at) {
            found.page = at->pa;
            found.lg2 = lg2;
            found.denied = at->denied;
            return 1;
        }
    }
    return 0;
}

static void enter(uint32_t context, uint32_t lo, uint32_t hi, uint64_t pa)
{
    if (tags[context] < floor_tag)
        tags[context] = next_tag++;
    uint32_t tag = tags[context], key_lo = (lo & ~0xfffu) | PAGE_LG2;
    struct entry *at = find(tag, key_lo, hi);
    if (!at) {
        at = entries + hash(tag, key_lo, hi);
        for (struct entry *end = at + WINDOW; at->tag != 0; at++)
            if (at + 1 == end)
                break;
    }
    *at = (struct entry){ key_lo, hi, tag, 0, (double)(pa & ~0xfffull), context, 0 };
    sizes |= 1;
}

/* splitmix32, as src/base/clock.ts */
static uint32_t state = 1;
static uint32_t random32(void)
{
    uint32_t z = state += 0x9e3779b9u;
    z = (z ^ z >> 16) * 0x21f0aaadu;
    z = (z ^ z >> 15) * 0x735a2d97u;
    return z ^ z >> 15;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static double sum; /* keeps the work from being optimised away */

static double hits(uint32_t count, uint32_t lookups)
{
    uint32_t capacity = 4 * count;
    entries = calloc(capacity + WINDOW, sizeof *entries);
    shift = 32 - __builtin_ctz(capacity);
    uint32_t *lo = malloc(count * sizeof *lo), *hi = malloc(count * sizeof *hi), *context = malloc(count * sizeof *context);
    for (uint32_t i = 0; i < count; i++) {
        lo[i] = random32();
        hi[i] = random32() & 0xff;
        context[i] = i % CONTEXTS;
        enter(context[i], lo[i], hi[i], (uint64_t)i << 12);
    }
    uint32_t held = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (!lookup(context[i], lo[i], hi[i]))
            continue;
        lo[held] = lo[i];
        hi[held] = hi[i];
        context[held++] = context[i];
    }
    double start = now();
    for (uint32_t i = 0, next = 0; i < lookups; i++) {
        if (!lookup(context[next], lo[next], hi[next]))
            abort();
        sum += found.page;
        if (++next == held)
            next = 0;
    }
    return (now() - start) / lookups;
}

struct device {
    int64_t stamp;
    uint32_t page_lo, page_hi, mask, denied;
    double pa, size;
};
struct transaction {
    uint32_t rid, pasid, lo, hi, access;
    double pa, span;
};
static int64_t stamp = 7;
static int enabled = 1;
static struct device **buses[256];

__attribute__((noinline)) static int slow(struct transaction *t)
{
    t->span = 0;
    return 1;
}

static int translate(struct transaction *t)
{
    if (!enabled)
        return slow(t);
    struct device **bus = buses[t->rid >> 8];
    const struct device *d = bus ? bus[t->rid & 0xff] : NULL;
    if (d && d->stamp == stamp && (t->lo & d->mask) == d->page_lo && t->hi == d->page_hi && (t->access & d->denied) == 0 &&
        t->pasid == UINT32_MAX) {
        uint32_t offset = t->lo & ~d->mask;
        t->pa = d->pa + offset;
        t->span = d->size - offset;
        return 0;
    }
    return slow(t);
}

static double last(uint32_t lookups)
{
    struct device device = { stamp, 0x5000, 0x9, ~0xfffu, 0, 0x400000, 4096 };
    buses[1] = calloc(256, sizeof *buses[1]);
    buses[1][0] = &device;
    struct transaction t = { 0x100, UINT32_MAX, 0, 0x9, 1, 0, 0 };
    double start = now();
    for (uint32_t i = 0; i < lookups; i++) {
        t.lo = 0x5000 + (i * 8 & 0xfff);
        if (translate(&t) != 0)
            abort();
        sum += t.pa + t.span;
    }
    return (now() - start) / lookups;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    uint32_t lookups = (uint32_t)strtoul(argv[2], NULL, 0);
    double each = strcmp(argv[1], "last") == 0 ? last(lookups) : hits((uint32_t)strtoul(argv[1], NULL, 0), lookups);
    printf("%.3f\n", each);
    return sum < 0;
}
