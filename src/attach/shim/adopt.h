/* What the files of adoption share: adopt.c moves memory; adopted.c, shared.c and stacks.c are about what it leads to. */
#ifndef SOFTIOMMU_ADOPT_H
#define SOFTIOMMU_ADOPT_H

#include <stdbool.h>
#include <stdint.h>

#include "adopt_maps.h"

#define PAGE UINT64_C(4096)

struct span {
    uint64_t start;
    uint64_t end; /* 0: none */
};

/* One thread at a time changes mappings; fork waits for it. Signals but those of faults are blocked meanwhile. */
uint64_t adopt_lock(void);
void adopt_unlock(uint64_t before);

/* Something was adopted, and something was marked MADV_DONTFORK; the memfd. */
extern bool adopt_any;
extern bool adopt_any_dontfork;
extern struct adopt_file_id adopt_file;

/* Whether [start, end) touches a stack in use. */
bool stacks_touch(uint64_t start, uint64_t end);
/* In the child of a fork, where there is one thread. */
void stacks_keep_own(void);

#endif
