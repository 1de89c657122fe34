/** The iommufd interface (linux/iommufd.h, Linux 7.2): everything in one place, by its C names. */
export * from "./iommufd/hwpt.ts";
export * from "./iommufd/ioas.ts";
export * from "./iommufd/viommu.ts";
export * from "./vendor/amd.ts";
export * from "./vendor/smmuv3.ts";
export * from "./vendor/vtd.ts";
