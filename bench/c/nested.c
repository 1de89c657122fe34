/*
 * Baseline of the nested walk: x86-64 tables of four levels over VT-d second-stage tables of four levels, in simulated
 * memory of the same design as ours (a directory of page frames and one pool of frames), with the same checks at every
 * entry of both stages. Prints nanoseconds of processor time per walk.
 *
 *   nested PAGES SPAN_PAGES WALKS    PAGES pages at random among SPAN_PAGES from 1 GiB on; all of them when equal
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { ENTRIES = 512, LEVELS = 4, POOL_FRAMES = 1 << 14, DIRECTORY = 1 << 20 };

static const uint64_t ADDRESS = ((1ull << 46) - 1) & ~0xfffull;
static const uint64_t BEYOND = ((1ull << 52) - 1) & ~((1ull << 46) - 1);
/* Guest tables lie at their host address and this. */
static const uint64_t GUEST = 1ull << 36;

static int32_t *directory; /* page frame -> frame of the pool, or -1 */
static uint64_t *pool;
static uint32_t frames;

struct result {
    uint64_t pa, span, entry, entry_address, guest;
    int level, allowed, lg2, stage;
};

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

static void map_second(uint64_t root, uint64_t guest, uint64_t pa)
{
    uint64_t table = root;
    for (int level = LEVELS - 1; level > 0; level--) {
        uint64_t *entry = at(table + (guest >> (12 + 9 * level) & (ENTRIES - 1)) * 8);
        if (*entry == 0)
            *entry = allocate() | 3;
        table = *entry & ADDRESS;
    }
    *at(table + (guest >> 12 & (ENTRIES - 1)) * 8) = pa | 3;
}

/* A table of the guest: its host address, mapped by the second stage. */
static uint64_t allocate_guest(uint64_t second)
{
    uint64_t host = allocate();
    map_second(second, GUEST + host, host);
    return host;
}

static void map_first(uint64_t root, uint64_t second, uint64_t iova, uint64_t guest)
{
    uint64_t table = root;
    for (int level = LEVELS - 1; level > 0; level--) {
        uint64_t *entry = at(table + (iova >> (12 + 9 * level) & (ENTRIES - 1)) * 8);
        if (*entry == 0)
            *entry = (GUEST + allocate_guest(second)) | 0x27;
        table = (*entry & ADDRESS) - GUEST;
    }
    *at(table + (iova >> 12 & (ENTRIES - 1)) * 8) = guest | 0x67;
}

static int ended(struct result *out, int fault, int level, uint64_t address, uint64_t entry)
{
    out->level = level;
    out->entry_address = address;
    out->entry = entry;
    return fault;
}

static int walk_second(uint64_t root, uint64_t guest, int need, struct result *out)
{
    uint64_t table = root;
    int denied = 0;
    if (guest >> 48)
        return ended(out, 7, -1, 0, 0);
    for (int level = LEVELS - 1; level >= 0; level--) {
        int shift = 12 + 9 * level;
        uint64_t address = table + (guest >> shift & (ENTRIES - 1)) * 8;
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
            out->pa = (entry & ADDRESS & ~mask) | (guest & mask);
            out->lg2 = shift;
            out->allowed = ~denied & 3;
            return ended(out, 0, level, address, entry);
        }
        table = entry & ADDRESS;
    }
    return ended(out, 6, 0, 0, 0);
}

/* `need`: 1 read, 2 write, 4 user. */
__attribute__((noinline)) static int walk(uint64_t root, uint64_t second, uint64_t iova, int need, struct result *out)
{
    uint64_t table = root;
    int denied = 0;
    out->stage = 1;
    if ((uint64_t)((int64_t)(iova << 16) >> 16) != iova)
        return ended(out, 7, -1, 0, 0);
    for (int level = LEVELS - 1; level >= 0; level--) {
        int shift = 12 + 9 * level;
        uint64_t guest = table + (iova >> shift & (ENTRIES - 1)) * 8;
        int fault = walk_second(second, guest, 1, out);
        if (fault) {
            out->stage = 2;
            out->guest = guest;
            return fault;
        }
        uint64_t address = out->pa, frame = address >> 12;
        if (frame >= DIRECTORY || directory[frame] < 0)
            return ended(out, 9, level, address, 0);
        uint64_t entry = pool[(uint64_t)directory[frame] * ENTRIES + (address >> 3 & (ENTRIES - 1))];
        if ((entry & 1) == 0)
            return ended(out, 1, level, address, entry);
        denied |= (~(int)entry & 2) | (~(int)entry & 4);
        if (denied & need)
            return ended(out, denied & need & 2 ? 3 : 5, level, address, entry);
        int large = level > 0 && level < 3 && (entry & 0x80);
        uint64_t reserved = BEYOND;
        if (large)
            reserved |= ((1ull << shift) - 1) & ~0x1fffull;
        else if (level == 3)
            reserved |= 0x80;
        if (entry & reserved)
            return ended(out, 6, level, address, entry);
        if (!(entry & 0x20) || ((need & 2) && (level == 0 || large) && !(entry & 0x40)))
            return ended(out, 10, level, address, entry);
        if (level == 0 || large) {
            uint64_t mask = (1ull << shift) - 1;
            uint64_t page = (entry & ADDRESS & ~mask) | (iova & mask);
            fault = walk_second(second, page, need & 3, out);
            if (fault) {
                out->stage = 2;
                out->guest = page;
                return fault;
            }
            if (out->lg2 > shift)
                out->lg2 = shift;
            mask = (1ull << out->lg2) - 1;
            out->span = mask + 1 - (page & mask);
            out->allowed &= ~denied;
            out->guest = page;
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
    uint64_t second = allocate(), root = allocate_guest(second);
    for (uint32_t i = 0; i < pages; i++) {
        uint32_t page = pages == span ? i : next_random() % span;
        uint64_t guest = (1ull << 32) + ((uint64_t)page << 12);
        iovas[i] = (1ull << 30) + ((uint64_t)page << 12) + 64;
        map_first(root, second, iovas[i] & ~0xfffull, guest);
        map_second(second, guest, (1ull << 33) + ((uint64_t)page << 12));
    }
    struct result out = {0};
    uint64_t sum = 0;
    struct timespec start, end;
    uint32_t next = 0;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &start);
    for (long i = 0; i < walks; i++) {
        if (walk(GUEST + root, second, iovas[next], 7, &out))
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
