/*
 * Shared virtual addressing by iommufd, where PASIDs are of files: one page table of a guest is given with a PASID to two
 * functions. "orders": the three files are closed in every order. "passed": what SCM_RIGHTS carries to another process, and
 * that nothing else does.
 */
#include "iommufd.h"
#include "vsva.h"

#include <dirent.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define IOMMU_HWPT_INVALIDATE 0x3b8d
#define PASID 7

struct hwpt_vtd_s1 {
    uint64_t flags, pgtbl_addr;
    uint32_t addr_width, reserved;
};
struct hwpt_invalidate {
    uint32_t size, hwpt_id;
    uint64_t data_uptr;
    uint32_t data_type, entry_len, entry_num, reserved;
};
struct vtd_s1_invalidate {
    uint64_t addr, npages;
    uint32_t flags, reserved;
};
struct attach_pasid {
    uint32_t argsz, flags, pt_id, pasid;
};
struct detach_pasid {
    uint32_t argsz, flags, pasid;
};

/* What a VMM has: functions, and a guest whose process 0 has its table in nested HWPT `table`. */
struct vmm {
    int iommufd;
    struct setup function[2];
    uint32_t parent, table;
    uint8_t *guest;
};

static const char *const FUNCTIONS[] = {"0000:05:00.0", "0000:06:00.0"};

static int open_cdev(const char *bdf)
{
    char path[300];
    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev", bdf);
    DIR *folder = opendir(path);
    must(folder);
    int fd = -1;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;)
        if (strncmp(entry->d_name, "vfio", 4) == 0) {
            snprintf(path, sizeof(path), "/dev/vfio/devices/%.60s", entry->d_name);
            fd = open(path, O_RDWR);
        }
    closedir(folder);
    must(fd >= 0);
    return fd;
}

static int attach_pasid(int device, uint32_t table)
{
    struct attach_pasid attach = {sizeof(attach), 1, table, PASID};
    return request(device, CDEV_ATTACH_IOMMUFD_PT, &attach);
}

static int detach_pasid(int device)
{
    struct detach_pasid detach = {sizeof(detach), 1, PASID};
    return request(device, CDEV_DETACH_IOMMUFD_PT, &detach);
}

static int forget(int iommufd, uint32_t table)
{
    struct vtd_s1_invalidate one = {VA, 1, 0, 0};
    struct hwpt_invalidate what = {sizeof(what), table, (uintptr_t)&one, 0, sizeof(one), 1, 0};
    return request(iommufd, IOMMU_HWPT_INVALIDATE, &what);
}

static uint8_t *guest_memory(int iommufd, uint32_t ioas)
{
    uint8_t *guest = mmap(NULL, GUEST_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(guest != MAP_FAILED && ioas_map(iommufd, ioas, guest, 0, GUEST_BYTES) == 0);
    strcpy((char *)guest + DATA(0), "the first page");
    strcpy((char *)guest + DATA(0) + PAGE, "the second page");
    write_table(guest, 0, DATA(0));
    return guest;
}

/* Both functions have the guest's table for the PASID. */
static struct vmm set_up(void)
{
    struct vmm vmm = {.iommufd = open("/dev/iommu", O_RDWR)};
    must(vmm.iommufd >= 0);
    uint32_t ids[2], ioas = ioas_alloc(vmm.iommufd);
    for (int i = 0; i < 2; i++) {
        struct setup s = {.device = open_cdev(FUNCTIONS[i])};
        must((ids[i] = cdev_bind(s.device, vmm.iommufd)) != 0);
        s.bar = region(s.device, VFIO_PCI_BAR0_REGION_INDEX);
        uint16_t command = 6; /* memory space, bus master */
        must(pwrite(s.device, &command, 2, (off_t)region(s.device, VFIO_PCI_CONFIG_REGION_INDEX) + 4) == 2);
        vmm.function[i] = s;
    }
    vmm.guest = guest_memory(vmm.iommufd, ioas);
    /* A nest parent, and the table above it; both for devices with PASIDs. */
    struct iommu_hwpt_alloc parent = {.size = sizeof(parent), .flags = 1 | 8, .dev_id = ids[0], .pt_id = ioas};
    must(ioctl(vmm.iommufd, IOMMU_HWPT_ALLOC, &parent) == 0);
    vmm.parent = parent.out_hwpt_id;
    struct hwpt_vtd_s1 stage = {.pgtbl_addr = ROOT(0), .addr_width = 48};
    struct iommu_hwpt_alloc nested = {.size = sizeof(nested), .flags = 8, .dev_id = ids[0], .pt_id = vmm.parent};
    nested.data_type = 1;
    nested.data_len = sizeof(stage);
    nested.data_uptr = (uintptr_t)&stage;
    must(ioctl(vmm.iommufd, IOMMU_HWPT_ALLOC, &nested) == 0);
    vmm.table = nested.out_hwpt_id;
    for (int i = 0; i < 2; i++) {
        must(cdev_attach(vmm.function[i].device, vmm.parent) == 0);
        must(attach_pasid(vmm.function[i].device, vmm.table) == 0);
        must(reads(vmm.function[i], VA, "the first page", WITH_PASID(PASID)));
    }
    return vmm;
}

/* File 0 is the iommufd, the others are the functions'. */
static void close_in_order(const int order[3])
{
    struct vmm vmm = set_up();
    /* One invalidation is for both. */
    write_table(vmm.guest, 0, DATA(0) + PAGE);
    must(forget(vmm.iommufd, vmm.table) == 0);
    int open_files[3] = {1, 1, 1};
    for (int i = 0; i < 3; i++) {
        must(close(order[i] == 0 ? vmm.iommufd : vmm.function[order[i] - 1].device) == 0);
        open_files[order[i]] = 0;
        for (int f = 0; f < 2; f++)
            must(!open_files[f + 1] || reads(vmm.function[f], VA, "the second page", WITH_PASID(PASID)));
        must(!open_files[0] || forget(vmm.iommufd, vmm.table) == 0);
    }
    must(munmap(vmm.guest, GUEST_BYTES) == 0);
}

/* ---- What is passed ------------------------------------------------------------------------------------- */

static void send_files(int to, const int *files, int count)
{
    char byte = 0, control[CMSG_SPACE(4 * sizeof(int))] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control};
    message.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
    memcpy(CMSG_DATA(head), files, (size_t)count * sizeof(int));
    must(sendmsg(to, &message, 0) == 1);
}

static void receive_files(int from, int *files, int count)
{
    char byte, control[CMSG_SPACE(4 * sizeof(int))] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control};
    message.msg_controllen = sizeof(control);
    must(recvmsg(from, &message, 0) == 1 && CMSG_FIRSTHDR(&message));
    memcpy(files, CMSG_DATA(CMSG_FIRSTHDR(&message)), (size_t)count * sizeof(int));
}

/* Gets a function and the iommufd; the sender is gone before it uses them. */
static void receiver(int from)
{
    int files[2];
    uint32_t table;
    receive_files(from, files, 2);
    must(read(from, &table, 4) == 4);
    char end;
    must(read(from, &end, 1) == 0);
    struct setup s = {.device = files[0]};
    s.bar = region(s.device, VFIO_PCI_BAR0_REGION_INDEX);
    must(reads(s, VA, "the first page", WITH_PASID(PASID)));
    must(forget(files[1], table) == 0);
    must(detach_pasid(s.device) == 0);
    must(dma(s, READ, VA, 4, WITH_PASID(PASID)) == FAULT);
    must(attach_pasid(s.device, table) == 0);
    must(reads(s, VA, "the first page", WITH_PASID(PASID)));
}

/* Gets a device's number and a page table's: numbers are worth nothing. */
static void stranger(int from)
{
    uint32_t table;
    must(read(from, &table, 4) == 4);
    int own = open("/dev/iommu", O_RDWR), device = open_cdev(FUNCTIONS[0]);
    must(own >= 0);
    must(forget(own, table) == -ENOENT);
    must(cdev_bind(device, own) == 0 && attach_pasid(device, table) < 0);
    must(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &(struct vfio_region_info){.argsz = 32}) < 0);
    must(destroy(own, table) < 0 && errno == ENOENT);
}

static pid_t start(void (*run)(int), int *to)
{
    int ends[2];
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    pid_t child = fork();
    must(child >= 0);
    if (child == 0) {
        close(ends[1]);
        run(ends[0]);
        _exit(0);
    }
    close(ends[0]);
    *to = ends[1];
    return child;
}

static void finish(pid_t child)
{
    int status;
    must(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void passed(void)
{
    int to_receiver, to_stranger;
    pid_t second = start(stranger, &to_stranger);
    pid_t first = start(receiver, &to_receiver);
    struct vmm vmm = set_up();
    must(write(to_stranger, &vmm.table, 4) == 4);
    finish(second);
    int files[] = {vmm.function[0].device, vmm.iommufd};
    send_files(to_receiver, files, 2);
    must(write(to_receiver, &vmm.table, 4) == 4);
    for (int i = 0; i < 2; i++)
        close(vmm.function[i].device);
    close(vmm.iommufd);
    close(to_receiver);
    finish(first);
}

/* ---- A container's PASIDs are of the process, not of the file ------------------------------------------- */

static void guest_of_another(int from)
{
    int files[1];
    uint32_t pasid;
    receive_files(from, files, 1);
    must(read(from, &pasid, 4) == 4);
    must(bind_table(files[0], ROOT(0), pasid) == -EACCES);
    must(free_pasids(files[0], pasid, pasid) == 0);
    int own = alloc_pasid(files[0], 1, (1 << 20) - 1);
    must(own > 0 && (uint32_t)own != pasid);
}

static void containers(void)
{
    int to;
    pid_t child = start(guest_of_another, &to);
    struct setup s = open_nesting(FUNCTIONS[0]);
    uint8_t *guest = map_guest(s.container);
    strcpy((char *)guest + DATA(0), "the first page");
    write_table(guest, 0, DATA(0));
    uint32_t pasid = (uint32_t)alloc_pasid(s.container, 1, (1 << 20) - 1);
    send_files(to, &s.container, 1);
    must(write(to, &pasid, 4) == 4);
    finish(child);
    must(bind_table(s.container, ROOT(0), pasid) == 0);
    must(reads(s, VA, "the first page", WITH_PASID(pasid)));
    close_nesting(s);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "orders";
    if (strcmp(what, "orders") == 0)
        for (int first = 0; first < 3; first++)
            for (int swap = 0; swap < 2; swap++) {
                int order[3] = {first, (first + 1 + swap) % 3, (first + 2 - swap) % 3};
                close_in_order(order);
            }
    else if (strcmp(what, "passed") == 0)
        passed();
    else
        containers();
    puts("vsva-files");
    return 0;
}
