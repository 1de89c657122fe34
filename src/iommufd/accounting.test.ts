import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ModelHost } from "../../test/support/model-host.ts";
import { Capability } from "../kernel/call.ts";
import { ModelTask, type ModelTaskOptions } from "../kernel/model-task.ts";
import { type AccountMode, type Payer, UserPins } from "./accounting.ts";
import { contextOf, IommufdSubsystem } from "./file.ts";

const LIMIT = 8;

let host: ModelHost;
let iommufd: IommufdSubsystem;
beforeEach(() => {
  host = new ModelHost();
  iommufd = new IommufdSubsystem(host);
});
afterEach(() => host.memory.close());

const taskOf = (options: ModelTaskOptions = {}): ModelTask =>
  new ModelTask(host.memory, { uid: 5, memlock: LIMIT * 4096, ...options });

/** Who pays for what the task maps through a file of its own. */
const payerOf = (task: ModelTask, mode: AccountMode = "user"): Payer => {
  const context = contextOf(task.file(task.open(iommufd.node)))!;
  context.accountMode = mode;
  return context.payer(task);
};
const counts = ({ memory }: ModelTask) => ({ VmPin: memory.pinnedPages, VmLck: memory.lockedPages });
const beyond = expect.objectContaining({ code: "ENOMEM" });

describe("pages of a user", () => {
  it("count as pinned of their process, against the limit of all processes of the user", () => {
    const [first, second, other] = [taskOf(), taskOf(), taskOf({ uid: 6 })];
    payerOf(first).charge(6);
    expect(() => payerOf(second).charge(3)).toThrow(beyond);
    payerOf(second).charge(2);
    payerOf(other).charge(LIMIT);
    expect([first, second, other].map(counts)).toEqual([
      { VmPin: 6, VmLck: 0 },
      { VmPin: 2, VmLck: 0 },
      { VmPin: LIMIT, VmLck: 0 },
    ]);
  });

  it("do not compete with what a process locks itself", () => {
    const task = taskOf();
    task.mlocked = LIMIT;
    payerOf(task).charge(LIMIT);
    expect(() => payerOf(task).charge(1)).toThrow(beyond);
  });
});

describe("pages of a process", () => {
  it("count as pinned and as locked, against its own limit", () => {
    const [first, second] = [taskOf(), taskOf()];
    payerOf(first, "process").charge(LIMIT);
    payerOf(second, "process").charge(LIMIT);
    expect(() => payerOf(first, "process").charge(1)).toThrow(beyond);
    expect(counts(first)).toEqual({ VmPin: LIMIT, VmLck: LIMIT });
    payerOf(first, "process").refund(LIMIT);
    expect(counts(first)).toEqual({ VmPin: 0, VmLck: 0 });
  });

  it("compete with what it locks itself, and what VFIO locks of it", () => {
    const task = taskOf();
    task.mlocked = 3;
    task.memory.lockedPages = 2;
    expect(() => payerOf(task, "process").charge(LIMIT - 4)).toThrow(beyond);
    payerOf(task, "process").charge(LIMIT - 5);
  });
});

describe("CAP_IPC_LOCK", () => {
  it("at the time of mapping frees from every charge, but not from being counted as pinned", () => {
    for (const mode of ["user", "process"] as const) {
      const task = taskOf({ capabilities: [Capability.ipcLock] });
      payerOf(task, mode).charge(LIMIT + 1);
      expect(counts(task)).toEqual({ VmPin: LIMIT + 1, VmLck: 0 });
    }
  });
});

describe("pages that are handed over", () => {
  it("go in the same way to the process that takes them", () => {
    const [from, to] = [taskOf(), taskOf()];
    const payer = payerOf(from, "process");
    payer.charge(5);
    payer.handOver(5, payer.successor(to));
    expect([counts(from), counts(to)]).toEqual([
      { VmPin: 0, VmLck: 0 },
      { VmPin: 5, VmLck: 5 },
    ]);
  });

  it("are charged to a user once, whichever of his processes has them", () => {
    const [from, to] = [taskOf(), taskOf()];
    const payer = payerOf(from);
    payer.charge(LIMIT);
    payer.handOver(LIMIT, payer.successor(to));
    expect([counts(from).VmPin, counts(to).VmPin]).toEqual([0, LIMIT]);
    expect(() => payerOf(from).charge(1)).toThrow(beyond);
  });

  it("stay where they are when they are beyond the other's limit, and come back as they went", () => {
    const [from, poor, rich] = [taskOf(), taskOf({ memlock: 0 }), taskOf()];
    const payer = payerOf(from, "process");
    payer.charge(5);
    expect(() => payer.handOver(5, payer.successor(poor))).toThrow(beyond);
    const other = payer.successor(rich);
    payer.handOver(5, other);
    from.memlock = 0;
    payer.takeBack(5, other);
    expect([from, poor, rich].map(counts)).toEqual([
      { VmPin: 5, VmLck: 5 },
      { VmPin: 0, VmLck: 0 },
      { VmPin: 0, VmLck: 0 },
    ]);
  });
});

it("the pins of all users sum up, charged or not", () => {
  const users = new UserPins();
  users.add(1, 4);
  users.add(1, -4);
  expect([users.of(1), users.total]).toEqual([0, 0]);
  payerOf(taskOf({ capabilities: [Capability.ipcLock] })).charge(3);
  expect(iommufd.live().pinnedPages).toBe(3);
});
