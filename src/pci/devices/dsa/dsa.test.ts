import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { functionSuite } from "../../function.suite.ts";
import { MSI_BASE, Rig, turnOn, turnOnServices } from "../../rig.suite.ts";
import { Command, Header } from "../../spec.ts";
import { DEDICATED, DsaHost, descriptorOf, type Wanted } from "./driver.suite.ts";
import { Dsa } from "./dsa.ts";
import {
  COMPLETION_BYTES,
  CommandError,
  Completion,
  DESCRIPTOR_BYTES,
  DsaCommand,
  DsaFlag,
  DsaOperation,
  DsaRegister,
  DsaStatus,
  EngCap,
  GenCap,
  GenCtrl,
  GrpCap,
  IntCause,
  Offsets,
  PORTAL_BAR,
  PortalError,
  queuePortal,
  STATUS_WRITE,
  SwErr,
  WqCap,
  type WqConfig,
  WqState,
} from "./spec.ts";

const FROM = 0x10_0ffe;
const TO = 0x18_0123;
const RECORD = 0x30_0000;
const LENGTH = 150_000;
const { COMPLETION_VALID, REQUEST_COMPLETION, REQUEST_INTERRUPT, BLOCK_ON_FAULT, FENCE } = DsaFlag;
const TELL = COMPLETION_VALID | REQUEST_COMPLETION;
const pattern = (length: number): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (i * 7 + (i >>> 8)) & 0xff);
const move: Wanted = {
  operation: DsaOperation.MEMMOVE,
  flags: TELL | BLOCK_ON_FAULT,
  completion: RECORD,
  source: FROM,
  destination: TO,
  size: LENGTH,
};

const bytesAt = (rig: Rig, pa: number, length: number): Uint8Array => {
  const bytes = new Uint8Array(length);
  rig.memory.readBytes(pa, bytes);
  return bytes;
};

functionSuite("the accelerator", {
  create: (context) => new Dsa(context),
  begin: (device, rig) => {
    const host = new DsaHost(device, rig);
    host.command(DsaCommand.RESET_DEVICE);
    host.bringUp(DEDICATED); // the state may be one in which that fails
    host.submit(move);
  },
  work: (device, rig) => {
    rig.memory.writeBytes(FROM, pattern(LENGTH));
    const host = new DsaHost(device, rig);
    host.start(DEDICATED, DEDICATED);
    host.submit(move);
    host.submit({ ...move, destination: TO + 0x8_0000, completion: RECORD + 32, size: 5000 }, 1);
    rig.settle();
    return [
      bytesAt(rig, TO, LENGTH),
      bytesAt(rig, TO + 0x8_0000, 5000),
      bytesAt(rig, RECORD, 64),
      host.command(DsaCommand.DISABLE_DEVICE),
    ];
  },
});

describe("the accelerator", () => {
  let rig: Rig;
  let device: Dsa;
  let host: DsaHost;
  beforeEach(() => {
    rig = new Rig();
    device = new Dsa(rig.context);
    host = new DsaHost(device, rig);
    turnOn(device);
  });
  afterEach(() => rig.close());

  const record = (at = RECORD) => {
    const bytes = bytesAt(rig, at, COMPLETION_BYTES);
    const view = new DataView(bytes.buffer);
    return {
      status: bytes[Completion.STATUS],
      result: bytes[Completion.RESULT],
      done: view.getUint32(Completion.DONE, true),
      fault: Number(view.getBigUint64(Completion.FAULT_ADDRESS, true)),
      more: view.getUint32(Completion.CRC, true),
    };
  };
  const run = (wanted: Wanted, queue = 0) => {
    rig.memory.writeBytes(RECORD, new Uint8Array(COMPLETION_BYTES));
    host.submit({ flags: TELL, completion: RECORD, ...wanted }, queue);
    rig.settle();
    return record();
  };
  const softwareError = () => {
    const words = Array.from({ length: SwErr.words }, (_, at) => host.get(DsaRegister.SWERR + 4 * at));
    return SwErr.fromWords(words);
  };
  const errorIs = (fields: Parameters<typeof SwErr.make>[0]) =>
    expect(SwErr.print(softwareError())).toBe(SwErr.print(SwErr.make({ Valid: true, ...fields })));
  /** Vector → data of its message. */
  const vectors = () => {
    const bytes = new Uint8Array(16);
    const view = new DataView(bytes.buffer);
    for (let vector = 0; vector < 9; vector++) {
      view.setUint32(0, MSI_BASE, true);
      view.setUint32(8, 0x40 + vector, true);
      device.barWrite(0, DsaRegister.MSIX_TABLE + 16 * vector, bytes);
    }
    let at = device.configRead(Header.CAPABILITIES_POINTER, 1);
    while (device.configRead(at, 1) !== 0x11) at = device.configRead(at + 1, 1);
    device.configWrite(at + 2, 2, 0x8000);
  };

  describe("registers", () => {
    it("say what it is, what it has and where its tables are", () => {
      expect(device.configRead(Header.VENDOR_ID, 4)).toBe(0x0b25_8086);
      expect(host.get(DsaRegister.VERSION)).toBe(0x100);
      const at = (register: number) => [host.get(register), host.get(register + 4), 0, 0];
      expect(GenCap.fields.MaxTransfer.get(at(DsaRegister.GENCAP))).toBe(31);
      expect(GenCap.fields.MaxBatch.get(at(DsaRegister.GENCAP))).toBe(10);
      expect(WqCap.fields.Count.get(at(DsaRegister.WQCAP))).toBe(8);
      expect(WqCap.fields.TotalSize.get(at(DsaRegister.WQCAP))).toBe(128);
      expect(GrpCap.fields.Count.get(at(DsaRegister.GRPCAP))).toBe(4);
      expect(EngCap.fields.Count.get(at(DsaRegister.ENGCAP))).toBe(4);
      expect(Offsets.fields.Queues.get(at(DsaRegister.OFFSETS)) * 0x100).toBe(DsaRegister.WQCFG);
      expect([host.get(DsaRegister.OPCAP), host.get(DsaRegister.CMDCAP)]).toEqual([0x3027f, 0x7ffe]);
    });

    it("are read-only where they tell, and settings keep while what they are of is enabled", () => {
      host.set(DsaRegister.VERSION, 0);
      host.set(DsaRegister.GENCAP, 0);
      expect(host.get(DsaRegister.VERSION)).toBe(0x100);
      host.start(DEDICATED, { ...DEDICATED, Size: 8 });
      host.group(0, 0, 0);
      host.configure(0, { ...DEDICATED, Size: 1, Priority: 3 });
      expect(host.get(DsaRegister.GRPCFG)).toBe(3);
      expect(host.get(DsaRegister.WQCFG)).toBe(16);
      expect(host.command(DsaCommand.DISABLE_WQ, 1 << 0)).toBe(CommandError.NONE);
      host.configure(0, { ...DEDICATED, Size: 1, Priority: 3 });
      expect(host.get(DsaRegister.WQCFG)).toBe(16); // sizes are the device's
      expect((host.get(DsaRegister.WQCFG + 8) >>> 4) & 0xf).toBe(3);
    });
  });

  describe("commands", () => {
    it("are active until they have ended, can interrupt, and one at a time is taken", () => {
      vectors();
      host.configure(0, DEDICATED);
      host.group(0, 1, 1);
      host.order(DsaCommand.ENABLE_DEVICE, 0, true);
      host.order(DsaCommand.RESET_DEVICE);
      expect(host.ending).toEqual([1, 0, 0]);
      rig.settle();
      expect(host.ending).toEqual([0, 0, 0]);
      expect(host.get(DsaRegister.GENSTS) & 3).toBe(1);
      expect(rig.interrupts).toEqual([0x40]);
      expect(host.get(DsaRegister.INTCAUSE)).toBe(IntCause.fields.Command.mask);
      host.set(DsaRegister.INTCAUSE, 0xffff_ffff);
      expect(host.get(DsaRegister.INTCAUSE)).toBe(0);
    });

    it("to enable the device are refused for what its groups lack", () => {
      const { WQ_SIZES, WQ_IN_GROUPS, ENGINE_IN_GROUPS, GROUP_WITHOUT_ENGINE, WQ_WITHOUT_GROUP } =
        CommandError;
      const enable = () => host.command(DsaCommand.ENABLE_DEVICE);
      device.configWrite(Header.COMMAND, 2, Command.MEMORY_SPACE);
      expect(enable()).toBe(CommandError.NOT_BUS_MASTER);
      turnOn(device);
      host.configure(0, { ...DEDICATED, Size: 100 });
      host.configure(1, { ...DEDICATED, Size: 29 });
      expect(enable()).toBe(WQ_SIZES);
      host.configure(1, { ...DEDICATED, Size: 28 });
      expect(enable()).toBe(WQ_WITHOUT_GROUP);
      host.group(0, 3, 0);
      expect(enable()).toBe(GROUP_WITHOUT_ENGINE);
      host.group(0, 3, 1);
      host.group(1, 2, 2);
      expect(enable()).toBe(WQ_IN_GROUPS);
      host.group(1, 0, 1);
      expect(enable()).toBe(ENGINE_IN_GROUPS);
      host.group(1, 0, 0);
      expect(enable()).toBe(CommandError.NONE);
      expect(enable()).toBe(CommandError.DEVICE_ENABLED);
    });

    it("to enable a queue are refused for what its settings lack", () => {
      const enable = (settings: Parameters<typeof WqConfig.make>[0]) => {
        host.command(DsaCommand.RESET_DEVICE);
        host.configure(0, settings);
        host.group(0, 1, 1);
        host.command(DsaCommand.ENABLE_DEVICE);
        return host.command(DsaCommand.ENABLE_WQ, 0);
      };
      expect(host.command(DsaCommand.ENABLE_WQ, 0)).toBe(CommandError.DEVICE_NOT_ENABLED);
      expect(enable({ ...DEDICATED, Size: 0 })).toBe(CommandError.WQ_SIZE);
      expect(enable({ ...DEDICATED, Priority: 0 })).toBe(CommandError.WQ_PRIORITY);
      expect(enable({ ...DEDICATED, PasidEnable: true })).toBe(CommandError.WQ_PASID);
      expect(enable({ ...DEDICATED, MaxBatch: 11 })).toBe(CommandError.WQ_MAX_BATCH);
      turnOnServices(device);
      const shared = { ...DEDICATED, Dedicated: false, Threshold: 4 };
      expect(enable(shared)).toBe(CommandError.WQ_PASID);
      expect(enable({ ...shared, Threshold: 17, PasidEnable: true })).toBe(CommandError.WQ_SIZE);
      expect(enable({ ...DEDICATED, PasidEnable: true, Privileged: true })).toBe(CommandError.WQ_PASID);
      expect(enable({ ...shared, PasidEnable: true })).toBe(CommandError.NONE);
      expect(host.queueState(0)).toBe(WqState.ENABLED);
      expect(host.command(DsaCommand.ENABLE_WQ, 0)).toBe(CommandError.WQ_ENABLED);
      expect(host.command(DsaCommand.ENABLE_WQ, 8)).toBe(CommandError.INVALID_WQ);
    });

    it("to disable and to drain wait for what was taken; to abort and to reset do not", () => {
      host.start(DEDICATED, DEDICATED);
      rig.unit.stall = () => true;
      const stall = (queue: number) => {
        host.submit(move, queue);
        rig.work.run();
      };
      stall(0);
      host.order(DsaCommand.DRAIN_WQ, 1);
      rig.work.run();
      expect(host.ending).toEqual([1, 0, 0]);
      rig.unit.stall = () => false;
      rig.settle();
      expect([host.ending, record().status]).toEqual([[0, 0, 0], DsaStatus.SUCCESS]);
      rig.unit.stall = () => true;
      stall(1);
      host.order(DsaCommand.DISABLE_WQ, 2);
      rig.work.run();
      expect([host.ending[0], host.queueState(1)]).toEqual([1, WqState.BUSY]);
      rig.unit.stall = () => false;
      rig.settle();
      expect([host.ending, host.queueState(1)]).toEqual([[0, 0, 0], WqState.DISABLED]);
      for (const command of [DsaCommand.ABORT_WQ, DsaCommand.RESET_WQ]) {
        rig.memory.writeBytes(RECORD, new Uint8Array(COMPLETION_BYTES));
        rig.unit.stall = () => true;
        stall(0);
        host.order(command, 1);
        rig.work.run();
        expect(host.ending).toEqual([0, 0, 0]);
        rig.unit.stall = () => false;
        rig.settle();
        expect(record().status).toBe(0);
      }
      expect(host.queueState(0)).toBe(WqState.DISABLED);
      expect(host.command(DsaCommand.DRAIN_WQ, 1)).toBe(CommandError.WQ_NOT_ENABLED);
      expect(host.command(DsaCommand.DRAIN_WQ, 0x100)).toBe(CommandError.INVALID_WQ);
      expect(host.command(DsaCommand.DISABLE_DEVICE)).toBe(CommandError.NONE);
      expect(host.command(DsaCommand.DISABLE_DEVICE)).toBe(CommandError.DISABLE_NOT_ENABLED);
      expect(host.command(31)).toBe(CommandError.INVALID_COMMAND);
    });

    it("for a PASID leave those of others alone", () => {
      turnOnServices(device);
      host.start({ ...DEDICATED, Dedicated: false, Threshold: 16, PasidEnable: true });
      rig.unit.stall = () => true;
      host.enqueue({ ...move, pasid: 5 });
      host.enqueue({ ...move, pasid: 6, completion: RECORD + 32 });
      rig.work.run();
      host.order(DsaCommand.ABORT_PASID, 5);
      rig.work.run();
      expect(host.ending).toEqual([0, 0, 0]);
      host.order(DsaCommand.DRAIN_PASID, 6);
      rig.work.run();
      expect(host.ending[0]).toBe(1);
      rig.unit.stall = () => false;
      rig.settle();
      expect(host.ending).toEqual([0, 0, 0]);
      expect([record().status, record(RECORD + 32).status]).toEqual([0, DsaStatus.SUCCESS]);
    });

    it("give interrupt handles for vectors that there are", () => {
      expect(host.command(DsaCommand.REQUEST_INTERRUPT_HANDLE, 8)).toBe(CommandError.NONE);
      expect(host.ending[2]).toBe(8);
      expect(host.command(DsaCommand.REQUEST_INTERRUPT_HANDLE, 9)).toBe(CommandError.INTERRUPT_INDEX);
      expect(host.command(DsaCommand.RELEASE_INTERRUPT_HANDLE, 8)).toBe(CommandError.NONE);
    });
  });

  describe("portals", () => {
    it("of a dedicated queue take posted writes of whole descriptors, and lose what does not fit", () => {
      host.start({ ...DEDICATED, Size: 2 });
      device.barWrite(PORTAL_BAR, queuePortal(0), descriptorOf(move).subarray(0, 32));
      expect(host.get(DsaRegister.WQCFG + 24) & 0xffff).toBe(0);
      expect(host.enqueue(move)).toBe(false);
      for (let i = 0; i < 3; i++) host.submit({ ...move, completion: RECORD + 32 * i });
      expect(host.get(DsaRegister.WQCFG + 24) & 0xffff).toBe(2);
      rig.settle();
      expect([0, 1, 2].map((i) => record(RECORD + 32 * i).status)).toEqual([1, 1, 0]);
      errorIs({ QueueValid: true, Error: PortalError.FULL });
    });

    it("of a shared queue take non-posted ones, as many as its threshold or its size says", () => {
      turnOnServices(device);
      host.start({ ...DEDICATED, Dedicated: false, Size: 3, Threshold: 2, PasidEnable: true });
      const noop = { operation: DsaOperation.NOOP, flags: TELL, completion: RECORD, pasid: 9 };
      expect([1, 2, 3].map(() => host.enqueue(noop))).toEqual([true, true, false]);
      expect([1, 2].map(() => host.enqueue(noop, 0, false))).toEqual([true, false]);
      rig.settle();
      expect(record().status).toBe(DsaStatus.SUCCESS);
      expect(new Set(rig.unit.pasids)).toEqual(new Set([9]));
      host.submit(noop);
      errorIs({ QueueValid: true, Error: PortalError.MODE });
    });

    it("of a queue that is not enabled take nothing", () => {
      host.submit(move, 3);
      expect(host.enqueue(move, 3)).toBe(false);
      errorIs({ QueueValid: true, Queue: 3, Error: PortalError.NOT_ENABLED });
      host.submit(move, 2);
      expect(SwErr.fields.Overflow.of(softwareError())).toBe(1n);
      host.set(DsaRegister.SWERR, 3);
      expect(host.get(DsaRegister.SWERR) & 3).toBe(0);
    });
  });

  describe("operations", () => {
    beforeEach(() => host.start(DEDICATED, { ...DEDICATED, MaxTransfer: 22 }));
    const { MEMMOVE, FILL, COMPARE, COMPARE_PATTERN, DUALCAST, CRC, COPY_CRC, NOOP, DRAIN } = DsaOperation;

    it("copies as much as the queue says, and no more", () => {
      const size = 2 ** 22;
      const data = pattern(size);
      rig.memory.writeBytes(0x80_0000, data);
      const wanted = { operation: MEMMOVE, source: 0x80_0000, destination: 0x110_0000, size };
      expect(run(wanted, 1)).toMatchObject({ status: DsaStatus.SUCCESS, done: size });
      expect(Buffer.compare(bytesAt(rig, 0x110_0000, size), data)).toBe(0);
      expect(run({ ...wanted, size: size + 1 }, 1).status).toBe(DsaStatus.TRANSFER_SIZE);
      expect(run({ ...wanted, size: 0 }, 1).status).toBe(DsaStatus.TRANSFER_SIZE);
    });

    it("copies, fills and compares as memmove, memset and memcmp do, whatever overlaps", () => {
      const base = 0x10_0000;
      const room = 0x4_0000;
      const place = fc.integer({ min: 0, max: room / 2 - 1 });
      fc.assert(
        fc.property(
          fc.constantFrom(MEMMOVE, FILL, COMPARE, COMPARE_PATTERN),
          place,
          place,
          fc.integer({ min: 1, max: room / 2 }),
          fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
          (operation, from, to, size, word) => {
            const model = pattern(room);
            rig.memory.writeBytes(base, model);
            const filling = operation === FILL;
            const outcome = run({
              operation,
              source: filling ? word : base + from,
              destination: operation === COMPARE_PATTERN ? word : base + to,
              size,
            });
            const repeated = new Uint8Array(size + 8);
            const eight = new Uint8Array(BigUint64Array.of(word).buffer);
            for (let at = 0; at < repeated.length; at += 8)
              repeated.set(eight.subarray(0, repeated.length - at), at);
            const other = operation === COMPARE ? model.subarray(to, to + size) : repeated.subarray(0, size);
            const differs = model.subarray(from, from + size).findIndex((byte, at) => byte !== other[at]);
            if (operation === MEMMOVE) model.copyWithin(to, from, from + size);
            else if (filling) model.set(repeated.subarray(0, size), to);
            const compares = operation === COMPARE || operation === COMPARE_PATTERN;
            expect(outcome).toMatchObject({
              status: DsaStatus.SUCCESS,
              result: compares && differs >= 0 ? 1 : 0,
              done: compares && differs >= 0 ? differs : size,
            });
            expect(Buffer.compare(bytesAt(rig, base, room), model)).toBe(0);
          },
        ),
        { numRuns: 25 },
      );
    });

    it("checks the result of a comparison when asked to", () => {
      const flags = TELL | DsaFlag.CHECK_RESULT;
      const wanted = { operation: COMPARE_PATTERN, flags, source: 0x20_0000, destination: 1n, size: 64 };
      expect(run({ ...wanted, own: [1] })).toMatchObject({ status: DsaStatus.SUCCESS, result: 1, done: 0 });
      expect(run({ ...wanted, own: [0] })).toMatchObject({ status: DsaStatus.UNEXPECTED_RESULT, result: 1 });
    });

    it("casts to two places that lie alike in their pages", () => {
      rig.memory.writeBytes(FROM, pattern(9000));
      const wanted = { operation: DUALCAST, source: FROM, destination: TO, size: 9000 };
      expect(run({ ...wanted, own: [TO + 0x1_0000] })).toMatchObject({ status: 1, done: 9000 });
      expect(bytesAt(rig, TO, 9000)).toEqual(pattern(9000));
      expect(bytesAt(rig, TO + 0x1_0000, 9000)).toEqual(pattern(9000));
      expect(run({ ...wanted, own: [TO + 0x1_0001] }).status).toBe(DsaStatus.DUALCAST_ADDRESSES);
      expect(run({ ...wanted, own: [TO + 0x1000] }).status).toBe(DsaStatus.OVERLAP);
    });

    it("sums CRC-32C, in parts, from a seed in memory, and while it copies", () => {
      const data = new TextEncoder().encode("123456789");
      rig.memory.writeBytes(FROM, data);
      const sum = 0xe306_9283;
      expect(run({ operation: CRC, source: FROM, size: 9 })).toMatchObject({ status: 1, more: sum });
      const first = run({ operation: CRC, source: FROM, size: 4 }).more;
      const rest = { operation: CRC, source: FROM + 4, size: 5 };
      expect(run({ ...rest, own: [first] }).more).toBe(sum);
      rig.memory.writeBytes(0x20_0000, new Uint8Array(Uint32Array.of(first).buffer));
      const seeded = run({ ...rest, flags: TELL | DsaFlag.READ_SEED, own: [0, 0x20_0000] });
      expect(seeded.more).toBe(sum);
      expect(run({ operation: COPY_CRC, source: FROM, destination: TO, size: 9 }).more).toBe(sum);
      expect(bytesAt(rig, TO, 9)).toEqual(data);
      expect(run({ operation: COPY_CRC, source: FROM, destination: FROM + 8, size: 9 }).status).toBe(
        DsaStatus.OVERLAP,
      );
      const flags = TELL | DsaFlag.PLAIN_CRC | DsaFlag.PLAIN_DATA;
      expect(run({ operation: CRC, flags, source: FROM, size: 0x9 }).more).toBe(plain(data));
    });

    it("drains what its queue took before", () => {
      rig.unit.stall = ({ lo }) => lo >= TO && lo < TO + LENGTH;
      host.submit(move);
      host.submit({ operation: DRAIN, flags: TELL, completion: RECORD + 32 });
      host.submit({ operation: NOOP, flags: TELL, completion: RECORD + 64 });
      rig.work.run();
      expect([0, 32, 64].map((at) => record(RECORD + at).status)).toEqual([0, 0, 1]);
      rig.unit.stall = () => false;
      rig.settle();
      expect([0, 32].map((at) => record(RECORD + at).status)).toEqual([1, 1]);
    });

    it("tells nothing of a success when it is not asked to", () => {
      rig.memory.writeBytes(RECORD, new Uint8Array(COMPLETION_BYTES));
      host.submit({ ...move, flags: COMPLETION_VALID });
      rig.settle();
      expect(record().status).toBe(0);
      expect(host.get(DsaRegister.SWERR)).toBe(0);
    });

    it("refuses what it does not know, and flags that mean nothing to the operation", () => {
      expect(run({ operation: 0x7 }).status).toBe(DsaStatus.OPERATION);
      const flags = TELL | DsaFlag.CHECK_RESULT | FENCE;
      expect(run({ operation: MEMMOVE, flags })).toMatchObject({
        status: DsaStatus.FLAGS,
        more: DsaFlag.CHECK_RESULT | FENCE,
      });
      expect(run({ operation: NOOP, pasid: 1 << 20 }).status).toBe(DsaStatus.RESERVED);
      host.submit({ operation: NOOP, flags: REQUEST_COMPLETION });
      rig.settle();
      errorIs({
        QueueValid: true,
        DescriptorValid: true,
        Error: DsaStatus.FLAGS,
        InvalidFlags: REQUEST_COMPLETION,
      });
    });
  });

  describe("batches", () => {
    const LIST = 0x40_0000;
    const noop = (at: number, flags = 0): Wanted => ({
      operation: DsaOperation.NOOP,
      flags: TELL | flags,
      completion: RECORD + 0x1000 + 32 * at,
    });
    const bad = (at: number): Wanted => ({ ...noop(at), operation: 0x7 });
    const list = (...all: readonly Wanted[]) => {
      rig.memory.writeBytes(RECORD + 0x1000, new Uint8Array(32 * all.length));
      all.forEach((one, at) => {
        rig.memory.writeBytes(LIST + DESCRIPTOR_BYTES * at, descriptorOf(one));
      });
      return run({ operation: DsaOperation.BATCH, source: LIST, size: all.length });
    };
    const statuses = (count: number) =>
      Array.from({ length: count }, (_, at) => record(RECORD + 0x1000 + 32 * at).status);
    beforeEach(() => host.start(DEDICATED));

    it("are carried out in order, each with a record of its own", () => {
      rig.memory.writeBytes(FROM, pattern(100));
      const step = (source: number, destination: number, at: number): Wanted => ({
        ...noop(at),
        operation: DsaOperation.MEMMOVE,
        source,
        destination,
        size: 100,
      });
      expect(list(step(FROM, TO, 0), step(TO, TO + 200, 1))).toMatchObject({ status: 1, done: 2 });
      expect(bytesAt(rig, TO + 200, 100)).toEqual(pattern(100));
      expect(statuses(2)).toEqual([1, 1]);
    });

    it("have up to 1,024 descriptors and at least two, aligned, none of which is a batch or a drain", () => {
      expect(list(...Array.from({ length: 1024 }, (_, at) => noop(at)))).toMatchObject({
        status: 1,
        done: 1024,
      });
      const batch = { operation: DsaOperation.BATCH, source: LIST };
      expect(run({ ...batch, size: 1025 }).status).toBe(DsaStatus.BATCH_SIZE);
      expect(run({ ...batch, size: 1 }).status).toBe(DsaStatus.BATCH_SIZE);
      expect(run({ ...batch, source: LIST + 32, size: 2 }).status).toBe(DsaStatus.LIST_ALIGNMENT);
      const inner = list(
        { ...noop(0), operation: DsaOperation.BATCH },
        { ...noop(1), operation: DsaOperation.DRAIN },
      );
      expect(inner).toMatchObject({ status: DsaStatus.BATCH_FAILED, done: 2 });
      expect(statuses(2)).toEqual([DsaStatus.OPERATION, DsaStatus.OPERATION]);
    });

    it("go on after one that failed, up to a fence", () => {
      expect(list(bad(0), noop(1), noop(2))).toMatchObject({ status: DsaStatus.BATCH_FAILED, done: 3 });
      expect(statuses(3)).toEqual([DsaStatus.OPERATION, 1, 1]);
      expect(list(bad(0), noop(1), noop(2, FENCE), noop(3))).toMatchObject({
        status: DsaStatus.BATCH_FAILED,
        done: 2,
      });
      expect(statuses(4)).toEqual([DsaStatus.OPERATION, 1, 0, 0]);
    });

    it("whose list is not there say so, and one of them without a record is a software error", () => {
      rig.unit.forbidden.add(LIST / 4096);
      expect(run({ operation: DsaOperation.BATCH, source: LIST, size: 2 })).toMatchObject({
        status: DsaStatus.BATCH_PAGE_FAULT,
        fault: LIST,
      });
      rig.unit.forbidden.clear();
      list(noop(0), { operation: 0x7 });
      errorIs({
        DescriptorValid: true,
        QueueValid: true,
        Batch: true,
        BatchIndex: 1,
        Operation: 7,
        Error: DsaStatus.OPERATION,
      });
    });
  });

  describe("pages that are not there", () => {
    const HOLE = 0x18_3000;
    beforeEach(() => {
      rig.memory.writeBytes(FROM, pattern(LENGTH));
      host.start(DEDICATED);
    });
    const wanted = { operation: DsaOperation.MEMMOVE, source: FROM, destination: TO, size: LENGTH };

    it("end an operation that does not wait: what was done, and where it was to go on", () => {
      rig.unit.forbidden.add(HOLE / 4096);
      const outcome = run(wanted);
      expect(outcome).toMatchObject({ status: DsaStatus.PAGE_FAULT | STATUS_WRITE, fault: HOLE });
      expect(outcome.done).toBe(HOLE - TO);
      rig.unit.forbidden.clear();
      const { done } = outcome;
      const rest = run({ ...wanted, source: FROM + done, destination: TO + done, size: LENGTH - done });
      expect(rest.status).toBe(1);
      expect(Buffer.compare(bytesAt(rig, TO, LENGTH), pattern(LENGTH))).toBe(0);
    });

    it("of the source leave what could be read at its destination", () => {
      rig.unit.forbidden.add(0x104);
      const outcome = run(wanted);
      expect(outcome).toMatchObject({ status: DsaStatus.PAGE_FAULT, fault: 0x10_4000 });
      expect(bytesAt(rig, TO, outcome.done)).toEqual(pattern(LENGTH).subarray(0, 0x10_4000 - FROM));
    });

    it("are asked for only by an operation that waits", () => {
      turnOnServices(device);
      const missing = new Set([HOLE / 4096]);
      rig.unit.stall = ({ lo }) => missing.has(Math.floor(lo / 4096));
      const before = rig.unit.translations;
      host.submit({ ...wanted, flags: TELL, completion: RECORD });
      rig.work.run();
      expect(rig.unit.translations).toBeGreaterThan(before);
      expect(rig.unit.asked).toEqual([]);
      expect(record()).toMatchObject({ status: DsaStatus.PAGE_FAULT | STATUS_WRITE, fault: HOLE });
      host.submit({ ...wanted, flags: TELL | BLOCK_ON_FAULT, completion: RECORD });
      rig.work.run();
      expect(rig.unit.asked).toHaveLength(1);
      missing.clear();
      rig.settle();
      expect(record()).toMatchObject({ status: DsaStatus.SUCCESS, done: LENGTH });
    });

    it("that nobody brings end an operation that waits", () => {
      turnOnServices(device);
      rig.unit.forbidden.add(HOLE / 4096);
      const outcome = run({ ...wanted, flags: TELL | BLOCK_ON_FAULT });
      expect(outcome).toMatchObject({ status: DsaStatus.PAGE_REQUEST_REFUSED | STATUS_WRITE, fault: HOLE });
    });

    it("of the completion record are a software error, which interrupts when it is to", () => {
      vectors();
      host.set(DsaRegister.GENCTRL, GenCtrl.fields.SoftwareErrors.mask);
      rig.unit.forbidden.add(RECORD / 4096);
      host.submit({ operation: DsaOperation.NOOP, flags: TELL, completion: RECORD });
      rig.settle();
      const common = { DescriptorValid: true, QueueValid: true, Write: true };
      errorIs({ ...common, Error: DsaStatus.COMPLETION_FAULT, Address: BigInt(RECORD + 1) });
      expect(rig.interrupts).toEqual([0x40]);
      expect(host.get(DsaRegister.INTCAUSE)).toBe(IntCause.fields.SoftwareError.mask);
      host.set(DsaRegister.SWERR, 3);
      host.submit({ operation: DsaOperation.NOOP, flags: TELL, completion: RECORD + 16 });
      rig.settle();
      errorIs({ DescriptorValid: true, QueueValid: true, Error: DsaStatus.COMPLETION_ALIGNMENT });
    });

    it("without a record are a software error too", () => {
      rig.unit.forbidden.add(HOLE / 4096);
      host.submit({ ...wanted, flags: 0 });
      rig.settle();
      errorIs({
        DescriptorValid: true,
        QueueValid: true,
        Write: true,
        Operation: DsaOperation.MEMMOVE,
        Error: DsaStatus.PAGE_FAULT,
        Address: BigInt(HOLE),
      });
    });
  });

  describe("interrupts", () => {
    const noop = { operation: DsaOperation.NOOP, flags: TELL | REQUEST_INTERRUPT };

    it("go to the vector of the handle, after the record", () => {
      vectors();
      host.start(DEDICATED);
      expect(run({ ...noop, interrupt: 3 }).status).toBe(1);
      expect(rig.interrupts).toEqual([0x43]);
      expect(run({ ...noop, interrupt: 9 }).status).toBe(DsaStatus.INTERRUPT_HANDLE);
      expect(rig.interrupts).toEqual([0x43]);
    });

    it("are the PASID's that the permission table gives them to", () => {
      vectors();
      turnOnServices(device);
      host.start({ ...DEDICATED, PasidEnable: true, Pasid: 77 });
      expect(run({ ...noop, interrupt: 2 }).status).toBe(DsaStatus.INTERRUPT_HANDLE);
      host.set(DsaRegister.MSIXPERM + 16, (77 << 12) | 8);
      expect(run({ ...noop, interrupt: 2 }).status).toBe(1);
      host.set(DsaRegister.MSIXPERM + 16, (78 << 12) | 8);
      expect(run({ ...noop, interrupt: 2 }).status).toBe(DsaStatus.INTERRUPT_HANDLE);
      host.set(DsaRegister.MSIXPERM + 16, 4);
      expect(run({ ...noop, interrupt: 2 }).status).toBe(1);
      expect(rig.interrupts).toEqual([0x42, 0x42]);
    });
  });

  it("gives queues of a group turns by their priorities", () => {
    const order: number[] = [];
    host.start({ ...DEDICATED, Priority: 1 }, { ...DEDICATED, Priority: 2 });
    host.command(DsaCommand.DISABLE_DEVICE);
    host.group(0, 3, 1);
    for (const command of [DsaCommand.ENABLE_DEVICE, DsaCommand.ENABLE_WQ]) host.command(command, 0);
    host.command(DsaCommand.ENABLE_WQ, 1);
    rig.unit.stall = ({ lo }) => {
      if (lo % 32 === 1) order.push((lo - RECORD) >>> 12);
      return false;
    };
    for (let at = 0; at < 4; at++)
      for (const queue of [0, 1])
        host.submit(
          { operation: DsaOperation.NOOP, flags: TELL, completion: RECORD + 0x1000 * queue + 32 * at },
          queue,
        );
    rig.settle();
    expect(order).toEqual([0, 1, 1, 0, 1, 1, 0, 0]);
  });
});

/** Bit by bit, most significant first, from a register of zeroes. */
const plain = (data: Uint8Array): number => {
  let register = 0;
  for (const byte of data)
    for (let bit = 7; bit >= 0; bit--) {
      const out = ((register >>> 31) ^ (byte >>> bit)) & 1;
      register = (register << 1) ^ (out ? 0x1edc_6f41 : 0);
    }
  return register >>> 0;
};
