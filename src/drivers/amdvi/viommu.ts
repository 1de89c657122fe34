/** A virtual IOMMU of AMD's: a nest parent that a guest has. As in Linux 7.2, no nested domain can be made on it. */
import type { VirtualIommu } from "../../iommu/driver.ts";
import type { AmdDomain } from "./domain.ts";

export class AmdViommu implements VirtualIommu {
  readonly parent: AmdDomain;
  readonly #forget: (viommu: AmdViommu) => void;

  constructor(parent: AmdDomain, forget: (viommu: AmdViommu) => void) {
    this.parent = parent;
    this.#forget = forget;
    parent.users += 1;
  }

  free(): void {
    this.parent.users -= 1;
    this.#forget(this);
  }
}
