/* A nesting container on SMMUv3: the guest's whole table of PASIDs, bound by its guest address; invalidations by ASID and
 * PASID; stalls as page requests; what is VT-d's is not there. */
#include "vsva-faults.h"

enum { OP_BIND_TABLE = 16, OP_UNBIND_TABLE = 17, TRANSLATE = 1, FORMAT_SMMUV3 = 2 };
#define CONTEXTS PAGE
#define TABLE(pasid) ((uint64_t)(8 + 4 * (pasid)) * PAGE)
#define PAGE_OF(n) ((uint64_t)(40 + (n)) * PAGE)
#define ADDRESS 0x1234567000UL /* of 39 bits */

struct pasid_table {
    uint32_t argsz, version;
    uint64_t base_ptr;
    uint8_t pasid_bits, s1fmt, s1dss, config, padding[28];
};
_Static_assert(sizeof(struct pasid_table) == 48, "layout");

static struct setup s;
static uint8_t *guest;

static void store(uint64_t at, uint64_t value)
{
    memcpy(guest + at, &value, sizeof(value));
}

/* Stage 1 with 4 KiB pages from level 1 on; the page is for unprivileged reading and writing. */
static void map_page(uint32_t pasid, uint64_t page)
{
    store(TABLE(pasid) + (ADDRESS >> 30 & 511) * 8, (TABLE(pasid) + PAGE) | 3);
    store(TABLE(pasid) + PAGE + (ADDRESS >> 21 & 511) * 8, (TABLE(pasid) + 2 * PAGE) | 3);
    store(TABLE(pasid) + 2 * PAGE + (ADDRESS >> 12 & 511) * 8, page ? page | 0xc43 : 0);
}

/* V, AA64, T0SZ 25, no TTB1, 44 bits out; faults stall, are recorded and abort; ASID 100 + PASID. */
static void describe(uint32_t pasid)
{
    uint64_t first = 25 | 1UL << 30 | 1UL << 31 | 4UL << 32 | 1UL << 41 | 7UL << 44 | 1UL << 47;
    store(CONTEXTS + 64 * pasid, first | (uint64_t)(100 + pasid) << 48);
    store(CONTEXTS + 64 * pasid + 8, TABLE(pasid));
}

static struct pasid_table table(void)
{
    struct pasid_table table = {sizeof(table), 1, CONTEXTS, 2, 0, 2, TRANSLATE, {0}};
    return table;
}

#define BIND_WITH(change)                                                                      \
    ({                                                                                         \
        struct pasid_table data = table();                                                     \
        data.change;                                                                           \
        nesting_op(s.container, OP_BIND_TABLE, &data, sizeof(data));                           \
    })

static int unbind(void)
{
    return nesting_op(s.container, OP_UNBIND_TABLE, NULL, 0);
}

static void errnos(void)
{
    must(alloc_pasid(s.container, 1, 10) == -EOPNOTSUPP && free_pasids(s.container, 1, 10) == -EOPNOTSUPP);
    must(bind_table(s.container, ROOT(0), 1) == -EOPNOTSUPP && unbind_table(s.container, 1) == -EOPNOTSUPP);
    must(BIND_WITH(argsz = 47) == -EINVAL && BIND_WITH(version = 0) == -EINVAL && BIND_WITH(padding[27] = 1) == -EINVAL);
    must(BIND_WITH(config = 0) == -EINVAL && BIND_WITH(config = 4) == -EINVAL && BIND_WITH(pasid_bits = 17) == -EINVAL);
    must(BIND_WITH(s1fmt = 3) == -EINVAL && BIND_WITH(s1dss = 3) == -EINVAL && BIND_WITH(base_ptr = 32) == -EINVAL);
    must(unbind() == -ENOENT && invalidate(s.container, changed(IOTLB, BY_DOMAIN, 0)) == -ENOENT);
    must(BIND_WITH(config = TRANSLATE) == 0 && BIND_WITH(config = TRANSLATE) == -EBUSY);
    must(invalidate(s.container, changed(DEV_IOTLB, BY_DOMAIN, 0)) == -EINVAL);
    must(invalidate(s.container, changed(PASID_CACHE, BY_ADDR, 1)) == -EINVAL);
    must(invalidate(s.container, changed(PASID_CACHE, BY_PASID, 1 << 16)) == -EINVAL);
    must(unbind() == 0 && unbind() == -ENOENT);
}

static struct invalidate_info of_asid(uint32_t pasid)
{
    struct invalidate_info info = changed(IOTLB | DEV_IOTLB, BY_PASID, pasid);
    info.pasid.flags |= INV_ARCHID;
    info.pasid.archid = 100 + pasid;
    return info;
}

static void tables(void)
{
    for (uint32_t pasid = 0; pasid < 3; pasid++) {
        snprintf((char *)guest + PAGE_OF(pasid), PAGE, "page %u", pasid);
        map_page(pasid, PAGE_OF(pasid));
        describe(pasid);
    }
    must(dma(s, READ, ADDRESS, 4, WITH_PASID(1)) == FAULT);
    must(BIND_WITH(config = TRANSLATE) == 0);
    must(reads(s, ADDRESS, "page 1", WITH_PASID(1)) && reads(s, ADDRESS, "page 2", WITH_PASID(2)));
    must(reads(s, ADDRESS, "page 0", 0));
    map_page(1, PAGE_OF(2));
    must(invalidate(s.container, of_asid(1)) == 0 && reads(s, ADDRESS, "page 2", WITH_PASID(1)));
    map_page(1, PAGE_OF(0));
    must(invalidate_page(s.container, 1, ADDRESS) == 0 && reads(s, ADDRESS, "page 0", WITH_PASID(1)));
}

static void stalls(void)
{
    struct faults f = listen_to_faults(s);
    map_page(2, 0);
    must(invalidate(s.container, of_asid(2)) == 0);
    begin_dma(s, READ, ADDRESS, 6, WITH_PASID(2));
    struct fault fault = next_request(f);
    must(status_of(s) == BUSY && fault.prm.pasid == 2 && fault.prm.addr == ADDRESS);
    map_page(2, PAGE_OF(2));
    must(respond(s.container, answer(2, fault.prm.grpid, SUCCESS)) == 0 && end_of(s) == DONE);
    must(respond(s.container, answer(2, fault.prm.grpid, SUCCESS)) == -ENOENT);
    map_page(2, 0);
    must(invalidate(s.container, of_asid(2)) == 0);
    begin_dma(s, READ, ADDRESS, 6, WITH_PASID(2));
    next_request(f);
    must(unbind() == 0 && end_of(s) == FAULT);
    must(dma(s, READ, ADDRESS, 6, WITH_PASID(2)) == FAULT);
}

int main(void)
{
    s = open_nesting("0000:03:00.0");
    struct nesting_info info = nesting_info(s.container);
    must(info.argsz == 64 && info.format == FORMAT_SMMUV3 && info.features == 28 && info.pasid_bits == 16);
    guest = map_guest(s.container);
    errnos();
    tables();
    stalls();
    close_nesting(s);
    puts("vsva-arm");
    return 0;
}
