/** What units answer to an unbind and an invalidation is the caller's to know, and what is not gone stays bound. */
import { afterAll, beforeEach, expect, it } from "vitest";
import { MapDriver, ModelHost } from "../../../test/support/model-host.ts";
import { outcome } from "../../../test/support/vfio-client.ts";
import type { Domain, InvalidationOutcome, NestedDomain, PagingDomain } from "../../iommu/driver.ts";
import { type PasidSet, Pasids } from "../../iommu/pasids.ts";
import { ModelTask } from "../../kernel/model-task.ts";
import type { PciFunction } from "../../pci/function.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { Binding } from "./binding.ts";
import { vtdFormat } from "./vtd.ts";

/** Refuses to let go of PASIDs while it is stuck. */
class StuckDriver extends MapDriver {
  stuck = true;
  override attach(device: PciFunction, domain: Domain, pasid?: number): void {
    if (this.stuck && domain === this.blocked && pasid !== undefined)
      throw new LinuxError("EIO", "the unit does not answer", this.name);
    super.attach(device, domain, pasid);
  }
}

const driver = new StuckDriver("stuck");
const host = new ModelHost({ drivers: [driver] });
afterAll(() => host.memory.close());
const group = host.core.groups.get(0)!;
const pasids = new Pasids({ bits: 8 });
let answer: InvalidationOutcome;
let freed: boolean;
let gone: number;
let set: PasidSet;
let pasid: number;
let binding: Binding;

beforeEach(() => {
  answer = { done: 1 };
  freed = false;
  gone = 0;
  driver.stuck = true;
  set = pasids.join(new ModelTask(host.memory), host);
  pasid = set.allocate(1, 255);
  const nested: NestedDomain = {
    kind: "nested",
    name: "a guest's table",
    parent: driver.allocatePaging() as PagingDomain,
    invalidate: () => answer,
    free: () => {
      freed = true;
    },
  };
  group.attach(nested, pasid);
  binding = new Binding(
    { device: () => undefined },
    { group, nested, set, pasid, guestPasid: 5, gone: () => (gone += 1) },
  );
  set.use(pasid, binding);
});

it("an unbind that a unit refuses is the caller's error, and the PASID is bound and taken still", () => {
  expect(outcome(() => binding.unbind())).toBe("EIO");
  expect([freed, gone]).toEqual([false, 0]);
  expect(outcome(() => set.free(pasid, pasid))).toBe("EIO");
  expect(pasids.ownerOf(pasid)).toBe(set);
  expect([...pasids.usersOf(pasid)]).toEqual([binding]);
  driver.stuck = false;
  binding.unbind();
  expect([freed, gone]).toEqual([true, 1]);
  expect([...pasids.usersOf(pasid)]).toEqual([]);
});

it("an invalidation that a unit refuses is the caller's error", () => {
  binding.invalidate(vtdFormat.tables!, undefined);
  answer = { done: 0, error: new LinuxError("EIO", "the unit does not answer", "stuck") };
  expect(outcome(() => binding.invalidate(vtdFormat.tables!, undefined))).toBe("EIO");
});

it("is called by the host's number and the guest's", () => {
  expect([BigInt(pasid), 5n, 6n].map((called) => binding.isCalled(called))).toEqual([true, true, false]);
});
