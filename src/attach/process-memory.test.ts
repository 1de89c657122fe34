/**
 * Client memory under the real server: C programs (testing/memory-client.c) pin through a device node whose "device"
 * reads and writes the pinned frames, and check that their own view stays what Linux promises.
 */
import { spawn, spawnSync } from "node:child_process";
import { fstatSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ManualClock } from "../base/clock.ts";
import { silent } from "../base/events.ts";
import { WorkQueue } from "../base/scheduler.ts";
import type { Call, DeviceNode, KernelFile, Pin } from "../kernel/call.ts";
import { type Banks, createMemory } from "../memory/banks.ts";
import { FRAME_BYTES } from "../memory/host-memory.ts";
import { LinuxError } from "../uapi/errno.ts";
import { ClientFiles } from "./client-files.ts";
import { handlers, ProcessMemory } from "./process-memory.ts";
import { AttachServer } from "./server.ts";

const here = import.meta.dirname;

/** A file whose ioctls pin memory and do DMA to it. */
class PinTest implements KernelFile {
  readonly kind = "pin-test";
  readonly name = "pin-test";
  readonly #banks: Banks;
  readonly #pins: (Pin | undefined)[] = [];

  constructor(banks: Banks) {
    this.#banks = banks;
  }

  ioctl(call: Call, request: number, argument: bigint): number {
    const words = (count: number): number[] => {
      const bytes = new Uint8Array(count * 8);
      call.memory.read(argument, bytes);
      return [...new BigUint64Array(bytes.buffer)].map(Number);
    };
    switch (request & 0xff) {
      case 1: {
        const [va, length, writable] = words(3) as [number, number, number];
        return this.#pins.push(call.memory.pin(va, length, writable !== 0)) - 1;
      }
      case 2: {
        const pin = this.#pins[Number(argument)]!;
        this.#pins[Number(argument)] = undefined;
        // In two parts, so that a pin given back partly is always tried.
        const half = pin.pages >> 1;
        pin.unpin(half, pin.pages - half);
        pin.unpin(0, half);
        return 0;
      }
      case 3: {
        const [id, offset, length, byte] = words(4) as [number, number, number, number];
        return this.#each(id, offset, length, (pa, count) => this.#banks.fill(pa, count, byte));
      }
      case 4: {
        const [id, offset, length, byte] = words(4) as [number, number, number, number];
        let same = true;
        this.#each(id, offset, length, (pa, count) => {
          const into = new Uint8Array(count);
          const ok = this.#banks.readBytes(pa, into);
          same &&= into.every((one) => one === byte);
          return ok;
        });
        return same ? 1 : 0;
      }
      case 5: {
        const pa = (this.#pins[Number(argument)]?.extents[0] ?? 0) * FRAME_BYTES;
        return (this.#banks.state[Math.floor(pa / 2 ** 32)]?.[(pa >>> 12) & 0xfffff] ?? 0) === 0 ? 0 : 1;
      }
      case 6:
        return sweep(call.task.pid);
      case 7: {
        const [fd, offset, length] = words(4) as [number, number, number];
        const backing = call.backing(fd);
        try {
          return this.#pins.push(backing.pin(offset, length, true)) - 1;
        } finally {
          backing.close();
        }
      }
      default:
        throw new LinuxError("ENOTTY", "no such request");
    }
  }

  close(): void {
    for (const pin of this.#pins) pin?.unpin(0, pin.pages);
  }

  #each(id: number, offset: number, length: number, act: (pa: number, count: number) => boolean): number {
    const { extents } = this.#pins[id]!;
    let start = 0;
    for (let i = 0; i < extents.length; i += 2) {
      const bytes = extents[i + 1]! * FRAME_BYTES;
      const from = Math.max(offset, start);
      const to = Math.min(offset + length, start + bytes);
      if (from < to && !act(extents[i]! * FRAME_BYTES + (from - start), to - from))
        throw new LinuxError("EIO", `memory error ${this.#banks.cause}`);
      start += bytes;
    }
    return 0;
  }
}

let folder = "";
let client = "";
let banks: Banks;
let files: ClientFiles;
let server: AttachServer;
/** What the event sink was told. */
const told: Record<string, unknown>[] = [];
const memories = new Set<ProcessMemory>();
/** Gives back what a process does not map any more; KiB of adopted memory that are left. */
const sweep = (pid: number): number => {
  const memory = [...memories].find((one) => one.open && one.pid === pid)!;
  memory.sweep();
  return fstatSync(memory.adoptedFd).blocks / 2;
};

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "softiommu-memory-"));
  client = join(folder, "memory-client");
  const build = (command: string, ...args: string[]) => {
    const { status, stderr } = spawnSync(command, args, { encoding: "utf8" });
    if (status !== 0) throw new Error(stderr);
  };
  build("make", "-s", "-C", join(here, "shim"), `OUT=${folder}`);
  build("cc", "-O1", "-pthread", "-o", client, join(here, "testing", "memory-client.c"));
  banks = createMemory({ ramBytes: 1 << 24 });
  files = new ClientFiles(banks, { on: true, emit: (kind, fields) => told.push({ kind, ...fields }) });
  const node: DeviceNode = {
    path: "/dev/pin-test",
    major: 10,
    minor: 200,
    mode: 0o666,
    open: () => new PinTest(banks),
  };
  server = new AttachServer({
    nodes: () => [node],
    events: silent,
    clock: new ManualClock(),
    work: new WorkQueue(),
    memory: (pid, pidfd) => {
      const memory = new ProcessMemory(pid, pidfd, files);
      memories.add(memory);
      return memory;
    },
    fileBacking: (fd) => files.backing(fd),
    handlers: [handlers],
    library: join(folder, "libsoftiommu.so"),
  });
  const shadowRoot = join(folder, "tree");
  spawnSync("mkdir", ["-p", join(shadowRoot, "dev")]);
  server.addTree({ shadowRoot, routed: ["/dev/pin-test"] });
  server.start();
}, 60_000);

afterAll(() => {
  banks.close();
  rmSync(folder, { recursive: true, force: true });
});

interface Ended {
  readonly status: string;
  readonly output: string;
}
const run = (scenario: string, onOutput: (kill: () => void) => void = () => {}): Promise<Ended> =>
  new Promise((resolve) => {
    const child = spawn(client, [scenario], { env: server.environment(), stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    const take = (text: Buffer) => {
      output += text.toString();
      onOutput(() => child.kill("SIGKILL"));
    };
    child.stdout.on("data", take);
    child.stderr.on("data", take);
    child.on("close", (code, signal) => resolve({ status: String(code ?? signal), output }));
  });

const succeeds = async (scenario: string): Promise<void> =>
  expect(await run(scenario)).toEqual({ status: "0", output: "" });

/** The loop has heard that the last client is gone. */
const quiet = async (): Promise<void> => {
  for (let i = 0; i < 200 && (server.live.tasks > 0 || server.live.files > 0); i++)
    await new Promise((resolve) => setTimeout(resolve, 5));
};

const resources = () => ({
  slots: banks.clientSlots,
  runs: banks.clientRuns,
  files: files.count,
  fds: readdirSync("/proc/self/fd").length,
  mappings: readFileSync("/proc/self/maps", "utf8")
    .split("\n")
    .filter((line) => /memfd:softiommu adopted|memfd:client/.test(line)).length,
});

describe("a program's memory behind a pin", () => {
  it("malloc, pin, free, malloc: the device has the old page, the new allocation is untouched", () =>
    succeeds("freed"));
  it("threads that store at full speed during adoption lose nothing", () => succeeds("storing"), 60_000);
  it("a forked child has its own copy, as of the fork", () => succeeds("forking"));
  it("a fork while a thread stores is consistent for both", () => succeeds("fork_storing"));
  it("MADV_DONTFORK memory is not in the child, adopted or not", () => succeeds("dontfork"));
  it("MADV_DONTNEED gives the program zeros and leaves the device its page", () => succeeds("dontneed"));
  it("realloc grows adopted memory without reaching a neighbour's", () => succeeds("growing"));
  it("a client that shrinks its memfd gets errors; the daemon goes on", () => succeeds("shrinking"));
  it("brk heap, stacks, bss, data, shared anonymous memory and closed memfds can be pinned", async () => {
    told.length = 0;
    await succeeds("origins");
    // A thread's stack looks like any private memory to the daemon: its owner refuses to move it.
    expect(told.filter(({ refused }) => refused)).toHaveLength(1);
    expect(told.filter(({ kind, offset }) => kind === "adopt" && offset !== undefined)).not.toHaveLength(0);
  });
  it("EFAULT for what is not mapped, PROT_NONE, or read-only when written", () => succeeds("faults"));
  it(
    "threads that pin at once, signals and forks do not get in each other's way",
    () => succeeds("together"),
    60_000,
  );
  it("a remote page whose mapping was replaced is poisoned", () => succeeds("replaced"));
});

describe("what clients leave behind", () => {
  it("kill -9 with pins: no frame, run or file is left", async () => {
    const { status } = await run("waiting", (kill) => kill());
    expect(status).toBe("SIGKILL");
    await quiet();
    expect([...memories].map(({ heldPages }) => heldPages)).toEqual([...memories].map(() => 0));
    expect(resources()).toMatchObject({ slots: 0, runs: 0, files: 0, mappings: 0 });
  });

  it("hundreds of adoptions leave nothing, and nothing grows", async () => {
    await succeeds("repeating");
    await quiet();
    const before = resources();
    await succeeds("repeating");
    await quiet();
    expect(resources()).toEqual(before);
    expect(before).toMatchObject({ slots: 0, runs: 0, files: 0, mappings: 0 });
  });
});

describe("a daemon that is gone", () => {
  it("leaves the program its adopted memory, and a child its own copy", async () => {
    let stopped = false;
    const { status, output } = await run("alone", () => {
      if (!stopped) server.stop();
      stopped = true;
    });
    expect({ status, output }).toEqual({ status: "0", output: "pinned\nwhole\n" });
    expect(resources()).toMatchObject({ slots: 0, runs: 0, files: 0 });
  });
});

describe("a process that is gone", () => {
  it("has no memory to pin, read or write, and nothing throws but EFAULT", () => {
    const { pid } = spawnSync("true");
    const memory = new ProcessMemory(pid, -1, files);
    expect(() => memory.pin(0x1000, 4096, true)).toThrow("EFAULT");
    expect(() => memory.read(0x1000n, new Uint8Array(8))).toThrow("EFAULT");
    expect(() => memory.write(0x1000n, new Uint8Array(8))).toThrow("EFAULT");
    expect(() => memory.read(2n ** 63n, new Uint8Array(8))).toThrow("beyond the user's addresses");
    expect(() => memory.pin(0x1001, 4096, true)).toThrow("whole pages");
    expect(memory.planAdoption(0x1000, 4096)).toBeUndefined();
    memory.sweep();
    memory.close();
    memory.close();
  });
});
