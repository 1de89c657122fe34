/** The control file of secure nested paging: page states and the reverse map table, by encoded ioctls. */
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Rmp, RmpEntry } from "../../hardware/rmp.ts";
import { Banks } from "../../memory/banks.ts";
import {
  SOFTIOMMU_SNP_PAGE_STATE,
  SOFTIOMMU_SNP_PRIVATE,
  SOFTIOMMU_SNP_RMP_READ,
  SOFTIOMMU_SNP_SHARED,
  SoftiommuSnpPageState,
  SoftiommuSnpRmpRead,
} from "../../uapi/extensions.ts";
import { Capability } from "../call.ts";
import { ModelTask } from "../model-task.ts";
import { SnpSubsystem } from "./control-file.ts";

const PAGE = 4096;
const LARGE = 0x20_0000;
const VA = 0x7f00_0000_0000;
const RAM = 64 * 2 ** 20;
const [SHARED, PRIVATE] = [SOFTIOMMU_SNP_SHARED, SOFTIOMMU_SNP_PRIVATE];
const { ASSIGNED, ASID, GPA, VALIDATED } = RmpEntry.fields;

let banks: Banks;
let rmp: Rmp;
let snp: SnpSubsystem;
let task: ModelTask;

beforeEach(() => {
  banks = new Banks({ ram: [{ start: 0, length: RAM }] });
  rmp = new Rmp(RAM);
  snp = new SnpSubsystem(rmp);
  task = new ModelTask(banks);
  task.memory.map(VA, 2 * LARGE, { contiguous: true });
});
afterEach(() => {
  task.exit();
  expect(snp.live()).toEqual({ snpFiles: 0, privatePages: 0 });
  expect(rmp.assigned).toBe(0);
  expect(banks.allocated).toBe(0);
  banks.close();
});

interface Change {
  readonly va: number;
  readonly length: number;
  readonly gpa: number;
  readonly asid: number;
  readonly state: number;
}
const WHOLE: Change = { va: VA, length: 2 * LARGE, gpa: 0, asid: 7, state: PRIVATE };

const change = (fd: number, what: Partial<Change> = {}, by = task): number => {
  const { va, length, gpa, asid, state } = { ...WHOLE, ...what };
  const bytes = SoftiommuSnpPageState.bytes({
    user_va: BigInt(va),
    length: BigInt(length),
    gpa: BigInt(gpa),
    asid,
    state,
  });
  return by.ioctl(fd, SOFTIOMMU_SNP_PAGE_STATE, bytes);
};
const read = (fd: number, va: number, reserved = 0) => {
  const bytes = SoftiommuSnpRmpRead.bytes({ user_va: BigInt(va), __reserved: reserved });
  task.ioctl(fd, SOFTIOMMU_SNP_RMP_READ, bytes);
  const { out_entry_lo: entry, out_page_size: size, out_entry_hi: high } = SoftiommuSnpRmpRead.read(bytes);
  return {
    assigned: ASSIGNED.of(entry) === 1n,
    asid: Number(ASID.of(entry)),
    gpa: Number(GPA.of(entry)),
    validated: VALIDATED.of(entry) === 1n,
    size,
    high,
  };
};
const refused = (code: string, reason: RegExp) =>
  expect.objectContaining({ code, message: expect.stringMatching(reason) });

describe("SOFTIOMMU_SNP_PAGE_STATE", () => {
  it("makes pages a guest's in pages of 2 MiB where host and guest address are aligned", () => {
    const fd = task.open(snp.node);
    expect(change(fd)).toBe(0);
    expect(read(fd, VA + LARGE + PAGE)).toEqual({
      assigned: true,
      asid: 7,
      gpa: LARGE,
      validated: true,
      size: LARGE,
      high: 0n,
    });
    expect(snp.live()).toEqual({ snpFiles: 1, privatePages: 1024 });
  });

  it("has pages of 4 KiB where they are not aligned alike, or are fewer", () => {
    const fd = task.open(snp.node);
    change(fd, { gpa: PAGE });
    expect(read(fd, VA + 5 * PAGE)).toMatchObject({ gpa: 6 * PAGE, size: PAGE });
    change(fd, { gpa: PAGE, state: SHARED });
    change(fd, { length: LARGE - PAGE });
    expect(read(fd, VA)).toMatchObject({ gpa: 0, size: PAGE });
  });

  it("splits a large page when a part becomes shared, and joins the parts when all are private again", () => {
    const fd = task.open(snp.node);
    change(fd);
    const part = { va: VA + 3 * PAGE, gpa: 3 * PAGE, length: PAGE };
    change(fd, { ...part, state: SHARED });
    expect(read(fd, part.va)).toMatchObject({ assigned: false, size: PAGE });
    expect(read(fd, VA + 4 * PAGE)).toMatchObject({ assigned: true, gpa: 4 * PAGE, size: PAGE });
    expect(read(fd, VA + LARGE)).toMatchObject({ size: LARGE });
    expect(snp.live().privatePages).toBe(1023);
    change(fd, part);
    expect(read(fd, part.va)).toMatchObject({ assigned: true, gpa: 0, size: LARGE });
    expect(snp.counts).toEqual({ split: 1, joined: 1 });
  });

  it("leaves pages as they are that are so already", () => {
    const fd = task.open(snp.node);
    change(fd, { length: PAGE });
    change(fd, { length: 3 * PAGE });
    change(fd, { length: 3 * PAGE });
    expect(snp.live().privatePages).toBe(3);
    change(fd, { state: SHARED });
    change(fd, { state: SHARED });
    expect(snp.live().privatePages).toBe(0);
  });

  it("keeps what is private when the program unmaps it, until it is shared or the file is closed", () => {
    const fd = task.open(snp.node);
    change(fd, { length: 2 * PAGE });
    const pa = task.memory.physical(VA);
    task.memory.unmap(VA, 2 * LARGE);
    expect(rmp.read(pa).entry).not.toBe(0n);
    expect(banks.allocated).toBeGreaterThan(1024);
    task.close(fd);
    expect(rmp.assigned).toBe(0);
  });

  it("is refused with EINVAL for what is not whole pages, no state, or no guest", () => {
    const fd = task.open(snp.node);
    for (const [what, reason] of [
      [{ va: VA + 1 }, /user_va 0x7f0000000001/],
      [{ length: 0 }, /length 0x0/],
      [{ length: 100 }, /length 0x64/],
      [{ gpa: 5 }, /gpa 0x5/],
      [{ gpa: 2 ** 51 }, /gpa 0x8000000000000/],
      [{ state: 2 }, /state 2/],
      [{ asid: 0 }, /asid 0/],
      [{ asid: 1024 }, /asid 1024/],
    ] as const)
      expect(() => change(fd, what)).toThrow(refused("EINVAL", reason));
  });

  it("is refused with EFAULT for memory that is not there, and changes nothing", () => {
    const fd = task.open(snp.node);
    expect(() => change(fd, { length: 2 * LARGE + PAGE })).toThrow(refused("EFAULT", /not mapped/));
    expect(() => change(fd, { va: 2 ** 47 })).toThrow(refused("EFAULT", /beyond/));
    expect(() => task.ioctl(fd, SOFTIOMMU_SNP_PAGE_STATE, 0x10)).toThrow(refused("EFAULT", /./));
    expect(rmp.assigned).toBe(0);
  });

  it("is refused with EPERM for another guest's pages, and with EINVAL at another guest address", () => {
    const [mine, other] = [task.open(snp.node), task.open(snp.node)];
    change(mine, { length: 2 * PAGE });
    for (const state of [PRIVATE, SHARED]) {
      expect(() => change(other, { asid: 8, va: VA, state })).toThrow(refused("EPERM", /ASID 7, not 8/));
      expect(() => change(mine, { gpa: PAGE, state })).toThrow(refused("EINVAL", /at the guest's 0x0/));
    }
    expect(snp.live().privatePages).toBe(2);
  });

  it("is refused with EBUSY for an ASID of another file, until that is closed", () => {
    const [mine, other] = [task.open(snp.node), task.open(snp.node)];
    change(mine, { length: PAGE });
    expect(() => change(other, { length: PAGE })).toThrow(refused("EBUSY", /guest file 1/));
    task.close(mine);
    expect(change(other, { length: PAGE })).toBe(0);
  });

  it("is refused with EINVAL where a page of the host is in the range twice", () => {
    const fd = task.open(snp.node);
    const pa = task.memory.physical(VA);
    const twice = { ...task.memory, pin: () => ({ ...pin, unpin: () => {} }) };
    const pin = { va: VA, pages: 2, writable: true, extents: Float64Array.of(pa / PAGE, 1, pa / PAGE, 1) };
    const file = task.file(fd)!;
    const bytes = SoftiommuSnpPageState.bytes({
      user_va: BigInt(VA),
      length: 8192n,
      gpa: 0n,
      asid: 7,
      state: 1,
    });
    const memory = { ...twice, read: (_: bigint, into: Uint8Array) => into.set(bytes) };
    const call = { task, memory } as unknown as Parameters<NonNullable<typeof file.ioctl>>[0];
    expect(() => file.ioctl!(call, SOFTIOMMU_SNP_PAGE_STATE, 0n)).toThrow(refused("EINVAL", /twice/));
  });

  it("is refused with ENOMEM beyond RLIMIT_MEMLOCK, which CAP_IPC_LOCK lifts", () => {
    const small = new ModelTask(banks, { memlock: 2 * PAGE });
    small.memory.map(VA, 4 * PAGE);
    const fd = small.open(snp.node);
    expect(change(fd, { length: 2 * PAGE }, small)).toBe(0);
    expect(() => change(fd, { va: VA + 2 * PAGE, gpa: 2 * PAGE, length: PAGE }, small)).toThrow(
      refused("ENOMEM", /2 pages are private and 1 more.*allows 2/),
    );
    small.exit();
    const root = new ModelTask(banks, { memlock: 0, capabilities: [Capability.ipcLock] });
    root.memory.map(VA, PAGE);
    expect(change(root.open(snp.node), { length: PAGE }, root)).toBe(0);
    root.exit();
  });

  it("asks for the adoption of private memory first", () => {
    const fd = task.open(snp.node);
    task.memory.map(VA, 2 * PAGE, { private: true });
    change(fd, { length: 2 * PAGE });
    expect(task.memory.adoptions).toBe(1);
    expect(snp.live().privatePages).toBe(2);
  });
});

describe("SOFTIOMMU_SNP_RMP_READ", () => {
  it("answers zero for a page that is nobody's", () => {
    expect(read(task.open(snp.node), VA)).toMatchObject({ assigned: false, gpa: 0, size: PAGE });
  });

  it("leaves memory where it is that nobody has pinned yet", () => {
    const fd = task.open(snp.node);
    task.memory.map(VA, PAGE, { private: true });
    expect(read(fd, VA)).toMatchObject({ assigned: false, size: PAGE });
    expect(task.memory.adoptions).toBe(0);
  });

  it("is refused for what is no page, is not there, or has a reserved member set", () => {
    const fd = task.open(snp.node);
    expect(() => read(fd, VA + 8)).toThrow(refused("EINVAL", /user_va/));
    expect(() => read(fd, VA, 1)).toThrow(refused("EINVAL", /__reserved/));
    expect(() => read(fd, VA - PAGE)).toThrow(refused("EFAULT", /not mapped/));
    expect(() => read(fd, 2 ** 47)).toThrow(refused("EFAULT", /beyond/));
    expect(() => task.ioctl(fd, SOFTIOMMU_SNP_RMP_READ, 0x10)).toThrow(refused("EFAULT", /./));
  });
});

it("knows no other request", () => {
  expect(() => task.ioctl(task.open(snp.node), 0x5303, 0)).toThrow(refused("ENOTTY", /0x5303/));
});

it("has private what was last made private, page by page, and pins that and no more", () => {
  const changes = fc.array(
    fc.record({
      page: fc.nat(1023),
      count: fc.constantFrom(1, 2, 511, 512, 513, 1024),
      state: fc.constantFrom(0, 1),
    }),
    { maxLength: 8 },
  );
  fc.assert(
    fc.property(changes, (program) => {
      const fd = task.open(snp.node);
      const literal = new Set<number>();
      for (const { page, count, state } of program) {
        const pages = Math.min(count, 1024 - page);
        change(fd, { va: VA + page * PAGE, gpa: page * PAGE, length: pages * PAGE, state });
        for (let at = page; at < page + pages; at++)
          if (state === PRIVATE) literal.add(at);
          else literal.delete(at);
      }
      expect(snp.live().privatePages).toBe(literal.size);
      expect(rmp.assigned).toBe(literal.size);
      const base = task.memory.physical(VA);
      for (let at = 0; at < 1024; at += 1)
        expect(rmp.check(base + at * PAGE, 12) !== 0).toBe(literal.has(at));
      for (const region of [0, 1]) {
        const whole = Array.from({ length: 512 }, (_, at) => literal.has(512 * region + at)).every(Boolean);
        expect(rmp.read(base + region * LARGE).lg2 === 21).toBe(whole);
      }
      task.close(fd);
      expect(rmp.assigned).toBe(0);
    }),
    { numRuns: 30 },
  );
});
