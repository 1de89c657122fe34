import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Random } from "../../../base/clock.ts";
import { functionSuite } from "../../function.suite.ts";
import { MSI_BASE, Rig, read32, turnOn, write32 } from "../../rig.suite.ts";
import { Command as CommandBits, Header } from "../../spec.ts";
import { type HostQueue, NvmeHost } from "./host.suite.ts";
import { identifyController } from "./identify.ts";
import { MemoryMedia } from "./media.ts";
import { createNvme, type Nvme } from "./nvme.ts";
import { Admin, Cns, Csts, Feature, LogPage, Nvm, Register, StatusCode, SUBSYSTEM_RESET } from "./spec.ts";

/** A status without DNR, as the host driver reports it. */
const code = (status: number): number => status & 0x7ff;
const pattern = (length: number, seed: number): Uint8Array => {
  const random = new Random(seed);
  return Uint8Array.from({ length }, () => random.next());
};
const text = (bytes: Uint8Array, at: number, length: number): string =>
  String.fromCharCode(...bytes.subarray(at, at + length)).trimEnd();
const MIB = 1024 * 1024;

functionSuite("an NVMe controller", {
  create: (context) => createNvme(context, { size: 16 * MIB, queues: 4 }),
  begin: (device, rig) => {
    const host = new NvmeHost(rig, device as Nvme);
    host.enable();
    rig.work.run(50);
    host.submit(host.admin, { opcode: Admin.IDENTIFY, cdw10: Cns.CONTROLLER, prps: [host.allocate(4096)] });
  },
  work: (device, rig) => {
    const host = new NvmeHost(rig, device as Nvme);
    const [queue] = host.initialise(1) as [HostQueue];
    const seen: (number | Uint8Array)[] = [];
    const page = host.allocate(4096);
    host.expect({ opcode: Admin.IDENTIFY, cdw10: Cns.CONTROLLER, prps: [page] });
    seen.push(host.bytes(page, 4096));
    const pages = Array.from({ length: 40 }, () => host.allocate(4096)).filter((_, i) => i % 3 !== 2);
    pages.forEach((at, i) => void rig.memory.writeBytes(at, pattern(4096, i)));
    const blocks = (4096 * pages.length - 1024) / 512;
    seen.push(host.write(queue, 9, blocks, host.prps(pages, 1024)).status);
    for (const at of pages) rig.memory.fill(at, 4096, 0);
    seen.push(host.run(queue, host.io(Nvm.WRITE_ZEROES, 20, 5)).status);
    seen.push(host.run(queue, { opcode: Nvm.FLUSH, nsid: 1 }).status);
    seen.push(host.read(queue, 9, blocks, host.prps(pages, 1024)).status);
    seen.push(...pages.map((at) => host.bytes(at, 4096)));
    seen.push(host.read(queue, 2 ** 40, 1, [page]).status);
    return seen;
  },
});

let rig: Rig;
let device: Nvme;
let host: NvmeHost;
const plug = (options: Parameters<typeof createNvme>[1] = {}): void => {
  device = createNvme(rig.context, { size: 16 * MIB, queues: 4, ...options });
  host = new NvmeHost(rig, device);
};
beforeEach(() => {
  rig = new Rig();
  plug();
});
afterEach(() => {
  device.close();
  rig.close();
});

describe("§3.1 registers", () => {
  it("CAP and VS say what there is", () => {
    plug({ dstrd: 2, queueEntries: 64 });
    const lo = read32(device, 0, Register.CAP);
    const hi = read32(device, 0, Register.CAP + 4);
    expect(lo & 0xffff).toBe(63); // MQES
    expect(lo & 0x1_0000).not.toBe(0); // CQR
    expect(hi & 0xf).toBe(2); // DSTRD
    expect(hi & (1 << 5)).not.toBe(0); // NVM command set
    expect((hi >>> 16) & 0xff).toBe(0x40); // pages from 4 KiB to 64 KiB
    expect(read32(device, 0, Register.VS)).toBe(0x0001_0400);
    const wide = new Uint8Array(8);
    device.barRead(0, 0, wide);
    expect(new DataView(wide.buffer).getUint32(0, true)).toBe(lo);
  });

  it("becomes ready after the write of CC has been answered", () => {
    host.enable();
    expect(host.ready).toBe(false);
    rig.settle();
    expect(host.ready).toBe(true);
  });

  const wrongs: [string, () => void][] = [
    ["an admin queue has one entry", () => write32(device, 0, Register.AQA, 0)],
    [
      "ASQ is not page aligned for MPS",
      () => {
        host = new NvmeHost(rig, device, 8192);
        write32(device, 0, Register.ASQ, 0x10_1000);
      },
    ],
    ["CSS is not supported", () => write32(device, 0, Register.CC, 0x0046_0001 | (3 << 4))],
    ["AMS is not supported", () => write32(device, 0, Register.CC, 0x0046_0001 | (1 << 11))],
    ["MPS is beyond MPSMAX", () => write32(device, 0, Register.CC, 0x0046_0001 | (5 << 7))],
  ];
  it.each(wrongs)("§7.6.1 sets CFS and not RDY when %s", (_name, spoil) => {
    host.enable();
    write32(device, 0, Register.CC, 0);
    spoil();
    if ((read32(device, 0, Register.CC) & 1) === 0) host.configure();
    rig.settle();
    expect(host.fatal).toBe(true);
    expect(host.ready).toBe(false);
    write32(device, 0, Register.CC, 0);
    host = new NvmeHost(rig, device);
    host.enable();
    rig.settle();
    expect(host.csts & 3).toBe(1); // a controller reset has cleared it
  });

  it("§7.3.2 a controller reset drops queues and features, and keeps AQA, ASQ and ACQ", () => {
    host.initialise(2);
    host.expect({ opcode: Admin.SET_FEATURES, cdw10: Feature.ARBITRATION, cdw11: 3 });
    write32(device, 0, Register.CC, 0);
    expect(host.csts).toBe(0);
    expect(read32(device, 0, Register.ASQ)).toBe(host.admin.sq);
    host.enable();
    rig.settle();
    expect(host.expect({ opcode: Admin.GET_FEATURES, cdw10: Feature.ARBITRATION })).toBe(0);
    host.createQueue(1, 8);
  });

  it("§7.3.1 a subsystem reset sets NSSRO, which is cleared by writing 1", () => {
    host.initialise();
    write32(device, 0, Register.NSSR, 1);
    expect(host.ready).toBe(true);
    write32(device, 0, Register.NSSR, SUBSYSTEM_RESET);
    expect(host.csts).toBe(Csts.fields.NSSRO.mask);
    expect(read32(device, 0, Register.CC)).toBe(0);
    write32(device, 0, Register.CSTS, Csts.fields.NSSRO.mask);
    expect(host.csts).toBe(0);
  });

  it("§7.6.2 shutdown notification ends with SHST complete, and enabling again begins anew", () => {
    host.initialise();
    host.configure(1);
    expect(Csts.fields.SHST.get([host.csts])).toBe(1);
    rig.settle();
    expect(Csts.fields.SHST.get([host.csts])).toBe(2);
    host.enable();
    rig.settle();
    expect(Csts.fields.SHST.get([host.csts])).toBe(0);
    expect(host.ready).toBe(true);
  });

  it("uses doorbells 2^(2 + DSTRD) bytes apart, and pages of CC.MPS", () => {
    plug({ dstrd: 3 });
    host = new NvmeHost(rig, device, 16384);
    const [queue] = host.initialise() as [HostQueue];
    const from = host.allocate(16384);
    host.allocate(16384); // so that PRP2 is not the next page
    const behind = host.allocate(16384);
    const data = pattern(40 * 512, 1);
    rig.memory.writeBytes(from + 8192, data.subarray(0, 8192));
    rig.memory.writeBytes(behind, data.subarray(8192));
    expect(host.write(queue, 0, 40, [from + 8192, behind]).status).toBe(0);
    const to = host.allocate(32768);
    expect(host.read(queue, 0, 40, [to, to + 16384]).status).toBe(0);
    expect(Buffer.compare(host.bytes(to, data.length), data)).toBe(0);
  });
});

describe("§5.15 Identify", () => {
  beforeEach(() => void host.initialise(0));
  const identify = (cns: number, nsid = 0) => {
    const page = host.allocate(4096);
    const { status } = host.run(host.admin, { opcode: Admin.IDENTIFY, nsid, cdw10: cns, prps: [page] });
    return { status, bytes: host.bytes(page, 4096) };
  };

  it("describes the controller", () => {
    plug({ serial: "ABC123", mdts: 5 });
    host.initialise(0);
    const { bytes } = identify(Cns.CONTROLLER);
    expect(text(bytes, 4, 20)).toBe("ABC123");
    expect(bytes[77]).toBe(5); // MDTS
    expect(bytes[111]).toBe(1); // CNTRLTYPE: I/O
    expect([bytes[512], bytes[513]]).toEqual([0x66, 0x44]); // SQES, CQES
    expect(bytes[516]).toBe(1); // NN
    expect(bytes[520]).toBe(0b1_1101); // ONCS: Compare, Dataset Management, Write Zeroes, Save and Select
    expect([bytes[256], bytes[257]]).toEqual([0, 0]); // OACS: no Format NVM, nor others
    expect([bytes[536], bytes[537]]).toEqual([0, 0]); // SGLS
    expect(text(bytes, 768, 29)).toBe("nqn.2014-08.org.nvmexpress:so");
  });

  it("§7.9 two controllers with one serial number are subsystems of their own", () => {
    const identity = { serial: "softiommu", mdts: 5, namespaces: 1 };
    const names = [0x100, 0x200].map((controllerId) =>
      Buffer.from(identifyController({ ...identity, controllerId }).subarray(768, 1024)).toString(),
    );
    expect(names[0]).not.toBe(names[1]);
    for (const name of names)
      expect(name).toMatch(/^nqn\.2014-08\.org\.nvmexpress:softiommu:softiommu:\d+\0+$/);
  });

  it("describes the namespace", () => {
    plug({ size: 8 * MIB, blockSize: 4096 });
    host.initialise(0);
    const { bytes } = identify(Cns.NAMESPACE, 1);
    const view = new DataView(bytes.buffer);
    expect(view.getBigUint64(0, true)).toBe(2048n);
    expect(view.getBigUint64(8, true)).toBe(2048n);
    expect(bytes[130]).toBe(12); // LBADS
  });

  it("lists active namespaces above a number, and the identifiers of one", () => {
    expect([...identify(Cns.ACTIVE_NAMESPACES, 0).bytes.subarray(0, 8)]).toEqual([1, 0, 0, 0, 0, 0, 0, 0]);
    expect(identify(Cns.ACTIVE_NAMESPACES, 1).bytes[0]).toBe(0);
    const { bytes } = identify(Cns.DESCRIPTORS, 1);
    expect([bytes[0], bytes[1]]).toEqual([1, 8]); // EUI-64
    expect([bytes[12], bytes[13]]).toEqual([2, 16]); // NGUID
    expect(bytes[32]).toBe(0);
  });

  it("refuses namespaces and structures there are not", () => {
    expect(identify(Cns.NAMESPACE, 0).status).toBe(code(StatusCode.INVALID_NAMESPACE));
    expect(identify(Cns.NAMESPACE, 2).status).toBe(code(StatusCode.INVALID_NAMESPACE));
    expect(identify(Cns.DESCRIPTORS, 9).status).toBe(code(StatusCode.INVALID_NAMESPACE));
    expect(identify(Cns.ACTIVE_NAMESPACES, 0xffff_fffe).status).toBe(code(StatusCode.INVALID_NAMESPACE));
    expect(identify(0x1c).status).toBe(code(StatusCode.INVALID_FIELD));
  });
});

describe("§6.1 several namespaces", () => {
  let queue: HostQueue;
  beforeEach(() => {
    plug({ moreNamespaces: [{ size: 8 * MIB, blockSize: 4096 }, { size: MIB }] });
    [queue] = host.initialise() as [HostQueue];
  });
  const identify = (cns: number, nsid = 0) => {
    const page = host.allocate(4096);
    host.expect({ opcode: Admin.IDENTIFY, nsid, cdw10: cns, prps: [page] });
    return new DataView(host.bytes(page, 4096).buffer);
  };

  it("are counted, listed, and described each", () => {
    expect(identify(Cns.CONTROLLER).getUint32(516, true)).toBe(3);
    const listed = (above: number) =>
      [0, 4, 8, 12].map((at) => identify(Cns.ACTIVE_NAMESPACES, above).getUint32(at, true));
    expect(listed(0)).toEqual([1, 2, 3, 0]);
    expect(listed(1)).toEqual([2, 3, 0, 0]);
    const described = [1, 2, 3].map((nsid) => identify(Cns.NAMESPACE, nsid));
    expect(described.map((view) => view.getBigUint64(0, true))).toEqual([32768n, 2048n, 2048n]);
    expect(described.map((view) => view.getUint8(130))).toEqual([9, 12, 9]);
    for (const at of [104 + 8, 120]) {
      const identifiers = described.map((view) => view.getBigUint64(at));
      expect(new Set(identifiers).size).toBe(3);
    }
    const second = identify(Cns.DESCRIPTORS, 2);
    expect(second.getBigUint64(4)).toBe(described[1]!.getBigUint64(120));
  });

  it("have blocks of their own", () => {
    const page = host.allocate(4096);
    const of = (nsid: number, opcode: number, lba = 0) =>
      host.run(queue, { ...host.io(opcode, lba, 1, [page]), nsid }).status;
    for (const nsid of [1, 2, 3]) {
      rig.memory.fill(page, 4096, nsid);
      expect(of(nsid, Nvm.WRITE)).toBe(0);
    }
    for (const nsid of [1, 2, 3]) {
      rig.memory.fill(page, 4096, 0xff);
      expect(of(nsid, Nvm.READ)).toBe(0);
      expect([...host.bytes(page, 4096)].filter((byte) => byte === nsid)).toHaveLength(
        nsid === 2 ? 4096 : 512,
      );
    }
    expect(of(2, Nvm.READ, 2047)).toBe(0);
    expect(of(2, Nvm.READ, 2048)).toBe(code(StatusCode.LBA_OUT_OF_RANGE));
    expect(of(1, Nvm.READ, 2048)).toBe(0);
    expect(of(4, Nvm.READ)).toBe(code(StatusCode.INVALID_NAMESPACE));
  });

  it("are flushed alone or together", () => {
    const flush = vi.spyOn(MemoryMedia.prototype, "flush");
    const status = (nsid: number) => host.run(queue, { opcode: Nvm.FLUSH, nsid }).status;
    expect(status(2)).toBe(0);
    expect(flush).toHaveBeenCalledTimes(1);
    expect(status(0xffff_ffff)).toBe(0);
    expect(flush).toHaveBeenCalledTimes(4);
    flush.mockReturnValueOnce(false);
    expect(status(0xffff_ffff)).toBe(code(StatusCode.WRITE_FAULT));
    expect(flush).toHaveBeenCalledTimes(7);
    expect(status(4)).toBe(code(StatusCode.INVALID_NAMESPACE));
    flush.mockRestore();
  });

  it("§5.21.1.5 have error recovery values each, and those of one are set for all", () => {
    const set = (nsid: number, cdw11: number) =>
      host.expect({ opcode: Admin.SET_FEATURES, nsid, cdw10: Feature.ERROR_RECOVERY, cdw11 });
    const get = (nsid: number) =>
      host.run(host.admin, { opcode: Admin.GET_FEATURES, nsid, cdw10: Feature.ERROR_RECOVERY });
    set(2, 7);
    expect([1, 2, 3].map((nsid) => get(nsid).result)).toEqual([0, 7, 0]);
    set(0xffff_ffff, 9);
    expect([0, 1, 2, 3].map((nsid) => get(nsid).result)).toEqual([9, 9, 9, 9]);
    expect(get(4).status).toBe(code(StatusCode.INVALID_NAMESPACE));
  });
});

describe("§5.21 features", () => {
  beforeEach(() => void host.initialise(0));
  const set = (id: number, cdw11: number, nsid = 0) =>
    host.run(host.admin, { opcode: Admin.SET_FEATURES, nsid, cdw10: id, cdw11 });
  const get = (id: number, cdw11 = 0, select = 0) =>
    host.run(host.admin, { opcode: Admin.GET_FEATURES, cdw10: id | (select << 8), cdw11 });

  it.each([
    [Feature.ARBITRATION, 0x0102_0303, 0],
    [Feature.POWER_MANAGEMENT, 0x20, 0],
    [Feature.ERROR_RECOVERY, 0x123, 0],
    [Feature.VOLATILE_WRITE_CACHE, 0, 1],
    [Feature.INTERRUPT_COALESCING, 0x0a04, 0],
    [Feature.WRITE_ATOMICITY, 1, 0],
    [Feature.ASYNC_EVENTS, 0x1f, 0],
    [Feature.TEMPERATURE_THRESHOLD, 400, 343],
  ])("keeps feature %i, with a default and capabilities", (id, value, initial) => {
    expect(get(id).result).toBe(initial);
    expect(set(id, value).status).toBe(0);
    expect(get(id).result).toBe(value);
    expect(get(id, 0, 1).result).toBe(initial); // default
    expect(get(id, 0, 3).result & 5).toBe(4); // changeable, not saveable
  });

  it("grants the queues it has, and refuses 0xffff, and once queues exist", () => {
    expect(set(Feature.NUMBER_OF_QUEUES, 0x0001_0001).result).toBe(0x0003_0003);
    expect(get(Feature.NUMBER_OF_QUEUES).result).toBe(0x0003_0003);
    expect(set(Feature.NUMBER_OF_QUEUES, 0xffff).status).toBe(code(StatusCode.INVALID_FIELD));
    host.createQueue(1, 4);
    expect(set(Feature.NUMBER_OF_QUEUES, 0).status).toBe(code(StatusCode.COMMAND_SEQUENCE));
  });

  it("keeps coalescing by vector", () => {
    expect(set(Feature.INTERRUPT_VECTOR, 0x1_0002).status).toBe(0);
    expect(get(Feature.INTERRUPT_VECTOR, 2).result).toBe(0x1_0002);
    expect(get(Feature.INTERRUPT_VECTOR, 1).result).toBe(1);
    expect(set(Feature.INTERRUPT_VECTOR, 5).status).toBe(code(StatusCode.INVALID_FIELD));
  });

  it("keeps the host identifier, which is data", () => {
    const page = host.allocate(4096);
    const identifier = pattern(16, 5);
    rig.memory.writeBytes(page, identifier);
    const exchange = (opcode: number, at: number) =>
      host.run(host.admin, { opcode, cdw10: Feature.HOST_IDENTIFIER, cdw11: 1, prps: [at] }).status;
    expect(exchange(Admin.SET_FEATURES, page)).toBe(0);
    expect(exchange(Admin.GET_FEATURES, page + 1024)).toBe(0);
    expect(host.bytes(page + 1024, 16)).toEqual(identifier);
  });

  it("refuses unknown ones, saving, values that cannot be, and namespaces where there are none", () => {
    expect(set(0x7f, 0).status).toBe(code(StatusCode.INVALID_FIELD));
    expect(get(0x7f).status).toBe(code(StatusCode.INVALID_FIELD));
    expect(get(0x7f, 0, 3).status).toBe(code(StatusCode.INVALID_FIELD));
    expect(set(Feature.POWER_MANAGEMENT, 1).status).toBe(code(StatusCode.INVALID_FIELD));
    expect(set(Feature.ARBITRATION, 0, 1).status).toBe(code(StatusCode.FEATURE_NOT_PER_NAMESPACE));
    expect(set(Feature.ARBITRATION, 0, 2).status).toBe(code(StatusCode.INVALID_NAMESPACE));
    const saved = { opcode: Admin.SET_FEATURES, cdw10: 0x8000_0000 | Feature.ARBITRATION };
    expect(host.run(host.admin, saved).status).toBe(code(StatusCode.FEATURE_NOT_SAVEABLE));
  });
});

describe("§5.14 log pages", () => {
  let queue: HostQueue;
  beforeEach(() => {
    [queue] = host.initialise() as [HostQueue];
  });
  const log = (id: number, bytes: number, offset = 0, rae = 0) => {
    const page = host.allocate(4096);
    const cdw10 = id | rae | ((bytes / 4 - 1) << 16);
    const { status } = host.run(host.admin, {
      opcode: Admin.GET_LOG_PAGE,
      nsid: 0xffff_ffff,
      cdw10,
      cdw12: offset,
      prps: [page],
    });
    return { status, bytes: host.bytes(page, bytes) };
  };

  it("the error log has the last failures, newest first", () => {
    host.read(queue, 2 ** 33, 1, [host.allocate(4096)]);
    const { cid } = host.run(queue, { opcode: 0x7e, nsid: 1 });
    const { bytes } = log(LogPage.ERROR, 128);
    const view = new DataView(bytes.buffer);
    expect(view.getBigUint64(0, true)).toBe(2n);
    expect([view.getUint16(8, true), view.getUint16(10, true)]).toEqual([1, cid]);
    expect((view.getUint16(12, true) >>> 1) & 0x7ff).toBe(code(StatusCode.INVALID_OPCODE));
    expect(view.getBigUint64(64, true)).toBe(1n);
    expect(view.getBigUint64(64 + 16, true)).toBe(2n ** 33n);
    expect(log(LogPage.ERROR, 64, 64).bytes).toEqual(bytes.subarray(64));
  });

  it("SMART counts", () => {
    host.write(queue, 0, 8, [host.allocate(4096)]);
    host.read(queue, 0, 8, [host.allocate(4096)]);
    host.read(queue, 0, 8, [host.allocate(4096)]);
    rig.clock.advance(2 * 3600e9);
    const view = new DataView(log(LogPage.SMART, 512).bytes.buffer);
    expect(view.getUint16(1, true)).toBe(310);
    expect([view.getUint32(32, true), view.getUint32(48, true)]).toEqual([1, 1]);
    expect([view.getUint32(64, true), view.getUint32(80, true)]).toEqual([2, 1]);
    expect(view.getUint32(128, true)).toBe(2);
  });

  it("firmware, changed namespaces and effects are there", () => {
    expect(log(LogPage.FIRMWARE, 512).bytes[0]).toBe(1);
    expect(log(LogPage.CHANGED_NAMESPACES, 4096).bytes.every((byte) => byte === 0)).toBe(true);
    const { bytes } = log(LogPage.EFFECTS, 4096);
    expect(bytes[4 * Admin.IDENTIFY]).toBe(1);
    expect(bytes[1024 + 4 * Nvm.WRITE]).toBe(3);
    expect(bytes[1024 + 4 * Nvm.COMPARE]).toBe(1);
    expect(bytes[1024 + 4 * Nvm.DATASET_MANAGEMENT]).toBe(3);
    expect(bytes[1024 + 4 * 4]).toBe(0);
  });

  it("has zeroes behind the end of a page", () => {
    const page = host.allocate(4096);
    rig.memory.fill(page, 4096, 0xff);
    host.write(queue, 0, 8, [page]);
    const { bytes } = log(LogPage.SMART, 4096);
    expect(bytes.subarray(512).every((byte) => byte === 0)).toBe(true);
  });

  it("refuses pages of one namespace: they are the controller's", () => {
    const page = { opcode: Admin.GET_LOG_PAGE, cdw10: LogPage.SMART, prps: [host.allocate(4096)] };
    expect([0, 0xffff_ffff].map((nsid) => host.run(host.admin, { ...page, nsid }).status)).toEqual([0, 0]);
    expect(host.run(host.admin, { ...page, nsid: 1 }).status).toBe(code(StatusCode.INVALID_FIELD));
  });

  it("the error log names the namespace and the status of a comparison that failed", () => {
    plug({ moreNamespaces: [{ size: MIB }] });
    [queue] = host.initialise() as [HostQueue];
    const page = host.allocate(4096);
    rig.memory.fill(page, 4096, 1);
    host.run(queue, { ...host.io(Nvm.COMPARE, 9, 1, [page]), nsid: 2 });
    const view = new DataView(log(LogPage.ERROR, 64).bytes.buffer);
    expect((view.getUint16(12, true) >>> 1) & 0x7ff).toBe(code(StatusCode.COMPARE_FAILURE));
    expect(view.getBigUint64(16, true)).toBe(9n);
    expect(view.getUint32(24, true)).toBe(2);
  });

  it("refuses pages, offsets and lengths that cannot be", () => {
    expect(log(0x7f, 64).status).toBe(code(StatusCode.INVALID_LOG_PAGE));
    expect(log(LogPage.SMART, 64, 2).status).toBe(code(StatusCode.INVALID_FIELD));
    expect(log(LogPage.SMART, 64, 516).status).toBe(code(StatusCode.INVALID_FIELD));
    const long = {
      opcode: Admin.GET_LOG_PAGE,
      cdw10: 0xffff_0002,
      cdw11: 0xffff,
      prps: [host.allocate(4096)],
    };
    expect(host.run(host.admin, long).status).toBe(code(StatusCode.INVALID_FIELD));
  });
});

describe("§5.3 to §5.6 queues", () => {
  beforeEach(() => void host.initialise(0));
  const create = (opcode: number, id: number, size: number, cdw11: number, prp = host.allocate(4096)) =>
    host.run(host.admin, { opcode, prps: [prp], cdw10: ((size - 1) << 16) | id, cdw11 }).status;
  const remove = (opcode: number, id: number) => host.run(host.admin, { opcode, cdw10: id }).status;

  it("refuses completion queues with the specified statuses", () => {
    const cq = (id: number, size: number, cdw11: number, prp?: number) =>
      create(Admin.CREATE_CQ, id, size, cdw11, prp);
    expect(cq(0, 4, 1)).toBe(code(StatusCode.INVALID_QUEUE_ID));
    expect(cq(5, 4, 1)).toBe(code(StatusCode.INVALID_QUEUE_ID));
    expect(cq(1, 1, 1)).toBe(code(StatusCode.INVALID_QUEUE_SIZE));
    expect(cq(1, 1025, 1)).toBe(code(StatusCode.INVALID_QUEUE_SIZE));
    expect(cq(1, 4, 0)).toBe(code(StatusCode.INVALID_FIELD));
    expect(cq(1, 4, 1, 0x10_0008)).toBe(code(StatusCode.PRP_OFFSET_INVALID));
    expect(cq(1, 4, (5 << 16) | 3)).toBe(code(StatusCode.INVALID_VECTOR));
    expect(cq(1, 4, 1)).toBe(0);
    expect(cq(1, 4, 1)).toBe(code(StatusCode.INVALID_QUEUE_ID));
  });

  it("refuses submission queues with the specified statuses", () => {
    const sq = (id: number, size: number, cdw11: number, prp?: number) =>
      create(Admin.CREATE_SQ, id, size, cdw11, prp);
    expect(sq(1, 4, (1 << 16) | 1)).toBe(code(StatusCode.CQ_INVALID));
    expect(create(Admin.CREATE_CQ, 1, 4, 1)).toBe(0);
    expect(sq(1, 4, 1)).toBe(code(StatusCode.INVALID_QUEUE_ID)); // completions to the admin queue
    expect(sq(1, 4, (99 << 16) | 1)).toBe(code(StatusCode.INVALID_QUEUE_ID));
    expect(sq(9, 4, (1 << 16) | 1)).toBe(code(StatusCode.INVALID_QUEUE_ID));
    expect(sq(1, 1, (1 << 16) | 1)).toBe(code(StatusCode.INVALID_QUEUE_SIZE));
    expect(sq(1, 4, 1 << 16)).toBe(code(StatusCode.INVALID_FIELD));
    expect(sq(1, 4, (1 << 16) | 1)).toBe(0);
    expect(sq(1, 4, (1 << 16) | 1)).toBe(code(StatusCode.INVALID_QUEUE_ID));
  });

  it("deletes a submission queue before its completion queue", () => {
    host.createQueue(1, 4);
    expect(remove(Admin.DELETE_CQ, 1)).toBe(code(StatusCode.INVALID_QUEUE_DELETION));
    expect(remove(Admin.DELETE_SQ, 2)).toBe(code(StatusCode.INVALID_QUEUE_ID));
    expect(remove(Admin.DELETE_SQ, 0)).toBe(code(StatusCode.INVALID_QUEUE_ID));
    expect(remove(Admin.DELETE_SQ, 1)).toBe(0);
    expect(remove(Admin.DELETE_CQ, 1)).toBe(0);
    expect(remove(Admin.DELETE_CQ, 1)).toBe(code(StatusCode.INVALID_QUEUE_ID));
    host.createQueue(1, 4);
  });

  it("§5.6 deleting a submission queue aborts what is under way", () => {
    const queue = host.createQueue(1, 8);
    const page = host.allocate(4096);
    rig.unit.stall = ({ lo }) => lo === page;
    const cid = host.submit(queue, host.io(Nvm.READ, 0, 1, [page]));
    rig.work.run();
    host.submit(host.admin, { opcode: Admin.DELETE_SQ, cdw10: 1 });
    rig.work.run();
    expect(host.collect(host.admin)[0]?.status).toBe(0);
    const [aborted] = host.collect(queue, true);
    expect([aborted?.cid, aborted?.status]).toEqual([cid, code(StatusCode.SQ_DELETION)]);
    rig.unit.stall = () => false;
    rig.settle(); // the late answer changes nothing
    expect(host.collect(queue, true)).toEqual([]);
    expect(host.bytes(page, 512).every((byte) => byte === 0)).toBe(true);
  });

  it("§5.6 what a deleted queue still waits for at the unit concerns nobody any more", () => {
    for (const which of ["sq", "cq"] as const) {
      const queue = host.createQueue(1, 8);
      rig.unit.stall = ({ lo }) => Math.floor(lo / 4096) === queue[which] / 4096;
      host.submit(queue, { opcode: Nvm.FLUSH, nsid: 1 });
      rig.work.run();
      expect(rig.unit.stalled).toBe(1);
      for (const opcode of [Admin.DELETE_SQ, Admin.DELETE_CQ]) host.submit(host.admin, { opcode, cdw10: 1 });
      rig.work.run();
      expect(host.collect(host.admin)).toMatchObject([{ status: 0 }, { status: 0 }]);
      rig.unit.stall = () => false;
      rig.settle(false);
      expect(host.fatal).toBe(false);
    }
  });

  it("does not fetch more than the completion queue has room for", () => {
    const queue = host.createQueue(1, 64);
    host.expect({ opcode: Admin.CREATE_CQ, prps: [queue.cq], cdw10: (3 << 16) | 2, cdw11: 1 });
    host.expect({ opcode: Admin.CREATE_SQ, prps: [queue.sq], cdw10: (63 << 16) | 2, cdw11: (2 << 16) | 1 });
    const small = { ...queue, id: 2, size: 64 };
    for (let i = 0; i < 40; i++) host.push(small, { opcode: Nvm.FLUSH, nsid: 1 });
    host.ring(small);
    rig.settle();
    small.head = 3;
    host.consumed(small);
    rig.settle();
    const newest = host.bytes(queue.cq + 3 * 16, 16);
    expect(newest[8]).toBeLessThan(8); // SQHD
  });

  it("§5.1 aborts a command that is under way, and says so when there is none", () => {
    const queue = host.createQueue(1, 8);
    const page = host.allocate(4096);
    rig.unit.stall = ({ lo }) => lo === page;
    const cid = host.submit(queue, host.io(Nvm.READ, 0, 1, [page]));
    rig.work.run();
    const abort = { opcode: Admin.ABORT, cdw10: (cid << 16) | 1 };
    host.submit(host.admin, abort);
    rig.work.run();
    expect(host.collect(host.admin)[0]?.result).toBe(0);
    expect(host.collect(queue)[0]).toMatchObject({ cid, status: code(StatusCode.ABORT_REQUESTED) });
    rig.settle();
    expect(host.expect(abort)).toBe(1);
  });

  it("§4.1 waits for room in the completion queue, and goes round with the phase", () => {
    const queue = host.createQueue(1, 4);
    let done = 0;
    for (let round = 0; round < 20; round++) {
      for (let i = 0; i < 3; i++) host.push(queue, { opcode: Nvm.FLUSH, nsid: 1 });
      host.ring(queue);
      rig.settle();
      const found = host.collect(queue, true);
      expect(found.map((one) => one.status)).toEqual([0, 0, 0]);
      done += found.length;
      if (round % 2 === 0) host.consumed(queue);
      else {
        // Full: what is submitted now completes when the host has consumed.
        for (let i = 0; i < 2; i++) host.push(queue, { opcode: Nvm.FLUSH, nsid: 1 });
        host.ring(queue);
        rig.settle();
        expect(host.collect(queue, true)).toEqual([]);
        host.consumed(queue);
        rig.settle();
        expect(host.collect(queue)).toHaveLength(2);
      }
    }
    expect(done).toBe(60);
  });

  it("§4.13 takes submission queues in turn", () => {
    const first = host.createQueue(1, 128);
    const second = host.createQueue(2, 128);
    for (let i = 0; i < 100; i++) host.push(first, { opcode: Nvm.FLUSH, nsid: 1 });
    host.push(second, { opcode: Nvm.FLUSH, nsid: 1 });
    host.ring(first);
    host.ring(second);
    rig.work.run(1); // one slice
    expect(host.collect(second)).toHaveLength(1);
    expect(host.collect(first).length).toBeLessThan(100);
    rig.settle();
  });

  it("tells the submission queue's head", () => {
    const queue = host.createQueue(1, 4);
    const heads = Array.from({ length: 6 }, () => host.run(queue, { opcode: Nvm.FLUSH, nsid: 1 }).sqHead);
    expect(heads).toEqual([1, 2, 3, 0, 1, 2]);
  });
});

describe("§5.2 asynchronous events", () => {
  beforeEach(() => void host.initialise(0));
  const request = { opcode: Admin.ASYNC_EVENT };
  const clear = (id: number) => {
    const page = host.allocate(4096);
    host.expect({ opcode: Admin.GET_LOG_PAGE, nsid: 0xffff_ffff, cdw10: id | (15 << 16), prps: [page] });
  };

  it("holds a request until a doorbell is wrong, then masks the type until its log page was read", () => {
    const cid = host.submit(host.admin, request);
    const second = host.submit(host.admin, request);
    rig.settle();
    expect(host.collect(host.admin)).toEqual([]);
    write32(device, 0, Register.DOORBELLS + 8 * 3, 1); // queue 3 does not exist
    rig.settle();
    expect(host.collect(host.admin)).toMatchObject([{ cid, status: 0, result: 0x01_00_00 }]);
    write32(device, 0, Register.DOORBELLS, 0x100); // beyond the queue: masked still
    rig.settle();
    expect(host.collect(host.admin)).toEqual([]);
    clear(LogPage.ERROR);
    write32(device, 0, Register.DOORBELLS, 0x100);
    rig.settle();
    expect(host.collect(host.admin)).toMatchObject([{ cid: second, result: 0x01_01_00 }]);
  });

  it("tells an event once, however often it happened before anybody asked", () => {
    for (let i = 0; i < 5; i++) write32(device, 0, Register.DOORBELLS + 8 * 3, 1);
    const first = host.submit(host.admin, request);
    host.submit(host.admin, request);
    rig.settle();
    expect(host.collect(host.admin)).toMatchObject([{ cid: first }]);
    const prps = [host.allocate(4096)];
    const read = host.submit(host.admin, {
      opcode: Admin.GET_LOG_PAGE,
      cdw10: LogPage.ERROR | (15 << 16),
      prps,
    });
    rig.settle();
    expect(host.collect(host.admin)).toMatchObject([{ cid: read, status: 0 }]);
  });

  it("an aborted request gets no event", () => {
    const [first, second] = [host.submit(host.admin, request), host.submit(host.admin, request)];
    host.submit(host.admin, { opcode: Admin.ABORT, cdw10: first << 16 });
    rig.settle();
    host.collect(host.admin);
    write32(device, 0, Register.DOORBELLS + 8 * 3, 1);
    rig.settle();
    expect(host.collect(host.admin)).toMatchObject([{ cid: second, status: 0 }]);
  });

  it("reports a completion doorbell that consumes more than there is", () => {
    const cid = host.submit(host.admin, request);
    rig.settle();
    write32(device, 0, Register.DOORBELLS + 4, (host.admin.head + 1) % host.admin.size);
    rig.settle();
    expect(host.collect(host.admin)).toMatchObject([{ cid, result: 0x01_01_00 }]);
  });

  it("reports a temperature threshold when the host wants to know", () => {
    const cid = host.submit(host.admin, request);
    host.submit(host.admin, { opcode: Admin.SET_FEATURES, cdw10: Feature.ASYNC_EVENTS, cdw11: 2 });
    host.submit(host.admin, { opcode: Admin.SET_FEATURES, cdw10: Feature.TEMPERATURE_THRESHOLD, cdw11: 300 });
    rig.settle();
    expect(host.collect(host.admin).find((one) => one.cid === cid)?.result).toBe(0x02_01_01);
  });

  it("reports no temperature while the host has that event off", () => {
    const cid = host.submit(host.admin, request);
    const threshold = { opcode: Admin.SET_FEATURES, cdw10: Feature.TEMPERATURE_THRESHOLD, cdw11: 300 };
    host.expect({ opcode: Admin.SET_FEATURES, cdw10: Feature.ASYNC_EVENTS, cdw11: 0xff & ~2 });
    host.expect(threshold);
    host.expect({ opcode: Admin.SET_FEATURES, cdw10: Feature.ASYNC_EVENTS, cdw11: 2 });
    const set = host.submit(host.admin, threshold);
    rig.settle();
    const ends = host.collect(host.admin).map((one) => one.cid);
    expect([...ends].sort()).toEqual([cid, set].sort());
  });

  it("takes no wish for notices that Identify does not have", () => {
    const page = host.allocate(4096);
    host.expect({ opcode: Admin.IDENTIFY, cdw10: Cns.CONTROLLER, prps: [page] });
    expect([...host.bytes(page + 92, 4)]).toEqual([0, 0, 0, 0]); // OAES
    for (const notice of [8, 9]) {
      const wish = { opcode: Admin.SET_FEATURES, cdw10: Feature.ASYNC_EVENTS, cdw11: 1 << notice };
      expect(host.run(host.admin, wish).status).toBe(code(StatusCode.INVALID_FIELD));
    }
  });

  it("refuses more requests than AERL, and gives them up when aborted or reset", () => {
    const cids = Array.from({ length: 4 }, () => host.submit(host.admin, request));
    expect(host.run(host.admin, request).status).toBe(code(StatusCode.ASYNC_EVENT_LIMIT));
    host.submit(host.admin, { opcode: Admin.ABORT, cdw10: cids[1]! << 16 });
    rig.settle();
    const [aborted] = host.collect(host.admin);
    expect([aborted?.cid, aborted?.status]).toEqual([cids[1], code(StatusCode.ABORT_REQUESTED)]);
    host.submit(host.admin, request);
    rig.settle();
    host.enable();
    rig.settle();
    expect(host.collect(host.admin)).toEqual([]);
  });
});

describe("§6 commands", () => {
  let queue: HostQueue;
  beforeEach(() => {
    [queue] = host.initialise() as [HostQueue];
  });

  it("§4.3 follows PRP lists over chained pages, and lists that begin inside a page", () => {
    plug({ mdts: 12, size: 64 * MIB });
    [queue] = host.initialise() as [HostQueue];
    const count = 1100;
    const block = host.allocate(count * 4096);
    const scattered = Array.from({ length: count }, (_, i) => block + ((i * 7) % count) * 4096);
    for (const [i, at] of scattered.entries()) rig.memory.store64(at, i, 0);
    const [first, ...rest] = scattered;
    const list = host.list(rest, 4096 - 16);
    expect(host.write(queue, 0, count * 8, [first!, list]).status).toBe(0);
    for (const at of scattered) rig.memory.store64(at, 0, 0);
    expect(host.read(queue, 0, count * 8, [first!, host.list(rest)]).status).toBe(0);
    for (const [i, at] of scattered.entries()) {
      rig.memory.load64(at);
      expect(rig.memory.lo).toBe(i);
    }
  });

  it("a host that rang for much data goes on before the command is done; little is done at once", () => {
    const pages = Array.from({ length: 32 }, () => host.allocate(4096));
    host.submit(queue, host.io(Nvm.READ, 0, 8, pages.slice(0, 1)));
    rig.work.runPrompt(100);
    expect(host.collect(queue)).toHaveLength(1);
    host.submit(queue, host.io(Nvm.READ, 0, 32 * 8, host.prps(pages)));
    rig.work.runPrompt(100);
    expect(rig.work.waitsForPrograms).toBe(true);
    expect(host.collect(queue)).toEqual([]);
    host.submit(queue, host.io(Nvm.READ, 0, 32 * 8, host.prps(pages)));
    rig.settle();
    expect(host.collect(queue).map(({ status }) => status)).toEqual([0, 0]);
  });

  it("a list of exactly one page has no pointer in its last entry", () => {
    plug({ mdts: 10 });
    [queue] = host.initialise() as [HostQueue];
    const pages = Array.from({ length: 513 }, () => host.allocate(4096));
    rig.memory.store64(pages[512]!, 0x1234, 0);
    expect(host.write(queue, 0, 513 * 8, host.prps(pages)).status).toBe(0);
    expect(host.read(queue, 512 * 8, 1, [pages[0]!]).status).toBe(0);
    rig.memory.load64(pages[0]!);
    expect(rig.memory.lo).toBe(0x1234);
  });

  it("a list that points at itself is read as far as the command is long", () => {
    const list = host.allocate(4096);
    for (let i = 0; i < 512; i++) rig.memory.store64(list + 8 * i, list, 0);
    const { status } = host.read(queue, 0, 32 * 8, [list, list]);
    expect(status).toBe(0); // the blocks are zero, and so is now the list
    expect(host.run(queue, { opcode: Nvm.FLUSH, nsid: 1 }).status).toBe(0);
  });

  describe("with addresses beyond 4 GiB", () => {
    const first = 0x18_0000;
    const second = 0x19_0000;
    const translate = (iovas: readonly [number, number]) => {
      const pages = new Map(Array.from({ length: 0x1800 }, (_, page) => [page, page]));
      pages.set(iovas[0] / 4096, first / 4096);
      pages.set(iovas[1] / 4096, second / 4096);
      rig.unit.pages = pages;
      rig.memory.fill(first, 4096, 1);
      rig.memory.fill(second, 4096, 2);
    };
    const written = () => {
      const page = host.allocate(8192);
      expect(host.read(queue, 0, 16, [page, page + 4096]).status).toBe(0);
      return [page, page + 4095, page + 4096, page + 8191].map((at) => host.bytes(at, 1)[0]);
    };

    it("§4.3 a run goes on over the boundary, also after a stall there", () => {
      const iovas = [0xffff_f000, 2 ** 32] as const;
      translate(iovas);
      let stalls = 1;
      rig.unit.stall = ({ lo, hi }) => hi === 1 && lo === 0 && stalls-- > 0;
      expect(host.write(queue, 0, 16, iovas).status).toBe(0);
      expect(stalls).toBe(-1);
      expect(written()).toEqual([1, 1, 2, 2]);
    });

    it("§4.3 pages whose low words follow each other are not together for that", () => {
      const iovas = [2 ** 32 + 0x40_0000, 2 * 2 ** 32 + 0x40_1000] as const;
      translate(iovas);
      expect(host.write(queue, 0, 16, iovas).status).toBe(0);
      expect(written()).toEqual([1, 1, 2, 2]);
    });
  });

  it("§4.6.1.2 PRP Offset Invalid", () => {
    const page = host.allocate(4096);
    const bad = code(StatusCode.PRP_OFFSET_INVALID);
    expect(host.read(queue, 0, 1, [page + 2]).status).toBe(bad);
    expect(host.read(queue, 0, 16, [page, page + 8]).status).toBe(bad);
    expect(host.read(queue, 0, 24, [page, page + 4]).status).toBe(bad); // list not qword aligned
    expect(host.read(queue, 0, 24, [page, host.list([page, page + 512])]).status).toBe(bad);
    const chained = host.list([page, page, page], 4096 - 8);
    rig.memory.store64(chained, page + 64, 0); // the next list page is not aligned
    expect(host.read(queue, 0, 32, [page, chained]).status).toBe(bad);
  });

  it.each([
    ["the data", 1],
    ["the list", 24],
  ])(
    "a DMA fault in %s is a Data Transfer Error; the reason is told and the controller goes on",
    (_name, blocks) => {
      const page = host.allocate(4096);
      rig.unit.forbidden.add(0x8_0000);
      const prps = blocks === 1 ? [0x8000_0000] : [page, 0x8000_0000];
      const { status, dnr } = host.read(queue, 0, blocks, prps);
      expect(status).toBe(code(StatusCode.DATA_TRANSFER_ERROR));
      expect(dnr).toBe(false);
      const event = rig.told.find(({ fields }) => fields["what"] === "command failed");
      expect(event?.fields).toMatchObject({
        queue: 1,
        status: "data transfer error",
        address: 0x8000_0000n,
        reason: "the page is not in the table",
      });
      expect(host.run(queue, { opcode: Nvm.FLUSH, nsid: 1 }).status).toBe(0);
      expect(host.fatal).toBe(false);
    },
  );

  it("a stall that is answered no is a Data Transfer Error", () => {
    const page = host.allocate(4096);
    rig.unit.stall = ({ lo }) => lo === page;
    host.submit(queue, host.io(Nvm.WRITE, 0, 1, [page]));
    rig.settle(false);
    expect(host.collect(queue)).toMatchObject([{ status: code(StatusCode.DATA_TRANSFER_ERROR) }]);
  });

  it("refuses malformed commands with the specified statuses", () => {
    const page = host.allocate(4096);
    const run = (changes: object) =>
      host.run(queue, { ...host.io(Nvm.READ, 0, 1, [page]), ...changes }).status;
    expect(run({ opcode: 0x04 })).toBe(code(StatusCode.INVALID_OPCODE));
    expect(run({ nsid: 0 })).toBe(code(StatusCode.INVALID_NAMESPACE));
    expect(run({ nsid: 2 })).toBe(code(StatusCode.INVALID_NAMESPACE));
    expect(run({ flags: 0x40 })).toBe(code(StatusCode.INVALID_FIELD)); // SGL
    expect(run({ flags: 0x01 })).toBe(code(StatusCode.INVALID_FIELD)); // fused
    expect(run({ cdw10: 32768 })).toBe(code(StatusCode.LBA_OUT_OF_RANGE));
    expect(run({ cdw10: 32767, cdw12: 1 })).toBe(code(StatusCode.LBA_OUT_OF_RANGE));
    expect(run({ cdw10: 0xffff_ffff, cdw11: 0xffff_ffff })).toBe(code(StatusCode.LBA_OUT_OF_RANGE));
    expect(run({ cdw12: 2048 })).toBe(code(StatusCode.INVALID_FIELD)); // beyond MDTS
    expect(run({ opcode: Nvm.FLUSH, nsid: 7 })).toBe(code(StatusCode.INVALID_NAMESPACE));
    expect(run({ opcode: Nvm.FLUSH, nsid: 0xffff_ffff })).toBe(0);
    const admin = { opcode: 0x18 };
    expect(host.run(host.admin, admin)).toMatchObject({ status: code(StatusCode.INVALID_OPCODE), dnr: true });
  });

  it("§6.6 Compare tells whether the blocks are as the host has them, and changes nothing", () => {
    const [page, other] = [host.allocate(8192), host.allocate(8192)];
    const data = pattern(8192, 3);
    rig.memory.writeBytes(page, data);
    expect(host.write(queue, 7, 16, [page, page + 4096]).status).toBe(0);
    const compare = (changes: object = {}) =>
      host.run(queue, { ...host.io(Nvm.COMPARE, 7, 16, [other, other + 4096]), ...changes }).status;
    rig.memory.writeBytes(other, data);
    expect(compare()).toBe(0);
    for (const at of [0, 4095, 8191]) {
      rig.memory.writeBytes(other + at, Uint8Array.of(data[at]! ^ 1));
      expect(compare()).toBe(code(StatusCode.COMPARE_FAILURE));
      rig.memory.writeBytes(other + at, Uint8Array.of(data[at]!));
    }
    expect(compare()).toBe(0);
    expect(compare({ cdw12: 14 })).toBe(0);
    expect(compare({ cdw10: 32760 })).toBe(code(StatusCode.LBA_OUT_OF_RANGE));
    expect(compare({ cdw12: 2048 })).toBe(code(StatusCode.INVALID_FIELD)); // beyond MDTS
    vi.spyOn(MemoryMedia.prototype, "read").mockReturnValueOnce(false);
    expect(compare()).toBe(code(StatusCode.UNRECOVERED_READ));
    vi.restoreAllMocks();
  });

  it("§6.6 Compare goes on where a stall has stopped it", () => {
    const page = host.allocate(8192);
    rig.memory.writeBytes(page, pattern(8192, 4));
    expect(host.write(queue, 0, 16, [page, page + 4096]).status).toBe(0);
    let stalls = 2;
    rig.unit.stall = ({ lo }) => lo >= page && lo < page + 8192 && stalls-- > 0;
    expect(host.run(queue, host.io(Nvm.COMPARE, 0, 16, [page, page + 4096])).status).toBe(0);
    expect(stalls).toBeLessThan(1);
  });

  describe("§6.7 Dataset Management", () => {
    const DEALLOCATE = 4;
    const manage = (ranges: readonly (readonly [first: number, blocks: number])[], cdw11 = DEALLOCATE) => {
      const page = host.allocate(4096);
      ranges.forEach(([first, blocks], i) => {
        rig.memory.store64(page + 16 * i, 0, blocks);
        rig.memory.store64(page + 16 * i + 8, first >>> 0, Math.floor(first / 2 ** 32));
      });
      const prps = [page];
      return { opcode: Nvm.DATASET_MANAGEMENT, nsid: 1, cdw10: ranges.length - 1, cdw11, prps };
    };
    /** Which of the first 16 blocks hold something. */
    const held = (): number[] => {
      const page = host.allocate(8192);
      expect(host.read(queue, 0, 16, [page, page + 4096]).status).toBe(0);
      return Array.from({ length: 16 }, (_, i) => i).filter((i) => host.bytes(page + 512 * i, 1)[0] !== 0);
    };
    const ALL = Array.from({ length: 16 }, (_, i) => i);
    beforeEach(() => {
      const page = host.allocate(8192);
      rig.memory.fill(page, 8192, 0x77);
      expect(host.write(queue, 0, 16, [page, page + 4096]).status).toBe(0);
    });

    it("deallocates ranges, which read as zeroes", () => {
      expect(
        host.run(
          queue,
          manage([
            [2, 3],
            [9, 0],
            [15, 100],
            [4, 2],
          ]),
        ).status,
      ).toBe(0);
      expect(held()).toEqual([0, 1, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
    });

    it("takes the other attributes for hints, and changes nothing for them", () => {
      expect(host.run(queue, manage([[0, 16]], 3)).status).toBe(0);
      expect(held()).toEqual(ALL);
    });

    it("refuses ranges outside before anything is deallocated", () => {
      for (const bad of [
        [32767, 2],
        [2 ** 52, 1],
        [0, 32769],
      ] as const) {
        const { status } = host.run(queue, manage([[0, 16], bad]));
        expect(status).toBe(code(StatusCode.LBA_OUT_OF_RANGE));
      }
      expect(host.run(queue, { ...manage([[0, 1]]), nsid: 2 }).status).toBe(
        code(StatusCode.INVALID_NAMESPACE),
      );
      expect(held()).toEqual(ALL);
    });

    it("deallocates 256 ranges of a whole namespace in slices, and flushes once without a cache", () => {
      host.expect({ opcode: Admin.SET_FEATURES, cdw10: Feature.VOLATILE_WRITE_CACHE, cdw11: 0 });
      const flush = vi.spyOn(MemoryMedia.prototype, "flush");
      const ranges = Array.from({ length: 256 }, () => [0, 32768] as const);
      host.submit(queue, manage(ranges));
      rig.work.run(10);
      expect(host.collect(queue)).toEqual([]);
      rig.settle();
      expect(host.collect(queue)).toMatchObject([{ status: 0 }]);
      expect(flush).toHaveBeenCalledTimes(1);
      expect(held()).toEqual([]);
      vi.restoreAllMocks();
    });

    it("a medium that fails is a Write Fault", () => {
      vi.spyOn(MemoryMedia.prototype, "zero").mockReturnValueOnce(false);
      expect(
        host.run(
          queue,
          manage([
            [0, 1],
            [1, 1],
          ]),
        ).status,
      ).toBe(code(StatusCode.WRITE_FAULT));
      vi.restoreAllMocks();
    });
  });

  it.each([
    ["Namespace Management", 0x0d],
    ["Firmware Commit", 0x10],
    ["Device Self-test", 0x14],
    ["Keep Alive", 0x18],
    ["Doorbell Buffer Config", 0x7c],
    ["Format NVM", 0x80],
    ["Security Send", 0x81],
    ["Sanitize", 0x84],
  ])("%s, which is optional and not here, is an invalid opcode and changes nothing", (_name, opcode) => {
    const page = host.allocate(4096);
    rig.memory.fill(page, 4096, 0x31);
    host.write(queue, 0, 8, [page]);
    const refused = { status: code(StatusCode.INVALID_OPCODE), dnr: true };
    expect(host.run(host.admin, { opcode, nsid: 1 })).toMatchObject(refused);
    rig.memory.fill(page, 4096, 0);
    host.read(queue, 0, 8, [page]);
    expect(host.bytes(page, 4096).every((byte) => byte === 0x31)).toBe(true);
  });

  it.each([
    ["Write Uncorrectable", 0x04],
    ["Verify", 0x0c],
    ["Reservation Register", 0x0d],
    ["Copy", 0x19],
  ])("%s, which is optional and not here, is an invalid opcode", (_name, opcode) => {
    const refused = { status: code(StatusCode.INVALID_OPCODE), dnr: true };
    expect(host.run(queue, { opcode, nsid: 1 })).toMatchObject(refused);
  });

  it("Write Zeroes of 65536 blocks takes several slices", () => {
    plug({ size: 512 * MIB, blockSize: 4096 });
    [queue] = host.initialise() as [HostQueue];
    const page = host.allocate(4096);
    rig.memory.fill(page, 4096, 0xee);
    expect(host.write(queue, 65535, 1, [page]).status).toBe(0);
    host.submit(queue, host.io(Nvm.WRITE_ZEROES, 0, 65536));
    expect(rig.work.run(3)).toBe(3);
    expect(host.collect(queue)).toEqual([]);
    rig.settle();
    expect(host.collect(queue)).toMatchObject([{ status: 0 }]);
    expect(host.read(queue, 65535, 1, [page]).status).toBe(0);
    expect(host.bytes(page, 4096).every((byte) => byte === 0)).toBe(true);
  });

  it("reads, writes and zeroes are those of an array, with random stalls", () => {
    const size = 256 * 1024;
    const step = fc.record({
      kind: fc.constantFrom(Nvm.READ, Nvm.WRITE, Nvm.WRITE_ZEROES),
      lba: fc.nat(size / 512 - 1),
      blocks: fc.integer({ min: 1, max: 80 }),
      offset: fc.nat(7).map((n) => n * 512),
      seed: fc.nat(),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 12 }), fc.nat(), (steps, seed) => {
        const own = new Rig();
        const controller = createNvme(own.context, { size });
        const driver = new NvmeHost(own, controller);
        const random = new Random(seed);
        own.unit.stall = () => random.below(6) === 0;
        const [pair] = driver.initialise() as [HostQueue];
        const model = new Uint8Array(size);
        const pages = Array.from({ length: 22 }, () => driver.allocate(8192)); // every second page
        for (const { kind, lba, blocks: wanted, offset, seed: fill } of steps) {
          const blocks = Math.min(wanted, size / 512 - lba);
          const length = blocks * 512;
          const used = pages.slice(0, Math.ceil((offset + length) / 4096));
          const each = (visit: (pa: number, at: number, count: number) => void) => {
            for (let at = 0; at < length; ) {
              const inside = (offset + at) % 4096;
              const count = Math.min(4096 - inside, length - at);
              visit(pages[Math.floor((offset + at) / 4096)]! + inside, at, count);
              at += count;
            }
          };
          const data = pattern(length, fill);
          if (kind === Nvm.WRITE) {
            each((pa, at, count) => void own.memory.writeBytes(pa, data.subarray(at, at + count)));
            model.set(data, lba * 512);
          } else if (kind === Nvm.WRITE_ZEROES) model.fill(0, lba * 512, lba * 512 + length);
          const prps = driver.prps(used, offset);
          expect(driver.run(pair, driver.io(kind, lba, blocks, prps)).status).toBe(0);
          if (kind !== Nvm.READ) continue;
          const seen = new Uint8Array(length);
          each((pa, at, count) => void own.memory.readBytes(pa, seen.subarray(at, at + count)));
          expect(Buffer.compare(seen, model.subarray(lba * 512, lba * 512 + length))).toBe(0);
        }
        controller.close();
        own.close();
      }),
      { numRuns: 25 },
    );
  });
});

describe("the medium", () => {
  let queue: HostQueue;
  beforeEach(() => {
    [queue] = host.initialise() as [HostQueue];
  });
  afterEach(() => void vi.restoreAllMocks());

  it("§4.6.1.2.3 its failures are media errors, and are counted", () => {
    const page = host.allocate(4096);
    for (const method of ["read", "write", "zero", "flush"] as const)
      vi.spyOn(MemoryMedia.prototype, method).mockReturnValue(false);
    expect(host.read(queue, 0, 1, [page]).status).toBe(code(StatusCode.UNRECOVERED_READ));
    expect(host.write(queue, 0, 1, [page]).status).toBe(code(StatusCode.WRITE_FAULT));
    expect(host.run(queue, host.io(Nvm.WRITE_ZEROES, 0, 1)).status).toBe(code(StatusCode.WRITE_FAULT));
    expect(host.run(queue, { opcode: Nvm.FLUSH, nsid: 1 }).status).toBe(code(StatusCode.WRITE_FAULT));
    host.expect({ opcode: Admin.GET_LOG_PAGE, cdw10: LogPage.SMART | (127 << 16), prps: [page] });
    expect(host.bytes(page + 160, 1)[0]).toBe(4);
  });

  it("is flushed by Flush, FUA, shutdown, and by every write when the write cache is off", () => {
    const flush = vi.spyOn(MemoryMedia.prototype, "flush");
    const page = host.allocate(4096);
    host.write(queue, 0, 1, [page]);
    host.read(queue, 0, 1, [page]);
    expect(flush).toHaveBeenCalledTimes(0);
    host.run(queue, { opcode: Nvm.FLUSH, nsid: 1 });
    expect(flush).toHaveBeenCalledTimes(1);
    host.run(queue, { ...host.io(Nvm.WRITE, 0, 1, [page]), cdw12: 1 << 30 });
    expect(flush).toHaveBeenCalledTimes(2);
    host.expect({ opcode: Admin.SET_FEATURES, cdw10: Feature.VOLATILE_WRITE_CACHE, cdw11: 0 });
    host.write(queue, 0, 1, [page]);
    expect(flush).toHaveBeenCalledTimes(3);
    host.configure(1);
    rig.settle();
    expect(flush).toHaveBeenCalledTimes(4);
  });

  it("a write whose first page cannot be read changes nothing", () => {
    const page = host.allocate(4096);
    rig.memory.fill(page, 4096, 0x5a);
    host.write(queue, 0, 8, [page]);
    rig.unit.forbidden.add(0x8_0000);
    expect(host.write(queue, 0, 8, [0x8000_0000]).status).toBe(code(StatusCode.DATA_TRANSFER_ERROR));
    rig.memory.fill(page, 4096, 0);
    host.read(queue, 0, 8, [page]);
    expect(host.bytes(page, 4096).every((byte) => byte === 0x5a)).toBe(true);
  });
});

it("§4.6 a host that polls sees the phase of a completion only when the rest of it is there", () => {
  const [queue] = host.initialise() as [HostQueue];
  rig.memory.fill(queue.cq, 4096, 0xaa); // phase 0 everywhere, and stale bytes
  const seen: Uint8Array[] = [];
  rig.unit.stall = ({ lo }) => {
    if (lo === queue.cq + 14) seen.push(host.bytes(queue.cq, 16));
    return false;
  };
  const cid = host.submit(queue, { opcode: 0x7e, nsid: 1 });
  rig.settle();
  const status = (StatusCode.INVALID_OPCODE << 1) & 0xffff;
  const words = [0, 0, (1 << 16) | 1, ((status << 16) | cid) >>> 0];
  expect(seen.map((bytes) => [...new Uint32Array(bytes.slice().buffer)])).toEqual([words]);
  expect(host.collect(queue)).toMatchObject([{ cid, status: code(StatusCode.INVALID_OPCODE) }]);
});

describe("fatal conditions", () => {
  it.each([
    ["submission", "sq"],
    ["completion", "cq"],
  ] as const)("§3.1.6 CFS when the %s queue cannot be reached; a reset mends it", (_name, which) => {
    const [queue] = host.initialise() as [HostQueue];
    rig.unit.forbidden.add(queue[which] / 4096);
    host.submit(queue, { opcode: Nvm.FLUSH, nsid: 1 });
    rig.settle();
    expect(host.fatal).toBe(true);
    host.submit(host.admin, { opcode: Admin.GET_FEATURES, cdw10: 1 });
    rig.settle();
    expect(host.collect(host.admin)).toEqual([]); // nothing is done any more
    host.initialise(0);
    expect(host.fatal).toBe(false);
  });

  it("CFS too when the unit answers no to a stalled fetch or completion", () => {
    for (const which of ["sq", "cq"] as const) {
      plug();
      const [queue] = host.initialise() as [HostQueue];
      rig.unit.stall = ({ lo }) => Math.floor(lo / 4096) === queue[which] / 4096;
      host.submit(queue, { opcode: Nvm.FLUSH, nsid: 1 });
      rig.settle(false);
      expect(host.fatal).toBe(true);
      rig.unit.stall = () => false;
    }
  });
});

describe("§7.5 interrupts", () => {
  it("MSI-X: one message for what a slice has posted to a queue", () => {
    const [first, second] = host.initialise(2) as [HostQueue, HostQueue];
    rig.interrupts.length = 0;
    for (let i = 0; i < 5; i++) host.push(first, { opcode: Nvm.FLUSH, nsid: 1 });
    host.ring(first);
    host.submit(second, { opcode: Nvm.FLUSH, nsid: 1 });
    rig.settle();
    expect([...rig.interrupts].sort()).toEqual([1, 2]);
  });

  it("MSI-X: a masked vector keeps its event until it is unmasked", () => {
    const [queue] = host.initialise() as [HostQueue];
    write32(device, 4, 16 + 12, 1);
    rig.interrupts.length = 0;
    host.run(queue, { opcode: Nvm.FLUSH, nsid: 1 });
    expect(rig.interrupts).toEqual([]);
    const pba = read32(device, 4, 4096);
    expect(pba).toBe(2);
    write32(device, 4, 4096, 0); // read-only
    write32(device, 4, 16 + 12, 0);
    expect(rig.interrupts).toEqual([1]);
    expect(read32(device, 4, 4096)).toBe(0);
  });

  it("MSI-X: a message that stalls is sent once the unit allows it", () => {
    const [queue] = host.initialise() as [HostQueue];
    rig.interrupts.length = 0;
    let stalls = 3;
    rig.unit.stall = ({ lo }) => lo >>> 0 === MSI_BASE && stalls-- > 0;
    host.run(queue, { opcode: Nvm.FLUSH, nsid: 1 });
    expect(rig.interrupts).toEqual([1]);
  });

  it("MSI-X: messages that stall do not pile up, and a reset forgets them", () => {
    const [queue] = host.initialise() as [HostQueue];
    rig.unit.stall = ({ lo }) => lo >>> 0 === MSI_BASE;
    for (let i = 0; i < 10; i++) {
      host.submit(queue, { opcode: Nvm.FLUSH, nsid: 1 });
      rig.work.run();
      host.collect(queue);
    }
    expect(rig.bridge.parked).toBe(1);
    write32(device, 0, Register.CC, 0);
    expect(rig.bridge.parked).toBe(0);
    rig.unit.stall = () => false;
    rig.settle();
    rig.interrupts.length = 0;
    const [again] = host.initialise() as [HostQueue];
    host.run(again, { opcode: Nvm.FLUSH, nsid: 1 });
    expect(rig.interrupts.at(-1)).toBe(1);
  });

  const useMsi = (vectorsLg2: number) => {
    const msi = 0x48;
    device.configWrite(msi + 4, 4, MSI_BASE);
    device.configWrite(msi + 12, 2, 0x40);
    device.configWrite(msi + 2, 2, 1 | (vectorsLg2 << 4));
  };

  it("MSI: the vector is in the low bits of the data, and INTMS holds it back", () => {
    host.enable();
    useMsi(2);
    rig.settle();
    const queue = host.createQueue(2, 8);
    rig.interrupts.length = 0;
    host.run(queue, { opcode: Nvm.FLUSH, nsid: 1 });
    expect(rig.interrupts).toEqual([0x42]);
    write32(device, 0, Register.INTMS, 1 << 2);
    host.submit(queue, { opcode: Nvm.FLUSH, nsid: 1 });
    rig.settle();
    expect(rig.interrupts).toEqual([0x42]);
    expect(read32(device, 0, Register.INTMC)).toBe(4);
    write32(device, 0, Register.INTMC, 1 << 2);
    expect(rig.interrupts).toEqual([0x42, 0x42]);
  });

  it("the line is up while entries are unread, unless it is masked or disabled", () => {
    const changes: boolean[] = [];
    device.onIntx = (level) => changes.push(level);
    host.enable();
    rig.settle();
    host.submit(host.admin, { opcode: Admin.GET_FEATURES, cdw10: 1 });
    rig.settle();
    expect(device.intx).toBe(true);
    write32(device, 0, Register.INTMS, 1);
    expect(device.intx).toBe(false);
    write32(device, 0, Register.INTMC, 1);
    expect(device.intx).toBe(true);
    const command = device.configRead(Header.COMMAND, 2);
    device.configWrite(Header.COMMAND, 2, command | CommandBits.INTERRUPT_DISABLE);
    expect(device.intx).toBe(false);
    expect(device.configRead(Header.STATUS, 2) & 8).toBe(8);
    device.configWrite(Header.COMMAND, 2, command);
    host.collect(host.admin);
    expect(changes).toEqual([true, false, true, false, true, false]);
  });
});

describe("the host's other powers", () => {
  it("does nothing while it is no bus master, and goes on when it is", () => {
    const [queue] = host.initialise() as [HostQueue];
    const command = device.configRead(Header.COMMAND, 2);
    device.configWrite(Header.COMMAND, 2, command & ~CommandBits.BUS_MASTER);
    host.submit(queue, { opcode: Nvm.FLUSH, nsid: 1 });
    rig.settle();
    expect(host.collect(queue)).toEqual([]);
    turnOn(device);
    rig.settle();
    expect(host.collect(queue)).toMatchObject([{ status: 0 }]);
    expect(host.fatal).toBe(false);
  });

  it("a command whose data is the controller's own registers ends nothing but itself", () => {
    const [queue] = host.initialise() as [HostQueue];
    const bar = device.bars[0]!;
    rig.memory.addWindow(bar.base, bar.size, {
      name: "nvme",
      read: (offset, into) => {
        device.barRead(0, offset, into);
        return true;
      },
      write: (offset, data) => {
        device.barWrite(0, offset, data);
        return true;
      },
    });
    const page = host.allocate(4096); // all zero: written over CC, it resets
    host.submit(queue, host.io(Nvm.WRITE, 0, 8, [page]));
    rig.settle();
    host.collect(queue);
    host.submit(queue, host.io(Nvm.READ, 0, 8, [bar.base]));
    rig.settle();
    expect(host.ready).toBe(false);
    host.initialise(1);
  });

  it("a completion queue in the controller's own doorbells rings them after the slice", () => {
    host.initialise(0);
    const bar = device.bars[0]!;
    rig.memory.addWindow(bar.base, bar.size, {
      name: "nvme",
      read: () => false,
      write: (offset, data) => {
        device.barWrite(0, offset, data);
        return true;
      },
    });
    const asked = host.submit(host.admin, { opcode: Admin.ASYNC_EVENT });
    const queue: HostQueue = {
      ...host.createQueue(2, 8),
      id: 1,
      cq: bar.base + Register.DOORBELLS,
      cid: 0x50,
    };
    const size = 7 << 16;
    host.expect({ opcode: Admin.CREATE_CQ, prps: [queue.cq], cdw10: size | 1, cdw11: 1 });
    host.expect({ opcode: Admin.CREATE_SQ, prps: [queue.sq], cdw10: size | 1, cdw11: (1 << 16) | 1 });
    host.submit(queue, { opcode: Nvm.FLUSH, nsid: 1 }); // its identifier is written to a doorbell, and is too much
    rig.settle();
    expect(host.fatal).toBe(false);
    expect(host.collect(host.admin, true).some(({ cid }) => cid === asked)).toBe(true);
  });

  it("whatever is in its queues, it neither throws nor goes on for ever, and a reset mends it", () => {
    fc.assert(
      fc.property(fc.nat(), (seed) => {
        const own = new Rig();
        const controller = createNvme(own.context, { size: MIB, queues: 3, mdts: 4 });
        const driver = new NvmeHost(own, controller);
        const queues = [driver.admin, ...driver.initialise(2, 8)];
        const random = new Random(seed);
        const place = (): number =>
          0x10_0000 + random.below(24) * 4096 + (random.below(6) === 0 ? random.below(4096) : 0);
        const strange = (): number =>
          random.below(8) === 0 ? random.next() * 2 ** random.below(20) : place();
        own.unit.stall = () => random.below(9) === 0;
        for (let round = 0; round < 6; round++) {
          for (const queue of queues)
            for (let i = random.below(6); i > 0; i--)
              driver.push(queue, {
                opcode: random.below(14),
                nsid: random.below(4) === 0 ? random.next() : 1,
                prps: [strange(), strange()],
                cdw10: random.below(2) === 0 ? random.below(2048) : random.below(8) | (random.below(9) << 16),
                cdw11: random.below(3) === 0 ? random.next() : 0,
                cdw12: random.below(2) === 0 ? random.next() : random.below(16),
                flags: random.below(12) === 0 ? random.below(256) : 0,
              });
          for (const queue of queues) driver.ring(queue);
          if (random.below(3) === 0)
            write32(controller, 0, Register.DOORBELLS + 4 * random.below(12), random.below(12));
          own.work.run(random.below(40));
          own.unit.resume(random.below(5) > 0);
          for (const queue of queues) if (random.below(3) > 0) driver.collect(queue);
        }
        own.unit.stall = () => false;
        own.settle();
        const again = new NvmeHost(own, controller);
        const [queue] = again.initialise(1) as [HostQueue];
        expect(again.run(queue, { opcode: Nvm.FLUSH, nsid: 1 }).status).toBe(0);
        expect(own.bridge.parked).toBe(0);
        controller.close();
        own.close();
      }),
      { numRuns: 60 },
    );
  });

  it("a full slice is bounded, whatever is queued", () => {
    const queue = host.initialise(1, 256)[0]!;
    const page = host.allocate(4096);
    const list = host.list(new Array(511).fill(page));
    for (let i = 0; i < 200; i++) host.push(queue, host.io(Nvm.WRITE, 0, 2048, [page, list]));
    host.ring(queue);
    rig.unit.translations = 0;
    rig.work.run(1);
    expect(rig.unit.translations).toBeLessThan(1000);
    expect(rig.work.pending).toBe(1);
    write32(device, 0, Register.CC, 0);
    rig.settle();
  });

  it("commands under way are limited when every page stalls", () => {
    const queue = host.initialise(1, 512)[0]!;
    const page = host.allocate(4096);
    rig.unit.stall = ({ lo }) => lo === page;
    for (let i = 0; i < 500; i++) host.push(queue, host.io(Nvm.READ, 0, 1, [page]));
    host.ring(queue);
    rig.work.run();
    expect(rig.bridge.parked).toBe(128);
    rig.unit.stall = () => false;
    rig.settle();
    expect(host.collect(queue)).toHaveLength(500);
  });
});
