/* Baseline of the page-table walk: VT-d second stage, four levels, as in `tables.h`. */
#include "tables.h"

static uint64_t root;

WALKER static int walk(uint64_t iova, int need, struct result *out)
{
    return walk_second(root, iova, need, out);
}

void prepare(const uint32_t *pages, uint32_t count)
{
    begin(count);
    root = allocate();
    for (uint32_t i = 0; i < count; i++)
        map_second(root, choose(i, pages[i]), (1ull << 33) + ((uint64_t)pages[i] << 12));
}

double walks(uint32_t from, uint32_t count)
{
    return walk_items(from, count, walk, READ | WRITE);
}
