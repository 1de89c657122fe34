/* The machine's DMA test function, as its driver in a program uses it: registers of BAR 0. */
#ifndef TEST_FUNCTION_H
#define TEST_FUNCTION_H
#include "vfio-nvme.h"

enum { TF_COMMAND = 0x04, TF_SOURCE = 0x08, TF_DESTINATION = 0x10, TF_LENGTH = 0x18, TF_TAG = 0x1c, TF_STATUS = 0x20 };
enum { TF_BUFFER = 0x10000, TF_WRITE = 2, DONE = 2, FAULT = 3 };

struct test_function {
    int fd;
    uint64_t bar;
};

/* A function whose device file is bound: its BAR is found, and it may do DMA from now on. */
static inline struct test_function test_function(int fd)
{
    struct vfio_region_info config = {.argsz = sizeof(config), .index = VFIO_PCI_CONFIG_REGION_INDEX};
    struct vfio_region_info region = {.argsz = sizeof(region), .index = 0};
    must(ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, &config) == 0);
    must(ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, &region) == 0);
    uint16_t on = 6; /* memory space, bus master */
    must(pwrite(fd, &on, sizeof(on), config.offset + 4) == sizeof(on));
    return (struct test_function){fd, region.offset};
}

static inline void tf_set(struct test_function f, uint64_t offset, const void *bytes, size_t length)
{
    must(pwrite(f.fd, bytes, length, f.bar + offset) == (ssize_t)length);
}

/* What a write of the function to an address comes to: DONE or FAULT. */
static inline uint32_t tf_write(struct test_function f, uint64_t address, const char *text)
{
    uint64_t source = 0;
    uint32_t length = strlen(text), tag = 0, command = TF_WRITE, status = 1;
    tf_set(f, TF_BUFFER, text, length);
    tf_set(f, TF_SOURCE, &source, sizeof(source));
    tf_set(f, TF_DESTINATION, &address, sizeof(address));
    tf_set(f, TF_LENGTH, &length, sizeof(length));
    tf_set(f, TF_TAG, &tag, sizeof(tag));
    tf_set(f, TF_COMMAND, &command, sizeof(command));
    for (int patience = 0; status == 1 && patience < 100000; patience++)
        must(pread(f.fd, &status, sizeof(status), f.bar + TF_STATUS) == sizeof(status));
    return status;
}
#endif
