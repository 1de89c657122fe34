/** What a VMM has for its guest, whatever the IOMMU that it shows. */

/** Where a guest's RAM is in the VMM's memory: [0, bytes) at `va`. */
export interface GuestRam {
  readonly va: number;
  readonly bytes: number;
}

/** A device that the guest has. */
export interface AssignedDevice {
  /** Requester id that the guest calls it by. */
  readonly rid: number;
  /** Its file, and its id in the iommufd. */
  readonly fd: number;
  readonly id: number;
}
