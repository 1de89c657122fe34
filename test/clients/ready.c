/* What poll and epoll say of the files of iommufd, and what is left when a file gets no descriptor. Prints it. */
#include <poll.h>
#include <sys/epoll.h>
#include <sys/resource.h>

#include "iommufd-mock.h"

enum { IOMMU_FAULT_QUEUE_ALLOC = 0x3b8e, IOMMU_VEVENTQ_ALLOC = 0x3b93, NEST_PARENT = 1 };

struct fault_alloc {
    uint32_t size, flags, out_fault_id, out_fault_fd;
};

static void show(const char *what, int fd)
{
    /* Of what is always writable, POLLWRNORM is not asked where Linux has POLLOUT alone: a socket has both. */
    struct pollfd poller = {.fd = fd, .events = POLLIN | POLLOUT | POLLRDNORM};
    if (strcmp(what, "iommufd") == 0 || strcmp(what, "access") == 0)
        poller.events |= POLLWRNORM;
    must(poll(&poller, 1, 0) >= 0);
    struct epoll_event event = {.events = EPOLLIN};
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    int error = epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : errno;
    must(error || (epoll_wait(epoll, &event, 1, 0) == 0 && epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL) == 0));
    close(epoll);
    printf("%s: poll 0x%x, epoll %s\n", what, poller.revents, error ? strerrorname_np(error) : "0");
}

static int event_queue(int fd, uint32_t device, uint32_t ioas)
{
    struct {
        uint32_t size, flags, dev_id, pt_id, out_hwpt_id, reserved, data_type, data_len;
        uint64_t data_uptr;
        uint32_t fault_id, reserved2;
    } hwpt = {.size = 48, .flags = NEST_PARENT, .dev_id = device, .pt_id = ioas};
    must(request(fd, IOMMU_HWPT_ALLOC, &hwpt) == 0);
    struct {
        uint32_t size, flags, type, dev_id, hwpt_id, out_viommu_id, data_len, reserved;
        uint64_t data_uptr;
    } viommu = {.size = 40, .type = TYPE_SELFTEST, .dev_id = device, .hwpt_id = hwpt.out_hwpt_id};
    must(request(fd, IOMMU_VIOMMU_ALLOC, &viommu) == 0);
    struct {
        uint32_t size, flags, viommu_id, type, depth, out_id, out_fd, reserved;
    } queue = {.size = 32, .viommu_id = viommu.out_viommu_id, .type = 0xbeefbeefu, .depth = 4};
    must(request(fd, IOMMU_VEVENTQ_ALLOC, &queue) == 0);
    return (int)queue.out_fd;
}

/* Takes every number that is left; what it took is closed again. */
static int fault_alloc_without_numbers(int fd, struct fault_alloc *fault)
{
    int taken[64], count = 0;
    struct rlimit limit = {.rlim_cur = 40, .rlim_max = 40}, before;
    must(getrlimit(RLIMIT_NOFILE, &before) == 0);
    limit.rlim_max = before.rlim_max;
    must(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    while ((taken[count] = dup(0)) >= 0)
        count++;
    must(errno == EMFILE);
    int error = request(fd, IOMMU_FAULT_QUEUE_ALLOC, fault);
    while (count > 0)
        close(taken[--count]);
    must(setrlimit(RLIMIT_NOFILE, &before) == 0);
    return error;
}

int main(void)
{
    int fd = open_iommu();
    uint32_t ioas = alloc_ioas(fd), device = mock_device(fd, ioas);
    show("iommufd", fd);
    show("access", create_access(fd, ioas));
    struct fault_alloc fault = {.size = sizeof fault}, more = fault, last = fault;
    must(request(fd, IOMMU_FAULT_QUEUE_ALLOC, &fault) == 0);
    show("fault queue", (int)fault.out_fault_fd);
    show("event queue", event_queue(fd, device, ioas));
    must(request(fd, IOMMU_FAULT_QUEUE_ALLOC, &more) == 0);
    must(close((int)more.out_fault_fd) == 0 && destroy(fd, more.out_fault_id) == 0);
    int error = fault_alloc_without_numbers(fd, &last);
    printf("without a descriptor: %s, id %u, ", error ? strerrorname_np(error) : "0", last.out_fault_id);
    must(request(fd, IOMMU_FAULT_QUEUE_ALLOC, &last) == 0);
    printf("next id %s\n", last.out_fault_id == more.out_fault_id ? "the same" : "another");
    return 0;
}
