/*
 * A virtual IOMMU: the guest's numbers of devices, invalidation of their caches, events with losses,
 * hardware queues.
 */
#include "iommufd-objects.h"
#include <poll.h>

struct entry {
    uint32_t flags, vdev_id, slot;
};
struct event {
    uint32_t flags, sequence, virt_id;
};

static int fd;
static uint32_t viommu;

static int alloc_viommu(uint32_t type, struct device device, uint32_t parent)
{
    uint32_t argument[10] = {sizeof argument, 0, type, device.id, parent};
    int error = request(fd, IOMMU_VIOMMU_ALLOC, argument);
    viommu = argument[5];
    return error;
}

static int alloc_vdevice(struct device device, uint64_t number, uint32_t *id)
{
    struct {
        uint32_t size, viommu_id, dev_id, out_vdevice_id;
        uint64_t virt_id;
    } argument = {24, viommu, device.id, 0, number};
    int error = request(fd, IOMMU_VDEVICE_ALLOC, &argument);
    *id = argument.out_vdevice_id;
    return error;
}

static int alloc_hw_queue(uint32_t index, uint64_t iova, uint32_t *id)
{
    struct {
        uint32_t size, flags, viommu_id, type, index, out_hw_queue_id;
        uint64_t iova, length;
    } argument = {40, 0, viommu, TYPE_SELFTEST, index, 0, iova, 16};
    int error = request(fd, IOMMU_HW_QUEUE_ALLOC, &argument);
    *id = argument.out_hw_queue_id;
    return error;
}

static int trigger(struct device device)
{
    struct test_command command = {.word = device.id};
    return test(fd, OP_TRIGGER_VEVENT, 0, &command);
}

static void caches(struct device device)
{
    uint32_t done;
    struct entry entries[] = {{0, 0x99, 1}, {0, 0x98, 2}, {0, 0x99, 3}};
    must(invalidate(fd, viommu, entries, sizeof entries[0], 3, &done) == EINVAL && done == 1);
    must(check(fd, OP_CHECK_CACHE, device.id, 1, 0) == 0 &&
         check(fd, OP_CHECK_CACHE, device.id, 3, 0xbaddad) == 0);
    entries[0].flags = 1;
    must(invalidate(fd, viommu, entries, sizeof entries[0], 1, &done) == 0 &&
         check(fd, OP_CHECK_CACHE, device.id, 3, 0) == 0);
}

static void events(struct device device)
{
    uint32_t argument[8] = {sizeof argument, 0, viommu, EVENTS_SELFTEST, 2};
    struct event seen[3];
    must(trigger(device) != 0 && request(fd, IOMMU_VEVENTQ_ALLOC, argument) == 0);
    int queue = (int)argument[6];
    struct pollfd one = {queue, POLLIN, 0};
    must(poll(&one, 1, 0) == 0 && read(queue, seen, 4) == -1 && errno == EINVAL &&
         read(queue, seen, sizeof seen) == 0);
    for (int i = 0; i < 4; i++)
        must(trigger(device) == 0);
    must(poll(&one, 1, 0) == 1 && read(queue, seen, sizeof seen[0]) == (ssize_t)sizeof seen[0]);
    must(seen[0].flags == 0 && seen[0].sequence == 0 && seen[0].virt_id == 0x99);
    must(read(queue, seen, sizeof seen) == (ssize_t)sizeof seen[0] + 8);
    must(seen[0].sequence == 1 && seen[1].flags == 1 && seen[1].sequence == 3); /* two were lost */
    must(trigger(device) == 0 && read(queue, seen, sizeof seen) == (ssize_t)sizeof seen[0] &&
         seen[0].sequence == 4);
    must(destroy(fd, argument[5]) == EBUSY && close(queue) == 0 && destroy(fd, argument[5]) == 0);
}

static void hardware_queues(uint32_t ioas)
{
    uint32_t first, second;
    uint8_t *memory = some_pages(2);
    must(map_memory(fd, ioas, memory, PAGE, APERTURE) == 0 &&
         map_memory(fd, ioas, memory + PAGE, PAGE, APERTURE + PAGE) == 0);
    must(alloc_hw_queue(1, APERTURE, &second) == EIO && alloc_hw_queue(2, APERTURE, &second) == EINVAL);
    must(alloc_hw_queue(0, APERTURE + 8 * PAGE, &first) == ENOENT);
    must(alloc_hw_queue(0, APERTURE + 64, &first) == 0 && alloc_hw_queue(0, APERTURE, &second) == EEXIST);
    must(unmap(fd, ioas, APERTURE, PAGE) == EBUSY && unmap(fd, ioas, APERTURE + PAGE, PAGE) == 0);
    must(destroy(fd, viommu) == EBUSY && destroy(fd, first) == 0 && unmap(fd, ioas, APERTURE, PAGE) == 0);
}

int main(void)
{
    fd = open_iommu();
    uint32_t ioas = alloc_ioas(fd), vdevice, second;
    struct device device = plug(fd, ioas, 0);
    uint32_t parent = new_hwpt(fd, device, ioas, NEST_PARENT);
    must(alloc_viommu(TYPE_SELFTEST, device, device.hwpt) == EINVAL &&
         alloc_viommu(7, device, parent) == EOPNOTSUPP);
    must(alloc_viommu(TYPE_SELFTEST, device, 0x7fffffff) == ENOENT &&
         alloc_viommu(TYPE_SELFTEST, device, parent) == 0);
    uint32_t nested = new_nested(fd, device, viommu, 0x77);
    must(replace(fd, device, nested) == ENOENT); /* the guest has no number for it yet */
    must(alloc_vdevice(device, 0x99, &vdevice) == 0 && alloc_vdevice(device, 0x98, &second) == EEXIST);
    must(replace(fd, device, nested) == 0 && destroy(fd, viommu) == EBUSY);
    caches(device);
    events(device);
    hardware_queues(ioas);
    must(replace(fd, device, parent) == 0 && destroy(fd, nested) == 0);
    must(destroy(fd, device.stdev) == 0); /* its number for the guest goes with it */
    must(destroy(fd, vdevice) == ENOENT && destroy(fd, viommu) == 0 && destroy(fd, parent) == 0 &&
         destroy(fd, ioas) == 0);
    puts("viommu");
    return 0;
}
