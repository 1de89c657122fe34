/* Faults under guests' tables as a VMM takes them: the fault region, mapped, its eventfd, and responses. */
#ifndef VSVA_FAULTS_H
#define VSVA_FAULTS_H
#include "vsva.h"
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

enum { OP_RESPOND = 18, FAULT_TYPE = 0x8001 };
enum { UNRECOVERABLE = 1, PAGE_REQUEST = 2 };
enum { SUCCESS = 0, INVALID = 1, FAILURE = 2 };
enum { IDLE = 0, BUSY = 1 };

struct fault {
    uint32_t type, padding;
    union {
        struct {
            uint32_t reason, flags, pasid, perm;
            uint64_t addr, fetch_addr;
        } event;
        struct {
            uint32_t flags, pasid, grpid, perm;
            uint64_t addr, private_data[2];
        } prm;
        uint8_t room[56];
    };
};
struct fault_head {
    uint32_t version, entry_size, entries;
    volatile uint32_t producer, consumer, lost;
    uint32_t reserved[2];
};
struct response {
    uint32_t argsz, version, flags, pasid, grpid, code;
};
_Static_assert(sizeof(struct fault) == 64 && sizeof(struct fault_head) == 32, "layout");
_Static_assert(sizeof(struct response) == 24, "layout");

struct faults {
    struct fault_head *head;
    size_t bytes;
    int eventfd;
};

/* The region and the interrupt of the type, found as a VMM finds them; the region mapped, the interrupt heard. */
static inline struct faults listen_to_faults(struct setup s)
{
    struct faults f = {0};
    struct vfio_device_info device = {.argsz = sizeof(device)};
    must(ioctl(s.device, VFIO_DEVICE_GET_INFO, &device) == 0);
    for (uint32_t index = VFIO_PCI_NUM_REGIONS; index < device.num_regions; index++) {
        struct {
            struct vfio_region_info info;
            uint8_t room[64];
        } region = {.info = {.argsz = sizeof(region), .index = index}};
        must(ioctl(s.device, VFIO_DEVICE_GET_REGION_INFO, &region) == 0 && region.info.cap_offset);
        struct vfio_region_info_cap_type *type = (void *)((uint8_t *)&region + region.info.cap_offset);
        if (type->header.id != VFIO_REGION_INFO_CAP_TYPE || type->type != FAULT_TYPE || type->subtype != 1)
            continue;
        f.bytes = region.info.size;
        f.head = mmap(NULL, f.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s.device, (off_t)region.info.offset);
        must(f.head != MAP_FAILED);
    }
    must(f.head && f.head->version == 1 && f.head->entry_size == sizeof(struct fault));
    for (uint32_t index = VFIO_PCI_NUM_IRQS; index < device.num_irqs; index++) {
        uint32_t info[16] = {sizeof(info), 0, index};
        must(ioctl(s.device, VFIO_DEVICE_GET_IRQ_INFO, info) == 0 && info[4]);
        uint32_t *capability = info + info[4] / 4; /* header, type, subtype */
        if (capability[2] != FAULT_TYPE)
            continue;
        struct {
            struct vfio_irq_set set;
            int32_t fd;
        } irq = {.set = {.argsz = sizeof(irq), .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
                         .index = index, .count = 1}};
        must((f.eventfd = irq.fd = eventfd(0, 0)) >= 0);
        must(ioctl(s.device, VFIO_DEVICE_SET_IRQS, &irq) == 0);
    }
    must(f.eventfd > 0);
    return f;
}

/* The next fault, which is then taken; the eventfd says when there is one. */
static inline struct fault next_fault(struct faults f)
{
    while (f.head->consumer == f.head->producer) {
        struct pollfd wait = {.fd = f.eventfd, .events = POLLIN};
        uint64_t count;
        must(poll(&wait, 1, 30000) == 1 && read(f.eventfd, &count, sizeof(count)) == sizeof(count));
    }
    struct fault *ring = (void *)(f.head + 1);
    struct fault fault = ring[f.head->consumer % f.head->entries];
    f.head->consumer++;
    return fault;
}

static inline struct fault next_request(struct faults f)
{
    struct fault fault;
    do
        fault = next_fault(f);
    while (fault.type != PAGE_REQUEST);
    return fault;
}

static inline struct response answer(uint32_t pasid, uint32_t grpid, uint32_t code)
{
    struct response response = {sizeof(response), 1, 1, pasid, grpid, code};
    return response;
}

static inline int respond(int container, struct response response)
{
    return nesting_op(container, OP_RESPOND, &response, sizeof(response));
}

static inline uint32_t status_of(struct setup s)
{
    uint32_t status;
    must(pread(s.device, &status, 4, (off_t)(s.bar + STATUS)) == 4);
    return status;
}

static inline uint32_t end_of(struct setup s)
{
    for (int patience = 0; status_of(s) == BUSY; patience++)
        must(patience < 100000);
    return status_of(s);
}
#endif
