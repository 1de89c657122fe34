/** Work queues for programs: at a process's own addresses, on a guest's PASID, both beside a VFIO device that has the same PASID. */
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { CdevClient } from "../../test/support/cdev-client.ts";
import { queueMachine } from "../../test/support/queue-machine.ts";
import { outcome, reasonOf } from "../../test/support/vfio-client.ts";
import { ManualClock } from "../base/clock.ts";
import { silent } from "../base/events.ts";
import { WorkQueue } from "../base/scheduler.ts";
import { ModelTask } from "../kernel/model-task.ts";
import { Machine } from "../machine/machine.ts";
import { descriptorOf, type Wanted } from "../pci/devices/dsa/driver.suite.ts";
import { DsaFlag, DsaOperation, DsaStatus, STATUS_WRITE } from "../pci/devices/dsa/spec.ts";
import { RequestPasid } from "../pci/devices/requests.ts";
import { TestCommand, TestRegister, TestStatus } from "../pci/devices/test-function.ts";
import { Header } from "../pci/spec.ts";
import { SOFTIOMMU_WQ_USE_PASID, SoftiommuWqUsePasid } from "../uapi/extensions.ts";
import * as uapi from "../uapi/iommufd.ts";
import { IOMMU_HWPT_DATA_VTD_S1, IommuHwptVtdS1 } from "../uapi/vendor/vtd.ts";
import { regionOffset } from "../vfio/regions.ts";
import type { QueueFile } from "./queue-file.ts";

const PAGE = 4096;
/** Where a program has memory of its own. */
const OWN = 0x5555_0000_0000;
const PAGES = 16;
const RECORD = OWN + 15 * PAGE;
const TELL = DsaFlag.COMPLETION_VALID | DsaFlag.REQUEST_COMPLETION;
const ANY = 0xffff_ffff;
/** Guest physical memory of a program that is a VMM, and the guest's table, from page 8 on. */
const GUEST = 0x1_0000_0000;
const GUEST_PAGES = 16;
const TABLE = 8 * PAGE;
const PASID = 0x123;

let machine: Machine;
let work: WorkQueue;
let program: ModelTask;

beforeEach(() => {
  work = new WorkQueue();
  machine = new Machine(queueMachine(), {
    events: silent,
    clock: new ManualClock(),
    scheduler: work,
  });
  work.run();
  program = newProgram();
});
afterEach(() => {
  program.exit();
  work.run();
  expect(Object.entries(machine.live()).filter(([, count]) => count !== 0)).toEqual([]);
  machine.close();
});

const newProgram = (): ModelTask => {
  const task = new ModelTask(machine.memory);
  task.memory.map(OWN, PAGES * PAGE, { private: true });
  return task;
};
const openQueue = (task: ModelTask, queue: number): number =>
  task.open(machine.nodes().find(({ path }) => path === `/dev/dsa/wq0.${queue}`)!);

/** ENQCMD by a program; false: to be tried again. */
const enqueue = (task: ModelTask, fd: number, wanted: Wanted): boolean => {
  const descriptor = descriptorOf({ flags: TELL, completion: RECORD, ...wanted });
  return (
    task
      .run(fd, (file, call) => Number((file as QueueFile).trapEnqueue(0n, descriptor, call.memory)))
      .result() === 1
  );
};
const statusAt = (task: ModelTask, va: number): number => {
  const bytes = new Uint8Array(1);
  task.memory.read(BigInt(va), bytes);
  return bytes[0]!;
};
const byteAt = statusAt;
const put = (task: ModelTask, va: number, ...bytes: number[]): void =>
  task.memory.write(BigInt(va), Uint8Array.from(bytes));

/** Copies a page at the program's own addresses; the status. */
const copy = (task: ModelTask, fd: number, from: number, to: number, flags = 0): number => {
  put(task, RECORD, 0);
  const descriptor = { operation: DsaOperation.MEMMOVE, source: from, destination: to, size: PAGE };
  expect(enqueue(task, fd, { ...descriptor, flags: TELL | flags })).toBe(true);
  work.run();
  return statusAt(task, RECORD);
};

describe("a queue that a program opens", () => {
  it("works at the program's own addresses, with no call but open and mmap", () => {
    const fd = openQueue(program, 0);
    program.mmap(fd, { va: 0x7000_0000, length: PAGE }, { offset: 0n, protection: 3, flags: 1 });
    put(program, OWN, 0xa5);
    expect(copy(program, fd, OWN, OWN + PAGE)).toBe(DsaStatus.SUCCESS);
    expect(byteAt(program, OWN + PAGE)).toBe(0xa5);
  });

  it("follows the program's memory: what is mapped anew is what later work sees", () => {
    const fd = openQueue(program, 0);
    put(program, OWN, 1);
    copy(program, fd, OWN, OWN + PAGE);
    program.memory.unmap(OWN, PAGE);
    program.memory.map(OWN, PAGE, { private: true });
    put(program, OWN, 2);
    expect(copy(program, fd, OWN, OWN + PAGE)).toBe(DsaStatus.SUCCESS);
    expect(byteAt(program, OWN + PAGE)).toBe(2);
  });

  it("reads what the program may read, and writes only what it may write", () => {
    const fd = openQueue(program, 0);
    put(program, OWN, 3);
    program.memory.protect(OWN, PAGE, false);
    expect(copy(program, fd, OWN, OWN + PAGE)).toBe(DsaStatus.SUCCESS);
    expect(copy(program, fd, OWN + PAGE, OWN)).toBe(DsaStatus.PAGE_FAULT | STATUS_WRITE);
    const waits = DsaFlag.BLOCK_ON_FAULT;
    expect(copy(program, fd, OWN + PAGE, OWN, waits)).toBe(DsaStatus.PAGE_REQUEST_REFUSED | STATUS_WRITE);
    expect(byteAt(program, OWN)).toBe(3);
  });

  it("tells what is not mapped as a fault, and pages that a waiting descriptor does not name come when it asks", () => {
    const fd = openQueue(program, 0);
    expect(copy(program, fd, OWN + PAGES * PAGE, OWN)).toBe(DsaStatus.PAGE_FAULT);
    // A seed in memory is named; a batch that is written after it was submitted is not what was looked at.
    const list = OWN + 4 * PAGE;
    const one = (destination: number): Uint8Array =>
      descriptorOf({
        operation: DsaOperation.MEMMOVE,
        flags: TELL | DsaFlag.BLOCK_ON_FAULT,
        completion: RECORD + 64,
        source: OWN,
        destination,
        size: 8,
      });
    put(program, OWN, 9);
    put(program, list, ...one(OWN + 5 * PAGE), ...one(OWN + 5 * PAGE));
    put(program, RECORD, 0);
    enqueue(program, fd, { operation: DsaOperation.BATCH, source: list, size: 2 });
    put(program, list, ...one(OWN + 6 * PAGE), ...one(OWN + 7 * PAGE));
    work.run();
    expect(statusAt(program, RECORD)).toBe(DsaStatus.SUCCESS);
    expect([byteAt(program, OWN + 6 * PAGE), byteAt(program, OWN + 7 * PAGE)]).toEqual([9, 9]);
  });

  it("keeps the pages of work that waits its turn, and none when all is done", () => {
    const fd = openQueue(program, 0);
    const before = machine.memory.allocated;
    put(program, OWN, 7);
    for (let page = 1; page < 10; page++)
      enqueue(program, fd, {
        operation: DsaOperation.MEMMOVE,
        completion: RECORD + 32 * page,
        source: OWN,
        destination: OWN + page * PAGE,
        size: PAGE,
      });
    program.memory.unmap(OWN + 10 * PAGE, PAGE);
    work.run();
    for (let page = 1; page < 10; page++) {
      expect(statusAt(program, RECORD + 32 * page)).toBe(DsaStatus.SUCCESS);
      expect(byteAt(program, OWN + page * PAGE)).toBe(7);
    }
    program.memory.unmap(OWN, PAGES * PAGE);
    // Pinned pages outlive their mapping: nothing has them any more. Tables of the domain may have been made.
    expect(machine.memory.allocated).toBeLessThan(before - PAGES / 2);
    program.memory.map(OWN, PAGES * PAGE, { private: true });
  });

  it("is of the process that opened it: another one that has the file does not have its addresses", () => {
    const fd = openQueue(program, 0);
    const other = newProgram();
    const passed = program.pass(fd, other);
    expect(outcome(() => enqueue(other, passed, { operation: DsaOperation.NOOP }))).toBe("EPERM");
    program.close(fd);
    expect(outcome(() => enqueue(other, passed, { operation: DsaOperation.NOOP }))).toBe("EPERM");
    other.exit();
  });

  it("gives all queues of a process one PASID, and others another", () => {
    const pasidOf = (task: ModelTask, fd: number): number =>
      task.run(fd, (file) => (file as QueueFile).pasid).result() as number;
    const [a, b] = [openQueue(program, 0), openQueue(program, 1)];
    const other = newProgram();
    const c = openQueue(other, 0);
    expect(pasidOf(program, a)).toBe(pasidOf(program, b));
    expect(pasidOf(other, c)).not.toBe(pasidOf(program, a));
    const pasid = pasidOf(program, a);
    expect(machine.pasids.ownerOf(pasid)).toBe("host");
    program.close(a);
    expect(copy(program, b, OWN, OWN + PAGE)).toBe(DsaStatus.SUCCESS);
    program.close(b);
    expect(machine.pasids.ownerOf(pasid)).toBe("host"); // until no request carries it
    work.run();
    expect(machine.pasids.ownerOf(pasid)).toBeUndefined();
    other.exit();
  });

  it("loses a process that ends with work under way, and leaves nothing of it behind", () => {
    const other = newProgram();
    const fd = openQueue(other, 2);
    for (let i = 0; i < 8; i++)
      enqueue(other, fd, {
        operation: DsaOperation.FILL,
        destination: OWN,
        size: 8 * PAGE,
        completion: RECORD,
      });
    other.exit();
    work.run();
    const again = openQueue(program, 2);
    expect(copy(program, again, OWN, OWN + PAGE)).toBe(DsaStatus.SUCCESS);
  });

  it("turns more away than it has entries", () => {
    const fd = openQueue(program, 0);
    const noop = { operation: DsaOperation.NOOP };
    const taken = Array.from({ length: 40 }, () => enqueue(program, fd, noop));
    expect(taken.filter(Boolean)).toHaveLength(32);
    work.run();
    expect(enqueue(program, fd, noop)).toBe(true);
    work.run();
  });

  it("can be mapped shared, one page at offset 0; it knows one request", () => {
    const fd = openQueue(program, 0);
    const map = (length: number, offset: bigint, flags: number) =>
      outcome(() => program.mmap(fd, { va: 0x7000_0000, length }, { offset, protection: 3, flags }));
    expect([map(2 * PAGE, 0n, 1), map(PAGE, 4096n, 1), map(PAGE, 0n, 2)]).toEqual([
      "EINVAL",
      "EINVAL",
      "EINVAL",
    ]);
    expect(outcome(() => program.ioctl(fd, 0x5402, 0n))).toBe("ENOTTY");
  });
});

describe("a queue on a PASID of an iommufd", () => {
  let client: CdevClient;
  let iommufd: number;
  let ioas: number;
  let parent: number;
  let guest: number;
  let device: number;

  const wqUse = (fd: number, ptId: number, pasid: number, file = iommufd): number => {
    const layout = SoftiommuWqUsePasid;
    const bytes = layout.bytes({ size: layout.size, iommufd: file, pt_id: ptId, pasid });
    program.ioctl(fd, SOFTIOMMU_WQ_USE_PASID, bytes);
    return layout.read(bytes).pasid;
  };
  const putGuest = (at: number, entry: bigint): void => {
    program.memory.write(BigInt(GUEST + at), new Uint8Array(BigUint64Array.of(entry).buffer));
  };
  const write32 = (offset: number, value: number): void => {
    program.pwrite(device, regionOffset(0) + BigInt(offset), new Uint8Array(Uint32Array.of(value).buffer));
  };

  beforeEach(() => {
    client = new CdevClient(program, machine);
    program.memory.map(GUEST, GUEST_PAGES * PAGE, { private: true });
    iommufd = client.iommu();
    const name = [...machine.vfio.deviceNodes].find(([bdf]) => bdf === "0000:05:00.0")![1].path;
    device = client.open(name);
    const id = client.bind(device, iommufd);
    ioas = client.ioas(iommufd);
    client.mapAt(iommufd, ioas, 0, GUEST, GUEST_PAGES * PAGE);
    parent = client.hwpt(iommufd, id, ioas, uapi.IOMMU_HWPT_ALLOC_NEST_PARENT | uapi.IOMMU_HWPT_ALLOC_PASID);
    // The guest's table: page n of its process is page n of its memory.
    for (const level of [0, 1, 2]) putGuest(TABLE + level * PAGE, BigInt(TABLE + (level + 1) * PAGE) | 7n);
    for (let page = 0; page < GUEST_PAGES / 2; page++)
      putGuest(TABLE + 3 * PAGE + 8 * page, BigInt(page * PAGE) | 7n);
    const data = IommuHwptVtdS1.bytes({ addr_width: 48, pgtbl_addr: BigInt(TABLE) });
    program.memory.write(BigInt(OWN), data);
    const layout = uapi.IommuHwptAlloc;
    const bytes = layout.bytes({
      size: layout.size,
      flags: uapi.IOMMU_HWPT_ALLOC_PASID,
      dev_id: id,
      pt_id: parent,
      data_type: IOMMU_HWPT_DATA_VTD_S1,
      data_len: data.length,
      data_uptr: BigInt(OWN),
    });
    program.ioctl(iommufd, uapi.IOMMU_HWPT_ALLOC, bytes);
    guest = layout.read(bytes).out_hwpt_id;
    client.attachTo(device, parent);
    client.attachTo(device, guest, PASID);
    const command = Uint8Array.of(6, 0);
    program.pwrite(device, regionOffset(7) + BigInt(Header.COMMAND), command);
  });

  /** A copy at the guest's process's addresses, page to page; whether it worked. */
  const guestCopy = (fd: number, from: number, to: number): boolean => {
    putGuest(7 * PAGE, 0n);
    const wanted = {
      operation: DsaOperation.MEMMOVE,
      source: from * PAGE,
      destination: to * PAGE,
      size: PAGE,
    };
    enqueue(program, fd, { ...wanted, completion: 7 * PAGE });
    work.run();
    return statusAt(program, GUEST + 7 * PAGE) === DsaStatus.SUCCESS;
  };
  /** The same by the VFIO device. */
  const deviceCopy = (from: number, to: number): boolean => {
    write32(TestRegister.SOURCE, from * PAGE);
    write32(TestRegister.DESTINATION, to * PAGE);
    write32(TestRegister.LENGTH, PAGE);
    write32(TestRegister.PASID, Number(RequestPasid.make({ Valid: true, Value: PASID })));
    write32(TestRegister.COMMAND, TestCommand.COPY);
    work.run();
    const status = new Uint8Array(4);
    program.pread(device, regionOffset(0) + BigInt(TestRegister.STATUS), status);
    return status[0] === TestStatus.DONE;
  };

  it("A and B on a guest's PASID that a VFIO device has too, C on the process's own: each goes on until it is closed, in any order", () => {
    const step = fc.shuffledSubarray(["A", "B", "C", "VFIO"] as const, { minLength: 4 });
    fc.assert(
      fc.property(step, (order) => {
        const open = new Map([
          ["A", openQueue(program, 0)],
          ["B", openQueue(program, 1)],
          ["C", openQueue(program, 2)],
        ]);
        expect(wqUse(open.get("A")!, guest, PASID)).toBe(PASID);
        expect(wqUse(open.get("B")!, guest, PASID)).toBe(PASID);
        let vfio = true;
        const look = (): void => {
          program.memory.write(BigInt(GUEST), Uint8Array.of(0x41));
          for (const [page, name] of ["A", "B"].entries()) {
            const fd = open.get(name);
            if (fd === undefined) continue;
            putGuest((page + 1) * PAGE, 0n);
            expect([name, guestCopy(fd, 0, page + 1), byteAt(program, GUEST + (page + 1) * PAGE)]).toEqual([
              name,
              true,
              0x41,
            ]);
          }
          const own = open.get("C");
          if (own !== undefined) {
            put(program, OWN + PAGE, 0x43);
            expect(copy(program, own, OWN + PAGE, OWN + 2 * PAGE)).toBe(DsaStatus.SUCCESS);
            expect(byteAt(program, OWN + 2 * PAGE)).toBe(0x43);
          }
          if (vfio) {
            putGuest(3 * PAGE, 0n);
            expect([deviceCopy(0, 3), byteAt(program, GUEST + 3 * PAGE)]).toEqual([true, 0x41]);
          }
        };
        look();
        for (const name of order) {
          if (name === "VFIO") {
            client.detachFrom(device, PASID);
            vfio = false;
          } else {
            program.close(open.get(name)!);
            open.delete(name);
          }
          look();
        }
        work.run();
        client.attachTo(device, guest, PASID);
      }),
      { numRuns: 12 },
    );
  });

  it("keeps what it uses when the iommufd and the device are closed first", () => {
    const fd = openQueue(program, 0);
    expect(wqUse(fd, guest, PASID)).toBe(PASID);
    program.memory.write(BigInt(GUEST), Uint8Array.of(0x77));
    program.close(device);
    program.close(iommufd);
    expect([guestCopy(fd, 0, 1), byteAt(program, GUEST + PAGE)]).toEqual([true, 0x77]);
  });

  it("has a PASID of its choice, or the lowest that nobody has; not somebody else's, nor with two tables", () => {
    const [a, b] = [openQueue(program, 0), openQueue(program, 1)];
    expect(wqUse(a, guest, ANY)).toBe(1);
    expect(wqUse(b, guest, 1)).toBe(1);
    expect(outcome(() => wqUse(b, parent, 1))).toBe("EBUSY");
    expect(outcome(() => wqUse(a, guest, 0))).toBe("EINVAL");
    expect(outcome(() => wqUse(a, 999, 5))).toBe("ENOENT");
    expect(outcome(() => wqUse(a, guest, 2 ** 20))).toBe("EINVAL");
    const own = program.run(openQueue(program, 2), (file) => (file as QueueFile).pasid).result() as number;
    expect(reasonOf(() => wqUse(a, guest, own))).toMatch(/somebody else's/);
    expect(outcome(() => wqUse(a, guest, 5, a))).toBe("EBADFD");
    expect([guestCopy(a, 0, 1), guestCopy(b, 0, 2)]).toEqual([true, true]);
  });

  it("leaves the PASID to others only when no request carries it any more", () => {
    const a = openQueue(program, 0);
    wqUse(a, guest, 9);
    program.close(a);
    expect(machine.pasids.ownerOf(9)).toBeDefined();
    work.run();
    expect(machine.pasids.ownerOf(9)).toBeUndefined();
  });
});
