/**
 * Faults under tables of guests, as a VMM sees them on VT-d: the fault region and its interrupt, page requests and their
 * responses, whatever becomes of them, and accesses that failed for good. DMA passes the silicon.
 */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import {
  FAULT_REGION,
  FIRST,
  type NestingClient,
  NestingRig,
  PAGE,
  type Setup,
  VA,
  withoutMdevs,
} from "../../../test/support/nesting-client.ts";
import { outcome } from "../../../test/support/vfio-client.ts";
import { TestCommand, TestStatus } from "../../pci/devices/test-function.ts";
import * as extensions from "../../uapi/extensions.ts";
import * as vfio from "../../uapi/vfio.ts";
import * as vsva from "../../uapi/vsva.ts";

const { READ, WRITE } = TestCommand;
const { BUSY, DONE, FAULT } = TestStatus;
const { IOMMU_PAGE_RESP_SUCCESS: SUCCESS, IOMMU_PAGE_RESP_INVALID: INVALID } = vsva;
const { IOMMU_PAGE_RESP_FAILURE: FAILURE } = vsva;
const RESPONSE = extensions.SOFTIOMMU_NESTING_OP_PAGE_RESPONSE;
const DATA = 40 * PAGE;
const REGION_BYTES = 5 * PAGE;
const MAPPED = 0x3_0000_0000;

let rig: NestingRig;
let client: NestingClient;
let s: Setup;
let pasid: number;
let eventfd: number;

const begin = (edit?: (text: string) => string): void => {
  rig = new NestingRig(edit);
  client = rig.client();
  s = client.setUp(FIRST);
  pasid = client.allocate(s.container);
  eventfd = client.listen(s);
};
const end = (): void => {
  client.task.exit();
  expect(rig.left()).toEqual([]);
  rig.machine.close();
};
beforeEach(() => begin());
afterEach(() => end());

const signals = (): number => client.task.counter(eventfd).take();
const bindEmpty = (members = {}): void => {
  client.writeTable(undefined);
  client.bind(s.container, pasid, members);
};
/** The device wants a page that is not there, and waits; the group's number. */
const ask = (command: number = READ, setup: Setup = s): number => {
  client.begin(setup, command, VA, pasid);
  expect(client.transfer(setup)).toBe(BUSY);
  return client.takeFaults(setup).at(-1)!.prm.grpid;
};

describe("the fault region", () => {
  it("is a region of its type, to be read, written and mapped, after those of every function", () => {
    const info = new Uint8Array(vfio.VfioDeviceInfo.size);
    vfio.VfioDeviceInfo.write(info, { argsz: info.length });
    client.task.ioctl(s.device, vfio.VFIO_DEVICE_GET_INFO, info);
    expect(vfio.VfioDeviceInfo.read(info)).toMatchObject({ num_regions: 10, num_irqs: 6 });
    const bytes = new Uint8Array(64);
    vfio.VfioRegionInfo.write(bytes, { argsz: bytes.length, index: 9 });
    client.task.ioctl(s.device, vfio.VFIO_DEVICE_GET_REGION_INFO, bytes);
    const region = vfio.VfioRegionInfo.read(bytes);
    expect(region).toMatchObject({ flags: 15, size: BigInt(REGION_BYTES), offset: FAULT_REGION });
    expect(vfio.VfioRegionInfoCapType.read(bytes, region.cap_offset)).toMatchObject({
      header: { id: vfio.VFIO_REGION_INFO_CAP_TYPE, version: 1 },
      type: extensions.SOFTIOMMU_VFIO_REGION_TYPE_FAULT,
      subtype: extensions.SOFTIOMMU_VFIO_REGION_SUBTYPE_FAULT,
    });
    expect(client.faultHead(s)).toMatchObject({
      version: 1,
      entry_size: 64,
      entries: 256,
      producer: 0,
      consumer: 0,
      lost: 0,
    });
  });

  it("has an interrupt whose information says the type, as far as the caller has room", () => {
    const bytes = new Uint8Array(40);
    extensions.SoftiommuVfioIrqInfo.write(bytes, { argsz: bytes.length, index: 5 });
    client.task.ioctl(s.device, vfio.VFIO_DEVICE_GET_IRQ_INFO, bytes);
    const info = extensions.SoftiommuVfioIrqInfo.read(bytes);
    expect(info).toMatchObject({ argsz: 40, flags: 1 | 8 | 16, count: 1, cap_offset: 24 });
    expect(extensions.SoftiommuVfioIrqInfoCapType.read(bytes, 24)).toMatchObject({
      header: { id: extensions.SOFTIOMMU_VFIO_IRQ_INFO_CAP_TYPE, version: 1, next: 0 },
      type: extensions.SOFTIOMMU_VFIO_IRQ_TYPE_FAULT,
      subtype: 1,
    });
    for (let argsz = 16; argsz < 40; argsz++) {
      const short = new Uint8Array(48).fill(0xa5);
      new DataView(short.buffer).setUint32(0, argsz, true);
      new DataView(short.buffer).setUint32(8, 5, true);
      client.task.ioctl(s.device, vfio.VFIO_DEVICE_GET_IRQ_INFO, short);
      expect(new DataView(short.buffer).getUint32(0, true)).toBe(40);
      expect(short.subarray(Math.min(argsz, 20)).every((byte) => byte === 0xa5)).toBe(true);
    }
    expect(outcome(() => client.irqInfo(s.device, 6))).toBe("EINVAL");
    expect(outcome(() => client.region(s.device, 10))).toBe("EINVAL");
  });

  it("neither is there without the extension", () => {
    end();
    begin();
    client.task.exit();
    const plain = new NestingRig((text) => withoutMdevs(text).replace("extensions: [vsva2020]", ""));
    const other = plain.client();
    const setup = other.setUp(FIRST, 3);
    expect(outcome(() => other.region(setup.device, 9))).toBe("EINVAL");
    expect(outcome(() => other.irqInfo(setup.device, 5))).toBe("EINVAL");
    expect(outcome(() => other.listen(setup))).toBe("EINVAL");
    expect(outcome(() => other.faultHead(setup))).toBe("EINVAL");
    other.task.exit();
    expect(plain.left()).toEqual([]);
    plain.machine.close();
  });

  it("only consumer can be written, from where it is up to producer", () => {
    bindEmpty();
    client.begin(s, READ, VA, pasid);
    const write = (at: number, ...words: number[]) =>
      outcome(() =>
        client.task.pwrite(
          s.device,
          FAULT_REGION + BigInt(at),
          new Uint8Array(new Uint32Array(words).buffer),
        ),
      );
    for (const at of [0, 4, 8, 12, 20, 24, 32]) expect(write(at, 0), `at ${at}`).toBe("EINVAL");
    expect(write(16, 0, 0)).toBe("EINVAL");
    expect(write(16, 2)).toBe("EINVAL");
    expect(write(16, 2 ** 32 - 1)).toBe("EINVAL");
    expect(write(16, 1)).toBe(4);
    expect(write(16, 0)).toBe("EINVAL");
    expect(write(REGION_BYTES, 0)).toBe("EINVAL");
  });

  it("mapped, it shows what is read; the pages stay as long as they are mapped", () => {
    const map = (length: number, offset = FAULT_REGION, flags = 1) =>
      outcome(() => client.task.mmap(s.device, { va: MAPPED, length }, { offset, protection: 3, flags }));
    expect(map(REGION_BYTES + PAGE)).toBe("EINVAL");
    expect(map(PAGE, FAULT_REGION + 1n)).toBe("EINVAL");
    expect(map(PAGE, FAULT_REGION, 2)).toBe("EINVAL");
    expect(map(REGION_BYTES)).toBeUndefined();
    bindEmpty();
    client.begin(s, READ, VA, pasid);
    const head = new Uint8Array(32);
    client.task.memory.read(BigInt(MAPPED), head);
    expect(extensions.SoftiommuFaultRegionHeader.read(head)).toMatchObject({ version: 1, producer: 1 });
    client.task.memory.write(BigInt(MAPPED + 16), new Uint8Array(new Uint32Array([1]).buffer));
    expect(client.takeFaults(s)).toEqual([]);
    client.tearDown(s);
    const frames = (): number => rig.machine.live()["tableFrames"]!;
    const kept = frames();
    client.task.memory.read(BigInt(MAPPED), head);
    expect(extensions.SoftiommuFaultRegionHeader.read(head)).toMatchObject({ producer: 1 });
    client.task.memory.unmap(MAPPED, REGION_BYTES);
    expect(frames()).toBe(kept - 5);
  });

  it("a program that writes nonsense into the mapped head loses faults, and its device waits for nothing", () => {
    client.task.mmap(
      s.device,
      { va: MAPPED, length: PAGE },
      { offset: FAULT_REGION, protection: 3, flags: 1 },
    );
    bindEmpty();
    client.task.memory.write(BigInt(MAPPED), new Uint8Array(32).fill(0x7f));
    client.begin(s, READ, VA, pasid);
    expect(client.transfer(s)).toBe(FAULT);
    expect(client.faultHead(s).lost).toBe(2); // and the access that failed then
    client.setConsumer(s, 0);
    client.begin(s, READ, VA, pasid);
    expect(client.transfer(s)).toBe(BUSY);
    expect(client.faultHead(s)).toMatchObject({ producer: 1, consumer: 0 });
  });
});

describe("a page request", () => {
  it("comes with PASID, group, wish and address, and is resumed by success", () => {
    bindEmpty();
    client.begin(s, WRITE, VA + 0x123, pasid);
    expect(signals()).toBe(1);
    const [fault, ...more] = client.takeFaults(s);
    expect(more).toEqual([]);
    expect(fault).toMatchObject({ type: vsva.IOMMU_FAULT_PAGE_REQ, padding: 0 });
    const { grpid, ...asked } = fault!.prm;
    expect(asked).toEqual({
      flags: 1 | 2 | 8, // PASID valid, last page, response needs PASID
      pasid,
      perm: vsva.IOMMU_FAULT_PERM_WRITE,
      addr: BigInt(VA),
      private_data: [0n, 0n],
    });
    client.writeTable(DATA);
    expect(client.respond(s.container, { pasid, grpid, code: SUCCESS })).toBe(0);
    expect(client.transfer(s)).toBe(DONE);
  });

  it("is told and answered by the guest's PASID, and by the host's", () => {
    bindEmpty({ flags: 1n, gpasid: 0x77n });
    for (const name of [0x77, pasid]) {
      client.begin(s, READ, VA, pasid);
      const { prm } = client.takeFaults(s).find(({ type }) => type === vsva.IOMMU_FAULT_PAGE_REQ)!;
      expect(prm.pasid).toBe(0x77);
      expect(client.respond(s.container, { pasid: name, grpid: prm.grpid, code: INVALID })).toBe(0);
      expect(client.transfer(s)).toBe(FAULT);
    }
  });

  it.each([
    ["invalid", INVALID],
    ["failure", FAILURE],
  ])("is refused by %s", (_name, code) => {
    bindEmpty();
    const grpid = ask();
    client.respond(s.container, { pasid, grpid, code });
    expect(client.transfer(s)).toBe(FAULT);
  });

  it("that was answered with a page that is not there comes again", () => {
    bindEmpty();
    client.respond(s.container, { pasid, grpid: ask(), code: SUCCESS });
    expect(client.transfer(s)).toBe(BUSY);
    const again = client.takeFaults(s);
    expect(again).toHaveLength(1);
    client.writeTable(DATA);
    client.respond(s.container, { pasid, grpid: again[0]!.prm.grpid, code: SUCCESS });
    expect(client.transfer(s)).toBe(DONE);
  });

  it("is denied at once while nobody listens: a VMM that knows of no page requests is not waited for", () => {
    bindEmpty();
    client.trigger(s.device, 5, [-1]);
    client.begin(s, READ, VA, pasid);
    expect(client.transfer(s)).toBe(FAULT);
    expect(client.takeFaults(s).map(({ type }) => type)).toEqual([vsva.IOMMU_FAULT_DMA_UNRECOV]);
    client.listen(s);
    client.disableIrqs(s.device, 5);
    client.begin(s, READ, VA, pasid);
    expect(client.transfer(s)).toBe(FAULT);
  });

  it("is denied when it finds no room, and counted; with room again the next one waits", () => {
    bindEmpty();
    const { entries } = client.faultHead(s);
    // Each is told twice: that it waits, and that its access failed.
    for (let told = 0; told < entries; told += 2) {
      client.begin(s, READ, VA, pasid);
      client.respond(s.container, { pasid, grpid: lastGroup(), code: INVALID });
      expect(client.transfer(s)).toBe(FAULT);
    }
    signals();
    client.begin(s, READ, VA, pasid);
    expect(client.transfer(s)).toBe(FAULT);
    expect(client.faultHead(s)).toMatchObject({ producer: entries, consumer: 0, lost: 2 });
    expect(signals()).toBe(2);
    client.setConsumer(s, 1);
    client.writeTable(undefined);
    client.begin(s, READ, VA, pasid);
    expect(client.transfer(s)).toBe(BUSY);
    expect(client.faultHead(s)).toMatchObject({ producer: entries + 1, lost: 2 });
  });

  const lastGroup = (): number => {
    const { producer, entries } = client.faultHead(s);
    const bytes = new Uint8Array(64);
    const place = 32 + ((producer - 1) % entries) * 64;
    client.task.pread(s.device, FAULT_REGION + BigInt(place), bytes);
    return vsva.IommuFault.read(bytes).prm.grpid;
  };
});

describe("PAGE_RESPONSE", () => {
  it("late, double, or for what nobody asked: ENOENT", () => {
    bindEmpty();
    const grpid = ask();
    const respond = (members: object) =>
      outcome(() => client.respond(s.container, { pasid, grpid, code: INVALID, ...members }));
    expect(respond({ grpid: grpid + 1 })).toBe("ENOENT");
    expect(respond({ grpid: grpid + 0x1_0000 })).toBe("ENOENT");
    expect(respond({ pasid: undefined })).toBe("ENOENT");
    expect(client.transfer(s)).toBe(BUSY);
    expect(respond({})).toBe(0);
    expect(respond({})).toBe("ENOENT");
  });

  it.each<[string, object]>([
    ["argsz too small", { argsz: 23 }],
    ["another version", { version: 2 }],
    ["version 0", { version: 0 }],
    ["unknown flags", { flags: 3 }],
    ["an unknown code", { code: 3 }],
    ["a PASID the unit cannot have", { pasid: 2 ** 20 }],
  ])("%s: EINVAL, and the access goes on waiting", (_what, members) => {
    bindEmpty();
    const grpid = ask();
    expect(outcome(() => client.respond(s.container, { pasid, grpid, code: SUCCESS, ...members }))).toBe(
      "EINVAL",
    );
    expect(client.transfer(s)).toBe(BUSY);
  });

  it("too few bytes for the data: EINVAL; memory that ends: EFAULT", () => {
    const data = vsva.IommuPageResponse.bytes({ argsz: 24, version: 1 });
    expect(outcome(() => client.operate(s.container, RESPONSE, data, 8 + 23))).toBe("EINVAL");
    const end = 0x7fff_0000_0000 + 64 * PAGE;
    client.task.memory.write(BigInt(end - 8), new Uint8Array(new Uint32Array([32, RESPONSE]).buffer));
    expect(outcome(() => client.task.ioctl(s.container, vsva.VFIO_IOMMU_NESTING_OP, BigInt(end - 8)))).toBe(
      "EFAULT",
    );
  });

  it("PASIDs nobody has are ENOENT, those of another address space EACCES, and so are its groups", () => {
    bindEmpty();
    const grpid = ask();
    const other = rig.client();
    const container = client.task.pass(s.container, other.task);
    const theirs = other.allocate(container);
    const respond = (who: NestingClient, fd: number, members: object) =>
      outcome(() => who.respond(fd, { grpid, code: SUCCESS, ...members }));
    expect(respond(other, container, { pasid })).toBe("EACCES");
    expect(respond(other, container, { pasid: theirs })).toBe("ENOENT");
    expect(respond(client, s.container, { pasid: theirs })).toBe("EACCES");
    expect(respond(client, s.container, { pasid: theirs + 1 })).toBe("ENOENT");
    expect(client.transfer(s)).toBe(BUSY);
    other.task.exit();
    expect(respond(client, s.container, { pasid })).toBe(0);
  });

  it("EOPNOTSUPP where a device of the group asks for no pages, and the feature is not told", () => {
    end();
    begin((text) => text.replace("at: 0000:05:00.0", "at: 0000:05:00.0\n    page-requests: 0"));
    expect(client.nestingInfo(s.container).features).toBe(7);
    bindEmpty();
    client.begin(s, READ, VA, pasid);
    expect(client.transfer(s)).toBe(FAULT);
    expect(outcome(() => client.respond(s.container, { pasid, grpid: 0, code: SUCCESS }))).toBe("EOPNOTSUPP");
  });
});

describe("what waits ends", () => {
  const late = (grpid: number) => outcome(() => client.respond(s.container, { pasid, grpid, code: SUCCESS }));

  it("with its table, and a late answer is ENOENT", () => {
    bindEmpty();
    const grpid = ask();
    client.unbind(s.container, pasid);
    expect(client.transfer(s)).toBe(FAULT);
    expect(late(grpid)).toBe("ENOENT");
  });

  it("and with a table bound again, the next one waits", () => {
    bindEmpty();
    ask();
    client.unbind(s.container, pasid);
    expect(client.transfer(s)).toBe(FAULT);
    client.bind(s.container, pasid);
    const grpid = ask();
    client.respond(s.container, { pasid, grpid, code: INVALID });
    expect(client.transfer(s)).toBe(FAULT);
  });

  it("with its PASID", () => {
    bindEmpty();
    const grpid = ask();
    client.free(s.container, pasid);
    expect(client.transfer(s)).toBe(FAULT);
    expect(late(grpid)).toBe("ENOENT");
  });

  it("with a reset by its user", () => {
    bindEmpty();
    const grpid = ask();
    client.task.ioctl(s.device, vfio.VFIO_DEVICE_RESET);
    expect(client.transfer(s)).toBe(TestStatus.IDLE);
    expect(late(grpid)).toBe("ENOENT");
  });

  it("with the device's file, while the container stays", () => {
    bindEmpty();
    const grpid = ask();
    client.task.close(s.device);
    rig.work.run();
    expect(rig.machine.live()["parked"]).toBe(0);
    expect(late(grpid)).toBe("ENOENT");
  });

  it("when the group leaves its container, and when everything is closed or killed, in any order", () => {
    const orders: (keyof Setup)[][] = [
      ["container", "group", "device"],
      ["device", "group", "container"],
      ["group", "device", "container"],
      ["container", "device", "group"],
    ];
    for (const order of orders) {
      bindEmpty();
      ask();
      for (const file of order) client.task.close(s[file]);
      rig.work.run();
      end();
      begin();
    }
    bindEmpty();
    ask();
    client.task.exit();
    rig.work.run();
    expect(rig.left()).toEqual([]);
  });
});

describe("functions of one group", () => {
  beforeEach(() => {
    end();
    begin((text) =>
      text
        .replace("at: 0000:05:00.0", "at: 0000:05:00.0\n    group: one")
        .replace("at: 0000:06:00.0", "at: 0000:06:00.0\n    group: one"),
    );
  });

  it("have numbers of their own: an answer is for one of them", () => {
    const device = client.device(s.group, "0000:06:00.0");
    client.task.pwrite(device, (7n << 40n) + 4n, Uint8Array.of(6, 0));
    const second = { ...s, device };
    client.listen(second);
    bindEmpty();
    const [one, other] = [ask(), ask(READ, second)];
    expect(other - one).toBe(0x1_0000);
    client.respond(s.container, { pasid, grpid: one, code: INVALID });
    expect(client.transfer(s)).toBe(FAULT);
    expect(client.transfer(second)).toBe(BUSY);
    client.writeTable(DATA);
    client.respond(s.container, { pasid, grpid: other, code: SUCCESS });
    expect(client.transfer(second)).toBe(DONE);
  });
});

describe("an access that failed for good", () => {
  beforeEach(() => {
    end();
    begin((text) => text.replace("at: 0000:05:00.0", "at: 0000:05:00.0\n    device-tlb: false"));
  });
  /** What is told of one access. */
  const told = (command: number, address: number) => {
    client.begin(s, command, address, pasid);
    expect(client.transfer(s)).toBe(FAULT);
    return client.takeFaults(s).map(({ type, event }) => ({ type, ...event }));
  };
  const base = { type: vsva.IOMMU_FAULT_DMA_UNRECOV, flags: 3, perm: 1, fetch_addr: 0n };

  it("is told with its reason, by the guest's PASID, and signalled", () => {
    bindEmpty({ flags: 1n, gpasid: 9n });
    expect(told(READ, VA)).toEqual([
      { ...base, pasid: 9, reason: vsva.IOMMU_FAULT_REASON_PTE_FETCH, addr: BigInt(VA) },
    ]);
    expect(signals()).toBe(1);
    const outside = 2 ** 46;
    expect(told(READ, outside)[0]).toMatchObject({ reason: vsva.IOMMU_FAULT_REASON_PTE_FETCH });
    client.writeTable(DATA);
    const leaf = (flags: bigint) =>
      client.poke(8 * PAGE + 3 * PAGE + 8 * Number((BigInt(VA) >> 12n) & 511n), word(BigInt(DATA) | flags));
    const word = (value: bigint) => new Uint8Array(new BigUint64Array([value]).buffer);
    leaf(5n); // present, for users, not writable
    expect(told(WRITE, VA)).toEqual([
      { ...base, pasid: 9, perm: 2, reason: vsva.IOMMU_FAULT_REASON_PERMISSION, addr: BigInt(VA) },
    ]);
    client.poke(8 * PAGE + 8 * Number((BigInt(VA) >> 39n) & 511n), word(BigInt(100 * PAGE) | 7n)); // not the guest's
    client.invalidatePage(s.container, pasid);
    client.invalidate(s.container, {
      cache: vsva.IOMMU_CACHE_INV_TYPE_IOTLB,
      granularity: vsva.IOMMU_INV_GRANU_DOMAIN,
    });
    expect(told(READ, VA)[0]).toMatchObject({ reason: vsva.IOMMU_FAULT_REASON_WALK_EABT });
  });

  it("without a table bound, or without PASID, is nobody's to know", () => {
    expect(told(READ, VA)).toEqual([]);
    client.begin(s, READ, 2 ** 40);
    expect(client.transfer(s)).toBe(FAULT);
    expect(client.takeFaults(s)).toEqual([]);
    bindEmpty();
    expect(told(READ, VA)).toHaveLength(1);
    client.unbind(s.container, pasid);
    expect(told(READ, VA)).toEqual([]);
  });
});
