/* Every errno of a nesting container on the machine vtd-vsva, and that refusals change nothing. */
#include "vsva.h"

static struct setup s;

static int ask(uint32_t argsz, uint32_t flags, uint32_t min, uint32_t max)
{
    struct pasid_request one = {argsz, flags, min, max};
    return request(s.container, VFIO_IOMMU_PASID_REQUEST, &one);
}

static void selecting(const char *bdf, const char *other)
{
    int container = open("/dev/vfio/vfio", O_RDWR);
    must(container >= 0 && ioctl(container, VFIO_CHECK_EXTENSION, NESTING) == 1);
    must(ioctl(container, VFIO_SET_IOMMU, NESTING) < 0 && errno == EINVAL); /* no group */
    close(container);
    s = open_nesting(bdf);
    must(ioctl(s.container, VFIO_SET_IOMMU, NESTING) < 0 && errno == EINVAL); /* it has a type */
    int second = open_group(other);
    must(ioctl(second, VFIO_GROUP_SET_CONTAINER, &s.container) < 0 && errno == EINVAL); /* one group */
    close(second);
}

/* The answer lies within argsz, whatever that is; what is too small learns the size. */
static void information(void)
{
    uint8_t answer[512];
    struct vfio_iommu_type1_info *info = (void *)answer;
    memset(answer, 0, sizeof(answer));
    info->argsz = 24;
    must(ioctl(s.container, VFIO_IOMMU_GET_INFO, info) == 0);
    uint32_t wanted = info->argsz;
    must(wanted > 24 && wanted < sizeof(answer) && info->cap_offset == 0);
    for (uint32_t argsz = 0; argsz <= wanted + 16; argsz++) {
        memset(answer, 0xa5, sizeof(answer));
        info->argsz = argsz;
        int error = request(s.container, VFIO_IOMMU_GET_INFO, info);
        must(error == (argsz < 16 ? -EINVAL : 0));
        uint32_t end = argsz < 16 ? 4 : argsz >= wanted ? wanted : argsz < 24 ? argsz : 24;
        for (uint32_t at = end; at < sizeof(answer); at++)
            must(answer[at] == 0xa5);
        if (argsz >= 16)
            must(info->argsz == (argsz < wanted ? wanted : argsz));
    }
    must(request(s.container, VFIO_IOMMU_GET_INFO, (void *)8) == -EFAULT);
    struct nesting_info nesting = nesting_info(s.container);
    must(nesting.vtd.cap == 1ULL << 56 && nesting.flags == 0);
    must(nesting.vtd.ecap == (1ULL << 29 | 1ULL << 31 | 1ULL << 34 | 1ULL << 40));
    must(capability(s.container, CAP_MIGRATION) && capability(s.container, CAP_IOVA_RANGE));
}

static void pasids(void)
{
    must(ask(15, ALLOC_PASID, 1, 2) == -EINVAL && ask(0, ALLOC_PASID, 1, 2) == -EINVAL);
    must(ask(16, 0, 1, 2) == -EINVAL && ask(16, 3, 1, 2) == -EINVAL && ask(16, 5, 1, 2) == -EINVAL);
    must(ask(16, ALLOC_PASID, 2, 1) == -EINVAL && ask(16, FREE_PASID, 2, 1) == -EINVAL);
    must(ask(16, ALLOC_PASID, 1, 1U << 31) == -EINVAL && ask(16, FREE_PASID, 1, ~0U) == -EINVAL);
    must(request(s.container, VFIO_IOMMU_PASID_REQUEST, NULL) == -EFAULT);
    must(alloc_pasid(s.container, 300, 300) == 300 && alloc_pasid(s.container, 300, 300) == -ENOSPC);
    must(alloc_pasid(s.container, 300, 301) == 301 && alloc_pasid(s.container, 300, 301) == -ENOSPC);
    must(alloc_pasid(s.container, 1 << 20, 0x7fffffff) == -ENOSPC);
    must(alloc_pasid(s.container, (1 << 20) - 1, 0x7fffffff) == (1 << 20) - 1);
    uint32_t most, left;
    quota(s.container, &most, &left);
    must(most == 1000 && left == 997);
    for (uint32_t i = 0; i < left; i++)
        must(alloc_pasid(s.container, 1, 0x7fffffff) > 0);
    must(alloc_pasid(s.container, 1, 0x7fffffff) == -ENOSPC); /* the quota */
    must(free_pasids(s.container, 0, 0x7fffffff) == 0 && free_pasids(s.container, 0, 0x7fffffff) == 0);
    quota(s.container, &most, &left);
    must(left == 1000);
}

/* A bind that is like `data` but for one thing. */
#define BIND_WITH(change)                                                                      \
    ({                                                                                         \
        struct bind_data data = bind_data(ROOT(0), pasid);                                     \
        data.change;                                                                           \
        nesting_op(s.container, OP_BIND, &data, sizeof(data));                                 \
    })

static void binding(uint64_t pasid)
{
    must(BIND_WITH(argsz = 71) == -EINVAL && BIND_WITH(version = 0) == -EINVAL && BIND_WITH(version = 2) == -EINVAL);
    must(BIND_WITH(format = 2) == -EINVAL && BIND_WITH(flags = 2) == -EINVAL && BIND_WITH(padding[7] = 1) == -EINVAL);
    must(BIND_WITH(addr_width = 57) == -EINVAL && BIND_WITH(addr_width = 0) == -EINVAL);
    must(BIND_WITH(gpgd = ROOT(0) + 1) == -EINVAL && BIND_WITH(vtd_flags = 64) == -EINVAL);
    must(BIND_WITH(vtd_flags = PCD) == -EOPNOTSUPP && BIND_WITH(vtd_flags = PWT) == -EOPNOTSUPP);
    must(BIND_WITH(vtd_flags = EMTE) == -EOPNOTSUPP && BIND_WITH(vtd_flags = CD) == -EOPNOTSUPP);
    must(BIND_WITH(hpasid = pasid + 1) == -ENOENT && BIND_WITH(hpasid = 1 << 20) == -EINVAL);
    must(BIND_WITH(hpasid = ~0ULL) == -EINVAL);
    struct bind_data data = bind_data(ROOT(0), pasid);
    must(nesting_op(s.container, 3, &data, sizeof(data)) == -EINVAL);
    must(nesting_op(s.container, 0x10000, &data, sizeof(data)) == -EINVAL);
    must(nesting_op(s.container, OP_BIND, &data, sizeof(data) - 1) == -EINVAL);
    must(request(s.container, VFIO_IOMMU_NESTING_OP, NULL) == -EFAULT);
    must(unbind_table(s.container, pasid) == -ENOENT); /* none of these was bound */
    must(BIND_WITH(vtd_flags = SRE | EAFE) == 0 && unbind_table(s.container, pasid) == 0);
    must(BIND_WITH(flags = GPASID_VALID; data.gpasid = 77) == 0);
    must(bind_table(s.container, ROOT(0), pasid) == -EBUSY);
}

static void invalidating(uint64_t pasid, uint8_t *guest)
{
    static const int valid[8][3] = {[1] = {1, 1, 1}, [2] = {0, 1, 1}, [3] = {0, 1, 1}, [4] = {1, 1, 0},
                                    [5] = {1, 1, 0}, [6] = {0, 1, 0}, [7] = {0, 1, 0}};
    for (int cache = 0; cache < 16; cache++)
        for (int granularity = 0; granularity < 4; granularity++) {
            struct invalidate_info info = changed((uint8_t)cache, (uint8_t)granularity, pasid);
            info.addr.granule_size = PAGE;
            info.addr.nb_granules = 1;
            int good = cache < 8 && granularity < 3 && valid[cache][granularity];
            must(invalidate(s.container, info) == (good ? 0 : -EINVAL));
        }
    struct invalidate_info info = changed(IOTLB, BY_PASID, pasid);
    info.argsz = 55;
    must(invalidate(s.container, info) == -EINVAL);
    info.argsz = sizeof(info), info.version = 2;
    must(invalidate(s.container, info) == -EINVAL);
    info.version = 1, info.padding[5] = 1;
    must(invalidate(s.container, info) == -EINVAL);
    info.padding[5] = 0, info.pasid.flags = INV_ARCHID;
    must(invalidate(s.container, info) == -EINVAL);
    must(invalidate(s.container, changed(IOTLB, BY_PASID, pasid + 1)) == -ENOENT);
    must(invalidate(s.container, changed(IOTLB, BY_PASID, 1 << 20)) == -EINVAL);
    info = changed(IOTLB, BY_ADDR, pasid);
    info.addr.granule_size = 3 * PAGE, info.addr.nb_granules = 1;
    must(invalidate(s.container, info) == -EINVAL);
    info.addr.granule_size = PAGE, info.addr.addr = 1;
    must(invalidate(s.container, info) == -EINVAL);
    info.addr.addr = 0, info.addr.nb_granules = ~0ULL;
    must(invalidate(s.container, info) == -EINVAL);

    /* What the device remembers is stale until it is told, by the host's number or the guest's. */
    for (int turn = 0; turn < 2; turn++) {
        write_table(guest, 0, DATA(0));
        must(invalidate(s.container, changed(IOTLB | DEV_IOTLB | PASID_CACHE, BY_PASID, pasid)) == 0);
        must(reads(s, VA, "the first page", WITH_PASID(pasid)));
        write_table(guest, 0, DATA(0) + PAGE);
        must(reads(s, VA, "the first page", WITH_PASID(pasid)));
        must(invalidate_page(s.container, turn ? 77 : pasid, VA) == 0);
        must(reads(s, VA, "the second page", WITH_PASID(pasid)));
    }
}

int main(void)
{
    selecting("0000:05:00.0", "0000:06:00.0");
    information();
    pasids();
    uint8_t *guest = map_guest(s.container);
    strcpy((char *)guest + DATA(0), "the first page");
    strcpy((char *)guest + DATA(0) + PAGE, "the second page");
    int pasid = alloc_pasid(s.container, 100, 200);
    must(pasid == 100);
    binding((uint64_t)pasid);
    invalidating((uint64_t)pasid, guest);

    /* A free unbinds first; so does the group when it leaves. */
    must(free_pasids(s.container, 0, 0x7fffffff) == 0);
    must(dma(s, READ, VA, 4, WITH_PASID(pasid)) == FAULT && unbind_table(s.container, (uint64_t)pasid) == -ENOENT);
    must(alloc_pasid(s.container, 100, 100) == 100 && bind_table(s.container, ROOT(0), 100) == 0);
    must(reads(s, VA, "the second page", WITH_PASID(100)));
    close(s.device);
    must(ioctl(s.group, VFIO_GROUP_UNSET_CONTAINER) == 0);
    must(alloc_pasid(s.container, 100, 100) == -EINVAL); /* no IOMMU */
    must(ioctl(s.group, VFIO_GROUP_SET_CONTAINER, &s.container) == 0);
    must(ioctl(s.container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
    must(alloc_pasid(s.container, 100, 100) == -ENOTTY && bind_table(s.container, ROOT(0), 100) == -ENOTTY);
    puts("vsva-errnos");
    return 0;
}
