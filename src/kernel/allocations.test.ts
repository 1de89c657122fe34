import { beforeEach, describe, expect, it } from "vitest";
import { Random } from "../base/clock.ts";
import { createMemory } from "../memory/banks.ts";
import { Allocations, allocate, allocateAtomic, allocatePages } from "./allocations.ts";
import { type KernelFile, Restart, type Task } from "./call.ts";
import { FaultAttributes, parseNumber } from "./fault-attributes.ts";
import { debugFiles, FaultInjection } from "./fault-injection.ts";
import { ModelTask } from "./model-task.ts";

const one = { pid: 1, tid: 1 };
const other = { pid: 1, tid: 2 };
const failed = expect.objectContaining({ code: "ENOMEM" });

describe("fail-nth", () => {
  let allocations: Allocations;
  beforeEach(() => {
    allocations = new Allocations();
  });
  /** How many allocations of a call succeed. */
  const countOf = (task: Pick<Task, "pid" | "tid">, most = 10): number => {
    let done = 0;
    try {
      allocations.run(task, () => {
        for (; done < most; done += 1) allocate("something");
      });
    } catch (error) {
      expect(error).toEqual(failed);
    }
    return done;
  };

  it("fails the n-th allocation of the task's calls, once, whatever calls they are in", () => {
    allocations.arm(one, 5);
    expect(countOf(one, 3)).toBe(3);
    expect(allocations.remaining(one)).toBe(2);
    expect(countOf(one, 3)).toBe(1);
    expect(allocations.remaining(one)).toBe(0);
    expect(countOf(one)).toBe(10);
  });

  it("counts nothing of other tasks, of callers that are nobody, and of a call within which it is not asked for", () => {
    allocations.arm(one, 1);
    expect(countOf(other)).toBe(10);
    expect(countOf({ pid: 2, tid: 1 })).toBe(10);
    allocate("outside of any call");
    expect(allocations.run(one, () => countOf(other))).toBe(10);
    expect(countOf(one)).toBe(0);
  });

  it("counts objects, runs of frames and what cannot wait alike", () => {
    allocations.arm(one, 3);
    const call = () =>
      allocations.run(one, () => {
        allocate("an object");
        allocatePages(1);
        allocateAtomic("an event");
      });
    expect(call).toThrow(failed);
    expect(call).not.toThrow();
  });

  it("counts a call that comes again from its start once", () => {
    allocations.arm(one, 2);
    expect(() =>
      allocations.run(one, () => {
        allocate("first");
        throw new Restart({ id: 1, giveUp() {} }, []);
      }),
    ).toThrow(Restart);
    expect(allocations.remaining(one)).toBe(2);
  });

  it("is disarmed by 0 and forgotten with the process", () => {
    allocations.arm(one, 1);
    allocations.arm(one, 0);
    expect(countOf(one)).toBe(10);
    allocations.arm(one, 1);
    allocations.mark(other, true);
    allocations.forget(1);
    expect([allocations.remaining(one), allocations.marked(other)]).toEqual([0, false]);
  });

  it("does not reach what a capability's own switches leave out", () => {
    allocations.slab.ignoreWait.store("Y");
    allocations.pages.minOrder.store("1");
    allocations.arm(one, 1);
    expect(countOf(one)).toBe(10);
    allocations.run(one, () => allocatePages(1));
    expect(() => allocations.run(one, () => allocatePages(2))).toThrow(failed);
    allocations.arm(one, 1);
    expect(() => allocations.run(one, () => allocateAtomic("an event"))).toThrow(failed);
    allocations.slab.ignoreWait.store("N");
    allocations.slab.cacheFilter.store("Y");
    allocations.arm(one, 1);
    expect(countOf(one)).toBe(10);
  });
});

describe("chance", () => {
  const sure = (): FaultAttributes => {
    const attributes = new FaultAttributes("slab", new Random(1));
    attributes.probability.store("100");
    attributes.times.store("-1");
    return attributes;
  };
  const pattern = (attributes: FaultAttributes, count: number, chosen = false, size = 1): string =>
    Array.from({ length: count }, () => (attributes.decide(size, chosen) ? "x" : ".")).join("");

  it("is nothing while the probability is 0, and once when `times` is not set", () => {
    const attributes = new FaultAttributes("slab", new Random(1));
    expect(pattern(attributes, 5)).toBe(".....");
    attributes.probability.store("100");
    expect(pattern(attributes, 5)).toBe("x....");
    expect(attributes.times.show()).toBe("0\n");
  });

  it("every interval-th of those that pass, after a budget of `space`", () => {
    const attributes = sure();
    attributes.interval.store("3");
    expect(pattern(attributes, 7)).toBe("..x..x.");
    const budget = sure();
    budget.space.store("10");
    expect(pattern(budget, 6, false, 4)).toBe("..xxxx");
    expect(budget.space.show()).toBe("2\n");
  });

  it("only of marked tasks with a filter; nothing where a caller on the stack is required", () => {
    const attributes = sure();
    attributes.taskFilter.store("Y");
    expect([pattern(attributes, 2), pattern(attributes, 2, true)]).toEqual(["..", "xx"]);
    attributes.requireEnd.store("0xffffffff81000000");
    expect(pattern(attributes, 2, true)).toBe("..");
  });

  it("about as often as the probability says", () => {
    const attributes = sure();
    attributes.probability.store("25");
    const failures = [...pattern(attributes, 4000)].filter((each) => each === "x").length;
    expect(failures).toBeGreaterThan(850);
    expect(failures).toBeLessThan(1150);
  });

  it("reaches calls of every task", () => {
    const allocations = new Allocations();
    allocations.slab.probability.store("100");
    expect(() => allocations.run(one, () => allocate("something"))).toThrow(failed);
    expect(() => allocations.run(one, () => allocate("something"))).not.toThrow();
  });
});

describe("texts", () => {
  it("numbers are those of kstrtoull: three bases, a sign, one newline", () => {
    for (const [text, value] of [
      ["7", 7n],
      ["0\n", 0n],
      ["0x1F", 31n],
      ["017", 15n],
      ["+3", 3n],
    ] as const)
      expect(parseNumber(text, 0n, 100n)).toBe(value);
    expect(parseNumber("-1", -5n, 5n)).toBe(-1n);
    for (const text of ["", " 1", "1 ", "1\n\n", "x", "0x", "08", "-1", "1.5"])
      expect(() => parseNumber(text, 0n, 100n)).toThrow("EINVAL");
    expect(() => parseNumber("101", 0n, 100n)).toThrow("ERANGE");
  });

  it("switches are those of kstrtobool", () => {
    const { taskFilter } = new FaultAttributes("slab", new Random(1));
    for (const text of ["Y", "y\n", "1", "on", "True"]) {
      taskFilter.store(text);
      expect(taskFilter.show()).toBe("Y\n");
      taskFilter.store("off");
      expect(taskFilter.show()).toBe("N\n");
    }
    for (const text of ["", "2", "o", "?"]) expect(() => taskFilter.store(text)).toThrow("EINVAL");
  });

  it("a depth beyond what a walk looks at is the most it looks at", () => {
    const depth = new FaultAttributes("slab", new Random(1)).files.get("stacktrace-depth")!;
    depth.store("1000");
    expect(depth.show()).toBe("32\n");
  });
});

describe("the files", () => {
  const memory = createMemory({ ramBytes: 2 ** 24 });
  const allocations = new Allocations();
  const task = new ModelTask(memory, { allocations });
  const faults = new FaultInjection(allocations, ({ pid, tid }) => pid === task.pid && tid < task.pid + 2);
  const open = (path: string, flags = 2): number => task.open(faults.node(path, task)!, flags);
  const text = (fd: number): string => {
    const into = new Uint8Array(32);
    return Buffer.from(into.subarray(0, task.pread(fd, 0n, into))).toString();
  };

  it("all of debugfs can be opened and read", () => {
    const paths = debugFiles(allocations);
    expect(paths).toContain("/sys/kernel/debug/failslab/cache-filter");
    expect(paths).toContain("/sys/kernel/debug/fail_page_alloc/min-order");
    for (const path of paths) expect(text(open(path))).toMatch(/^(-?[0-9]+|[YN]|0x[0-9a-f]{16})\n$/);
    expect(faults.node("/sys/kernel/debug/failslab/other", task)).toBeUndefined();
    expect(faults.node("/proc/self/status", task)).toBeUndefined();
  });

  it("every path of a task's file leads to the same", () => {
    const { pid, tid } = task;
    task.write(open(`/proc/self/task/${tid}/fail-nth`), Buffer.from("9"));
    for (const path of [
      "/proc/self/fail-nth",
      "/proc/thread-self/fail-nth",
      `/proc/${pid}/task/${tid}/fail-nth`,
    ])
      expect(text(open(path))).toBe("9\n");
    expect(text(open(`/proc/self/task/${tid + 1}/fail-nth`))).toBe("0\n");
    expect(() => open("/proc/1/fail-nth")).toThrow("ENOENT");
  });

  it("reads move the position, writes do not; seeking sets it", () => {
    const fd = open("/proc/thread-self/make-it-fail");
    const file = task.kernelFile(fd) as Required<Pick<KernelFile, "seek">>;
    const into = new Uint8Array(1);
    expect([task.read(fd, into), file.seek(0n, 1)]).toEqual([1, 1]);
    task.write(fd, Buffer.from("1\n"));
    expect([task.read(fd, into), task.read(fd, into), file.seek(0n, 0)]).toEqual([1, 0, 0]);
    expect(() => file.seek(0n, 2)).toThrow("EINVAL");
    expect(() => file.seek(-1n, 0)).toThrow("EINVAL");
    expect(text(fd)).toBe("1\n");
  });

  it("EBADF against how it was opened, EINVAL for what is no value", () => {
    const path = "/sys/kernel/debug/failslab/interval";
    expect(() => task.write(open(path, 0), Buffer.from("1"))).toThrow("EBADF");
    expect(() => text(open(path, 1))).toThrow("EBADF");
    expect(() => task.write(open(path), Buffer.alloc(65, "1"))).toThrow("EINVAL");
    expect(() => task.write(open("/proc/self/make-it-fail"), Buffer.from("2"))).toThrow("EINVAL");
    expect(() => task.write(open("/proc/self/fail-nth"), Buffer.from("4294967296"))).toThrow("ERANGE");
  });
});
