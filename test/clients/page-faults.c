/*
 * A fault queue: groups come out whole, poll tells of them, answers are checked, and what nobody answers
 * is answered.
 */
#include "iommufd-objects.h"
#include <poll.h>

struct fault {
    uint32_t flags, dev_id, pasid, grpid, perm;
    uint32_t padding;
    uint64_t addr;
    uint32_t length, cookie;
};
struct response {
    uint32_t cookie, code;
};

static int fd, queue;
static struct device device;

static int trigger(uint32_t group)
{
    struct test_command command = {.iopf = {device.id, 0, group, 2, 0x5000}};
    return test(fd, OP_TRIGGER_IOPF, 0, &command);
}

static int readable(void)
{
    struct pollfd one = {queue, POLLIN, 0};
    must(poll(&one, 1, 0) >= 0);
    return (one.revents & POLLIN) != 0;
}

static int respond(uint32_t cookie, uint32_t code)
{
    struct response response = {cookie, code};
    return write(queue, &response, sizeof response) == (ssize_t)sizeof response ? 0 : errno;
}

int main(void)
{
    fd = open_iommu();
    uint32_t ioas = alloc_ioas(fd), alloc[4] = {16, 0, 0, 0}, data[2] = {0, 0};
    device = plug(fd, ioas, 0);
    must(request(fd, IOMMU_FAULT_QUEUE_ALLOC, alloc) == 0);
    queue = (int)alloc[3];
    uint32_t parent = new_hwpt(fd, device, ioas, NEST_PARENT);
    struct hwpt_alloc nested = {.flags = FAULT_ID_VALID, .dev_id = device.id, .pt_id = parent,
         .data_type = DATA_SELFTEST,
                                .data_len = sizeof data, .data_uptr = (uintptr_t)data, .fault_id = ioas};
    must(hwpt_alloc(fd, &nested) == ENOENT);
    nested.fault_id = alloc[2];
    must(hwpt_alloc(fd, &nested) == 0 && replace(fd, device, nested.out_hwpt_id) == 0);
    must(destroy(fd, alloc[2]) == EBUSY);

    struct fault faults[3];
    must(!readable() && read(queue, faults, sizeof faults[0]) == 0);
    must(trigger(5) == 0 && trigger(6) == 0 && readable());
    must(read(queue, faults, sizeof faults[0] - 1) == -1 && errno == ESPIPE);
    must(read(queue, faults, sizeof faults[0]) == (ssize_t)sizeof faults[0] && readable());
    must(faults[0].grpid == 5 && faults[0].dev_id == device.id && faults[0].perm == 2 &&
         faults[0].addr == 0x5000);
    must(read(queue, faults + 1, 2 * sizeof faults[0]) == (ssize_t)sizeof faults[0] && !readable());
    must(faults[1].grpid == 6 && faults[1].cookie != faults[0].cookie);

    must(respond(faults[1].cookie + 9, 0) == EINVAL && respond(faults[1].cookie, 2) == EINVAL);
    must(respond(faults[1].cookie, 0) == 0 && respond(faults[1].cookie, 0) == EINVAL);
    must(write(queue, faults, 7) == -1 && errno == ESPIPE);
    must(respond(faults[0].cookie, 1) == 0);

    must(trigger(7) == 0 && read(queue, faults, sizeof faults[0]) == (ssize_t)sizeof faults[0]);
    must(trigger(8) == 0 && replace(fd, device, ioas) == 0); /* both groups are answered for the device */
    must(respond(faults[0].cookie, 0) == EINVAL && !readable());
    must(destroy(fd, nested.out_hwpt_id) == 0);
    must(destroy(fd, alloc[2]) == EBUSY && close(queue) == 0 && destroy(fd, alloc[2]) == 0);
    puts("page faults");
    return 0;
}
