/* PASIDs of a device: attach, replace, detach, which page tables fit, and how a failure is recovered from. */
#include "iommufd-objects.h"

static int fd;
static struct device device;

static int pasid(uint32_t op, uint32_t number, uint32_t pt)
{
    struct test_command command = {.pasid = {number, pt}};
    return test(fd, op, device.stdev, &command);
}

int main(void)
{
    fd = open_iommu();
    uint32_t ioas = alloc_ioas(fd);
    device = plug(fd, ioas, DEVICE_PASID);
    struct device without = plug(fd, ioas, 0);
    uint32_t plain = new_hwpt(fd, device, ioas, 0);
    uint32_t one = new_hwpt(fd, device, ioas, FOR_PASIDS), two = new_hwpt(fd, device, ioas, FOR_PASIDS);
    must(pasid(OP_PASID_ATTACH, 1, one) == EINVAL); /* what the device has is not made for PASIDs */
    must(replace(fd, device, one) == 0);
    must(pasid(OP_PASID_ATTACH, 1, plain) == EINVAL && pasid(OP_PASID_ATTACH, 1 << 20, one) == EINVAL);
    must(pasid(OP_PASID_ATTACH, 1, one) == 0 && pasid(OP_PASID_CHECK, 1, one) == 0);
    must(pasid(OP_PASID_ATTACH, 1, two) == EBUSY && pasid(OP_PASID_CHECK, 1, two) == EINVAL);
    must(pasid(OP_PASID_REPLACE, 1, two) == 0 && pasid(OP_PASID_CHECK, 1, two) == 0);
    must(pasid(OP_PASID_REPLACE, 2, two) == EINVAL); /* nothing is attached there */
    must(replace(fd, device, plain) == EINVAL); /* while PASIDs are attached */
    must(destroy(fd, two) == EBUSY);
    must(pasid(OP_PASID_DETACH, 1, 0) == 0 && pasid(OP_PASID_CHECK, 1, 0) == 0 && destroy(fd, two) == 0);
    must(replace(fd, device, plain) == 0 && replace(fd, device, one) == 0);

    /* PASID 1024 fails at every second try. */
    two = new_hwpt(fd, device, ioas, FOR_PASIDS);
    must(pasid(OP_PASID_ATTACH, 1024, one) == 0 && pasid(OP_PASID_REPLACE, 1024, two) == ENOMEM);
    must(pasid(OP_PASID_CHECK, 1024, one) == 0 && pasid(OP_PASID_REPLACE, 1024, two) == 0);
    must(pasid(OP_PASID_CHECK, 1024, two) == 0 && pasid(OP_PASID_DETACH, 1024, 0) == 0);

    device = without;
    must(pasid(OP_PASID_ATTACH, 1, one) == EINVAL);
    puts("pasid");
    return 0;
}
