import { describe, expect, it } from "vitest";
import { answer, explained, request, unitSuite } from "../unit.suite.ts";
import { Access } from "../unit.ts";
import { FaultCode } from "./faults.ts";
import type { Parameters } from "./parameters.ts";
import { handleOf, MSI_ADDRESS, ZpciRig } from "./rig.suite.ts";
import {
  Control,
  Designation,
  EVENTS,
  Fib,
  FunctionControl,
  Instruction,
  Iota,
  Register,
  Status,
} from "./spec.ts";

unitSuite("zPCI", () => new ZpciRig());
unitSuite("zPCI remembering nothing", () => new ZpciRig({ cache: "none" }));
unitSuite("zPCI with four IOTLB entries", () => new ZpciRig({ iotlbEntries: 4 }));

const { REGISTER, DEREGISTER, REREGISTER } = FunctionControl;
const RID = 0x18;
const both = Access.read | Access.write;
const done = [0, Status.none];
const failed = (status: number) => [1, status];

const running = (): ZpciRig => {
  const rig = new ZpciRig();
  rig.map(RID, 0x5000, 0x40_0000, 12, both);
  rig.enable();
  return rig;
};

describe("Modify PCI Function Controls", () => {
  it("registers, changes and deregisters an anchor, each at once", () => {
    const rig = running();
    expect(rig.access(RID, 0x5008)).toMatchObject({ pa: 0x40_0008 });
    const other = rig.table();
    rig.store(rig.place(other, 0x5000), 0x41_0000n);
    expect(rig.modify(RID, REREGISTER, rig.anchor(other))).toEqual(done);
    expect(rig.access(RID, 0x5008)).toMatchObject({ pa: 0x41_0008 });
    expect(rig.modify(RID, DEREGISTER, 0n)).toEqual(done);
    expect(rig.access(RID, 0x5008)).toEqual({ ok: false, code: FaultCode.noParameters });
    rig.write(Register.CONTROL, 0, 4);
    expect(rig.access(RID, 0x5008)).toMatchObject({ pa: 0x5008 });
  });

  it("refuses what is not in order: registering twice, changing or deregistering nothing", () => {
    const rig = running();
    expect(rig.modify(RID, REGISTER, rig.anchor(rig.root(RID)))).toEqual(failed(Status.sequence));
    expect(rig.modify(RID + 1, REREGISTER, rig.anchor(rig.root(RID)))).toEqual(failed(Status.sequence));
    expect(rig.modify(RID + 1, DEREGISTER, 0n)).toEqual(failed(Status.sequence));
    expect(rig.modify(RID, 10, 0n)).toEqual(failed(Status.operation));
    expect(rig.instruct(9, handleOf(RID), 0, 0)).toEqual(failed(Status.operation));
  });

  it("takes handles of enabled functions only, and blocks that can be read", () => {
    const rig = running();
    for (const handle of [RID, 0x8001_0018, 0])
      expect(rig.instruct(Instruction.RPCIT, handle, 0, 0x1000)).toEqual([3, 0]);
    expect(rig.instruct(Instruction.MPCIFC, handleOf(RID), 0x7_ffff_fff0n, REREGISTER)).toEqual(
      failed(Status.storage),
    );
  });

  it("takes designations of tables, frames of 4 KiB and whole pages", () => {
    const rig = running();
    const origin = BigInt(rig.root(RID));
    const good = { ORIGIN: origin, T: true, DT: 1 };
    for (const iota of [
      Iota.make({ ...good, DT: 4 }),
      Iota.make({ ...good, DT: 7 }),
      Iota.make({ ...good, FS: 1 }),
      Iota.make({ ...good, ORIGIN: 1n << 52n }),
      Iota.make(good) | (1n << 9n),
    ])
      expect(rig.modify(RID, REREGISTER, iota)).toEqual(failed(Status.invalid));
    for (const [pba, pal] of [
      [0x800n, 0xfffn],
      [0n, 0x1000n],
      [0x2000n, 0x1fffn],
    ] as const)
      expect(rig.modify(RID, REREGISTER, Iota.make(good), pba, pal)).toEqual(failed(Status.invalid));
    expect(rig.access(RID, 0x5000)).toMatchObject({ pa: 0x40_0000 });
  });

  it("keeps a function to its addresses, whatever its tables say", () => {
    const rig = running();
    const iota = rig.anchor(rig.root(RID));
    rig.map(RID, 0x6000, 0x41_0000, 12, both);
    expect(rig.modify(RID, REREGISTER, iota, 0x6000n, 0x6fffn)).toEqual(done);
    expect(rig.access(RID, 0x6fff)).toMatchObject({ pa: 0x41_0fff, span: 1 });
    for (const outside of [0x5fff, 0x7000])
      expect(rig.access(RID, outside)).toEqual({ ok: false, code: FaultCode.outOfRange });
    expect(rig.modify(RID, REREGISTER, 0n, 0x6000n, 0x6fffn)).toEqual(done);
    expect(rig.access(RID, 0x6123)).toMatchObject({ pa: 0x6123 });
    expect(rig.access(RID, 0x5123)).toEqual({ ok: false, code: FaultCode.outOfRange });
  });

  it("begins the walk with the designated table", () => {
    const rig = running();
    const [segment] = [Number(rig.load(rig.root(RID)) & ~0xfffn)];
    expect(rig.modify(RID, REREGISTER, rig.anchor(segment, Designation.segment))).toEqual(done);
    expect(rig.access(RID, 0x5008)).toMatchObject({ pa: 0x40_0008 });
    expect(rig.access(RID, 2 ** 31)).toEqual({ ok: false, code: FaultCode.asceType });
    const second = rig.table();
    rig.store(second + 8, BigInt(rig.root(RID)) | 0xbn);
    expect(
      rig.modify(RID, REREGISTER, rig.anchor(second, Designation.regionSecond), 0n, 2n ** 53n - 1n),
    ).toEqual(done);
    expect(rig.access(RID, 2 ** 42 + 0x5008)).toMatchObject({ pa: 0x40_0008 });
    expect(rig.access(RID, 0x5008)).toEqual({ ok: false, code: FaultCode.regionSecond });
  });
});

describe("Refresh PCI Translations", () => {
  it("makes a remembered page be looked up again, and no other", () => {
    const rig = running();
    rig.map(RID, 0x9000, 0x42_0000, 12, both);
    for (const iova of [0x5000, 0x9000]) rig.access(RID, iova);
    rig.store(rig.place(rig.root(RID), 0x5000), 0x41_0000n);
    rig.store(rig.place(rig.root(RID), 0x9000), 0x43_0000n);
    expect(rig.access(RID, 0x5000)).toMatchObject({ pa: 0x40_0000 });
    expect(explained(rig.unit, request(RID, 0x5000, Access.read))).toMatchObject({ pa: 0x40_0000 });
    expect(rig.refresh(RID, 0x5000, 0x1000)).toEqual(done);
    expect(rig.access(RID, 0x5000)).toMatchObject({ pa: 0x41_0000 });
    expect(rig.access(RID, 0x9000)).toMatchObject({ pa: 0x42_0000 });
    expect(rig.refresh(RID, 0, 2n ** 42n)).toEqual(done);
    expect(rig.access(RID, 0x9000)).toMatchObject({ pa: 0x43_0000 });
  });

  it("forgets every page of odd ranges", () => {
    const rig = running();
    const pages = Array.from({ length: 70 }, (_, index) => 0x7f_d000 + index * 0x1000);
    for (const at of pages) rig.map(RID, at, 0x100_0000 + at, 12, both);
    for (const at of pages) rig.access(RID, at);
    for (const at of pages) rig.store(rig.place(rig.root(RID), at), 0x420n);
    expect(rig.refresh(RID, pages[1]!, 68 * 0x1000)).toEqual(done);
    const answers = pages.map((at) => rig.access(RID, at).ok);
    expect(answers).toEqual(pages.map((_, index) => index === 0 || index === 69));
  });

  it("takes whole pages of the function's addresses, where there are tables", () => {
    const rig = running();
    for (const [start, length] of [
      [0x5001, 0x1000],
      [0x5000, 0x800],
      [0x5000, 0],
      [2n ** 42n - 0x1000n, 0x2000],
      [2n ** 64n - 0x1000n, 0x1000],
    ] as const)
      expect(rig.refresh(RID, start, length)).toEqual(failed(Status.invalid));
    expect(rig.refresh(RID + 1, 0x5000, 0x1000)).toEqual(failed(Status.sequence));
  });
});

it("Store PCI Function Controls gives back what was registered", () => {
  const rig = running();
  const stored = (rid: number) => {
    expect(rig.instruct(Instruction.STPCIFC, handleOf(rid), rig.block, 0)).toEqual(done);
    const bytes = new Uint8Array(Fib.bytes);
    rig.memory.readBytes(rig.block, bytes);
    return Fib.fields.IOTA.of(Fib.read(bytes));
  };
  expect(stored(RID)).toBe(rig.anchor(rig.root(RID)));
  expect(stored(RID + 1)).toBe(0n);
  expect(rig.instruct(Instruction.STPCIFC, handleOf(RID), 0x9_0000_0000, 0)).toEqual(failed(Status.storage));
});

describe("errors", () => {
  it("have the code of the exception that the tables would be to a processor", () => {
    const rig = running();
    const page = rig.place(rig.root(RID), 0x5000);
    const codeOf = (what: number = Access.read, iova = 0x5000) => {
      rig.refresh(RID, 0x5000, 0x1000);
      const found = rig.access(RID, iova, what);
      return "code" in found ? found.code : 0;
    };
    rig.store(page, 0x40_0200n);
    expect([codeOf(), codeOf(Access.write), codeOf(Access.atomic)]).toEqual([0, 4, 4]);
    rig.store(page, 0x40_0400n);
    expect(codeOf()).toBe(FaultCode.page);
    rig.store(page, 0x40_0800n);
    expect(codeOf()).toBe(FaultCode.specification);
    expect(codeOf(Access.read, 0x10_0000)).toBe(FaultCode.segment);
    expect(codeOf(Access.read, 2 ** 31)).toBe(FaultCode.regionThird);
    rig.store(rig.root(RID), 0x7_0000_0007n | (1n << 40n));
    expect(codeOf()).toBe(FaultCode.addressing);
  });

  it("are events, told by a message, in their order; what is more than fits is told to be lost", () => {
    const rig = running();
    rig.interruptAt(MSI_ADDRESS, 7);
    rig.access(RID, 0x7000, Access.write);
    expect(rig.messages).toEqual([{ address: BigInt(MSI_ADDRESS), data: 7 }]);
    for (let more = 0; more < EVENTS + 5; more++) rig.access(RID, 0x8000 + 0x1000 * more);
    expect(rig.read(Register.PENDING)).toBe(EVENTS);
    const { FH, FADDR, W, PEC, LOST } = rig.takeEvent()!;
    expect([FH, FADDR, W, PEC, LOST]).toEqual([0x8000_0018n, 0x7000n, 1n, 0x11n, 0n]);
    rig.access(RID, 0x9000);
    const rest: (Record<string, bigint> | undefined)[] = [];
    for (let event = rig.takeEvent(); event; event = rig.takeEvent()) rest.push(event);
    expect(rest.length).toBe(EVENTS);
    expect(rest.map((event) => event!["LOST"])).toEqual([...Array(EVENTS - 1).fill(0n), 1n]);
  });
});

it("passes messages, refuses what has a PASID or was translated before", () => {
  const rig = running();
  expect(rig.access(RID, MSI_ADDRESS + 0x10, Access.write)).toMatchObject({ pa: MSI_ADDRESS + 0x10 });
  expect(rig.access(RID, MSI_ADDRESS, Access.read).ok).toBe(false);
  const transaction = request(RID, 0x5000, Access.read);
  for (const change of [{ pasid: 3 }, { translated: true }])
    expect(answer(rig.unit, Object.assign(request(RID, 0x5000, Access.read), change))).toEqual({
      ok: false,
      code: FaultCode.unknownRequest,
    });
  expect(answer(rig.unit, transaction).ok).toBe(true);
});

describe("a unit that is not silicon", () => {
  it("asks who stands behind it, and what cannot be followed has not happened", () => {
    const asked: [number, Parameters | undefined][] = [];
    const refreshed: number[][] = [];
    let willing = true;
    const rig = new ZpciRig({
      host: {
        register(rid, parameters) {
          asked.push([rid, parameters]);
          return willing;
        },
        refresh(...range) {
          refreshed.push(range);
          return willing;
        },
      },
    });
    const iota = rig.anchor(rig.root(RID));
    expect(rig.modify(RID, REGISTER, iota)).toEqual(done);
    expect(rig.refresh(RID, 0x5000, 0x2000)).toEqual(done);
    expect([asked[0]![0], asked[0]![1]!.iota, refreshed]).toEqual([RID, iota, [[RID, 0x5000, 0x7000]]]);
    willing = false;
    expect(rig.refresh(RID, 0x5000, 0x2000)).toEqual(failed(Status.resources));
    expect(rig.modify(RID, DEREGISTER, 0n)).toEqual(failed(Status.resources));
    willing = true;
    expect(rig.modify(RID, REREGISTER, iota)).toEqual(done);
  });

  it("needs random numbers to be paranoid", () => {
    expect(() => new ZpciRig({ cache: "paranoid", ...{ random: undefined } })).toThrow(TypeError);
  });
});

it("relaxed, functions without parameters pass", () => {
  const rig = new ZpciRig();
  expect(rig.access(RID, 0x1234)).toMatchObject({ pa: 0x1234, span: 0xdcc });
  rig.write(Register.CONTROL, Control.REQUIRED, 4);
  expect(rig.access(RID, 0x1234).ok).toBe(false);
});
