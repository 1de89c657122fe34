/** The VFIO interface (linux/vfio.h, Linux 7.2): everything in one place, by its C names. */
export * from "./vfio/container.ts";
export * from "./vfio/device.ts";
export * from "./vfio/feature.ts";
export * from "./vfio/region.ts";
export * from "./vfio/spapr.ts";
export * from "./vfio/type1.ts";
