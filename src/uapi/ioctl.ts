/** Request numbers of ioctl(2). These interfaces use only `_IO`: no direction and no size are in the number. */

/** The type byte of VFIO and iommufd requests: ';'. */
export const VFIO_TYPE = 0x3b;

/** `_IO(type, number)`. */
export const io = (type: number, number: number): number => (type << 8) | number;
