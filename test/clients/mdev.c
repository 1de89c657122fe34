/*
 * Mediated devices on the machine vtd-vsva: two of one function in nesting containers of their own, PASIDs that
 * are not theirs, descriptors that fault, and devices that come and go by writing to sysfs.
 */
#include <sys/eventfd.h>

#include "vsva.h"

#define ONE "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
#define TWO "83b8f4f2-509f-382f-3c1e-e6bfe0fa1002"
#define NEW "0f0e0d0c-509f-382f-3c1e-e6bfe0fa1003"
#define TYPES "/sys/class/mdev_bus/0000:07:00.0/mdev_supported_types/softiommu_queues-"
#define REMOVE(uuid) "/sys/bus/mdev/devices/" uuid "/remove"

/* Registers of a work queue, and its descriptors. */
enum { Q_CONTROL = 0x00, Q_STATUS = 0x04, Q_ERROR = 0x08, Q_PASID = 0x0c };
enum { Q_ENDED = 0x18, Q_LAST = 0x1c, Q_PORTAL = 0x40 };
enum { Q_STOPPED = 3, Q_ERROR_PASID = 2 };
enum { OP_COPY = 1 };
enum { D_DONE = 1, D_FAULT = 2 };
struct descriptor {
    uint32_t pasid, operation;
    uint64_t completion, source, destination;
    uint32_t length, reserved[7];
};
_Static_assert(sizeof(struct descriptor) == 64, "layout");

static uint32_t get(struct setup s, uint32_t offset)
{
    uint32_t value;
    must(pread(s.device, &value, 4, (off_t)(s.bar + offset)) == 4);
    return value;
}

static void restart(struct setup s)
{
    put(s, Q_CONTROL, 0);
    put(s, Q_CONTROL, 1);
}

static void submit(struct setup s, uint64_t source, uint64_t destination, uint32_t tag)
{
    struct descriptor d = {.pasid = tag, .operation = OP_COPY, .length = 16};
    d.source = source;
    d.destination = destination;
    must(pwrite(s.device, &d, sizeof(d), (off_t)(s.bar + Q_PORTAL)) == sizeof(d));
}

/* How a copy of 16 bytes ended: D_DONE, D_FAULT; 0 when the queue has stopped instead. */
static uint32_t copy(struct setup s, uint64_t source, uint64_t destination, uint32_t tag)
{
    uint32_t before = get(s, Q_ENDED);
    submit(s, source, destination, tag);
    for (int patience = 0; get(s, Q_ENDED) == before; patience++) {
        if (get(s, Q_STATUS) == Q_STOPPED)
            return 0;
        must(patience < 100000);
    }
    return get(s, Q_LAST);
}

static int is_stopped_for_pasid(struct setup s)
{
    return get(s, Q_STATUS) == Q_STOPPED && get(s, Q_ERROR) == Q_ERROR_PASID;
}

static int write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);
    if (fd < 0)
        return -errno;
    int value = write(fd, text, strlen(text)) < 0 ? -errno : 0;
    close(fd);
    return value;
}

static int bind_as(struct setup s, int pasid, uint64_t guest_pasid)
{
    struct bind_data data = bind_data(ROOT(0), (uint64_t)pasid);
    data.flags = GPASID_VALID;
    data.gpasid = guest_pasid;
    return nesting_op(s.container, OP_BIND, &data, sizeof(data));
}

/* Each has the tables of its own guest; the other's PASID stops the queue. */
static void two_of_one_function(void)
{
    struct setup one = open_nesting(ONE), two = open_nesting(TWO);
    uint8_t *guest = map_guest(one.container), *other = map_guest(two.container);
    restart(one);
    restart(two);
    strcpy((char *)guest + DATA(0), "of the first");
    strcpy((char *)other + DATA(0), "of the second");
    write_table(guest, 0, DATA(0));
    write_table(other, 0, DATA(0));
    int mine = alloc_pasid(one.container, 1, (1 << 20) - 1);
    int theirs = alloc_pasid(two.container, 1, (1 << 20) - 1);
    must(mine > 0 && theirs > 0 && mine != theirs);
    must(bind_as(one, mine, 5) == 0 && bind_as(two, theirs, 6) == 0);

    must(copy(one, VA, VA + 64, WITH_PASID(5)) == D_DONE && copy(two, VA, VA + 64, WITH_PASID(6)) == D_DONE);
    must(strcmp((char *)guest + DATA(0) + 64, "of the first") == 0);
    must(strcmp((char *)other + DATA(0) + 64, "of the second") == 0);
    must(copy(one, DATA(0), DATA(0) + 128, 0) == D_DONE); /* guest addresses: its default PASID */
    must(strcmp((char *)guest + DATA(0) + 128, "of the first") == 0);

    put(one, Q_PASID, WITH_PASID(mine));
    must(copy(one, VA, VA + 192, 0) == D_DONE && strcmp((char *)guest + DATA(0) + 192, "of the first") == 0);
    uint32_t foreign[] = {(uint32_t)theirs, 6, 0xfffff};
    for (int i = 0; i < 3; i++) {
        must(copy(one, VA, VA + 64, WITH_PASID(foreign[i])) == 0 && is_stopped_for_pasid(one));
        restart(one);
        put(one, Q_PASID, WITH_PASID(foreign[i]));
        must(is_stopped_for_pasid(one));
        put(one, Q_PASID, 0);
        restart(one);
    }
    must(copy(one, VA + PAGE, VA, WITH_PASID(5)) == D_FAULT); /* nothing is there */
    printf("fault of pasid %d\n", mine);
    must(unbind_table(one.container, (uint64_t)mine) == 0);
    must(copy(one, VA, VA + 64, WITH_PASID(5)) == 0 && is_stopped_for_pasid(one));
    must(copy(two, VA, VA + 64, WITH_PASID(6)) == D_DONE);
    close_nesting(one);
    close_nesting(two);
}

static void by_sysfs(void)
{
    must(write_file(TYPES "queue/create", "no uuid") == -EINVAL);
    must(write_file(TYPES "queue/create", ONE) == -EEXIST);
    must(write_file(TYPES "queue/create", NEW "\n") == 0);
    must(access(REMOVE(NEW), F_OK) == 0);
    struct setup made = open_nesting(NEW);
    uint8_t *guest = map_guest(made.container);
    int request = eventfd(0, EFD_NONBLOCK);
    uint32_t flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    struct {
        uint32_t argsz, flags, index, start, count;
        int32_t fd;
    } irq = {sizeof(irq), flags, VFIO_PCI_REQ_IRQ_INDEX, 0, 1, request};
    must(ioctl(made.device, VFIO_DEVICE_SET_IRQS, &irq) == 0);
    restart(made);
    strcpy((char *)guest, "made at run time");
    must(copy(made, 0, PAGE, 0) == D_DONE && memcmp(guest + PAGE, "made at run time", 16) == 0);
    must(write_file(REMOVE(NEW), "1") == -EBUSY);
    uint64_t asked = 0;
    must(read(request, &asked, 8) == 8 && asked == 1);
    close_nesting(made);
    int gone = -EBUSY;
    for (int patience = 0; gone == -EBUSY && patience < 100000; patience++)
        gone = write_file(REMOVE(NEW), "1");
    must(gone == 0 && access(REMOVE(NEW), F_OK) != 0);
}

/* No unit stands before it, so that no container nests for it. */
static void software(void)
{
    must(write_file(TYPES "software/create", NEW) == 0);
    struct setup s = {.container = open("/dev/vfio/vfio", O_RDWR), .group = open_group(NEW)};
    must(ioctl(s.group, VFIO_GROUP_SET_CONTAINER, &s.container) == 0);
    must(request(s.container, VFIO_SET_IOMMU, (void *)NESTING) == -EINVAL);
    must(ioctl(s.container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
    must((s.device = ioctl(s.group, VFIO_GROUP_GET_DEVICE_FD, NEW)) >= 0);
    s.bar = region(s.device, VFIO_PCI_BAR0_REGION_INDEX);
    uint16_t command = 6;
    must(pwrite(s.device, &command, 2, (off_t)region(s.device, VFIO_PCI_CONFIG_REGION_INDEX) + 4) == 2);
    uint8_t *guest = map_guest(s.container);
    restart(s);
    strcpy((char *)guest, "by its maker");
    must(copy(s, 0, PAGE, 0) == D_DONE && strcmp((char *)guest + PAGE, "by its maker") == 0);
    must(copy(s, 0, GUEST_BYTES, 0) == D_FAULT && copy(s, 0, PAGE, WITH_PASID(1)) == D_FAULT);
    close_nesting(s);
}

int main(void)
{
    two_of_one_function();
    by_sysfs();
    software();
    puts("mdev");
    return 0;
}
