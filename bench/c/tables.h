/*
 * What the baselines of walks share: simulated memory of the same design as ours (a directory of page frames and one pool
 * of frames), VT-d second-stage tables of four levels in it, their walk with the same checks (frame present, entry
 * present, permission at every level, reserved bits, leaf), and the measured loop.
 */
#ifndef TABLES_H
#define TABLES_H

#include <stdint.h>
#include <stdlib.h>

enum { ENTRIES = 512, LEVELS = 4, POOL_FRAMES = 1 << 14, DIRECTORY = 1 << 20 };

static const uint64_t ADDRESS = ((1ull << 46) - 1) & ~0xfffull;
/* Address bits that the unit does not put out. */
static const uint64_t BEYOND = ((1ull << 52) - 1) & ~((1ull << 46) - 1);

static int32_t *directory; /* page frame -> frame of the pool, or -1 */
static uint64_t *pool;
static uint32_t frames;

struct result {
    uint64_t pa, span, entry, entry_address, guest;
    int level, allowed, lg2, stage;
};

/* Frames are handed out one after the other, at addresses from 1 MiB on. */
static uint64_t allocate(void)
{
    if (frames == POOL_FRAMES)
        abort();
    directory[256 + frames] = (int32_t)frames;
    return (uint64_t)(256 + frames++) << 12;
}

static uint64_t *at(uint64_t pa)
{
    return pool + (uint64_t)directory[pa >> 12] * ENTRIES + (pa >> 3 & (ENTRIES - 1));
}

static void map_second(uint64_t root, uint64_t input, uint64_t pa)
{
    uint64_t table = root;
    for (int level = LEVELS - 1; level > 0; level--) {
        uint64_t *entry = at(table + (input >> (12 + 9 * level) & (ENTRIES - 1)) * 8);
        if (*entry == 0)
            *entry = allocate() | 3;
        table = *entry & ADDRESS;
    }
    *at(table + (input >> 12 & (ENTRIES - 1)) * 8) = pa | 3;
}

static inline int ended(struct result *out, int fault, int level, uint64_t address, uint64_t entry)
{
    out->level = level;
    out->entry_address = address;
    out->entry = entry;
    return fault;
}

/* A walk is a function for whatever is needed, as ours is: the compiler makes no copy of it for the one need of the loop. */
#define WALKER __attribute__((noinline, noclone))

/* What a walk needs; a second stage knows no user. */
enum { READ = 1, WRITE = 2, USER = 4 };

static inline int walk_second(uint64_t root, uint64_t input, int need, struct result *out)
{
    uint64_t table = root;
    int denied = 0;
    if (input >> 48)
        return ended(out, 7, -1, 0, 0);
    for (int level = LEVELS - 1; level >= 0; level--) {
        int shift = 12 + 9 * level;
        uint64_t address = table + (input >> shift & (ENTRIES - 1)) * 8;
        uint64_t frame = address >> 12;
        if (frame >= DIRECTORY || directory[frame] < 0)
            return ended(out, 9, level, address, 0);
        uint64_t entry = pool[(uint64_t)directory[frame] * ENTRIES + (address >> 3 & (ENTRIES - 1))];
        if ((entry & 3) == 0)
            return ended(out, 1, level, address, entry);
        denied |= ~(int)entry & 3;
        if (denied & need)
            return ended(out, denied & need & 1 ? 2 : 3, level, address, entry);
        int large = level > 0 && level < 3 && (entry & 0x80);
        uint64_t reserved = BEYOND | 1ull << 11;
        if (large)
            reserved |= ((1ull << shift) - 1) & ~0xfffull;
        else if (level == 3)
            reserved |= 0x80;
        if (entry & reserved)
            return ended(out, 6, level, address, entry);
        if (level == 0 || large) {
            uint64_t mask = (1ull << shift) - 1;
            out->pa = (entry & ADDRESS & ~mask) | (input & mask);
            out->lg2 = shift;
            out->span = mask + 1 - (input & mask);
            out->allowed = ~denied & 3;
            return ended(out, 0, level, address, entry);
        }
        table = entry & ADDRESS;
    }
    return ended(out, 6, 0, 0, 0);
}

/* The measured work: the pages that are walked, over and over. */
static uint64_t *iovas;
static uint32_t item_count;

/* Empty memory, and room for `count` pages. */
static void begin(uint32_t count)
{
    free(directory);
    free(pool);
    free(iovas);
    frames = 0;
    directory = malloc(DIRECTORY * sizeof *directory);
    pool = calloc(POOL_FRAMES, 4096);
    iovas = malloc(count * sizeof *iovas);
    if (!directory || !pool || !iovas)
        abort();
    for (int i = 0; i < DIRECTORY; i++)
        directory[i] = -1;
    item_count = count;
}

/* Item i is in a page, counted from 1 GiB on. Its address. */
static uint64_t choose(uint32_t i, uint32_t page)
{
    return iovas[i] = (1ull << 30) + ((uint64_t)page << 12) + 64;
}

/* Walks `count` items from item `from` on; the sum of what they found. */
static inline __attribute__((always_inline)) double
walk_items(uint32_t from, uint32_t count, int (*walk)(uint64_t iova, int need, struct result *out), int need)
{
    struct result out = {0};
    uint64_t sum = 0;
    uint32_t next = from;
    for (uint32_t i = 0; i < count; i++) {
        if (walk(iovas[next], need, &out))
            abort();
        sum += out.pa;
        if (++next == item_count)
            next = 0;
    }
    return (double)sum;
}

#endif
