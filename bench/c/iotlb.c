/*
 * Baseline of the IOTLB: the same design as src/hardware/iotlb.ts, linear probing over a window of eight entries, keys of
 * page and tag of the address space, one probe for each page size in use, the page a device used last in front; and of a
 * translation around it, with what src/hardware/vtd/remapping.ts looks at.
 */
#include <stdint.h>
#include <stdlib.h>

enum { WINDOW = 8, CONTEXTS = 4, PAGE_LG2 = 12 };

struct entry {
    uint32_t key_lo, key_hi, tag, denied;
    double pa;
    uint32_t context, unused;
};

static struct entry *entries;
static uint32_t tags[CONTEXTS];
static uint32_t floor_tag, next_tag, sizes, item_mask;
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

static struct entry *place(uint32_t tag, uint32_t key_lo, uint32_t hi)
{
    static int victim;
    struct entry *start = entries + hash(tag, key_lo, hi);
    for (struct entry *at = start; at < start + WINDOW; at++)
        if (at->tag < floor_tag || at->tag != tags[at->context])
            return at;
    victim = (victim + 1) % WINDOW;
    return start + victim;
}

static void enter(uint32_t context, uint32_t lo, uint32_t hi, double page)
{
    if (tags[context] < floor_tag)
        tags[context] = next_tag++;
    uint32_t tag = tags[context], key_lo = (lo & ~0xfffu) | PAGE_LG2;
    struct entry *at = find(tag, key_lo, hi);
    if (!at)
        at = place(tag, key_lo, hi);
    *at = (struct entry){ key_lo, hi, tag, 0, page, context, 0 };
    sizes |= 1;
}

/* Which item operation n is about. */
static uint32_t item_of(uint32_t n)
{
    uint32_t mixed = (n ^ n >> 15) * 0x2c1b3c6du;
    return mixed ^ mixed >> 12;
}

/* The address and the address space of item i, and where it goes: the same formulas as bench/iotlb.ts. */
static uint32_t item_lo(uint32_t i)
{
    return i * 0x2545f491u;
}
static uint32_t item_hi(uint32_t i)
{
    return i >> 8;
}

/* An empty table for `count` items, a power of two. */
static void make(uint32_t count)
{
    free(entries);
    entries = calloc(4 * count + WINDOW, sizeof *entries);
    if (!entries)
        abort();
    shift = 32 - __builtin_ctz(4 * count);
    item_mask = count - 1;
    floor_tag = next_tag = 1;
    sizes = 0;
    for (int i = 0; i < CONTEXTS; i++)
        tags[i] = 0;
}

void prepare_hits(uint32_t count)
{
    make(count);
    for (uint32_t i = 0; i < count; i++)
        enter(i % CONTEXTS, item_lo(i), item_hi(i), (double)i * 4096);
}

double hits(uint32_t from, uint32_t count)
{
    double sum = 0;
    for (uint32_t n = from; n < from + count; n++) {
        uint32_t i = item_of(n) & item_mask;
        if (lookup(i % CONTEXTS, item_lo(i), item_hi(i)))
            sum += found.page;
    }
    return sum;
}


enum { READ = 1, NONE = 0xffffffff };
enum { INTERRUPTS_LO = 0xfee00000u, INTERRUPTS_END = 0xfef00000u };

/* What is remembered of a requester: its context, and the page it used last. */
struct device {
    uint32_t generation, fault, translation_type, domain, width;
    int64_t stamp;
    uint32_t page_lo, page_hi, mask, denied;
    double pa, size;
};
static uint32_t generation = 3;
static int64_t stamp = 7;
static int enabled = 1, legacy = 1, remembers = 1, paranoid;
static struct device **buses[256];

struct transaction {
    uint32_t rid, pasid, lo, hi, access, translated;
    double pa, span;
};

static int covers_interrupts(double start, double size)
{
    return start < (double)INTERRUPTS_END && start + size > (double)INTERRUPTS_LO;
}

__attribute__((noinline)) static int translate_in_iotlb(struct transaction *t)
{
    if (t->pasid != NONE || (t->hi == 0 && t->lo >= INTERRUPTS_LO && t->lo < INTERRUPTS_END) || paranoid)
        return 1;
    struct device *d = buses[t->rid >> 8][t->rid & 0xff];
    if (d->generation != generation || d->fault || (t->translated && d->translation_type != 1) ||
        t->hi >> (d->width - 32) || d->translation_type == 2)
        return 1;
    if (!lookup(d->domain, t->lo, t->hi) || (found.denied >> 8) || (found.denied & t->access))
        return 1;
    uint32_t mask = -(1u << found.lg2), offset = t->lo & ~mask;
    double size = (double)(1u << found.lg2);
    if ((t->hi == 0 && covers_interrupts((double)(t->lo & mask), size)) || covers_interrupts(found.page, size))
        return 1;
    t->pa = found.page + offset;
    t->span = size - offset;
    if (remembers) {
        d->stamp = stamp;
        d->page_lo = t->lo & mask;
        d->page_hi = t->hi;
        d->mask = mask;
        d->pa = found.page;
        d->size = size;
        d->denied = found.denied;
    }
    return 0;
}

__attribute__((noinline)) static int translate(struct transaction *t)
{
    if (!enabled || !legacy)
        return 1;
    struct device **bus = buses[t->rid >> 8];
    const struct device *d = bus ? bus[t->rid & 0xff] : NULL;
    if (d && d->stamp == stamp && (t->lo & d->mask) == d->page_lo && t->hi == d->page_hi &&
        (t->access & d->denied) == 0 && t->pasid == NONE && !t->translated) {
        uint32_t offset = t->lo & ~d->mask;
        t->pa = d->pa + offset;
        t->span = d->size - offset;
        return 0;
    }
    return translate_in_iotlb(t);
}

/* A requester with `count` pages, from 0x9_0000_0000 on to 0x40_0000 on. */
void prepare_translations(uint32_t count)
{
    static struct device device;
    make(1024);
    item_mask = count - 1;
    for (uint32_t i = 0; i < count; i++)
        enter(1, i * 4096, 9, 0x400000 + (double)i * 4096);
    device = (struct device){ .generation = generation, .domain = 1, .width = 48, .stamp = -1 };
    free(buses[1]);
    buses[1] = calloc(256, sizeof *buses[1]);
    if (!buses[1])
        abort();
    buses[1][0] = &device;
}

/* 8-byte reads, of one page each. */
double translations(uint32_t from, uint32_t count)
{
    struct transaction t = { 0x100, NONE, 0, 9, READ, 0, 0, 0 };
    double sum = 0;
    for (uint32_t n = from; n < from + count; n++) {
        t.lo = (n & item_mask) * 4096 + (n * 8 & 0xfff);
        if (translate(&t) != 0)
            abort();
        sum += t.pa + t.span;
    }
    return sum;
}
