/** What the isolation tests rest on: watched memory is told of every word that a unit's walk reads, and of no other. */
import { expect, it } from "vitest";
import { Protection } from "../src/iommu/driver.ts";
import { GuestRig } from "./support/guest-rig.ts";
import { WatchedMemory } from "./support/watched-memory.ts";

const IOVA = 0x1_2345_6000;
const PAGE = 4096;
/** No structure is larger. */
const STRUCTURE = 64;
const FUNCTION = "0000:7e:00.0";

it.each(["vtd", "smmuv3"])("the words that %s reads are those that the literal walk tells of", (preset) => {
  const read: number[] = [];
  let watching = false;
  const rig = new GuestRig(preset, "nested", {
    unitMemory: (memory) =>
      new WatchedMemory(memory, (pa, _, write) => {
        if (watching && !write) read.push(pa);
      }),
  });
  const { guest, devices } = rig;
  const [requester] = rig.vmm.devices;
  const domain = guest.driver.allocatePaging(requester!);
  guest.driver.attach(requester!, domain);
  const page = guest.allocate(1);
  guest.write(page, "found");
  domain.map(IOVA, page, PAGE, Protection.read);
  const literal = [...rig.machine.explain(FUNCTION, BigInt(IOVA), false)!].flatMap(
    ({ address }) => address ?? [],
  );
  watching = true;
  devices[0]!.fetch(IOVA, 5);
  expect(rig.settle(devices[0]!)).toBe("done");
  watching = false;
  expect(literal.length).toBeGreaterThan(10);
  expect(literal.filter((address) => !read.includes(address))).toEqual([]);
  const told = (pa: number) => literal.some((address) => pa >= address && pa < address + STRUCTURE);
  expect(read.filter((pa) => !told(pa))).toEqual([]);
  guest.driver.attach(requester!, guest.driver.blocked);
  domain.unmap(IOVA, PAGE);
  domain.free();
  expect(rig.close()).toEqual({});
});
