/** What a user of a device sees of its PASID capability: with the interface of 2020, and without. */
import { afterEach, expect, it } from "vitest";
import { FIRST, NestingRig, withoutMdevs } from "../../../test/support/nesting-client.ts";
import { extendedCapabilitiesOf } from "../../pci/capability-list.ts";
import type { PciFunction } from "../../pci/function.ts";
import { ExtendedCapabilityId } from "../../pci/spec.ts";
import { regionOffset } from "../regions.ts";

let rig: NestingRig;
afterEach(() => {
  expect(rig.left()).toEqual([]);
  rig.machine.close();
});

/** Extended capabilities in the config space that VFIO shows; `change` is done to the function before. */
const shown = (edit?: (text: string) => string, change: (pci: PciFunction) => void = () => {}): number[] => {
  rig = new NestingRig(edit);
  const pci = rig.machine.core.devices.get(FIRST)!.function;
  change(pci);
  const client = rig.client();
  const { device } = client.setUp(FIRST, 3);
  const word = (at: number): number => {
    const bytes = new Uint8Array(4);
    client.task.pread(device, regionOffset(7) + BigInt(at), bytes);
    return new DataView(bytes.buffer).getUint32(0, true);
  };
  const ids: number[] = [];
  for (let at = 0x100; at !== 0; at = word(at) >>> 20) ids.push(word(at) & 0xffff);
  client.task.exit();
  return ids;
};

it("a machine with vsva2020 shows it, enabled by the host", () => {
  expect(shown()).toContain(ExtendedCapabilityId.PASID);
  const pci = rig.machine.core.devices.get(FIRST)!.function;
  const { at } = extendedCapabilitiesOf(pci).find(({ id }) => id === ExtendedCapabilityId.PASID)!;
  expect(pci.configRead(at + 6, 2) & 1).toBe(1);
});

it("a machine without it does not, as in Linux 7.2", () => {
  expect(shown((text) => withoutMdevs(text).replace("[vsva2020]", "[]"))).not.toContain(
    ExtendedCapabilityId.PASID,
  );
});

it("a virtual function does not: the capability is its physical function's", () => {
  expect(shown(undefined, (pci) => Object.assign(pci, { isVirtual: true }))).not.toContain(
    ExtendedCapabilityId.PASID,
  );
});
