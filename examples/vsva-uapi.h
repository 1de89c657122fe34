/*
 * The interface for virtual SVA that was proposed for VFIO in 2020, which no kernel's headers have: what the
 * example of it uses. Structures have the padding that the reviewers of the proposal asked for. What softiommu
 * adds to it comes last.
 */
#ifndef VSVA_UAPI_H
#define VSVA_UAPI_H
#include <stdint.h>

#define TYPE1_NESTING_IOMMU 6 /* of VFIO_SET_IOMMU: the host's stage 2, and stage 1 for the guest */
#define VFIO_IOMMU_PASID_REQUEST 0x3b76
#define VFIO_IOMMU_NESTING_OP 0x3b77
#define INFO_CAP_NESTING 3 /* in VFIO_IOMMU_GET_INFO */

enum { PASID_ALLOC = 1, PASID_FREE = 2 };
enum { OP_BIND_PGTBL = 0, OP_UNBIND_PGTBL = 1, OP_CACHE_INVLD = 2 };
enum { FORMAT_INTEL_VTD = 1 };
enum { FEAT_SYSWIDE_PASID = 1, FEAT_BIND_PGTBL = 2, FEAT_CACHE_INVLD = 4 };
enum { CACHE_IOTLB = 1, CACHE_DEV_IOTLB = 2, BY_PASID = 1, BY_ADDRESS = 2, INV_PASID = 1, INV_LEAF = 4 };
enum { FAULT_PAGE_REQUEST = 2, REQUEST_LAST_PAGE = 2 };
enum { RESPONSE_SUCCESS = 0, RESPONSE_INVALID = 1, RESPONSE_PASID = 1 };

struct pasid_request {
    uint32_t argsz, flags, min, max;
};
struct nesting_capability {
    uint16_t id, version;
    uint32_t next;
    uint32_t argsz, flags, format, features;
    uint16_t addr_width, pasid_bits;
    uint8_t padding[12];
    uint32_t vtd_flags;
    uint8_t vtd_padding[12];
    uint64_t cap, ecap;
};
struct bind_data {
    uint32_t argsz, version, format, addr_width;
    uint64_t flags, gpgd, hpasid, gpasid;
    uint8_t padding[8];
    uint64_t vtd_flags;
    uint32_t pat, emt;
};
struct invalidate_info {
    uint32_t argsz, version;
    uint8_t cache, granularity, padding[6];
    uint32_t flags, archid;
    uint64_t pasid, addr, granule_size, nb_granules;
};
struct page_response {
    uint32_t argsz, version, flags, pasid, grpid, code;
};
struct iommu_fault {
    uint32_t type, padding;
    uint32_t flags, pasid, grpid, perm;
    uint64_t addr, private_data[2], padding2[2];
};
_Static_assert(sizeof(struct nesting_capability) == 72 && sizeof(struct bind_data) == 72, "layout");
_Static_assert(sizeof(struct invalidate_info) == 56 && sizeof(struct iommu_fault) == 64, "layout");

/* Additions of softiommu's extension vsva2020: page requests. */
enum { OP_PAGE_RESPONSE = 18, FEAT_PAGE_RESP = 8 };
enum { REGION_TYPE_FAULT = 0x8001, IRQ_TYPE_FAULT = 0x8001, IRQ_INFO_CAP_TYPE = 3 };
struct fault_head {
    uint32_t version, entry_size, entries, producer, consumer, lost, reserved[2];
};
struct irq_info {
    uint32_t argsz, flags, index, count, cap_offset;
};
struct type_capability {
    uint16_t id, version;
    uint32_t next, type, subtype;
};
#endif
