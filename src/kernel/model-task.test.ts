import { afterAll, beforeEach, describe, expect, it } from "vitest";
import { createMemory } from "../memory/banks.ts";
import { LinuxError } from "../uapi/errno.ts";
import { type Call, type Continuation, type KernelFile, type Pin, SUSPENDED } from "./call.ts";
import { ModelTask } from "./model-task.ts";

const VA = 0x1_0000_0000;

/** A file whose ioctl is given, and that counts how often it was closed. */
const file = (ioctl: NonNullable<KernelFile["ioctl"]>): KernelFile & { closed: number } => ({
  kind: "test",
  name: "test file",
  closed: 0,
  ioctl,
  close() {
    this.closed += 1;
  },
});

describe("a modelled process", () => {
  const memory = createMemory({ ramBytes: 8 * 2 ** 20 });
  afterAll(() => memory.close());
  let task: ModelTask;
  beforeEach(() => {
    task = new ModelTask(memory);
  });

  it("bytes given to ioctl lie in its memory during the call and come back", () => {
    const fd = task.place(
      file((call, request, at) => {
        const bytes = new Uint8Array(4);
        call.memory.read(at, bytes);
        call.memory.write(at, bytes.reverse());
        return request;
      }),
    );
    const bytes = Uint8Array.of(1, 2, 3, 4);
    expect(task.ioctl(fd, 0x3b64, bytes)).toBe(0x3b64);
    expect([...bytes]).toEqual([4, 3, 2, 1]);
  });

  it("a descriptor that is not open is EBADF; a duplicate keeps the file open", () => {
    const one = file(() => 7);
    const fd = task.place(one);
    const copy = task.dup(fd);
    task.close(fd);
    expect(() => task.ioctl(fd, 0)).toThrow(expect.objectContaining({ code: "EBADF" }));
    expect(task.ioctl(copy, 0)).toBe(7);
    expect(one.closed).toBe(0);
    task.close(copy);
    expect(one.closed).toBe(1);
  });

  it("a passed descriptor outlives the process that passed it", () => {
    const other = new ModelTask(memory);
    const one = file(() => 7);
    const received = task.pass(task.place(one), other);
    task.exit();
    expect(other.ioctl(received, 0)).toBe(7);
    other.exit();
    expect(one.closed).toBe(1);
  });

  it("a file installed by a call that succeeds gets a descriptor; by one that fails it is closed", () => {
    const made = file(() => 5);
    const fd = task.place(file((call) => call.install(made)));
    expect(task.ioctl(task.ioctl(fd, 0), 0)).toBe(5);
    const lost = file(() => 5);
    const failing = task.place(
      file((call) => {
        call.install(lost);
        throw new LinuxError("EIO", "on purpose");
      }),
    );
    expect(() => task.ioctl(failing, 0)).toThrow(expect.objectContaining({ code: "EIO" }));
    expect(lost.closed).toBe(1);
  });

  it("with `at` the number is written there; beyond RLIMIT_NOFILE it is EMFILE and the file is closed", () => {
    const few = new ModelTask(memory, { files: 2 });
    const made: ReturnType<typeof file>[] = [];
    const fd = few.place(
      file((call, _request, at) => {
        made.push(file(() => 0));
        call.install(made.at(-1)!, { at });
        return 0;
      }),
    );
    const bytes = new Uint8Array(4);
    expect(few.ioctl(fd, 0, bytes)).toBe(0);
    expect(new Int32Array(bytes.buffer)[0]).toBe(4);
    expect(() => few.ioctl(fd, 0, bytes)).toThrow(expect.objectContaining({ code: "EMFILE" }));
    expect(made.map(({ closed }) => closed)).toEqual([0, 1]);
    few.exit();
  });

  it("a call that suspends waits, is resumed or failed, and is cancelled when the caller dies", () => {
    const waiting: Continuation[] = [];
    let cancelled = 0;
    const fd = task.place(
      file((call) => {
        waiting.push(call.suspend(() => cancelled++));
        return SUSPENDED;
      }),
    );
    const [first, second, third] = [task.start(fd, 0), task.start(fd, 0), task.start(fd, 0)];
    expect(first.settled).toBe(false);
    waiting[0]!.resume(9);
    expect(first.result()).toBe(9);
    waiting[1]!.fail(new LinuxError("ETIMEDOUT", "too late"));
    expect(() => second.result()).toThrow(expect.objectContaining({ code: "ETIMEDOUT" }));
    task.exit();
    expect(cancelled).toBe(1);
    expect(waiting[2]!.settled).toBe(true);
    waiting[2]!.resume(1);
    expect(() => third.result()).toThrow(expect.objectContaining({ code: "EINTR" }));
  });

  it("private memory is adopted once, then the call runs again from the start", () => {
    task.memory.map(VA, 8192, { private: true });
    const pins: Pin[] = [];
    let runs = 0;
    const fd = task.place(
      file((call) => {
        runs += 1;
        pins.push(call.memory.pin(VA, 8192, true));
        return 0;
      }),
    );
    task.ioctl(fd, 0);
    expect([runs, task.memory.adoptions]).toEqual([2, 1]);
    task.ioctl(fd, 0);
    expect([runs, task.memory.adoptions]).toEqual([3, 1]);
    for (const pin of pins) pin.unpin(0, pin.pages);
  });

  it("pinned frames outlive the mapping and the process, until the last page is unpinned", () => {
    const before = memory.allocated;
    const owner = new ModelTask(memory);
    owner.memory.map(VA, 3 * 4096);
    owner.memory.write(BigInt(VA), Uint8Array.of(42));
    const pin = owner.memory.pin(VA, 3 * 4096, true);
    owner.memory.map(VA, 3 * 4096);
    owner.exit();
    const byte = new Uint8Array(1);
    memory.readBytes(pin.extents[0]! * 4096, byte);
    expect(byte[0]).toBe(42);
    expect(memory.allocated - before).toBe(3);
    pin.unpin(0, 1);
    pin.unpin(1, 2);
    expect(memory.allocated).toBe(before);
    expect(() => pin.unpin(0, 1)).toThrow("twice");
  });

  it("contiguous pages lie together, and go back together when the last of them is unpinned", () => {
    const before = memory.allocated;
    const owner = new ModelTask(memory);
    owner.memory.map(0x40_0000, 8 * 4096, { contiguous: true });
    const pa = owner.memory.physical(0x40_0000);
    for (let page = 1; page < 8; page += 1)
      expect(owner.memory.physical(0x40_0000 + page * 4096)).toBe(pa + page * 4096);
    const pin = owner.memory.pin(0x40_3000, 4096, true);
    owner.exit();
    expect(memory.allocated).toBe(before + 8);
    pin.unpin(0, 1);
    expect(memory.allocated).toBe(before);
  });

  it("EFAULT for what is not mapped, read-only or beyond 47 bits, without effect", () => {
    task.memory.map(VA, 8192);
    task.memory.protect(VA + 4096, 4096, false);
    const failing: ((memory: Call["memory"]) => void)[] = [
      (m) => m.write(BigInt(VA + 4095), new Uint8Array(2)),
      (m) => m.read(BigInt(VA + 8191), new Uint8Array(2)),
      (m) => m.read(2n ** 64n - 1n, new Uint8Array(1)),
      (m) => m.pin(VA, 8192, true),
      (m) => m.pin(VA, 12288, false),
      (m) => m.pin(2 ** 64 - 4096, 4096, false),
    ];
    for (const access of failing)
      expect(() => access(task.memory)).toThrow(expect.objectContaining({ code: "EFAULT" }));
    task.memory.pin(VA, 8192, false).unpin(0, 2);
  });

  it("what a file or its memory cannot do is refused as the kernel does", () => {
    const plain = task.place(file(() => 0));
    const bytes = new Uint8Array(4);
    expect(() => task.read(plain, bytes)).toThrow(expect.objectContaining({ code: "EINVAL" }));
    expect(() => task.write(plain, bytes)).toThrow(expect.objectContaining({ code: "EINVAL" }));
    expect(() => task.pread(plain, 0n, bytes)).toThrow(expect.objectContaining({ code: "ESPIPE" }));
    expect(() => task.pwrite(plain, 0n, bytes)).toThrow(expect.objectContaining({ code: "ESPIPE" }));
    const still = task.place({ kind: "test", name: "still", close() {} });
    expect(() => task.ioctl(still, 0)).toThrow(expect.objectContaining({ code: "ENOTTY" }));
    for (const wrong of [() => task.dup(99), () => task.close(99), () => task.kernelFile(99)])
      expect(wrong).toThrow(expect.objectContaining({ code: "EBADF" }));
    expect(() => task.counter(plain)).toThrow("no eventfd");
    expect(() => task.memory.protect(VA, 4096, false)).toThrow(expect.objectContaining({ code: "ENOMEM" }));
    expect(() => task.memory.poke(VA, bytes)).toThrow(expect.objectContaining({ code: "EFAULT" }));
    expect(() => task.memory.map(VA + 1, 4096)).toThrow(RangeError);
  });

  it("a frame that is lost is EFAULT; memory that is full is ENOMEM", () => {
    const small = createMemory({ ramBytes: 2 ** 20 });
    const own = new ModelTask(small);
    own.memory.map(VA, 4096);
    small.poison(own.memory.physical(VA), 4096);
    expect(() => own.memory.read(BigInt(VA), new Uint8Array(1))).toThrow(
      expect.objectContaining({ code: "EFAULT" }),
    );
    expect(() => own.memory.map(VA, 2 ** 20)).toThrow(expect.objectContaining({ code: "ENOMEM" }));
    small.close();
  });

  it("a descriptor for mapping is given to the call; anything else is EINVAL, and nothing EBADF", () => {
    const backing = {
      size: 4096,
      writable: true,
      pin: () => task.memory.pin(VA, 4096, true),
      close: () => {},
    };
    const fd = task.place(file((call, _request, argument) => call.backing(Number(argument)).size));
    expect(task.ioctl(fd, 0, task.backing(backing))).toBe(4096);
    expect(() => task.ioctl(fd, 0, task.eventfd())).toThrow(expect.objectContaining({ code: "EINVAL" }));
    expect(() => task.ioctl(fd, 0, 99)).toThrow(expect.objectContaining({ code: "EBADF" }));
  });

  it("a call that still waits has no result", () => {
    let continuation: Continuation | undefined;
    const fd = task.place(
      file((call) => {
        continuation = call.suspend(() => {});
        return SUSPENDED;
      }),
    );
    expect(() => task.start(fd, 0).result()).toThrow("waits");
    continuation!.resume(0);
  });

  it("threads share memory and process, not descriptors; the death of one leaves the memory", () => {
    const thread = new ModelTask(memory, { shares: task, tid: 77 });
    expect([thread.pid, thread.tid, thread.memory]).toEqual([task.pid, 77, task.memory]);
    task.memory.map(VA, 4096);
    thread.exit();
    task.memory.read(BigInt(VA), new Uint8Array(1));
  });

  it("an eventfd counts; anything else is EINVAL, and nothing EBADF", () => {
    const eventfd = task.eventfd();
    const other = task.place(file(() => 0));
    const fd = task.place(
      file((call, _request, argument) => {
        const taken = call.eventfd(Number(argument));
        taken.signal();
        taken.close();
        taken.signal();
        return 0;
      }),
    );
    task.ioctl(fd, 0, eventfd);
    task.ioctl(fd, 0, eventfd);
    expect(task.counter(eventfd).take()).toBe(2);
    expect(task.counter(eventfd).held).toBe(0);
    expect(() => task.ioctl(fd, 0, other)).toThrow(expect.objectContaining({ code: "EINVAL" }));
    expect(() => task.ioctl(fd, 0, 99)).toThrow(expect.objectContaining({ code: "EBADF" }));
  });
});
