/* Random mappings of pages that have an owner: after each step the daemon knows how many of them are left. */
#include "client.h"

#define PAGE 4096ul
#define SLOTS 16
#define LENGTH 3 /* pages of one mapping */

static char *window;
static int owner[SLOTS]; /* which mapping the page belongs to; 0: none */
static int made;
static int node;

static unsigned below(unsigned limit)
{
    static uint32_t state;
    if (!state)
        state = (uint32_t)strtoul(getenv("SEED"), NULL, 10);
    state = state * 1664525u + 1013904223u;
    return (state >> 8) % limit;
}

static int living(void)
{
    int count = 0;
    for (int id = 1; id <= made; id++)
        for (int i = 0; i < SLOTS; i++)
            if (owner[i] == id) {
                count++;
                break;
            }
    return count;
}

static char *slot(unsigned i)
{
    return window + i * PAGE;
}

static void map(void)
{
    unsigned at = below(SLOTS - LENGTH + 1);
    char *got = mmap(slot(at), LENGTH * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, node, 0);
    CHECK(got == slot(at));
    made++;
    for (unsigned i = at; i < at + LENGTH; i++)
        owner[i] = made;
}

static void clear(unsigned at, unsigned count)
{
    for (unsigned i = at; i < at + count; i++)
        owner[i] = 0;
}

/* Gives up some pages; the addresses stay reserved. */
static void unmap(void)
{
    unsigned at = below(SLOTS), count = 1 + below(SLOTS - at);
    if (below(2))
        CHECK(munmap(slot(at), count * PAGE) == 0);
    CHECK(mmap(slot(at), count * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == slot(at));
    clear(at, count);
}

static void move(void)
{
    unsigned from = below(SLOTS), count = 1, to = below(SLOTS);
    if (!owner[from])
        return;
    while (from + count < SLOTS && owner[from + count] == owner[from] && below(3))
        count++;
    unsigned left = 1 + below(count);
    if (to + left > SLOTS || (to < from + count && from < to + left))
        return;
    /* Two parts of one mapping that lie side by side in the wrong order are two mappings for the kernel. */
    char *got = mremap(slot(from), count * PAGE, left * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, slot(to));
    if (got == MAP_FAILED) {
        CHECK(errno == EFAULT);
        return;
    }
    for (unsigned i = 0; i < left; i++)
        owner[to + i] = owner[from + i];
    clear(from, count);
    CHECK(mmap(slot(from), count * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == slot(from));
}

/* While a child lives nothing is gone; when it has ended, all is as it was. */
static void fork_one(void)
{
    int before = living(), ends[2];
    CHECK(pipe(ends) == 0);
    pid_t child = fork();
    if (child == 0) {
        char byte;
        close(ends[1]);
        if (below(2))
            CHECK(munmap(window, SLOTS * PAGE) == 0);
        _exit(read(ends[0], &byte, 1) == 0 ? 0 : 1);
    }
    close(ends[0]);
    CHECK(ioctl(node, MAPPED, 0) == before);
    if (below(2))
        CHECK(kill(child, SIGKILL) == 0);
    close(ends[1]);
    CHECK(waitpid(child, NULL, 0) == child);
}

int main(void)
{
    node = open_node();
    window = mmap(NULL, SLOTS * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(window != MAP_FAILED);
    for (int step = 0; step < 400; step++) {
        switch (below(8)) {
        case 0: case 1: case 2: map(); break;
        case 3: case 4: unmap(); break;
        case 5: case 6: move(); break;
        default: if (step % 4 == 0) fork_one();
        }
        CHECK(ioctl(node, MAPPED, 0) == living());
    }
    puts("done");
    return 0;
}
