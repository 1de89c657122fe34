/*
 * Baseline of the page-table walk: VT-d second stage, four levels, as in `tables.h`. Prints nanoseconds of processor time
 * per walk.
 *
 *   walk PAGES SPAN_PAGES WALKS    PAGES pages at random among SPAN_PAGES from 1 GiB on; all of them when equal
 */
#include "tables.h"

static uint64_t root;

__attribute__((noinline)) static int walk(uint64_t iova, int need, struct result *out)
{
    return walk_second(root, iova, need, out);
}

int main(int argc, char **argv)
{
    struct work work;
    int status = prepare(&work, argc, argv);
    if (status)
        return status;
    root = allocate();
    for (uint32_t i = 0; i < work.pages; i++) {
        uint32_t page = choose(&work, i);
        map_second(root, work.iovas[i], (1ull << 33) + ((uint64_t)page << 12));
    }
    return measure(&work, walk, READ | WRITE);
}
