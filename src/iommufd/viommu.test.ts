/** Event queues and hardware queues of a vIOMMU, on the mock driver. */
import fc from "fast-check";
import { beforeEach, describe, expect, it } from "vitest";
import { codeOf } from "../../test/support/code-of.ts";
import { APERTURE, MockClient } from "../../test/support/mock-client.ts";
import * as uapi from "../uapi/iommufd.ts";
import { IOMMU_HW_QUEUE_TYPE_SELFTEST } from "../uapi/vendor/mock.ts";
import { VeventQueue } from "./veventq.ts";

const { size: HEADER } = uapi.IommufdVeventHeader;
/** Bytes of an event in the tests below. */
const EVENT = 4;
const INTO = 0x30_0000;
const POLLIN = 1;

const NEST_PARENT = { flags: uapi.IOMMU_HWPT_ALLOC_NEST_PARENT };

let client: MockClient;
let viommu: number;
let ioas: number;
let parent: number;

beforeEach(() => {
  client = new MockClient();
  client.task.memory.map(INTO, 0x2000);
  ioas = client.ioas();
  const device = client.plug();
  parent = client.hwpt(device.bound.id, ioas, NEST_PARENT);
  viommu = client.viommu(device.bound.id, parent);
  return () => client.close();
});

interface ReadEvent {
  readonly sequence: number;
  /** undefined: the marker for lost events. */
  readonly data: number | undefined;
}

const readEvents = (fd: number, room: number): string | ReadEvent[] => {
  let count = 0;
  const code = codeOf(() => {
    count = client.task.readTo(fd, BigInt(INTO), room);
  });
  if (code) return code;
  const bytes = new Uint8Array(count);
  client.task.memory.read(BigInt(INTO), bytes);
  const events: ReadEvent[] = [];
  for (let at = 0; at < count; ) {
    const { flags, sequence } = uapi.IommufdVeventHeader.read(bytes.subarray(at));
    at += HEADER;
    const lost = (flags & uapi.IOMMU_VEVENTQ_FLAG_LOST_EVENTS) !== 0;
    const data = lost ? undefined : new DataView(bytes.buffer, at, EVENT).getUint32(0, true);
    if (!lost) at += EVENT;
    events.push({ sequence, data });
  }
  return events;
};

const queueOf = (id: number): VeventQueue => client.context.objects.get(id, VeventQueue, "queue");
const event = (value: number): Uint8Array => new Uint8Array(new Uint32Array([value]).buffer);

describe("an event queue", () => {
  it("is one of its type a vIOMMU, and keeps it and itself while its file is open", () => {
    const { out_veventq_id: id, out_veventq_fd: fd } = client.eventQueue(viommu, 2);
    expect(codeOf(() => client.eventQueue(viommu, 2))).toBe("EEXIST");
    expect(codeOf(() => client.destroy(id))).toBe("EBUSY");
    client.task.close(fd);
    expect(codeOf(() => client.destroy(viommu))).toBe("EBUSY");
    client.destroy(id);
    client.eventQueue(viommu, 2);
  });

  it("survives the iommufd file while its own is open", () => {
    const { out_veventq_fd: fd } = client.eventQueue(viommu, 2);
    client.task.close(client.fd);
    expect(client.iommufd.live()).toMatchObject({ files: 1 });
    expect(readEvents(fd, 64)).toEqual([]);
    client.task.close(fd);
    expect(client.iommufd.live()).toMatchObject({ files: 0, objects: 0 });
  });

  it("keeps an event that could not be copied out", () => {
    const { out_veventq_id: id, out_veventq_fd: fd } = client.eventQueue(viommu, 2);
    queueOf(id).event(event(5));
    expect(() => client.task.readTo(fd, 0x6666_0000n, 64)).toThrow("EFAULT");
    expect(readEvents(fd, 64)).toEqual([{ sequence: 0, data: 5 }]);
  });

  it("counts what it takes and what it loses, over random lives", () => {
    const step = fc.oneof(
      {
        weight: 3,
        arbitrary: fc.record({ what: fc.constant("event" as const), count: fc.integer({ min: 1, max: 4 }) }),
      },
      fc.record({ what: fc.constant("read" as const), room: fc.nat(40) }),
      fc.record({ what: fc.constant("lost below" as const) }),
    );
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 5 }), fc.array(step, { maxLength: 40 }), (depth, steps) => {
        const { out_veventq_id: id, out_veventq_fd: fd } = client.eventQueue(viommu, depth);
        const queue = queueOf(id);
        let held: ReadEvent[] = [];
        let lost: number | undefined;
        let sequence = 0;
        for (const given of steps) {
          if (given.what === "event") {
            for (let i = 0; i < given.count; i += 1, sequence += 1) {
              queue.event(event(sequence * 3));
              if (held.length < depth) {
                held = [...held, { sequence, data: sequence * 3 }];
                lost = undefined;
              } else lost = sequence;
            }
          } else if (given.what === "lost below") {
            queue.lost();
            lost = sequence;
            sequence += 1;
          } else {
            const all = lost === undefined ? held : [...held, { sequence: lost, data: undefined }];
            const fitting: ReadEvent[] = [];
            let left = given.room;
            for (const one of all) {
              const bytes = one.data === undefined ? HEADER : HEADER + EVENT;
              if (bytes > left) break;
              left -= bytes;
              fitting.push(one);
            }
            const none = given.room < HEADER || (all.length > 0 && fitting.length === 0);
            expect(readEvents(fd, given.room)).toEqual(none ? "EINVAL" : fitting);
            held = held.slice(fitting.length);
            if (fitting.at(-1)?.data === undefined && fitting.length > 0) lost = undefined;
          }
          expect((queue.file.poll() & POLLIN) !== 0).toBe(held.length > 0 || lost !== undefined);
        }
        client.task.close(fd);
        client.destroy(id);
      }),
      { numRuns: 150 },
    );
  });
});

const hwQueue = (index: number, address: bigint, length = 16n): number =>
  client.call(uapi.IOMMU_HW_QUEUE_ALLOC, uapi.IommuHwQueueAlloc, {
    viommu_id: viommu,
    type: IOMMU_HW_QUEUE_TYPE_SELFTEST,
    index,
    nesting_parent_iova: address,
    length,
  }).out_hw_queue_id;

describe("a hardware queue", () => {
  it("holds its memory in place: nothing of its areas can be unmapped until it is destroyed", () => {
    client.map(ioas, Number(APERTURE), 1);
    client.map(ioas, Number(APERTURE) + 0x1000, 1, { from: 1 });
    const queue = hwQueue(0, APERTURE + 0x800n);
    expect(codeOf(() => client.unmap(ioas, APERTURE, 0x1000n))).toBe("EBUSY");
    expect(client.unmap(ioas, APERTURE + 0x1000n, 0x1000n)).toBe(0x1000n);
    expect(codeOf(() => client.destroy(viommu))).toBe("EBUSY");
    client.destroy(queue);
    expect(client.unmap(ioas, APERTURE, 0x1000n)).toBe(0x1000n);
  });

  it("is made in order and once, of memory that is mapped; what fails holds nothing", () => {
    client.map(ioas, Number(APERTURE), 4);
    expect(codeOf(() => hwQueue(1, APERTURE))).toBe("EIO");
    expect(codeOf(() => hwQueue(0, APERTURE + 0x4000n))).toBe("ENOENT");
    expect(codeOf(() => hwQueue(0, APERTURE, 0n))).toBe("EINVAL");
    expect(codeOf(() => hwQueue(0, APERTURE, 2n ** 64n - 1n))).toBe("EOVERFLOW");
    hwQueue(0, APERTURE);
    expect(codeOf(() => hwQueue(0, APERTURE))).toBe("EEXIST");
    hwQueue(1, APERTURE);
    expect(client.iommufd.live().pinnedPages).toBe(4);
  });

  it("takes the number behind its own for the access that pins its memory; nobody can destroy that", () => {
    client.map(ioas, Number(APERTURE), 4);
    const queue = hwQueue(0, APERTURE);
    expect(client.ioas()).toBe(queue + 2);
    expect(codeOf(() => client.destroy(queue + 1))).toBe("EBUSY");
    client.destroy(queue);
    expect([client.ioas(), client.ioas()]).toEqual([queue, queue + 1]);
  });
});
