/*
 * Baseline of the page-table walk: VT-d second stage, four levels, over simulated memory of the same design as ours (a
 * directory of page frames and one pool of frames), with the same checks: frame present, entry present, permission at
 * every level, reserved bits, leaf. Prints nanoseconds of processor time per walk.
 *
 *   walk PAGES SPAN_PAGES WALKS    PAGES pages at random among SPAN_PAGES from 1 GiB on; all of them when equal
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { ENTRIES = 512, LEVELS = 4, POOL_FRAMES = 1 << 13, DIRECTORY = 1 << 20 };

static const uint64_t ADDRESS = ((1ull << 46) - 1) & ~0xfffull;
static const uint64_t TABLE_RESERVED = (1ull << 11) | (((1ull << 52) - 1) & ~((1ull << 46) - 1));

static int32_t *directory; /* page frame -> frame of the pool, or -1 */
static uint64_t *pool;
static uint32_t frames;

struct result {
    uint64_t pa, span, entry, entry_address;
    int level, allowed;
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

static void map(uint64_t root, uint64_t iova, uint64_t pa)
{
    uint64_t table = root;
    for (int level = LEVELS - 1; level > 0; level--) {
        uint64_t *entry = at(table + (iova >> (12 + 9 * level) & (ENTRIES - 1)) * 8);
        if (*entry == 0)
            *entry = allocate() | 3;
        table = *entry & ADDRESS;
    }
    *at(table + (iova >> 12 & (ENTRIES - 1)) * 8) = pa | 3;
}

static int ended(struct result *out, int fault, int level, uint64_t address, uint64_t entry)
{
    out->level = level;
    out->entry_address = address;
    out->entry = entry;
    return fault;
}

__attribute__((noinline)) static int walk(uint64_t root, uint64_t iova, int need, struct result *out)
{
    uint64_t table = root;
    int denied = 0;
    if (iova >> 48)
        return ended(out, 7, -1, 0, 0);
    for (int level = LEVELS - 1; level >= 0; level--) {
        int shift = 12 + 9 * level;
        uint64_t address = table + (iova >> shift & (ENTRIES - 1)) * 8;
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
        uint64_t reserved = TABLE_RESERVED;
        if (large)
            reserved |= ((1ull << shift) - 1) & ~0xfffull;
        else if (level == 3)
            reserved |= 0x80;
        if (entry & reserved)
            return ended(out, 6, level, address, entry);
        if (level == 0 || large) {
            uint64_t mask = (1ull << shift) - 1;
            out->pa = (entry & ADDRESS & ~mask) | (iova & mask);
            out->span = mask + 1 - (iova & mask);
            out->allowed = ~denied & 3;
            return ended(out, 0, level, address, entry);
        }
        table = entry & ADDRESS;
    }
    return ended(out, 6, 0, 0, 0);
}

static uint32_t next_random(void)
{
    static uint64_t state = 88172645463325252ull;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    uint32_t pages = (uint32_t)atol(argv[1]), span = (uint32_t)atol(argv[2]);
    long walks = atol(argv[3]);
    directory = malloc(DIRECTORY * sizeof *directory);
    pool = calloc(POOL_FRAMES, 4096);
    uint64_t *iovas = malloc(pages * sizeof *iovas);
    if (!directory || !pool || !iovas)
        return 1;
    for (int i = 0; i < DIRECTORY; i++)
        directory[i] = -1;
    uint64_t root = allocate();
    for (uint32_t i = 0; i < pages; i++) {
        uint32_t page = pages == span ? i : next_random() % span;
        iovas[i] = (1ull << 30) + ((uint64_t)page << 12) + 64;
        map(root, iovas[i] & ~0xfffull, (1ull << 33) + ((uint64_t)page << 12));
    }
    struct result out = {0};
    uint64_t sum = 0;
    struct timespec start, end;
    uint32_t next = 0;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &start);
    for (long i = 0; i < walks; i++) {
        if (walk(root, iovas[next], 3, &out))
            return 1;
        sum += out.pa;
        if (++next == pages)
            next = 0;
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
    double ns = (double)(end.tv_sec - start.tv_sec) * 1e9 + (double)(end.tv_nsec - start.tv_nsec);
    printf("%.3f\n", ns / (double)walks);
    return sum == 1;
}
