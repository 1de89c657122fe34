/** The Arm host through encoded requests: nesting, PASIDs, commands, events and faults, with the errnos of Linux 7.2. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ArmGuest, MEMORY, PAGE, type SteFields } from "../../test/support/arm-guest.ts";
import { outcome } from "../../test/support/vfio-client.ts";
import { Random } from "../base/clock.ts";
import {
  AtcCommand,
  EventCode,
  EventRecord,
  Opcode,
  StreamCommand,
  SyncCommand,
  TlbiCommand,
} from "../hardware/smmuv3/queue-spec.ts";
import { Config } from "../hardware/smmuv3/spec.ts";
import * as uapi from "../uapi/iommufd.ts";
import { VFIO_DEVICE_RESET } from "../uapi/vfio.ts";
import { PRESETS } from "./presets.ts";

const VSID = 0x77n;
const ADDRESS = 0x12_3400_0000;
const TEXT = "what the function wrote";

let guest: ArmGuest;
let parent: number;
let viommu: number;
beforeEach(() => {
  guest = new ArmGuest();
  parent = guest.nestParent();
  viommu = guest.viommu(parent);
});
afterEach(() => guest.close());

const attach = (hwpt: number, pasid?: number): unknown =>
  outcome(() => guest.client.attachTo(guest.device, hwpt, pasid));
const tlbi = (opcode: number, fields: Parameters<typeof TlbiCommand.make>[0] = {}): bigint =>
  TlbiCommand.make({ OPCODE: opcode, ...fields });
const cfgi = (opcode: number, fields: Parameters<typeof StreamCommand.make>[0] = {}): bigint =>
  StreamCommand.make({ OPCODE: opcode, ...fields });
const eventOf = (words: readonly bigint[]) => {
  const value = words.reduce((all, word, index) => all | (word << BigInt(64 * index)), 0n);
  const of = (name: keyof typeof EventRecord.fields) => EventRecord.fields[name].of(value);
  return {
    type: Number(of("TYPE")),
    sid: of("SID"),
    address: of("ADDRESS"),
    ssid: of("SSID"),
    read: of("RNW"),
  };
};

/** A guest's stage 1 with a page at ADDRESS, attached. */
const attached = (options: { readonly fault?: number; readonly stalls?: boolean } = {}) => {
  guest.vdevice(viommu, VSID);
  const table = guest.table();
  const page = guest.page();
  guest.map(table, ADDRESS, page);
  const contexts = guest.contexts([table, guest.table(), guest.table()], { S: options.stalls ?? false });
  const { fault } = options;
  const hwpt = guest.nested(viommu, guest.stage1(contexts, 3), fault === undefined ? {} : { fault });
  expect(attach(hwpt)).toBe(hwpt);
  return { table, page, contexts, hwpt };
};

describe("a guest's stage 1", () => {
  it("translates by the guest's tables, which lie above the host's", () => {
    const { page } = attached();
    expect(guest.dma(ADDRESS + 0x10, TEXT)).toBe("done");
    expect(guest.text(page + 0x10, TEXT.length)).toBe(TEXT);
    expect(guest.dma(page, TEXT)).toBe("fault"); // the guest's own address means nothing to the function
    guest.client.detachFrom(guest.device);
    expect(guest.dma(ADDRESS, TEXT)).toBe("fault");
  });

  it("has a context for each of the guest's PASIDs", () => {
    const { contexts, page } = attached();
    expect(guest.dma(ADDRESS, TEXT, 5)).toBe("fault");
    const table = guest.table();
    const other = guest.page();
    guest.map(table, ADDRESS, other);
    guest.context(contexts, 5, table);
    expect(guest.invalidate(viommu, [cfgi(Opcode.CFGI_CD, { SID: VSID, SSID: 5, SSV: true })])).toEqual({
      done: 1,
      error: undefined,
    });
    expect(guest.dma(ADDRESS, TEXT, 5)).toBe("done");
    expect(guest.text(other, TEXT.length)).toBe(TEXT);
    expect(guest.text(page, 1)).toBe("\0");
  });

  it("cannot reach what the host has not mapped, nor have its tables there", () => {
    const { table } = attached();
    guest.map(table, ADDRESS + PAGE, 0x1_0000_0000);
    guest.map(table, ADDRESS + 2 * PAGE, 0x1000);
    expect(guest.dma(ADDRESS + PAGE, TEXT)).toBe("fault");
    expect(guest.dma(ADDRESS + 2 * PAGE, TEXT)).toBe("fault");
    const outside = guest.nested(viommu, guest.stage1(0x9000_0000));
    expect(attach(outside)).toBe(outside);
    expect(guest.dma(ADDRESS, TEXT)).toBe("fault");
  });

  it("loses what the host unmaps, at once", () => {
    const { page } = attached();
    expect(guest.dma(ADDRESS, TEXT)).toBe("done");
    guest.call(uapi.IOMMU_IOAS_UNMAP, uapi.IommuIoasUnmap, {
      ioas_id: guest.ioas,
      iova: BigInt(MEMORY.ipa),
      length: BigInt(MEMORY.bytes),
    });
    guest.write(page, new Uint8Array(TEXT.length));
    expect(guest.dma(ADDRESS, TEXT)).toBe("fault");
    expect(guest.text(page, 1)).toBe("\0");
  });

  it("that is bypass has guest addresses, and that is abort nothing", () => {
    const page = guest.page();
    const bypass = guest.nested(viommu, { V: true, CONFIG: Config.bypass });
    expect(attach(bypass)).toBe(bypass);
    expect(guest.dma(page, TEXT)).toBe("done");
    expect(guest.text(page, TEXT.length)).toBe(TEXT);
    for (const ste of [{ V: true, CONFIG: Config.abort }, {}, { CONFIG: 2, S2VMID: 0 }]) {
      const abort = guest.nested(viommu, ste);
      expect(attach(abort)).toBe(abort);
      expect(guest.dma(page, TEXT)).toBe("fault");
    }
  });

  it("takes the function's interrupts through the host's window", () => {
    guest.client.attachTo(guest.device, parent);
    const ranges = guest.client.ranges(guest.fd, guest.ioas);
    expect(ranges).toEqual([
      { start: 0n, last: 0x7ff_ffffn },
      { start: 0x810_0000n, last: 0xfff_ffff_ffffn },
    ]);
    expect(outcome(() => guest.client.mapAt(guest.fd, guest.ioas, 0x800_0000, MEMORY.va, PAGE))).toBe(
      "EINVAL",
    );
  });
});

describe("what a nested HWPT is refused for", () => {
  const stage1 = { V: true, CONFIG: Config.stage1, S1CONTEXTPTR: MEMORY.ipa };
  const made = (ste: SteFields, options: Parameters<ArmGuest["nested"]>[2] = {}): unknown =>
    outcome(() => typeof guest.nested(viommu, ste, options) === "number");

  it("EIO: bits of the entry that are not the guest's, and configurations", () => {
    expect(made({ ...stage1, S1FMT: 1, S1CDMAX: 9, S1DSS: 2, S1CIR: 1, S1COR: 1, S1CSH: 3 })).toBe(true);
    expect(made({ ...stage1, S1STALLD: true, EATS: 1 })).toBe(true);
    const foreign: SteFields[] = [
      { SHCFG: 1 },
      { STRW: 2 },
      { CONT: 1 },
      { MEV: true },
      { PRIVCFG: 2 },
      { S2FWB: true },
      { DRE: true },
    ];
    for (const bits of foreign) expect(made({ ...stage1, ...bits }), JSON.stringify(bits)).toBe("EIO");
    for (const CONFIG of [1, 2, 3, Config.stage2, Config.nested])
      expect(made({ ...stage1, CONFIG }), `${CONFIG}`).toBe("EIO");
    for (const EATS of [2, 3]) expect(made({ ...stage1, EATS })).toBe("EIO");
    expect(made({ CONFIG: Config.nested, SHCFG: 1 })).toBe(true); // not valid: everything is refused
  });

  it("EOPNOTSUPP: flags besides a fault queue, and no vIOMMU below; EINVAL: other data", () => {
    const fault = guest.faultQueue().id;
    expect(made(stage1, { fault })).toBe(true);
    expect(made(stage1, { flags: uapi.IOMMU_HWPT_ALLOC_PASID })).toBe("EOPNOTSUPP");
    expect(made(stage1, { flags: uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING })).toBe("EOPNOTSUPP");
    expect(made(stage1, { type: 1 })).toBe("EINVAL");
    expect(outcome(() => guest.nested(parent, stage1))).toBe("EOPNOTSUPP");
  });

  it("ENOENT at attach: the guest does not know the device", () => {
    const hwpt = guest.nested(viommu, stage1);
    expect(attach(hwpt)).toBe("ENOENT");
    const vdevice = guest.vdevice(viommu, VSID);
    expect(attach(hwpt)).toBe(hwpt);
    guest.client.detachFrom(guest.device);
    guest.client.destroy(guest.fd, vdevice);
    expect(attach(hwpt)).toBe("ENOENT");
  });

  it("EBUSY at attach: the host has given PASIDs; and a PASID cannot have a guest's table", () => {
    guest.vdevice(viommu, VSID);
    const hwpt = guest.nested(viommu, stage1);
    const own = guest.client.hwpt(guest.fd, guest.id, guest.ioas, uapi.IOMMU_HWPT_ALLOC_PASID);
    expect(attach(own)).toBe(own);
    expect(attach(own, 3)).toBe(own);
    expect(attach(hwpt)).toBe("EINVAL"); // of iommufd: what a device with PASIDs has must be made for them
    expect(attach(hwpt, 4)).toBe("EINVAL");
    guest.client.detachFrom(guest.device);
    expect(attach(hwpt)).toBe("EINVAL");
    guest.client.detachFrom(guest.device, 3);
    expect(attach(hwpt)).toBe(hwpt);
    expect(attach(own, 3)).toBe("EINVAL");
  });

  it("page tables below: what a nest parent is, and is not", () => {
    const { NEST, DIRTY, PASID } = {
      NEST: uapi.IOMMU_HWPT_ALLOC_NEST_PARENT,
      DIRTY: uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
      PASID: uapi.IOMMU_HWPT_ALLOC_PASID,
    };
    const hwpt = (flags: number) =>
      outcome(() => typeof guest.client.hwpt(guest.fd, guest.id, guest.ioas, flags) === "number");
    expect([0, DIRTY, PASID, DIRTY | PASID].map(hwpt)).toEqual([true, true, true, true]);
    expect([NEST | DIRTY, NEST | PASID].map(hwpt)).toEqual(["EOPNOTSUPP", "EOPNOTSUPP"]);
    const plain = guest.client.hwpt(guest.fd, guest.id, guest.ioas);
    expect(outcome(() => guest.viommu(plain))).toBe("EINVAL");
    expect(outcome(() => guest.viommu(parent, 2))).toBe("EOPNOTSUPP");
    expect(outcome(() => guest.client.destroy(guest.fd, parent))).toBe("EBUSY");
  });
});

describe("the guest's commands", () => {
  it("make changes of its tables good", () => {
    const { table, page } = attached();
    const moved = guest.page();
    const commands = [
      tlbi(Opcode.TLBI_NSNH_ALL),
      tlbi(Opcode.TLBI_NH_ALL, { VMID: 9 }),
      tlbi(Opcode.TLBI_NH_ASID, { ASID: 1, VMID: 9 }),
      tlbi(Opcode.TLBI_NH_VA, { ASID: 1, ADDRESS: BigInt(ADDRESS), LEAF: true }),
      tlbi(Opcode.TLBI_NH_VAA, { ADDRESS: BigInt(ADDRESS) }),
      tlbi(Opcode.TLBI_NH_VA, { ASID: 1, ADDRESS: BigInt(ADDRESS - PAGE), NUM: 2, TG: 1 }),
    ];
    commands.forEach((command, index) => {
      const [now, next] = index % 2 === 0 ? [page, moved] : [moved, page];
      expect(guest.dma(ADDRESS, "a")).toBe("done");
      guest.map(table, ADDRESS, next);
      expect(guest.dma(ADDRESS, `${index}`)).toBe("done");
      expect(guest.text(now, 1), "the unit remembers").toBe(`${index}`);
      expect(guest.invalidate(viommu, [command])).toEqual({ done: 1, error: undefined });
      expect(guest.dma(ADDRESS, TEXT)).toBe("done");
      expect(guest.text(next, TEXT.length)).toBe(TEXT);
    });
  });

  it("are carried out up to the first that is not the guest's to give: EIO, with the count", () => {
    attached();
    const good = tlbi(Opcode.TLBI_NH_ALL);
    const bad = [
      cfgi(Opcode.CFGI_STE, { SID: VSID }),
      cfgi(Opcode.CFGI_STE_RANGE, { RANGE: 31 }),
      cfgi(Opcode.CFGI_CD, { SID: 0x300 }),
      cfgi(Opcode.CFGI_CD_ALL, { SID: VSID + 1n }),
      tlbi(Opcode.TLBI_S12_VMALL),
      tlbi(Opcode.TLBI_S2_IPA),
      tlbi(Opcode.TLBI_EL2_ALL),
      tlbi(Opcode.TLBI_NH_ALL, { SSEC: true }),
      AtcCommand.make({ OPCODE: Opcode.ATC_INV, SID: 5 }),
      SyncCommand.make({ OPCODE: Opcode.SYNC }),
      0n,
      0xffn,
    ];
    for (const command of bad) {
      expect(guest.invalidate(viommu, [good, good, command, good]), command.toString(16)).toEqual({
        done: 2,
        error: "EIO",
      });
    }
    expect(guest.invalidate(viommu, [good, cfgi(Opcode.CFGI_CD_ALL, { SID: VSID })])).toEqual({
      done: 2,
      error: undefined,
    });
    expect(
      guest.invalidate(
        viommu,
        Array.from({ length: 600 }, () => good),
      ).done,
    ).toBe(600);
  });

  it("of another kind, or that cannot be read, are not begun; nor are they for a page table", () => {
    const { hwpt } = attached();
    const good = tlbi(Opcode.TLBI_NH_ALL);
    expect(guest.invalidate(viommu, [good], { type: 0 })).toEqual({ done: 0, error: "EINVAL" });
    expect(guest.invalidate(viommu, [good, good], { at: 0x1f_fff0 })).toEqual({ done: 0, error: "EFAULT" });
    expect(guest.invalidate(hwpt, [good])).toEqual({ done: 0, error: "EOPNOTSUPP" });
    expect(guest.invalidate(parent, [good])).toEqual({ done: 0, error: "EINVAL" });
  });

  it("reach the guest's translations only: another guest's are as they were", () => {
    const { table, page } = attached();
    const other = guest.viommu(guest.nestParent());
    const moved = guest.page();
    expect(guest.dma(ADDRESS, TEXT)).toBe("done");
    guest.map(table, ADDRESS, moved);
    expect(guest.invalidate(other, [tlbi(Opcode.TLBI_NSNH_ALL), tlbi(Opcode.TLBI_NH_ALL)]).done).toBe(2);
    expect(guest.invalidate(other, [cfgi(Opcode.CFGI_CD_ALL, { SID: VSID })])).toEqual({
      done: 0,
      error: "EIO",
    });
    expect(guest.dma(ADDRESS, "still")).toBe("done");
    expect(guest.text(page, 5)).toBe("still");
  });
});

describe("translations that the function keeps", () => {
  it("are switched on with a table, and go with what the host unmaps or replaces", () => {
    const [one, other] = [guest.client.ioas(guest.fd), guest.client.ioas(guest.fd)];
    const [first, second] = [guest.page(), guest.page()];
    guest.client.mapAt(guest.fd, one, 0x1000, MEMORY.va + first - MEMORY.ipa, PAGE);
    guest.client.mapAt(guest.fd, other, 0x1000, MEMORY.va + second - MEMORY.ipa, PAGE);
    expect(guest.ats).toBe(false);
    guest.client.attachTo(guest.device, one);
    expect(guest.ats).toBe(true);
    expect(guest.dma(0x1000, "a")).toBe("done");
    guest.client.attachTo(guest.device, other);
    expect(guest.dma(0x1000, "b")).toBe("done");
    expect([guest.text(first, 1), guest.text(second, 1)]).toEqual(["a", "b"]);
    const range = { ioas_id: other, iova: 0x1000n, length: BigInt(PAGE) };
    guest.call(uapi.IOMMU_IOAS_UNMAP, uapi.IommuIoasUnmap, range);
    expect(guest.dma(0x1000, "c")).toBe("fault");
    guest.client.detachFrom(guest.device);
    expect(guest.ats).toBe(false);
  });

  it("stay switched on over a reset by the program, and PASIDs too, as the host's driver has them", () => {
    const page = guest.page();
    const ioas = guest.client.ioas(guest.fd);
    guest.client.mapAt(guest.fd, ioas, 0x1000, MEMORY.va + page - MEMORY.ipa, PAGE);
    const hwpt = guest.client.hwpt(guest.fd, guest.id, ioas, uapi.IOMMU_HWPT_ALLOC_PASID);
    expect([attach(hwpt), attach(hwpt, 7)]).toEqual([hwpt, hwpt]);
    guest.task.ioctl(guest.device, VFIO_DEVICE_RESET);
    expect(guest.ats).toBe(true);
    expect([guest.dma(0x1000, "a", 7), guest.dma(0x1000, "b")]).toEqual(["done", "done"]);
    guest.client.detachFrom(guest.device, 7);
    guest.client.detachFrom(guest.device);
    guest.task.ioctl(guest.device, VFIO_DEVICE_RESET);
    expect(guest.ats).toBe(false);
  });

  it("of a PASID go with its page table", () => {
    const page = guest.page();
    const ioas = guest.client.ioas(guest.fd);
    guest.client.mapAt(guest.fd, ioas, 0x1000, MEMORY.va + page - MEMORY.ipa, PAGE);
    const hwpt = guest.client.hwpt(guest.fd, guest.id, ioas, uapi.IOMMU_HWPT_ALLOC_PASID);
    expect([attach(hwpt), attach(hwpt, 7)]).toEqual([hwpt, hwpt]);
    expect([guest.dma(0x1000, "a", 7), guest.dma(0x1000, "b")]).toEqual(["done", "done"]);
    guest.client.detachFrom(guest.device, 7);
    expect(guest.dma(0x1000, "c", 7)).toBe("fault");
    expect(guest.dma(0x1000, "d")).toBe("done");
  });

  it("are a guest's to switch on, and go by its ATC_INV or by what the host unmaps", () => {
    guest.vdevice(viommu, VSID);
    const table = guest.table();
    const [page, moved] = [guest.page(), guest.page()];
    guest.map(table, ADDRESS, page);
    attach(guest.nested(viommu, { ...guest.stage1(guest.contexts([table])), EATS: 1 }));
    expect(guest.ats).toBe(true);
    expect(guest.dma(ADDRESS, "a")).toBe("done");
    guest.map(table, ADDRESS, moved);
    expect(guest.invalidate(viommu, [tlbi(Opcode.TLBI_NH_ALL)]).done).toBe(1);
    expect(guest.dma(ADDRESS, "b")).toBe("done");
    expect(guest.text(page, 1), "the function remembers").toBe("b");
    const forget = AtcCommand.make({ OPCODE: Opcode.ATC_INV, SID: VSID, ADDRESS: BigInt(ADDRESS) });
    expect(guest.invalidate(viommu, [forget]).done).toBe(1);
    expect(guest.dma(ADDRESS, "c")).toBe("done");
    expect(guest.text(moved, 1)).toBe("c");
    const range = { ioas_id: guest.ioas, iova: BigInt(MEMORY.ipa), length: BigInt(MEMORY.bytes) };
    guest.call(uapi.IOMMU_IOAS_UNMAP, uapi.IommuIoasUnmap, range);
    expect(guest.dma(ADDRESS, "d")).toBe("fault");
    attach(guest.nested(viommu, guest.stage1(MEMORY.ipa)));
    expect(guest.ats).toBe(false);
  });
});

describe("what the guest did wrong", () => {
  it("it is told, with its own StreamID", () => {
    const queue = guest.eventQueue(viommu);
    const { contexts } = attached();
    expect(guest.dma(0x55_5000, TEXT)).toBe("fault");
    expect(guest.dma(ADDRESS, TEXT, 6)).toBe("fault");
    guest.context(contexts, 7, 0x1000, { T0SZ: 63 });
    expect(guest.dma(ADDRESS, TEXT, 7)).toBe("fault");
    expect(guest.takeEvents(queue.fd).map((event) => event && eventOf(event))).toEqual([
      { type: EventCode.F_TRANSLATION, sid: VSID, address: 0x55_5000n, ssid: 0n, read: 0n },
      { type: EventCode.C_BAD_CD, sid: VSID, address: 0n, ssid: 6n, read: 0n },
      { type: EventCode.C_BAD_CD, sid: VSID, address: 0n, ssid: 7n, read: 0n },
    ]);
    const { driver } = [...guest.machine.units.values()][0]!;
    expect(driver.faultCount).toBe(0);
  });

  it("is counted by the host where the guest does not listen, and what is the host's always", () => {
    const { table } = attached();
    const { driver } = [...guest.machine.units.values()][0]!;
    guest.dma(0x55_5000, TEXT);
    expect(driver.faultCount).toBe(1);
    const queue = guest.eventQueue(viommu);
    guest.map(table, ADDRESS + PAGE, 0x9000_0000);
    guest.dma(ADDRESS + PAGE, TEXT); // stage 2 has nothing there
    expect(guest.takeEvents(queue.fd)).toEqual([]);
    expect(driver.faultCount).toBe(2);
  });

  it("shows as lost where the queue was full", () => {
    const queue = guest.eventQueue(viommu, 2);
    attached();
    for (let i = 0; i < 5; i++) guest.dma(0x55_5000, TEXT);
    const events = guest.takeEvents(queue.fd);
    expect(events.length).toBe(3);
    expect(events.at(-1)).toBeUndefined();
    expect(outcome(() => guest.eventQueue(viommu))).toBe("EEXIST");
  });
});

describe("stalls of a guest's function", () => {
  const PERMISSION_WRITE = 2;

  it("wait in the fault queue, and go on when the guest has mended its table", () => {
    const faults = guest.faultQueue();
    const { table } = attached({ fault: faults.id, stalls: true });
    expect(guest.dma(ADDRESS + PAGE, TEXT)).toBe("waits");
    const [fault, ...more] = guest.takeFaults(faults.fd);
    expect(more).toEqual([]);
    expect(fault).toMatchObject({
      dev_id: guest.id,
      addr: BigInt(ADDRESS + PAGE),
      perm: PERMISSION_WRITE,
      flags: uapi.IOMMU_PGFAULT_FLAGS_LAST_PAGE,
    });
    const page = guest.page();
    guest.map(table, ADDRESS + PAGE, page);
    guest.answerFault(faults.fd, fault!.cookie, uapi.IOMMUFD_PAGE_RESP_SUCCESS);
    expect(guest.dmaState()).toBe("done");
    expect(guest.text(page, TEXT.length)).toBe(TEXT);
  });

  it("end with the answer that there is no page, with the detach, or where nobody listens", () => {
    const faults = guest.faultQueue();
    attached({ fault: faults.id, stalls: true });
    expect(guest.dma(0x55_5000, TEXT)).toBe("waits");
    guest.answerFault(faults.fd, guest.takeFaults(faults.fd)[0]!.cookie, uapi.IOMMUFD_PAGE_RESP_INVALID);
    expect(guest.dmaState()).toBe("fault");
    expect(guest.dma(0x55_5000, TEXT)).toBe("waits");
    guest.client.detachFrom(guest.device);
    guest.scheduler.run();
    expect(guest.dmaState()).toBe("fault");
    const deaf = guest.nested(viommu, guest.stage1(guest.contexts([guest.table()], { S: true })));
    attach(deaf);
    expect(guest.dma(0x55_5000, TEXT)).toBe("fault");
  });
});

it("no stall is forgotten: each ends with its answer, a detach, or a new page table, over 2,000 random steps", () => {
  const random = new Random(11);
  const faults = guest.faultQueue();
  const { table, hwpt } = attached({ fault: faults.id, stalls: true });
  const page = guest.page();
  const deaf = guest.nested(viommu, guest.stage1(guest.contexts([table], { S: true })));
  const STRAY = ADDRESS + 5 * PAGE;
  const seen = { asked: 0, granted: 0, refused: 0, unheard: 0 };
  let heard = true;
  for (let step = 0; step < 2000; step++) {
    guest.map(table, STRAY, 0);
    guest.invalidate(viommu, [tlbi(Opcode.TLBI_NH_ALL)]);
    const state = guest.dma(STRAY, TEXT);
    expect(state).toBe(heard ? "waits" : "fault");
    if (!heard) seen.unheard += 1;
    const waiting = guest.takeFaults(faults.fd);
    expect(waiting.length).toBe(heard ? 1 : 0);
    seen.asked += waiting.length;
    const what = random.below(4);
    if (heard && what === 0) {
      guest.map(table, STRAY, page);
      guest.answerFault(faults.fd, waiting[0]!.cookie, uapi.IOMMUFD_PAGE_RESP_SUCCESS);
      expect(guest.dmaState()).toBe("done");
      seen.granted += 1;
      continue;
    }
    if (heard && what === 1) guest.answerFault(faults.fd, waiting[0]!.cookie, uapi.IOMMUFD_PAGE_RESP_INVALID);
    else {
      if (what === 2) guest.client.detachFrom(guest.device);
      heard = random.below(2) === 0;
      attach(heard ? hwpt : deaf);
      guest.scheduler.run();
      if (guest.dmaState() === "waits") {
        // The same page table was attached again: nothing changed for the access.
        guest.answerFault(faults.fd, waiting[0]!.cookie, uapi.IOMMUFD_PAGE_RESP_INVALID);
      }
    }
    expect(guest.dmaState()).toBe("fault");
    if (waiting.length > 0) seen.refused += 1;
  }
  expect(seen.asked).toBe(seen.granted + seen.refused);
  expect(seen.asked + seen.unheard).toBe(2000);
  expect(Math.min(seen.granted, seen.refused, seen.unheard)).toBeGreaterThan(100);
});

it("one nest parent belongs to one SMMU, and so do a guest's functions and page tables", () => {
  const second = "smmu3.0x0000000009070000";
  const units = PRESETS.get("smmuv3")!.replace(
    "devices:\n",
    `  - model: smmuv3\n    name: ${second}\ndevices:\n`,
  );
  const two = new ArmGuest(`${units}  - model: test\n    at: 0000:09:00.0\n    unit: ${second}\n`);
  const other = two.client.cdev([...two.machine.core.devices.keys()].indexOf("0000:09:00.0"));
  const id = two.client.bind(other, two.fd);
  const here = two.nestParent();
  const there = two.client.hwpt(two.fd, id, two.ioas, uapi.IOMMU_HWPT_ALLOC_NEST_PARENT);
  expect(outcome(() => two.client.attachTo(two.device, there))).toBe("EINVAL");
  expect(outcome(() => two.client.attachTo(other, here))).toBe("EINVAL");
  expect(outcome(() => two.viommu(there))).toBe("EINVAL");
  const virtual = two.viommu(here);
  const members = { viommu_id: virtual, dev_id: id, virt_id: 1n };
  expect(outcome(() => two.call(uapi.IOMMU_VDEVICE_ALLOC, uapi.IommuVdeviceAlloc, members))).toBe("EINVAL");
  const bypass = two.nested(virtual, { V: true, CONFIG: Config.bypass });
  expect(outcome(() => two.client.attachTo(other, bypass))).toBe("EINVAL");
  expect(outcome(() => two.client.attachTo(other, there))).toBe(there);
  expect(outcome(() => two.client.attachTo(two.device, bypass))).toBe(bypass);
  two.close();
});
