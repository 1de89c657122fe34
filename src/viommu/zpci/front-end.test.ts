/** A guest of s390 above a host that takes its anchors, and by copies on one that knows nothing of them. */
import { afterEach, describe, expect, it } from "vitest";
import { codeOf } from "../../../test/support/code-of.ts";
import { GuestRig, RAM_BYTES } from "../../../test/support/guest-rig.ts";
import type { GuestDomain } from "../../guest/firmware.ts";
import {
  Fib,
  FunctionControl,
  HANDLE_ENABLED,
  Instruction,
  Iota,
  Register,
  Status,
} from "../../hardware/zpci/spec.ts";
import { Protection } from "../../iommu/driver.ts";
import { explainWalk } from "../../pagetable/explain.ts";
import { s390Dat } from "../../pagetable/s390.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { NestedRig } from "../nested.suite.ts";

const PAGE = 4096;
const IOVA = 0x1_2345_6000;
const RW = Protection.read | Protection.write;

let rig: NestedRig | GuestRig;
afterEach(() => {
  expect(rig.close()).toEqual({});
});

/** A domain of the guest's that its functions (of these numbers) have. */
const given = (...functions: readonly number[]): GuestDomain => {
  const { driver } = rig.guest;
  const domain = driver.allocatePaging(rig.vmm.devices[0]!);
  for (const index of functions) driver.attach(rig.vmm.devices[index]!, domain);
  return domain;
};
const done = (...domains: readonly GuestDomain[]): void => {
  const { driver } = rig.guest;
  for (const device of rig.vmm.devices) driver.attach(device, driver.blocked);
  for (const domain of domains) domain.free();
};
const pageOf = (text: string): number => {
  const pa = rig.guest.allocate(1);
  rig.guest.write(pa, text);
  return pa;
};
const fetched = (address: number, length: number, index = 0): string => {
  const device = rig.devices[index]!;
  device.fetch(address, length);
  const result = rig.settle(device);
  return result === "done" ? Buffer.from(device.read(length)).toString() : result;
};
/** Writes the guest's own entry for an address, without an instruction. */
const rewrite = ({ root }: GuestDomain, iova: number, entry: number): void => {
  let at = 0;
  for (const { address } of explainWalk(s390Dat(3), rig.vmm.memory, root, BigInt(iova), 0))
    at = address ?? at;
  rig.vmm.memory.store64be(at, entry, 0);
};
/** Condition code and status. */
const instruct = (instruction: number, rid: number, first: number, second: number): number[] => {
  const { iommu } = rig.vmm;
  iommu.mmioWrite(Register.HANDLE, 4, BigInt(HANDLE_ENABLED + rid));
  iommu.mmioWrite(Register.OPERAND1, 8, BigInt(first));
  iommu.mmioWrite(Register.OPERAND2, 8, BigInt(second));
  iommu.mmioWrite(Register.INSTRUCTION, 4, BigInt(instruction));
  return [Register.CONDITION, Register.STATUS].map((at) => Number(iommu.mmioRead(at, 4)));
};

const refresh = (rid: number, start: number, length: number): number[] =>
  instruct(Instruction.RPCIT, rid, start, length);

describe.each([
  ["above a host that takes anchors", () => new NestedRig({ preset: "s390" })],
  ["by copies on a host of s390", () => new GuestRig("s390", "shadow", { shows: "zpci" })],
  ["by copies on a VT-d host", () => new GuestRig("vtd", "shadow", { shows: "zpci" })],
] as const)("a guest of s390 %s", (_, make) => {
  it("has its own addresses until its driver says that functions need anchors", () => {
    rig = make();
    rig.vmm.memory.writeBytes(0x5000, Buffer.from("guest physical"));
    expect(fetched(0x5000, 14)).toBe("guest physical");
    expect(fetched(RAM_BYTES - 4, 8)).toBe("fault");
    expect(rig.guest.driver.domains).toBe(0);
    expect(fetched(0x5000, 14)).toBe("fault");
    rig.guest.driver.attach(rig.vmm.devices[0]!, rig.guest.driver.identity);
    expect([fetched(0x5000, 14), fetched(0x5000, 14, 1)]).toEqual(["guest physical", "fault"]);
    done();
  });

  it("maps, unmaps and changes pages, as far as it refreshes them", () => {
    rig = make();
    const domain = given(0);
    const [one, other] = [pageOf("one"), pageOf("two")];
    domain.map(IOVA, one, PAGE, RW);
    expect([fetched(IOVA, 3), fetched(IOVA, 3, 1)]).toEqual(["one", "fault"]);
    rewrite(domain, IOVA, other);
    expect(fetched(IOVA, 3)).toBe("one");
    expect(refresh(rig.vmm.devices[0]!.rid, IOVA, PAGE)).toEqual([0, 0]);
    expect(fetched(IOVA, 3)).toBe("two");
    domain.unmap(IOVA, PAGE);
    expect(fetched(IOVA, 3)).toBe("fault");
    done(domain);
  });

  it("takes what is in a table when its anchor is registered, anew each time", () => {
    rig = make();
    const domain = given();
    const [device] = rig.vmm.devices;
    const { driver } = rig.guest;
    domain.map(IOVA, pageOf("one"), PAGE, RW);
    driver.attach(device!, domain);
    expect(fetched(IOVA, 3)).toBe("one");
    driver.attach(device!, driver.blocked);
    rewrite(domain, IOVA, pageOf("two"));
    driver.attach(device!, domain);
    expect(fetched(IOVA, 3)).toBe("two");
    done(domain);
  });

  it("can give one table to two functions, and each loses what is unmapped", () => {
    rig = make();
    const domain = given(0, 1);
    domain.map(IOVA, pageOf("ours"), PAGE, RW);
    expect([0, 1].map((index) => fetched(IOVA, 4, index))).toEqual(["ours", "ours"]);
    domain.unmap(IOVA, PAGE);
    expect([0, 1].map((index) => fetched(IOVA, 4, index))).toEqual(["fault", "fault"]);
    done(domain);
    expect(rig.vmm.backEnd.held).toBe(0);
  });

  it("forbids writing where the guest's entry does", () => {
    rig = make();
    const domain = given(0);
    domain.map(IOVA, pageOf("read only"), PAGE, Protection.read);
    expect(fetched(IOVA, 9)).toBe("read only");
    const [device] = rig.devices;
    device!.write(Buffer.from("written"));
    device!.store(IOVA, 7);
    expect(rig.settle(device!)).toBe("fault");
    domain.unmap(IOVA, PAGE);
    done(domain);
  });

  it("what is beyond guest memory is not reached", () => {
    rig = make();
    const domain = given(0);
    const code = codeOf(() => domain.map(IOVA, RAM_BYTES, PAGE, RW));
    // A host that reads the tables itself says so.
    expect(code).toBe(rig instanceof NestedRig ? "EIO" : undefined);
    expect(fetched(IOVA, 4)).toBe("fault");
    done(domain);
  });
});

describe("what the host refuses", () => {
  it("an anchor in memory that is not the guest's is the status of the instruction, and the function keeps what it had", () => {
    rig = new NestedRig({ preset: "s390" });
    const domain = given(0);
    domain.map(IOVA, pageOf("kept"), PAGE, RW);
    const block = rig.guest.allocate(1);
    const iota = Iota.make({ ORIGIN: BigInt(RAM_BYTES), T: true, DT: 1 });
    const bytes = new Uint8Array(Fib.bytes);
    Fib.write(bytes, Fib.make({ PBA: 0n, PAL: 2n ** 42n - 1n, IOTA: iota }));
    rig.vmm.memory.writeBytes(block, bytes);
    const { rid } = rig.vmm.devices[0]!;
    expect(instruct(Instruction.MPCIFC, rid, block, FunctionControl.REREGISTER)).toEqual([
      1,
      Status.resources,
    ]);
    expect(fetched(IOVA, 4)).toBe("kept");
    domain.unmap(IOVA, PAGE);
    done(domain);
  });

  it("what it does not map is told with the refresh", () => {
    rig = new GuestRig("vtd", "shadow", { shows: "zpci" });
    const domain = given(0);
    domain.map(IOVA, pageOf("first"), PAGE, RW);
    const { calls } = rig.vmm;
    const map = calls.map.bind(calls);
    calls.map = () => {
      throw new LinuxError("ENOMEM", "RLIMIT_MEMLOCK");
    };
    expect(codeOf(() => domain.map(IOVA + PAGE, pageOf("second"), PAGE, RW))).toBe("EIO");
    expect(refresh(rig.vmm.devices[0]!.rid, IOVA, 2 * PAGE)).toEqual([0, 0]);
    calls.map = map;
    expect([fetched(IOVA, 5), fetched(IOVA + PAGE, 6)]).toEqual(["first", "fault"]);
    expect(rig.events.noted).toEqual([
      expect.objectContaining({
        fields: expect.objectContaining({ what: "a refresh", reason: "ENOMEM: RLIMIT_MEMLOCK" }),
      }),
    ]);
    domain.unmap(IOVA, PAGE);
    done(domain);
  });

  it("a function that has no tables has nothing to refresh", () => {
    rig = new NestedRig({ preset: "s390" });
    expect(refresh(rig.vmm.devices[0]!.rid, 0, PAGE)).toEqual([1, Status.sequence]);
  });

  it("a host that does not nest is no host for a nested guest", () => {
    rig = new GuestRig("s390", "shadow", { shows: "zpci" });
    const edit = (text: string) => text.replace("extensions: [s390-nesting]", "extensions: []");
    expect(codeOf(() => new NestedRig({ preset: "s390", edit }))).toBe("EOPNOTSUPP");
  });
});
