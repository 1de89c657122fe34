/*
 * Nested page tables: what they may lie above, invalidation entry by entry, and what the hardware tells
 * of itself.
 */
#include "iommufd-objects.h"

static int fd;

struct entry {
    uint32_t flags, slot;
};

static void hardware_information(struct device device)
{
    struct {
        uint32_t size, flags, dev_id, data_len;
        uint64_t data_uptr;
        uint32_t data_type;
        uint8_t max_pasid_log2, reserved[3];
        uint64_t capabilities;
    } info = {.size = sizeof info, .dev_id = device.id};
    uint32_t data[4] = {1, 1, 1, 1};
    must(request(fd, IOMMU_GET_HW_INFO, &info) == 0 && info.data_len == 8 && info.data_type == 0xfeedbeef);
    must((info.capabilities & 1) != 0); /* it tracks dirty pages */
    info.data_uptr = (uintptr_t)data;
    info.data_len = sizeof data;
    info.data_type = 0;
    must(request(fd, IOMMU_GET_HW_INFO, &info) == 0 && info.data_len == 8);
    must(data[0] == 0 && data[1] == 0xdeadbeef && data[2] == 0 && data[3] == 0);
    info.dev_id = 0x7fffffff;
    must(request(fd, IOMMU_GET_HW_INFO, &info) == ENOENT);
}

static void what_lies_beneath(struct device device, uint32_t ioas, uint32_t parent)
{
    uint32_t data[2] = {7, 0}, plain = new_hwpt(fd, device, ioas, 0);
    struct hwpt_alloc alloc = {.dev_id = device.id, .pt_id = plain, .data_type = DATA_SELFTEST,
         .data_len = sizeof data, .data_uptr = (uintptr_t)data};
    must(hwpt_alloc(fd, &alloc) == EINVAL); /* no nest parent */
    alloc.pt_id = parent;
    alloc.data_type = 0xbeef;
    must(hwpt_alloc(fd, &alloc) == EOPNOTSUPP);
    alloc.data_type = DATA_SELFTEST;
    alloc.data_len = 16;
    must(hwpt_alloc(fd, &alloc) == EINVAL);
    alloc.data_len = sizeof data;
    alloc.data_uptr = 8;
    must(hwpt_alloc(fd, &alloc) == EFAULT && destroy(fd, plain) == 0);
}

static void invalidations(uint32_t nested)
{
    uint32_t done;
    struct entry entries[] = {{0, 1}, {0, 3}, {0, 4}, {0, 2}};
    must(invalidate(fd, nested, entries, sizeof entries[0], 4, &done) == EINVAL && done == 2);
    for (uint32_t slot = 0; slot < 4; slot++)
        must(check(fd, OP_CHECK_IOTLB, nested, slot, slot & 1 ? 0 : 0x77) == 0);
    entries[0].flags = 2;
    must(invalidate(fd, nested, entries, sizeof entries[0], 1, &done) == EOPNOTSUPP && done == 0);
    must(invalidate(fd, nested, NULL, sizeof entries[0], 1, &done) == EINVAL && done == 0);
    must(invalidate(fd, nested, NULL, 0, 0, &done) == 0);
    entries[0].flags = 1;
    must(invalidate(fd, nested, entries, sizeof entries[0], 1, &done) == 0 && done == 1);
    for (uint32_t slot = 0; slot < 4; slot++)
        must(check(fd, OP_CHECK_IOTLB, nested, slot, 0) == 0);
}

int main(void)
{
    fd = open_iommu();
    uint32_t ioas = alloc_ioas(fd);
    struct device device = plug(fd, ioas, 0);
    uint32_t parent = new_hwpt(fd, device, ioas, NEST_PARENT);
    hardware_information(device);
    what_lies_beneath(device, ioas, parent);
    uint32_t nested = new_nested(fd, device, parent, 0x77), other = new_nested(fd, device, parent, 0x88);
    must(check(fd, OP_CHECK_IOTLB, nested, 0, 0x78) == EINVAL);
    must(destroy(fd, parent) == EBUSY);
    must(replace(fd, device, nested) == 0 && destroy(fd, nested) == EBUSY);
    invalidations(nested);
    must(check(fd, OP_CHECK_IOTLB, other, 2, 0x88) == 0);
    uint32_t done;
    must(invalidate(fd, parent, &done, 8, 1, &done) == EINVAL &&
         invalidate(fd, 0x7fffffff, &done, 8, 1, &done) == ENOENT);
    must(replace(fd, device, other) == 0 && destroy(fd, nested) == 0);
    must(replace(fd, device, ioas) == 0 && destroy(fd, other) == 0 && destroy(fd, parent) == 0);
    puts("nesting");
    return 0;
}
