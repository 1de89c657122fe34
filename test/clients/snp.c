/*
 * Memory of a guest on a host with secure nested paging: made private and shared by /dev/softiommu-snp, read back from the
 * reverse map table, and reached by an NVMe controller only where it is shared and mapped by pages that are not too large.
 */
#include "vfio-nvme.h"

#define LARGE (512 * PAGE)
#define IOVA 0x40000000UL
#define SNP_PAGE_STATE _IO('S', 1)
#define SNP_RMP_READ _IO('S', 2)
enum { SHARED, PRIVATE };

struct page_state {
    uint64_t user_va, length, gpa;
    uint32_t asid, state;
};

struct rmp_read {
    uint64_t user_va, out_entry_lo, out_entry_hi;
    uint32_t out_page_size, reserved;
};

static int change(int snp, void *va, uint64_t length, uint64_t gpa, uint32_t asid, uint32_t state)
{
    struct page_state argument = {(uintptr_t)va, length, gpa, asid, state};
    return ioctl(snp, SNP_PAGE_STATE, &argument);
}

static struct rmp_read entry(int snp, void *va)
{
    struct rmp_read argument = {.user_va = (uintptr_t)va};
    must(ioctl(snp, SNP_RMP_READ, &argument) == 0);
    return argument;
}

static void refused(int result, int error)
{
    must(result == -1);
    if (errno != error) {
        fprintf(stderr, "refused with %d (%s), not %d\n", errno, strerror(errno), error);
        exit(1);
    }
}

/* 2 MiB at a multiple of 2 MiB. */
static uint8_t *large_page(void)
{
    uint8_t *all = mmap(NULL, 2 * LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(all != MAP_FAILED);
    uint8_t *page = (uint8_t *)(((uintptr_t)all + LARGE - 1) & ~(LARGE - 1));
    memset(page, 0x5a, LARGE);
    return page;
}

/* What cannot be asked for. */
static void refusals(int snp, uint8_t *memory)
{
    int other = open("/dev/softiommu-snp", O_RDWR);
    must(other >= 0);
    refused(change(other, memory, PAGE, 0, 7, PRIVATE), EBUSY);
    refused(change(other, memory, PAGE, 0, 8, PRIVATE), EPERM);
    refused(change(other, memory, PAGE, 0, 8, SHARED), EPERM);
    refused(change(snp, memory, PAGE, PAGE, 7, SHARED), EINVAL);
    refused(change(snp, memory + 1, PAGE, 0, 7, PRIVATE), EINVAL);
    refused(change(snp, memory, 0, 0, 7, PRIVATE), EINVAL);
    refused(change(snp, memory, PAGE, 1, 7, PRIVATE), EINVAL);
    refused(change(snp, memory, PAGE, 0, 0, PRIVATE), EINVAL);
    refused(change(snp, memory, PAGE, 0, 7, 2), EINVAL);
    refused(change(snp, (void *)PAGE, PAGE, 0, 7, PRIVATE), EFAULT);
    refused(ioctl(snp, SNP_PAGE_STATE, NULL), EFAULT);
    refused(ioctl(snp, SNP_RMP_READ, NULL), EFAULT);
    struct rmp_read reserved = {.user_va = (uintptr_t)memory, .reserved = 1};
    refused(ioctl(snp, SNP_RMP_READ, &reserved), EINVAL);
    refused(ioctl(snp, _IO('S', 3), NULL), ENOTTY);
    must(close(other) == 0);
}

int main(void)
{
    struct nvme n;
    start_nvme(&n, "0000:01:00.0", VFIO_TYPE1v2_IOMMU);
    uint8_t *memory = large_page();
    uint8_t *ring = memory + 5 * PAGE;
    int snp = open("/dev/softiommu-snp", O_RDWR);
    must(snp >= 0);

    must(entry(snp, ring).out_entry_lo == 0);
    must(change(snp, memory, LARGE, 0, 7, PRIVATE) == 0);
    must(entry(snp, ring).out_page_size == LARGE);
    refusals(snp, memory);
    puts("launched: private, in one page of 2 MiB");

    must(map_dma(n.container, memory, IOVA, LARGE) == 0);
    must(transfer(&n, 1, IOVA + 5 * PAGE, 0, 8) != 0);
    must(change(snp, ring, PAGE, 5 * PAGE, 7, SHARED) == 0);
    must(entry(snp, ring).out_entry_lo == 0 && entry(snp, ring).out_page_size == PAGE);
    must((entry(snp, ring + PAGE).out_entry_lo & 1) == 1 && entry(snp, ring + PAGE).out_page_size == PAGE);
    must(transfer(&n, 1, IOVA + 5 * PAGE, 0, 8) != 0);
    puts("shared: split, and too small for what maps it");

    must(unmap_dma(n.container, IOVA, LARGE) == 0);
    must(map_dma(n.container, ring, IOVA, PAGE) == 0);
    must(transfer(&n, 1, IOVA, 0, 8) == 0);
    must(change(snp, ring, PAGE, 5 * PAGE, 7, PRIVATE) == 0);
    must(entry(snp, ring).out_page_size == LARGE);
    must(transfer(&n, 2, IOVA, 0, 8) != 0);
    puts("mapped by itself: reached while it is shared");

    must(close(snp) == 0);
    snp = open("/dev/softiommu-snp", O_RDWR);
    must(snp >= 0 && entry(snp, ring).out_entry_lo == 0);
    must(transfer(&n, 2, IOVA, 0, 8) == 0);
    puts("closed: nothing is private");
    return 0;
}
