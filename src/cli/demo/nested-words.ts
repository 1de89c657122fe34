/** What the story of a nesting host says where the units of the vendors differ. */
import type { GuestIommu } from "../../guest/firmware.ts";

export interface Words {
  readonly boots: string;
  readonly attaches: string;
  /** What giving a process's addresses to a device takes. */
  readonly shares: string;
  readonly asks: readonly string[];
  /** How often the guest is asked for two pages. */
  readonly answers: { readonly claim: string; readonly count: number };
  readonly unmaps: string;
  readonly ends: string;
  readonly releases: string;
  /** What the guest's driver learns of an access after that; undefined: the host has no way to tell. */
  readonly told: string | undefined;
}

/** Units that can lie above a host's, and have PASIDs. */
export type NestingModel = Exclude<GuestIommu["model"], "zpci" | "tce" | "virtio" | "none">;

export const WORDS: { readonly [Model in NestingModel]: Words } = {
  vtd: {
    boots: "It finds a unit in scalable mode by its registers, writes its tables and turns translation on.",
    attaches:
      "Its driver writes a PASID table entry and invalidates the PASID cache. The VMM reads the entry:",
    shares:
      "Each has a PASID table entry, which the VMM reads: a page table of the host above it, and a PASID:",
    asks: [
      "It asks for both pages at once: the host's page request queue, the VMM's fault queue, the guest's page request",
      "queue, the guest's page fault handler; and the answer goes the same way back, as a page group response in the end.",
    ],
    answers: { claim: "the guest answered for both pages at once", count: 1 },
    unmaps:
      "The kernel's buffer: an entry of its table is cleared, and its IOTLB invalidation goes to the host.",
    ends: "It ends: its PASID table entry goes, and with it the host's page table above its own.",
    releases: "Its driver takes the PASID table entries away, and then the context entry:",
    told: undefined,
  },
  smmuv3: {
    boots:
      "It finds an SMMUv3 by its registers, writes its stream table and queues and turns translation on.",
    attaches:
      "Its driver writes a stream table entry and tells the unit (CFGI_STE). The VMM reads the entry:",
    shares:
      "PASIDs are in the guest's context descriptors, which the host's unit reads itself; its commands go on:",
    asks: [
      "Its access stalls: the host's event queue, the VMM's fault queue, an event of the guest's unit, the guest's page",
      "fault handler; and the answer goes the same way back: RESUME in the guest, a response, RESUME on the host.",
    ],
    answers: { claim: "the guest answered for each page", count: 2 },
    unmaps:
      "The kernel's buffer: an entry of its table is cleared, and its TLBI command goes to the host as it is.",
    ends: "It ends: its context descriptor goes, and the command that says so (CFGI_CD) goes to the host.",
    releases:
      "Its driver takes the stream table entry away. The VMM gives the host one that is not valid either:",
    told: "the guest's driver is told: the host's event came back as one of the guest's own unit",
  },
  amdvi: {
    boots: "It finds an AMD-Vi unit by its registers, writes its device table and turns translation on.",
    attaches:
      "Its driver writes a device table entry and tells the unit (INVALIDATE_DEVTAB_ENTRY). The VMM reads the entry:",
    shares:
      "PASIDs are in the guest's GCR3 table, which the host's unit reads itself: the VMM has nothing to do for them.",
    asks: [
      "It asks for both pages at once: the host's PPR log, the VMM's fault queue, the guest's PPR log, the guest's page",
      "fault handler; and the answer goes the same way back, as COMPLETE_PPR_REQUEST of the guest, and of the host.",
    ],
    answers: { claim: "the guest answered for both pages at once", count: 1 },
    unmaps:
      "The kernel's buffer: an entry of its table is cleared, and the guest's INVALIDATE_IOMMU_PAGES goes to the host.",
    ends: "It ends: its entry of the GCR3 table goes, and the invalidation that says so goes to the host.",
    releases:
      "Its driver has nothing pass any more (TV = 0), and the VMM takes the device from its page table:",
    told: undefined,
  },
};
