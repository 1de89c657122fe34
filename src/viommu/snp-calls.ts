/** How a VMM makes pages of its guest private or shared on a host with secure nested paging, and asks whose they are. */
import type { ModelTask } from "../kernel/model-task.ts";
import {
  SOFTIOMMU_SNP_PAGE_STATE,
  SOFTIOMMU_SNP_PRIVATE,
  SOFTIOMMU_SNP_RMP_READ,
  SOFTIOMMU_SNP_SHARED,
  SoftiommuSnpPageState,
  SoftiommuSnpRmpRead,
} from "../uapi/extensions.ts";
import { type Record, RecordedCalls } from "./recorded-calls.ts";

export interface StateChange {
  /** In the VMM's memory, and in the guest's. */
  readonly va: number;
  readonly gpa: number;
  readonly length: number;
  readonly state: "shared" | "private";
}

export class SnpCalls extends RecordedCalls {
  readonly #fd: number;
  /** The guest's number. */
  readonly #asid: number;

  /** `fd` is one of /dev/softiommu-snp. */
  constructor(task: ModelTask, fd: number, asid: number, record?: Record) {
    super(task, record);
    this.#fd = fd;
    this.#asid = asid;
  }

  change({ va, gpa, length, state }: StateChange): void {
    const bytes = SoftiommuSnpPageState.bytes({
      user_va: BigInt(va),
      length: BigInt(length),
      gpa: BigInt(gpa),
      asid: this.#asid,
      state: state === "shared" ? SOFTIOMMU_SNP_SHARED : SOFTIOMMU_SNP_PRIVATE,
    });
    this.call("snp", this.#fd, SOFTIOMMU_SNP_PAGE_STATE, bytes);
  }

  /** The entry of the page in the reverse map table, and bytes of the page it is of. */
  entry(va: number): { readonly entry: bigint; readonly bytes: number } {
    const bytes = SoftiommuSnpRmpRead.bytes({ user_va: BigInt(va) });
    this.call("snp", this.#fd, SOFTIOMMU_SNP_RMP_READ, bytes);
    const { out_entry_lo: entry, out_page_size } = SoftiommuSnpRmpRead.read(bytes);
    return { entry, bytes: out_page_size };
  }
}
