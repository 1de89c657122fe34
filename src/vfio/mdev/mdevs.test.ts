/**
 * Mediated devices on VT-d by a program's calls: each has tables of its own, and a PASID that its user has not never
 * reaches the hardware. DMA passes the silicon.
 */
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { CdevClient } from "../../../test/support/cdev-client.ts";
import { Recorder } from "../../../test/support/model-host.ts";
import { FIRST, NESTING, NestingRig, PAGE, type Setup, VA } from "../../../test/support/nesting-client.ts";
import { INTERRUPT, QueueClient, VALID } from "../../../test/support/queue-client.ts";
import { outcome, reasonOf } from "../../../test/support/vfio-client.ts";
import { Random } from "../../base/clock.ts";
import type { EventSink } from "../../base/events.ts";
import { VtdDriver } from "../../drivers/vtd/driver.ts";
import type { Transaction } from "../../hardware/unit.ts";
import type { VtdUnit } from "../../hardware/vtd/unit.ts";
import { ModelTask } from "../../kernel/model-task.ts";
import { formatAddress } from "../../pci/address.ts";
import {
  Descriptor,
  DescriptorStatus,
  Operation,
  QueueControl,
  QueueError,
  QueueRegister,
  QueueStatus,
} from "../../pci/devices/work-queue.ts";
import { Header } from "../../pci/spec.ts";
import { IOMMU_HWPT_ALLOC_PASID } from "../../uapi/iommufd.ts";
import * as uapi from "../../uapi/vfio.ts";
import { IOMMU_PAGE_RESP_SUCCESS, IOMMU_SVA_GPASID_VAL } from "../../uapi/vsva.ts";
import { regionOffset } from "../regions.ts";

const ONE = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
const TWO = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1002";
const THREE = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1003";
const PARENT = "0000:07:00.0";
const TYPE1 = uapi.VFIO_TYPE1v2_IOMMU;
const { DONE, FAULT } = DescriptorStatus;
/** Where requests read and write in a guest's memory. */
const FROM = 0x2_0000;
const TO = 0x2_1000;
const copy = { source: FROM, destination: TO };

let rig: NestingRig;
const clients: QueueClient[] = [];
const newClient = (): QueueClient => {
  const client = new QueueClient(rig, new ModelTask(rig.machine.memory), true);
  clients.push(client);
  return client;
};
const begin = (edit?: (text: string) => string, events?: EventSink): void => {
  rig = new NestingRig(edit, events);
};
const end = (): void => {
  for (const client of clients.splice(0)) client.task.exit();
  rig.work.run();
  expect(rig.left()).toEqual([]);
  rig.machine.close();
};
const parent = () => rig.machine.mdevs.parents[0]!;
const create = (uuid: string, type: "queue" | "software" = "queue") =>
  rig.machine.mdevs.create(parent(), type, uuid);
const text = (words: string): Uint8Array => Uint8Array.from(Buffer.from(words.padEnd(8, ".")));
/** The device copies eight bytes of guest memory; what is at the destination then. */
const copied = (client: QueueClient, setup: Setup, words: string): string => {
  client.poke(FROM, text(words));
  expect(client.run(setup, copy)).toBe(DONE);
  return Buffer.from(client.peek(TO, 8)).toString();
};
/** A process of the guest with a table, bound to a new PASID; the guest calls it so when a number is given. */
const bindProcess = (
  client: QueueClient,
  { container }: Setup,
  page: number,
  guestPasid?: number,
): number => {
  const pasid = client.allocate(container);
  client.writeTable(page);
  const named =
    guestPasid === undefined ? {} : { flags: BigInt(IOMMU_SVA_GPASID_VAL), gpasid: BigInt(guestPasid) };
  client.bind(container, pasid, named);
  return pasid;
};

/** The PASIDs that requests of the parent carry from now on. */
const watch = (): Set<number> => {
  const seen = new Set<number>();
  const unit = rig.machine.units.get("dmar0")!.unit as VtdUnit;
  const translate = unit.translate.bind(unit);
  const requestTranslation = unit.requestTranslation.bind(unit);
  const isMessage = ({ hi, lo }: Transaction): boolean => hi === 0 && lo >>> 20 === 0xfee;
  const note = (request: Transaction): void => {
    if (request.rid === 0x700 && !isMessage(request)) seen.add(request.pasid);
  };
  unit.translate = (request) => {
    note(request);
    return translate(request);
  };
  unit.requestTranslation = (request) => {
    note(request);
    return requestTranslation(request);
  };
  return seen;
};

beforeEach(() => begin());
afterEach(() => end());

describe("a mediated device", () => {
  it("is a VFIO device with a group of its own; its parent's group is a driver's of the host", () => {
    const { core, vfio } = rig.machine;
    const groups = [ONE, TWO, PARENT].map((name) => core.devices.get(name)!.group);
    expect(new Set(groups).size).toBe(3);
    expect(groups.map(({ id }) => vfio.groupNodes.has(id))).toEqual([true, true, false]);
    expect(groups[2]!.owned).toBe(true);
    const client = newClient();
    const setup = client.setUp(ONE, TYPE1);
    expect(client.deviceInfo(setup.device).flags).toBe(
      uapi.VFIO_DEVICE_FLAGS_PCI | uapi.VFIO_DEVICE_FLAGS_RESET,
    );
    expect(client.region(setup.device, 0).size).toBe(BigInt(PAGE));
    expect(client.irqInfo(setup.device, uapi.VFIO_PCI_MSIX_IRQ_INDEX).count).toBe(1);
    expect(outcome(() => client.device(setup.group, TWO))).toBe("ENODEV");
  });

  it("is on no bus: a hot reset of its parent's is nothing it knows", () => {
    const client = newClient();
    const { device } = client.setUp(ONE, TYPE1);
    for (const request of [uapi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, uapi.VFIO_DEVICE_PCI_HOT_RESET])
      expect(outcome(() => client.task.ioctl(device, request, new Uint8Array(64)))).toBe("ENOTTY");
    expect(formatAddress(rig.machine.core.devices.get(ONE)!.function.address)).toBe(PARENT);
  });

  it("reaches the memory that its container maps, and two of one function go through tables of their own", () => {
    const [first, second] = [newClient(), newClient()];
    const one = first.queue(ONE, TYPE1);
    const two = second.queue(TWO, TYPE1);
    expect(copied(first, one, "one")).toBe("one.....");
    expect(copied(second, two, "two")).toBe("two.....");
    expect(Buffer.from(first.peek(TO, 8)).toString()).toBe("one.....");
    first.tearDown(one);
    expect(copied(second, two, "again")).toBe("again...");
  });

  it("in nesting containers has a second stage of its own, and under it the tables of its guest", () => {
    const [first, second] = [newClient(), newClient()];
    const [one, two] = [first.queue(ONE), second.queue(TWO)];
    const pasids = [bindProcess(first, one, FROM), bindProcess(second, two, FROM)];
    expect(pasids[0]).not.toBe(pasids[1]);
    first.poke(FROM, text("first"));
    second.poke(FROM, text("second"));
    const within = { source: VA, destination: VA + 64 };
    expect(first.run(one, { ...within, pasid: pasids[0] })).toBe(DONE);
    expect(second.run(two, { ...within, pasid: pasids[1] })).toBe(DONE);
    expect(Buffer.from(first.peek(FROM + 64, 8)).toString()).toBe("first...");
    expect(Buffer.from(second.peek(FROM + 64, 8)).toString()).toBe("second..");
    expect([copied(first, one, "without"), copied(second, two, "any")]).toEqual(["without.", "any....."]);
  });

  it("signals its vector when a descriptor that asks for it has ended, and when its queue is stopped", () => {
    const client = newClient();
    const setup = client.queue(ONE, TYPE1);
    const eventfd = client.task.eventfd();
    client.trigger(setup.device, uapi.VFIO_PCI_MSIX_IRQ_INDEX, [eventfd]);
    client.run(setup, { ...copy });
    expect(client.task.counter(eventfd).count).toBe(0);
    client.run(setup, { ...copy, operation: Operation.COPY + INTERRUPT });
    expect(client.task.counter(eventfd).count).toBe(1);
    client.run(setup, { ...copy, pasid: 0xfffff });
    expect(client.task.counter(eventfd).count).toBe(2);
  });

  it("has a vector table that its user can neither map nor write", () => {
    const client = newClient();
    const { device } = client.setUp(ONE, TYPE1);
    expect(client.region(device, 2).flags & uapi.VFIO_REGION_INFO_FLAG_MMAP).toBe(0);
    client.task.pwrite(device, regionOffset(2), text("forged"));
    const pci = rig.machine.core.devices.get(ONE)!.function;
    const entry = new Uint8Array(8);
    pci.barRead(2, 0, entry);
    expect([...entry]).toEqual([0, 0, 0, 0, 0, 0, 0, 0]);
  });

  it("makes no request while its user has bus mastering off: the queue stops", () => {
    const client = newClient();
    const setup = client.queue(ONE, TYPE1);
    const command = regionOffset(7) + BigInt(Header.COMMAND);
    client.task.pwrite(setup.device, command, Uint8Array.of(2, 0));
    client.submit(setup, copy);
    expect(client.state(setup)).toEqual([QueueStatus.STOPPED, QueueError.MASTER]);
    client.task.pwrite(setup.device, command, Uint8Array.of(6, 0));
    client.restart(setup);
    expect(client.run(setup, copy)).toBe(DONE);
  });

  it("forgets at a reset what its queue holds, and its PASID", () => {
    const client = newClient();
    const setup = client.queue(ONE);
    const pasid = bindProcess(client, setup, FROM);
    client.set(setup, QueueRegister.PASID, VALID + pasid);
    client.set(setup, QueueRegister.VECTOR, 0);
    client.poke(FROM, text("late"));
    client.submit(setup, { source: VA, destination: VA + 64 });
    client.task.ioctl(setup.device, uapi.VFIO_DEVICE_RESET);
    rig.work.run();
    expect(Buffer.from(client.peek(FROM + 64, 8))).toEqual(Buffer.alloc(8));
    expect(client.state(setup)).toEqual([QueueStatus.DISABLED, QueueError.NONE]);
    expect(client.get(setup, QueueRegister.PASID)).toBe(0);
  });

  it("is explained like any other device, by its default PASID or another", () => {
    const client = newClient();
    const setup = client.queue(ONE);
    const pasid = bindProcess(client, setup, FROM);
    const last = (iova: number, tag?: number) =>
      [...rig.machine.explain(ONE, BigInt(iova), false, tag)!].at(-1)!.outcome;
    expect(last(FROM)).toMatchObject({ ok: true });
    expect(last(VA)).toMatchObject({ ok: false });
    expect(last(VA, pasid)).toMatchObject({ ok: true });
  });
});

describe("a PASID", () => {
  it("is the guest's own name for it, or the host's, in the queue's register and in a descriptor", () => {
    const client = newClient();
    const setup = client.queue(ONE);
    const pasid = bindProcess(client, setup, FROM, 5);
    expect(pasid).not.toBe(5);
    for (const name of [5, pasid]) {
      client.poke(FROM, text(`as ${name}`));
      expect(client.run(setup, { source: VA, destination: VA + 64, pasid: name })).toBe(DONE);
      expect(Buffer.from(client.peek(FROM + 64, 5)).toString()).toBe(`as ${name}.`.slice(0, 5));
    }
    client.set(setup, QueueRegister.PASID, VALID + 5);
    expect(client.get(setup, QueueRegister.PASID)).toBe(VALID + 5);
    expect(client.run(setup, { source: VA, destination: VA + 128 })).toBe(DONE);
    client.set(setup, QueueRegister.PASID, 0);
    expect(client.run(setup, { source: VA, destination: VA + 128 })).toBe(FAULT);
    expect(client.run(setup, copy)).toBe(DONE);
  });

  it("of another container stops the queue, wherever it is written, and the hardware never sees it", () => {
    const events = new Recorder();
    end();
    begin(undefined, events);
    const [first, second] = [newClient(), newClient()];
    const [one, two] = [first.queue(ONE), second.queue(TWO)];
    bindProcess(first, one, FROM);
    const foreign = bindProcess(second, two, FROM, 77);
    const { parts } = parent();
    const defaultOfTwo = parts.defaultOf(rig.machine.core.devices.get(TWO)!.function);
    second.poke(FROM, text("secret"));
    events.seen.length = 0;
    for (const pasid of [foreign, 77, defaultOfTwo, 0xfffff, 0]) {
      first.set(one, QueueRegister.PASID, VALID + pasid);
      expect(first.state(one)).toEqual([QueueStatus.STOPPED, QueueError.PASID]);
      first.submit(one, copy);
      first.set(one, QueueRegister.CONTROL, QueueControl.ENABLE);
      expect(first.state(one)).toEqual([QueueStatus.STOPPED, QueueError.PASID]);
      first.restart(one);
      first.submit(one, copy);
      expect(first.state(one)).toEqual([QueueStatus.STOPPED, QueueError.PASID]);
      first.set(one, QueueRegister.PASID, 0);
      first.restart(one);
      first.submit(one, { source: VA, destination: VA + 64, pasid });
      expect(first.state(one)).toEqual([QueueStatus.STOPPED, QueueError.PASID]);
      rig.work.run();
      first.restart(one);
    }
    expect(events.seen.filter(({ kind }) => kind === "dma" || kind === "fault")).toEqual([]);
    const reasons = events.seen.filter(({ kind }) => kind === "device").map(({ fields }) => fields["reason"]);
    expect(reasons[0]).toBe(`PASID ${foreign} in its PASID register has no table that its user has bound`);
    expect(reasons).toContain("PASID 77 in a descriptor has no table that its user has bound");
    expect(copied(first, one, "still")).toBe("still...");
    expect(second.run(two, { source: VA, destination: VA + 64, pasid: 77 })).toBe(DONE);
  });

  it("that was allocated and has no table is refused too, and one whose table went", () => {
    const client = newClient();
    const setup = client.queue(ONE);
    const allocated = client.allocate(setup.container);
    client.submit(setup, { ...copy, pasid: allocated });
    expect(client.state(setup)).toEqual([QueueStatus.STOPPED, QueueError.PASID]);
    client.restart(setup);
    const pasid = bindProcess(client, setup, FROM);
    client.set(setup, QueueRegister.PASID, VALID + pasid);
    expect(client.state(setup)).toEqual([QueueStatus.IDLE, QueueError.NONE]);
    client.unbind(setup.container, pasid);
    client.submit(setup, { source: VA, destination: VA + 64 });
    expect(client.state(setup)).toEqual([QueueStatus.STOPPED, QueueError.PASID]);
  });

  it("that loses its table takes with it what waits: it may be another device's next", () => {
    const [first, second] = [newClient(), newClient()];
    const [one, two] = [first.queue(ONE), second.queue(TWO)];
    const pasid = bindProcess(first, one, FROM);
    first.submit(one, { source: VA, destination: VA + 64, pasid });
    first.unbind(one.container, pasid);
    first.free(one.container, pasid);
    expect(bindProcess(second, two, FROM)).toBe(pasid);
    second.poke(FROM, text("secret"));
    rig.work.run();
    expect(first.get(one, QueueRegister.LAST)).toBe(DescriptorStatus.ABORTED);
    expect(Buffer.from(second.peek(FROM + 64, 8))).toEqual(Buffer.alloc(8));
    expect(copied(first, one, "goes on")).toBe("goes on.");
    expect(second.run(two, { source: VA, destination: VA + 64, pasid })).toBe(DONE);
  });

  it("that is wrong, in a descriptor of the function itself, faults: the unit records requester and PASID", () => {
    const queue = parent().take()!;
    queue.set(QueueRegister.CONTROL, QueueControl.ENABLE);
    const descriptor = new Uint32Array(16);
    descriptor.set([VALID + 0x1234, Operation.FILL]);
    descriptor.set([0x5000, 0, 8], Descriptor.DESTINATION / 4);
    queue.submit(descriptor);
    rig.work.run();
    expect(queue.get(QueueRegister.LAST)).toBe(FAULT);
    const { driver } = rig.machine.units.get("dmar0")!;
    expect(driver).toBeInstanceOf(VtdDriver);
    const record = (driver as VtdDriver).faults.at(-1);
    expect(record).toMatchObject({ rid: 0x700, pasid: 0x1234, address: 0x5000n });
    parent().giveBack(queue);
  });

  it("goes with its process: what the device was given is taken from it", () => {
    const client = newClient();
    const setup = client.queue(ONE);
    const pasid = bindProcess(client, setup, FROM);
    const { function: part } = rig.machine.core.devices.get(ONE)!;
    expect(parent().parts.has(part, pasid)).toBe(true);
    client.task.exit();
    expect(parent().parts.has(part, pasid)).toBe(false);
    expect(parent().parts.isTaken(pasid)).toBe(false);
  });

  it("of a guest's page that is not there is asked for at the VMM, and the descriptor waits", () => {
    const client = newClient();
    const setup = client.queue(ONE);
    const eventfd = client.listen(setup);
    const pasid = bindProcess(client, setup, FROM, 5);
    client.writeTable(undefined);
    client.invalidatePage(setup.container, pasid);
    client.poke(FROM, text("paged in"));
    client.submit(setup, { source: VA, destination: VA + 64, pasid: 5 });
    rig.work.run();
    expect(client.get(setup, QueueRegister.PENDING)).toBe(1);
    expect(client.task.counter(eventfd).count).toBeGreaterThan(0);
    const [{ prm }, ...more] = client.takeFaults(setup) as [ReturnType<QueueClient["takeFaults"]>[number]];
    expect([prm.pasid, prm.addr, more]).toEqual([5, BigInt(VA), []]);
    client.writeTable(FROM);
    client.respond(setup.container, { pasid: 5, grpid: prm.grpid, code: IOMMU_PAGE_RESP_SUCCESS });
    rig.work.run();
    expect(client.get(setup, QueueRegister.LAST)).toBe(DONE);
    expect(Buffer.from(client.peek(FROM + 64, 8)).toString()).toBe("paged in");
  });
});

describe("a descriptor that waits for a page", () => {
  it.each(["unbind", "reset", "exit"] as const)("waits no more after %s", (how) => {
    const client = newClient();
    const setup = client.queue(ONE);
    client.listen(setup);
    const pasid = bindProcess(client, setup, FROM);
    client.writeTable(undefined);
    client.invalidatePage(setup.container, pasid);
    client.submit(setup, { source: VA, destination: VA + 64, pasid });
    rig.work.run();
    expect(rig.machine.live()["parked"]).toBe(1);
    if (how === "unbind") client.unbind(setup.container, pasid);
    else if (how === "reset") client.task.ioctl(setup.device, uapi.VFIO_DEVICE_RESET);
    else client.task.exit();
    rig.work.run();
    expect(rig.machine.live()["parked"]).toBe(0);
    if (how === "unbind") expect(client.get(setup, QueueRegister.LAST)).toBe(DescriptorStatus.ABORTED);
  });
});

describe("a hostile user", () => {
  it("makes no request with a PASID that is not its own, whatever it writes, binds and unbinds", () => {
    const seeds = fc.integer({ min: 0, max: 0x7fff_ffff });
    fc.assert(
      fc.property(seeds, (seed) => {
        end();
        begin();
        const random = new Random(seed);
        const [hostile, victim] = [newClient(), newClient()];
        const [one, two] = [hostile.queue(ONE), victim.queue(TWO)];
        const foreign = bindProcess(victim, two, FROM, 9);
        const { parts } = parent();
        const [own, other] = [ONE, TWO].map((uuid) =>
          parts.defaultOf(rig.machine.core.devices.get(uuid)!.function),
        ) as [number, number];
        const allowed = new Set([own]);
        const bound: number[] = [];
        const seen = watch();
        const anyPasid = (): number => {
          const all = [own, other, foreign, 9, 5, 0, random.below(2 ** 20), ...bound];
          return all[random.below(all.length)]!;
        };
        for (let step = 0; step < 60; step++) {
          const what = random.below(8);
          if (what === 0) {
            const pasid = outcome(() =>
              bindProcess(hostile, one, FROM, random.below(2) === 0 ? 5 : anyPasid()),
            );
            // A guest's number that names a table already is refused.
            if (typeof pasid === "number") {
              allowed.add(pasid);
              bound.push(pasid);
            }
          } else if (what === 1 && bound.length > 0) hostile.unbind(one.container, bound.pop()!);
          else if (what === 2) hostile.restart(one);
          else if (what === 3)
            hostile.set(one, QueueRegister.PASID, random.below(4) ? VALID + anyPasid() : 0);
          else if (what === 4) hostile.set(one, 4 * random.below(32), random.next());
          else
            hostile.submit(one, {
              operation: random.below(3),
              source: random.below(2) ? VA : FROM,
              destination: random.below(2) ? VA + 64 : TO,
              completion: 16 * random.below(3),
              pasid: random.below(3) ? anyPasid() : undefined,
            });
          if (random.below(2)) rig.work.run();
        }
        rig.work.run();
        expect([...seen].filter((pasid) => !allowed.has(pasid))).toEqual([]);
      }),
      { numRuns: 25 },
    );
  });
});

describe("mediated devices of a function", () => {
  it("come and go while the machine runs, with their groups, nodes, queues and PASIDs", () => {
    const { mdevs, pasids, vfio, core } = rig.machine;
    const before = { pasids: pasids.inUse, nodes: vfio.nodes.length, groups: core.groups.size };
    for (let round = 0; round < 50; round++) {
      const { device } = create(` ${THREE.toUpperCase()}\n`);
      expect(mdevs.available(parent(), "queue")).toBe(1);
      expect(vfio.groupNodes.has(device.group.id)).toBe(true);
      const client = newClient();
      const setup = client.queue(THREE, TYPE1);
      expect(copied(client, setup, "third")).toBe("third...");
      expect(outcome(() => mdevs.remove(THREE))).toBe("EBUSY");
      client.task.exit();
      mdevs.remove(THREE);
      expect({ pasids: pasids.inUse, nodes: vfio.nodes.length, groups: core.groups.size }).toEqual(before);
    }
    expect(outcome(() => mdevs.remove(THREE))).toBe("ENODEV");
  });

  it("cannot be made without a UUID of their own, nor more of them than there are queues", () => {
    expect(outcome(() => create("three"))).toBe("EINVAL");
    expect(outcome(() => create(""))).toBe("EINVAL");
    expect(outcome(() => create(ONE))).toBe("EEXIST");
    create(THREE);
    create(THREE.replace(/3$/, "4"));
    expect(outcome(() => create(THREE.replace(/3$/, "5")))).toBe("ENOSPC");
    rig.machine.mdevs.remove(ONE);
    create(ONE);
  });

  it("ask whoever has one for it, when it is to go", () => {
    const client = newClient();
    const setup = client.setUp(ONE, TYPE1);
    const eventfd = client.task.eventfd();
    client.trigger(setup.device, uapi.VFIO_PCI_REQ_IRQ_INDEX, [eventfd]);
    expect(outcome(() => rig.machine.mdevs.remove(ONE))).toBe("EBUSY");
    expect(client.task.counter(eventfd).count).toBe(1);
    client.task.close(setup.device);
    expect(outcome(() => rig.machine.mdevs.remove(ONE))).toBe("EBUSY");
    for (const fd of [setup.group, setup.container]) client.task.close(fd);
    rig.machine.mdevs.remove(ONE);
    expect(outcome(() => client.setUp(TWO, TYPE1))).toBeTypeOf("object");
  });

  it("share one page table with other functions where a container has both", () => {
    const client = newClient();
    const setup = client.setUp(FIRST, TYPE1);
    const group = client.group(rig.groupOf(ONE));
    client.setContainer(group, setup.container);
    const device = client.device(group, ONE);
    client.task.pwrite(device, regionOffset(7) + BigInt(Header.COMMAND), Uint8Array.of(6, 0));
    const queue = { ...setup, group, device };
    client.set(queue, QueueRegister.CONTROL, QueueControl.ENABLE);
    expect(copied(client, queue, "shared")).toBe("shared..");
    expect(rig.machine.live()["domains"]).toBe(1);
  });

  it("are attached through iommufd, with PASIDs that another one has not", () => {
    const task = new ModelTask(rig.machine.memory);
    const client = new CdevClient(task, rig.machine);
    const at = 0x1_0000_0000;
    task.memory.map(at, 64 * PAGE);
    const fd = client.iommu();
    const ioas = client.ioas(fd);
    const [one, two] = [ONE, TWO].map((uuid) => {
      const device = client.open(rig.machine.vfio.deviceNodes.get(uuid)!.path);
      const id = client.bind(device, fd);
      client.attachTo(device, client.hwpt(fd, id, ioas, IOMMU_HWPT_ALLOC_PASID));
      return { device, id };
    }) as [{ device: number; id: number }, { device: number; id: number }];
    client.mapAt(fd, ioas, 0, at, 64 * PAGE);
    const table = client.hwpt(fd, one.id, ioas, IOMMU_HWPT_ALLOC_PASID);
    expect(outcome(() => client.attachTo(one.device, table, 900))).toBe(table);
    expect(outcome(() => client.attachTo(two.device, table, 900))).toBe("EBUSY");
    const queues = new QueueClient(rig, task, false);
    const setup = { container: fd, group: fd, device: one.device };
    task.pwrite(one.device, regionOffset(7) + BigInt(Header.COMMAND), Uint8Array.of(6, 0));
    queues.set(setup, QueueRegister.CONTROL, QueueControl.ENABLE);
    task.memory.write(BigInt(at + FROM), text("iommufd"));
    expect(queues.run(setup, { ...copy, pasid: 900 })).toBe(DONE);
    const got = new Uint8Array(8);
    task.memory.read(BigInt(at + TO), got);
    expect(Buffer.from(got).toString()).toBe("iommufd.");
    expect(queues.run({ ...setup, device: two.device }, { ...copy, pasid: 900 })).toBe(DescriptorStatus.NONE);
    task.exit();
  });

  it("may not be attached to PASIDs of somebody else, and nobody is given those that are attached", () => {
    const other = newClient();
    const { container } = other.setUp(FIRST);
    const theirs = other.allocate(container, 40, 50);
    const task = new ModelTask(rig.machine.memory);
    const client = new CdevClient(task, rig.machine);
    const fd = client.iommu();
    const ioas = client.ioas(fd);
    const device = client.open(rig.machine.vfio.deviceNodes.get(ONE)!.path);
    const id = client.bind(device, fd);
    const table = client.hwpt(fd, id, ioas, IOMMU_HWPT_ALLOC_PASID);
    client.attachTo(device, table);
    expect(outcome(() => client.attachTo(device, table, theirs))).toBe("EBUSY");
    expect(reasonOf(() => client.attachTo(device, table, theirs))).toContain("somebody else's");
    expect(client.attachTo(device, table, theirs + 1)).toBe(table);
    expect(outcome(() => client.attachTo(device, 999, theirs + 2))).toBe("ENOENT");
    expect(other.allocate(container, theirs, 50)).toBe(theirs + 2);
    expect(outcome(() => other.bind(container, theirs + 1))).toBe("EACCES");
    client.detachFrom(device, theirs + 1);
    expect(other.allocate(container, theirs, 50)).toBe(theirs + 1);
    client.attachTo(device, table, 60);
    task.exit();
    expect(other.allocate(container, 60, 60)).toBe(60);
  });

  it("of two programs may both be attached by PASID 0, which is the device as a whole", () => {
    const programs = [ONE, TWO].map((uuid) => {
      const client = new CdevClient(new ModelTask(rig.machine.memory), rig.machine);
      const fd = client.iommu();
      const device = client.open(rig.machine.vfio.deviceNodes.get(uuid)!.path);
      const id = client.bind(device, fd);
      const table = client.hwpt(fd, id, client.ioas(fd), IOMMU_HWPT_ALLOC_PASID);
      expect(client.attachTo(device, table, 0)).toBe(table);
      return client.task;
    });
    for (const program of programs) program.exit();
  });

  it("have default PASIDs that no part of the function has", () => {
    const { pasids, core } = rig.machine;
    const next = pasids.takeForHost();
    pasids.giveBack(next);
    const { function: part, driver } = core.devices.get(ONE)!;
    const domain = driver.allocatePaging(part, { pasid: true });
    driver.attach(part, domain, next);
    const { device } = create(THREE);
    expect(parent().parts.defaultOf(device.function)).toBe(next - 1);
    expect(pasids.ownerOf(next)).toBeUndefined();
    driver.attach(part, driver.blocked, next);
    domain.free();
  });
});

describe("a mediated device that is not IOMMU-backed", () => {
  beforeEach(() => {
    create(THREE, "software");
  });

  it("reaches the memory of a type 1 container", () => {
    const client = newClient();
    const setup = client.queue(THREE, TYPE1);
    expect(copied(client, setup, "software")).toBe("software");
    expect(client.run(setup, { ...copy, destination: 64 * PAGE })).toBe(FAULT);
    expect(client.run(setup, { ...copy, pasid: 1 })).toBe(FAULT);
    client.task.pwrite(setup.device, regionOffset(7) + BigInt(Header.COMMAND), Uint8Array.of(2, 0));
    expect(client.run(setup, copy)).toBe(FAULT);
    const last = [...rig.machine.explain(THREE, BigInt(FROM), false)!].at(-1)!;
    expect(last.outcome).toMatchObject({ ok: true });
  });

  it("is refused by a nesting container, which says why", () => {
    const client = newClient();
    const container = client.container();
    client.setContainer(client.group(rig.groupOf(THREE)), container);
    expect(outcome(() => client.setIommu(container, NESTING))).toBe("EINVAL");
    expect(reasonOf(() => client.setIommu(container, NESTING))).toContain("is not IOMMU-backed");
    expect(outcome(() => client.setIommu(container, TYPE1))).toBe(0);
  });

  it("is one of so many of its parent", () => {
    for (let n = 1; n < 16; n++) create(THREE.replace(/03$/, (n + 16).toString(16)), "software");
    expect(outcome(() => create(THREE.replace(/03$/, "ff"), "software"))).toBe("ENOSPC");
    expect(rig.machine.mdevs.available(parent(), "queue")).toBe(2);
  });
});

describe("a machine without the extension", () => {
  it("has devices made by software alone", () => {
    end();
    begin((preset) =>
      preset.slice(0, preset.indexOf("\nmdevs:") + 1).replace("extensions: [vsva2020]", "extensions: []"),
    );
    expect(rig.machine.mdevs.typesOf(parent())).toEqual(["software"]);
    expect(reasonOf(() => create(ONE))).toContain("extension vsva2020");
    create(ONE, "software");
  });

  it("or without PASIDs has them too", () => {
    end();
    begin((preset) =>
      preset
        .slice(0, preset.indexOf("\nmdevs:") + 1)
        .replace("mode: scalable ", "mode: scalable\n    pasid-bits: 0 "),
    );
    expect(reasonOf(() => create(ONE))).toContain("no PASIDs");
  });
});
