/** An I/O address space: a number in the file's table, its content, and the HWPTs that translate for devices with it. */
import type { IommufdContext } from "./context.ts";
import { IoPagetable } from "./io-pagetable.ts";
import { IommufdObject } from "./objects.ts";

/** What an IOAS knows of a HWPT that translates with it. */
export interface Translation extends IommufdObject {
  /** Every access of its devices is coherent with the caches. */
  readonly coherent: boolean;
}

export class Ioas extends IommufdObject {
  readonly type = "ioas";
  readonly pagetable: IoPagetable;
  readonly #context: IommufdContext;
  /** In the order in which they came. */
  readonly hwpts = new Set<Translation>();

  constructor(context: IommufdContext) {
    super();
    this.#context = context;
    this.pagetable = new IoPagetable(context, () => this.name);
  }

  /** Whatever needs it has gone. */
  destroy(): void {
    if (this.#context.compatIoas === this) this.#context.compatIoas = undefined;
    this.pagetable.clear();
  }
}

/** The IOAS that VFIO's requests on the file use: the one IOMMU_VFIO_IOAS named, until it is destroyed. */
export const compatIoasOf = ({ compatIoas }: IommufdContext): Ioas | undefined =>
  compatIoas instanceof Ioas ? compatIoas : undefined;
