/*
 * What the clients of the machine `mock` share: iommufd's structures and those of its test command, as far as they
 * need them, and one call for each request. A call returns 0 or the errno.
 */
#ifndef IOMMUFD_MOCK_H
#define IOMMUFD_MOCK_H
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL

#define must(condition)                                                                        \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #condition, strerror(errno)); \
            exit(1);                                                                           \
        }                                                                                      \
    } while (0)

enum {
    IOMMU_DESTROY = 0x3b80,
    IOMMU_IOAS_ALLOC = 0x3b81,
    IOMMU_IOAS_MAP = 0x3b85,
    IOMMU_IOAS_UNMAP = 0x3b86,
    IOMMU_HWPT_ALLOC = 0x3b89,
    IOMMU_IOAS_MAP_FILE = 0x3b8f,
    IOMMU_VIOMMU_ALLOC = 0x3b90,
    IOMMU_TEST_CMD = 0x3ba0,
};
enum { MAP_FIXED_IOVA = 1, MAP_WRITEABLE = 2, MAP_READABLE = 4 };
enum {
    OP_ADD_RESERVED = 1,
    OP_MOCK_DOMAIN = 2,
    OP_CHECK_REFS = 4,
    OP_CREATE_ACCESS = 5,
    OP_DESTROY_ACCESS_PAGES = 6,
    OP_ACCESS_PAGES = 7,
    OP_ACCESS_RW = 8,
    OP_MOCK_DOMAIN_REPLACE = 10,
    OP_ACCESS_REPLACE_IOAS = 11,
    OP_MOCK_DOMAIN_FLAGS = 12,
    OP_DIRTY = 13,
    OP_CHECK_IOTLB = 14,
    OP_TRIGGER_IOPF = 15,
    OP_CHECK_CACHE = 16,
    OP_TRIGGER_VEVENT = 17,
    OP_PASID_ATTACH = 18,
    OP_PASID_REPLACE = 19,
    OP_PASID_DETACH = 20,
    OP_PASID_CHECK = 21,
    OP_DMABUF_GET = 22,
    OP_DMABUF_REVOKE = 23
};
#define TYPE_SELFTEST 0xdeadbeefu

struct test_command {
    uint32_t size, op, id, reserved;
    union {
        struct {
            uint64_t start, length;
        } add_reserved;
        struct {
            uint32_t out_stdev_id, out_hwpt_id, out_idev_id, dev_flags;
        } mock_domain;
        struct {
            uint64_t length, uptr;
            uint32_t refs;
        } check_refs;
        struct {
            uint32_t flags, out_id;
            uint64_t iova, length, uptr;
        } access_pages;
        struct {
            uint32_t flags, padding;
            uint64_t iova, length, page_size, uptr, out_count;
        } dirty;
        struct {
            uint32_t slot, value;
        } check;
        struct {
            uint32_t dev_id, pasid, grpid, perm;
            uint64_t addr;
        } iopf;
        struct {
            uint32_t pasid, pt_id;
        } pasid;
        uint32_t word;
        struct {
            uint32_t out_access_fd, flags;
        } create_access;
        struct {
            uint64_t iova, length, uptr;
            uint32_t flags;
        } access_rw;
        struct {
            uint32_t length, open_flags;
        } dmabuf_get;
        struct {
            int32_t dmabuf_fd;
            uint32_t revoked;
        } dmabuf_revoke;
        uint64_t whole[6];
    };
    uint32_t last, padding;
};

static inline int request(int fd, unsigned long number, void *argument)
{
    return ioctl(fd, number, argument) < 0 ? errno : 0;
}

static inline int open_iommu(void)
{
    int fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
    must(fd >= 0);
    return fd;
}

static inline int destroy(int fd, uint32_t id)
{
    struct {
        uint32_t size, id;
    } argument = {8, id};
    return request(fd, IOMMU_DESTROY, &argument);
}

static inline uint32_t alloc_ioas(int fd)
{
    struct {
        uint32_t size, flags, out_ioas_id;
    } argument = {.size = 12};
    must(request(fd, IOMMU_IOAS_ALLOC, &argument) == 0);
    return argument.out_ioas_id;
}

/* A mock device attached to the IOAS; the number by which it is named in requests. */
static inline uint32_t mock_device(int fd, uint32_t ioas)
{
    struct test_command command = {.size = sizeof command, .op = OP_MOCK_DOMAIN, .id = ioas};
    must(request(fd, IOMMU_TEST_CMD, &command) == 0);
    return command.mock_domain.out_idev_id;
}

static inline int map_file(int fd, uint32_t ioas, int file, uint64_t start, uint64_t length, uint64_t iova)
{
    struct {
        uint32_t size, flags, ioas_id;
        int32_t fd;
        uint64_t start, length, iova;
    } argument = {40, MAP_FIXED_IOVA | MAP_WRITEABLE | MAP_READABLE, ioas, file, start, length, iova};
    return request(fd, IOMMU_IOAS_MAP_FILE, &argument);
}

static inline int map_memory(int fd, uint32_t ioas, void *memory, uint64_t length, uint64_t iova)
{
    struct {
        uint32_t size, flags, ioas_id, reserved;
        uint64_t user_va, length, iova;
    } argument = {40, MAP_FIXED_IOVA | MAP_WRITEABLE | MAP_READABLE, ioas, 0, (uintptr_t)memory, length, iova};
    return request(fd, IOMMU_IOAS_MAP, &argument);
}

static inline int unmap(int fd, uint32_t ioas, uint64_t iova, uint64_t length)
{
    struct {
        uint32_t size, ioas_id;
        uint64_t iova, length;
    } argument = {24, ioas, iova, length};
    return request(fd, IOMMU_IOAS_UNMAP, &argument);
}

/* What a part of the kernel that is no device reaches: an access of the IOAS, as a file. */
static inline int create_access(int fd, uint32_t ioas)
{
    struct test_command command = {.size = sizeof command, .op = OP_CREATE_ACCESS, .id = ioas};
    must(request(fd, IOMMU_TEST_CMD, &command) == 0);
    return (int)command.create_access.out_access_fd;
}

static inline int access_rw(int fd, int access, uint64_t iova, void *bytes, uint64_t length, int write)
{
    struct test_command command = {.size = sizeof command, .op = OP_ACCESS_RW, .id = (uint32_t)access};
    command.access_rw.iova = iova;
    command.access_rw.length = length;
    command.access_rw.uptr = (uintptr_t)bytes;
    command.access_rw.flags = write ? 1 : 0;
    return request(fd, IOMMU_TEST_CMD, &command);
}
#endif
