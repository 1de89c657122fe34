/*
 * Baseline of the nested walk: x86-64 tables of four levels over VT-d second-stage tables of four levels (`tables.h`), with
 * the same checks at every entry of both stages.
 */
#include "tables.h"

/* Guest tables lie at their host address and this. */
static const uint64_t GUEST = 1ull << 36;

static uint64_t root, second;

/* A table of the guest: its host address, mapped by the second stage. */
static uint64_t allocate_guest(void)
{
    uint64_t host = allocate();
    map_second(second, GUEST + host, host);
    return host;
}

static void map_first(uint64_t iova, uint64_t guest)
{
    uint64_t table = root - GUEST;
    for (int level = LEVELS - 1; level > 0; level--) {
        uint64_t *entry = at(table + (iova >> (12 + 9 * level) & (ENTRIES - 1)) * 8);
        if (*entry == 0)
            *entry = (GUEST + allocate_guest()) | 0x27;
        table = (*entry & ADDRESS) - GUEST;
    }
    *at(table + (iova >> 12 & (ENTRIES - 1)) * 8) = guest | 0x67;
}

WALKER static int walk(uint64_t iova, int need, struct result *out)
{
    uint64_t table = root;
    int denied = 0;
    out->stage = 1;
    if ((uint64_t)((int64_t)(iova << 16) >> 16) != iova)
        return ended(out, 7, -1, 0, 0);
    for (int level = LEVELS - 1; level >= 0; level--) {
        int shift = 12 + 9 * level;
        uint64_t guest = table + (iova >> shift & (ENTRIES - 1)) * 8;
        int fault = walk_second(second, guest, READ, out);
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

void prepare(const uint32_t *pages, uint32_t count)
{
    begin(count);
    second = allocate();
    root = GUEST + allocate_guest();
    for (uint32_t i = 0; i < count; i++) {
        uint64_t guest = (1ull << 32) + ((uint64_t)pages[i] << 12);
        map_first(choose(i, pages[i]) & ~0xfffull, guest);
        map_second(second, guest, (1ull << 33) + ((uint64_t)pages[i] << 12));
    }
}

double walks(uint32_t from, uint32_t count)
{
    return walk_items(from, count, walk, READ | WRITE | USER);
}
