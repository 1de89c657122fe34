/** An I/O address space: a number in the file's table, its content, and the HWPTs that translate for devices with it. */
import type { IommufdContext } from "./context.ts";
import type { HwptPaging } from "./hwpt.ts";
import { IoPagetable } from "./io-pagetable.ts";
import { IommufdObject } from "./objects.ts";

export class Ioas extends IommufdObject {
  readonly type = "ioas";
  readonly pagetable: IoPagetable;
  /** In the order in which they came. */
  readonly hwpts = new Set<HwptPaging>();

  constructor(context: IommufdContext) {
    super();
    this.pagetable = new IoPagetable(context, () => this.name);
  }

  /** Whatever needs it has gone. */
  destroy(): void {
    this.pagetable.clear();
  }
}
