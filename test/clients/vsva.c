/* A guest's table through a nesting container, step by step: select, read the capability, allocate, bind, DMA, invalidate,
 * unbind, free. */
#include "vsva.h"

int main(int argc, char **argv)
{
    struct setup s = open_nesting(argc > 1 ? argv[1] : "0000:05:00.0");
    struct nesting_info info = nesting_info(s.container);
    must(info.argsz == 64 && info.format == FORMAT_VTD && info.features == 15);
    must(info.addr_width == 48 && info.pasid_bits == 20);
    uint8_t *guest = map_guest(s.container);
    strcpy((char *)guest + DATA(0), "the first page");
    strcpy((char *)guest + DATA(0) + PAGE, "the second page");
    must(reads(s, DATA(0), "the first page", 0)); /* without a PASID: guest addresses */

    int pasid = alloc_pasid(s.container, 1, (1 << 20) - 1);
    must(pasid > 0);
    must(dma(s, READ, VA, 4, WITH_PASID(pasid)) == FAULT);
    write_table(guest, 0, DATA(0));
    must(bind_table(s.container, ROOT(0), (uint64_t)pasid) == 0);
    must(reads(s, VA, "the first page", WITH_PASID(pasid)));

    write_table(guest, 0, DATA(0) + PAGE);
    must(invalidate_page(s.container, (uint64_t)pasid, VA) == 0);
    must(reads(s, VA, "the second page", WITH_PASID(pasid)));

    must(unbind_table(s.container, (uint64_t)pasid) == 0);
    must(dma(s, READ, VA, 4, WITH_PASID(pasid)) == FAULT);
    must(free_pasids(s.container, (uint32_t)pasid, (uint32_t)pasid) == 0);
    must(bind_table(s.container, ROOT(0), (uint64_t)pasid) == -ENOENT);
    close_nesting(s);
    puts("vsva");
    return 0;
}
