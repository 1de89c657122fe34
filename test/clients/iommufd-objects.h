/*
 * Requests on page tables,
      fault queues and virtual IOMMUs for the clients of the machine `mock` that show one feature
 * each. A function named after a request returns 0 or the errno; one that makes something must succeed.
 */
#ifndef IOMMUFD_OBJECTS_H
#define IOMMUFD_OBJECTS_H
#include "iommufd-mock.h"

enum {
    IOMMU_IOAS_ALLOW_IOVAS = 0x3b82,
    IOMMU_IOAS_COPY = 0x3b83,
    IOMMU_IOAS_IOVA_RANGES = 0x3b84,
    IOMMU_OPTION = 0x3b87,
    IOMMU_VFIO_IOAS = 0x3b88,
    IOMMU_GET_HW_INFO = 0x3b8a,
    IOMMU_HWPT_SET_DIRTY_TRACKING = 0x3b8b,
    IOMMU_HWPT_GET_DIRTY_BITMAP = 0x3b8c,
    IOMMU_HWPT_INVALIDATE = 0x3b8d,
    IOMMU_FAULT_QUEUE_ALLOC = 0x3b8e,
    IOMMU_VDEVICE_ALLOC = 0x3b91,
    IOMMU_VEVENTQ_ALLOC = 0x3b93,
    IOMMU_HW_QUEUE_ALLOC = 0x3b94,
};
enum { NEST_PARENT = 1, DIRTY_TRACKING = 2, FAULT_ID_VALID = 4, FOR_PASIDS = 8 };
enum { DEVICE_NO_DIRTY = 1, DEVICE_PASID = 4 };
#define APERTURE 0x1000000UL
#define DATA_SELFTEST 0xdeadu
#define EVENTS_SELFTEST 0xbeefbeefu

struct device {
    uint32_t stdev, hwpt, id;
};

static inline int test(int fd, uint32_t op, uint32_t id, struct test_command *command)
{
    command->size = sizeof *command;
    command->op = op;
    command->id = id;
    return request(fd, IOMMU_TEST_CMD, command);
}

static inline struct device plug(int fd, uint32_t pt, uint32_t flags)
{
    struct test_command command = {.mock_domain.dev_flags = flags};
    must(test(fd, OP_MOCK_DOMAIN_FLAGS, pt, &command) == 0);
    return (struct device){command.mock_domain.out_stdev_id, command.mock_domain.out_hwpt_id,
                           command.mock_domain.out_idev_id};
}

static inline int replace(int fd, struct device device, uint32_t pt)
{
    struct test_command command = {.word = pt};
    return test(fd, OP_MOCK_DOMAIN_REPLACE, device.stdev, &command);
}

struct hwpt_alloc {
    uint32_t size, flags, dev_id, pt_id, out_hwpt_id, reserved, data_type, data_len;
    uint64_t data_uptr;
    uint32_t fault_id, reserved2;
};

static inline int hwpt_alloc(int fd, struct hwpt_alloc *alloc)
{
    alloc->size = sizeof *alloc;
    return request(fd, IOMMU_HWPT_ALLOC, alloc);
}

static inline uint32_t new_hwpt(int fd, struct device device, uint32_t pt, uint32_t flags)
{
    struct hwpt_alloc alloc = {.flags = flags, .dev_id = device.id, .pt_id = pt};
    must(hwpt_alloc(fd, &alloc) == 0);
    return alloc.out_hwpt_id;
}

/* Above a nest parent or a vIOMMU; every slot of its IOTLB holds `iotlb`. */
static inline uint32_t new_nested(int fd, struct device device, uint32_t pt, uint32_t iotlb)
{
    uint32_t data[2] = {iotlb, 0};
    struct hwpt_alloc alloc = {.dev_id = device.id, .pt_id = pt, .data_type = DATA_SELFTEST,
                               .data_len = sizeof data, .data_uptr = (uintptr_t)data};
    must(hwpt_alloc(fd, &alloc) == 0);
    return alloc.out_hwpt_id;
}

/* `done` are the entries that were served. */
static inline int invalidate(int fd, uint32_t id, const void *entries, uint32_t entry_len,
     uint32_t count, uint32_t *done)
{
    struct {
        uint32_t size, hwpt_id;
        uint64_t data_uptr;
        uint32_t data_type, entry_len, entry_num, reserved;
    } argument = {32, id, (uintptr_t)entries, TYPE_SELFTEST, entry_len, count, 0};

    int error = request(fd, IOMMU_HWPT_INVALIDATE, &argument);
    *done = argument.entry_num;
    return error;
}

static inline int check(int fd, uint32_t op, uint32_t id, uint32_t slot, uint32_t value)
{
    struct test_command command = {.check = {slot, value}};
    return test(fd, op, id, &command);
}

/* How often the pages of some memory are pinned. */
static inline int check_refs(int fd, const void *memory, uint64_t length, uint32_t refs)
{
    struct test_command command = {.check_refs = {length, (uintptr_t)memory, refs}};
    return test(fd, OP_CHECK_REFS, 0, &command);
}

static inline void *some_pages(size_t count)
{
    void *memory = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(memory != MAP_FAILED);
    return memory;
}
#endif
