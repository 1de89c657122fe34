/** Fault queues against a list of groups and a list of cookies. */
import fc from "fast-check";
import { beforeEach, describe, expect, it } from "vitest";
import { ModelHost } from "../../test/support/model-host.ts";
import type { PageResponse } from "../iommu/driver.ts";
import { ModelTask } from "../kernel/model-task.ts";
import type { LinuxError } from "../uapi/errno.ts";
import { IommuHwptPageResponse, IommuHwptPgfault } from "../uapi/iommufd.ts";
import { IommufdContext } from "./context.ts";
import { FaultQueue } from "./fault-queue.ts";
import { IommufdSubsystem } from "./file.ts";
import { Ioas } from "./ioas.ts";

const AT = 0x10_0000;
const { size: FAULT } = IommuHwptPgfault;
const { size: RESPONSE } = IommuHwptPageResponse;
const POLLIN = 1;

class Rig {
  readonly host = new ModelHost();
  readonly iommufd = new IommufdSubsystem(this.host);
  readonly context = new IommufdContext(this.iommufd.system, "iommufd");
  readonly task = new ModelTask(this.host.memory);
  readonly queue = this.context.add(new FaultQueue(this.context));
  readonly fd: number;
  /** What stands for two devices. */
  readonly devices = [this.context.add(new Ioas(this.context)), this.context.add(new Ioas(this.context))];
  /** Answers by the number of the report. */
  readonly answers = new Map<number, PageResponse["code"]>();
  #reports = 0;

  constructor() {
    this.task.memory.map(AT, 0x4000);
    this.queue.users += 1;
    this.context.keep();
    this.fd = this.task.place(this.queue.file);
  }

  /** The number of the report. */
  report(device: number, requests: number, pasid?: number): number {
    const report = this.#reports;
    this.#reports += 1;
    this.queue.report({
      device: this.devices[device]!,
      pasid,
      group: {
        device: { name: "device", rid: device },
        pasid,
        number: report % 512,
        requests: Array.from({ length: requests }, (_, i) => ({
          group: report % 512,
          last: i === requests - 1,
          address: BigInt(i) * 0x1000n,
          permissions: 2,
          ...(pasid !== undefined && { pasid }),
        })),
        respond: (code) => {
          if (this.answers.has(report)) throw new Error(`report ${report} is answered twice`);
          this.answers.set(report, code);
        },
      },
    });
    return report;
  }

  /** Errno, or what the faults say. */
  read(length: number): string | { cookie: number; grpid: number }[] {
    try {
      const count = this.task.readTo(this.fd, BigInt(AT), length);
      return Array.from({ length: count / FAULT }, (_, i) => {
        const bytes = new Uint8Array(FAULT);
        this.task.memory.read(BigInt(AT + i * FAULT), bytes);
        const { cookie, grpid } = IommuHwptPgfault.read(bytes);
        return { cookie, grpid };
      });
    } catch (error) {
      return (error as LinuxError).code;
    }
  }

  respond(...responses: { readonly cookie: number; readonly code: number }[]): string | number {
    responses.forEach((one, i) => {
      this.task.memory.poke(AT + i * RESPONSE, IommuHwptPageResponse.bytes(one));
    });
    try {
      return this.task.writeFrom(this.fd, BigInt(AT), responses.length * RESPONSE);
    } catch (error) {
      return (error as LinuxError).code;
    }
  }

  get readable(): boolean {
    return (this.queue.file.poll() & POLLIN) !== 0;
  }

  close(): void {
    this.task.exit();
    this.context.release();
    expect(this.iommufd.live()).toEqual({ files: 0, objects: 0, areas: 0, pinnedPages: 0 });
    this.host.memory.close();
  }
}

describe("a fault queue", () => {
  let rig: Rig;
  beforeEach(() => {
    rig = new Rig();
    return () => rig.close();
  });

  it("gives groups out whole: EINVAL when not even the first fits, ESPIPE for parts of a fault", () => {
    rig.report(0, 3);
    rig.report(1, 1, 9);
    expect(rig.readable).toBe(true);
    expect([rig.read(FAULT * 2), rig.read(FAULT * 3 + 1)]).toEqual(["EINVAL", "ESPIPE"]);
    expect(rig.read(FAULT * 3)).toEqual([0, 0, 0].map((grpid) => ({ cookie: 1, grpid })));
    expect(rig.read(FAULT * 3)).toEqual([{ cookie: 2, grpid: 1 }]);
    expect([rig.readable, rig.read(FAULT)]).toEqual([false, []]);
  });

  it("takes answers up to the first that is not valid, and tells how many bytes that were", () => {
    for (let i = 0; i < 3; i += 1) rig.report(0, 1);
    rig.read(FAULT * 3);
    expect(rig.respond({ cookie: 2, code: 0 }, { cookie: 9, code: 0 }, { cookie: 1, code: 0 })).toBe(
      RESPONSE,
    );
    expect(rig.respond({ cookie: 1, code: 7 })).toBe("EINVAL");
    expect(rig.respond({ cookie: 2, code: 0 })).toBe("EINVAL");
    expect(rig.respond({ cookie: 1, code: 1 }, { cookie: 3, code: 0 })).toBe(2 * RESPONSE);
    expect([...rig.answers]).toEqual([
      [1, "success"],
      [0, "invalid"],
      [2, "success"],
    ]);
  });

  it("keeps a group that could not be copied out, with nothing given to it", () => {
    rig.report(0, 1);
    expect(() => rig.task.readTo(rig.fd, 0x6666_0000n, FAULT)).toThrow("EFAULT");
    expect(rig.read(FAULT)).toEqual([{ cookie: 1, grpid: 0 }]);
  });

  it("answers what waits when its file is closed, and refuses what a device asks beyond its room", () => {
    for (let i = 0; i < 65_536; i += 1) rig.report(0, 1);
    expect(rig.answers.size).toBe(0);
    const beyond = rig.report(1, 1);
    expect(rig.answers.get(beyond)).toBe("invalid");
    rig.task.close(rig.fd);
    expect(rig.answers.size).toBe(65_537);
    expect(rig.answers.get(rig.report(1, 1)), "nobody can read it any more").toBe("invalid");
  });

  it("answers every group once, and gives out the lowest free cookies, over random lives", () => {
    const step = fc.oneof(
      fc.record({
        what: fc.constant("report" as const),
        device: fc.constantFrom(0, 1),
        requests: fc.integer({ min: 1, max: 3 }),
        pasid: fc.constantFrom(undefined, 4),
      }),
      fc.record({ what: fc.constant("read" as const), room: fc.integer({ min: 1, max: 8 }) }),
      fc.record({
        what: fc.constant("respond" as const),
        cookie: fc.integer({ min: 1, max: 8 }),
        code: fc.constantFrom(0, 1),
      }),
      fc.record({
        what: fc.constant("leave" as const),
        device: fc.constantFrom(0, 1),
        pasid: fc.constantFrom(undefined, 4),
      }),
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const one = new Rig();
        type Waiting = { report: number; device: number; pasid: number | undefined; requests: number };
        let pending: Waiting[] = [];
        const outstanding = new Map<number, Waiting>();
        const answers = new Map<number, string>();
        for (const given of steps) {
          if (given.what === "report") {
            const { device, requests, pasid } = given;
            pending.push({ report: one.report(device, requests, pasid), device, pasid, requests });
          } else if (given.what === "read") {
            const expected: { cookie: number; grpid: number }[] = [];
            const tooLarge = pending[0] && pending[0].requests > given.room;
            for (
              let next = pending[0];
              next && next.requests + expected.length <= given.room;
              next = pending[0]
            ) {
              let cookie = 1;
              while (outstanding.has(cookie)) cookie += 1;
              outstanding.set(cookie, next);
              for (let i = 0; i < next.requests; i += 1) expected.push({ cookie, grpid: next.report });
              pending.shift();
            }
            expect(one.read(given.room * FAULT)).toEqual(tooLarge ? "EINVAL" : expected);
          } else if (given.what === "respond") {
            const waiting = outstanding.get(given.cookie);
            expect(one.respond(given)).toBe(waiting ? RESPONSE : "EINVAL");
            if (waiting) answers.set(waiting.report, given.code === 0 ? "success" : "invalid");
            outstanding.delete(given.cookie);
          } else {
            const gone = (group: Waiting) => group.device === given.device && group.pasid === given.pasid;
            one.queue.answer((g) => g.device === one.devices[given.device] && g.pasid === given.pasid);
            for (const [cookie, group] of [...outstanding])
              if (gone(group)) {
                answers.set(group.report, "invalid");
                outstanding.delete(cookie);
              }
            for (const group of pending.filter(gone)) answers.set(group.report, "invalid");
            pending = pending.filter((group) => !gone(group));
          }
          expect(new Map([...one.answers].sort())).toEqual(new Map([...answers].sort()));
          expect(one.readable).toBe(pending.length > 0);
        }
        one.close();
      }),
      { numRuns: 150 },
    );
  });
});
