/* The kernel's own list of this process's mappings, as far as adopt.c needs it. Async-signal-safe. */
#ifndef SOFTIOMMU_ADOPT_MAPS_H
#define SOFTIOMMU_ADOPT_MAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

struct adopt_file_id {
    uint32_t major;
    uint32_t minor;
    uint64_t inode;
};

struct adopt_vma {
    uint64_t start;
    uint64_t end;
    uint64_t offset;
    int prot;
};

struct adopt_file_id adopt_file_id_of(const struct stat *status);

/* The first mapping of the file that touches [start, end), cut to it. False: there is none. */
bool adopt_maps_next(const struct adopt_file_id *file, uint64_t start, uint64_t end, struct adopt_vma *out);

/* All mappings of the file, in fresh memory of *bytes bytes (NULL when there are none). */
struct adopt_vma *adopt_maps_list(const struct adopt_file_id *file, size_t *count, size_t *bytes);

/* Whether the mapping at va is marked MADV_DONTFORK. */
bool adopt_maps_dontfork(uint64_t va);

#endif
