/**
 * Requests of /dev/iommu. In this process: what a call costs when nothing lies between it and its caller, in processor
 * time, beside what the same took inside Linux 7.2 (a recorded figure, of another run on the same kind of computer).
 * Through the preload library (`c/iommufd.c`): beside as many empty ioctls of the same run.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Random } from "../src/base/clock.ts";
import { silent } from "../src/base/events.ts";
import { WorkQueue } from "../src/base/scheduler.ts";
import { MockDriver } from "../src/drivers/mock/driver.ts";
import { IommufdSubsystem } from "../src/iommufd/file.ts";
import type { Call, KernelFile, Pin, Task, UserMemory } from "../src/kernel/call.ts";
import { testCommand } from "../src/machine/mock/test-command.ts";
import { type Banks, createMemory } from "../src/memory/banks.ts";
import * as uapi from "../src/uapi/iommufd.ts";
import * as mock from "../src/uapi/iommufd-mock.ts";
import { type BenchRow, median } from "./row.ts";

const ROUNDS = 5;
const KIB = 1024;
const MIB = 1024 * KIB;
const BUFFER = 64 * MIB;
const FIXED = uapi.IOMMU_IOAS_MAP_FIXED_IOVA | uapi.IOMMU_IOAS_MAP_READABLE | uapi.IOMMU_IOAS_MAP_WRITEABLE;
/** Where the caller's arguments and its buffer lie. */
const ARGUMENT_VA = 0x7000_0000n;
const BUFFER_VA = 0x1_0000_0000;
/** Live areas lie from here on, each on the first page of two; what is measured lies below, where the mock IOMMU begins. */
const AREAS = 0x1000_0000;
const MEASURED = 0x100_0000;
const STRIDE = 8 * KIB;

/** A process whose buffer is one run of frames, so that finding its pages costs next to nothing. */
class BufferMemory implements UserMemory {
  readonly id = 1;
  lockedPages = 0;
  pinnedPages = 0;
  readonly argument = new Uint8Array(4 * KIB);
  readonly #frame: number;

  constructor(memory: Banks) {
    const pa = memory.allocate(BUFFER / 4096);
    if (pa < 0) throw new Error("there is no memory for the buffer");
    this.#frame = pa / 4096;
  }
  read(va: bigint, into: Uint8Array): void {
    const at = Number(va - ARGUMENT_VA);
    into.set(this.argument.subarray(at, at + into.length));
  }
  write(va: bigint, data: Uint8Array): void {
    this.argument.set(data, Number(va - ARGUMENT_VA));
  }
  pin(va: number, length: number, writable: boolean): Pin {
    const pages = length / 4096;
    const extents = Float64Array.of(this.#frame + (va - BUFFER_VA) / 4096, pages);
    return { va, pages, writable, extents, unpin: () => {} };
  }
}

const unused = (): never => {
  throw new Error("not measured here");
};

/** A program on /dev/iommu, and an address space of its own. */
class Program {
  readonly file: KernelFile;
  readonly memory: BufferMemory;
  readonly ioas: number;
  readonly #call: Call;
  readonly #view: DataView;

  constructor(banks: Banks, driver: MockDriver) {
    const extra = [testCommand(driver, silent)];
    const iommufd = new IommufdSubsystem({ memory: banks, scheduler: new WorkQueue(), extra });
    this.memory = new BufferMemory(banks);
    this.#view = new DataView(this.memory.argument.buffer);
    const task: Task = {
      pid: 1,
      tid: 1,
      uid: 0,
      name: "bench",
      memory: this.memory,
      capable: () => true,
      memlockLimit: () => Number.POSITIVE_INFINITY,
      mlockedPages: () => 0,
    };
    this.file = iommufd.node.open(task, 2);
    this.#call = {
      task,
      memory: this.memory,
      file: unused,
      eventfd: unused,
      backing: unused,
      install: unused,
      suspend: unused,
    };
    this.ioas = this.allocate();
  }

  ioctl(number: number, bytes: Uint8Array): void {
    this.memory.argument.set(bytes);
    this.file.ioctl!(this.#call, number, ARGUMENT_VA);
  }
  /** The first member after `size` and `flags`, where most answers are. */
  get answer(): number {
    return this.#view.getUint32(8, true);
  }

  allocate(): number {
    this.ioctl(uapi.IOMMU_IOAS_ALLOC, alloc);
    return this.answer;
  }
  attachMock(): void {
    const { IommuTestCmd: command, IOMMU_TEST_OP_MOCK_DOMAIN: op } = mock;
    this.ioctl(mock.IOMMU_TEST_CMD, command.bytes({ size: command.size, op, id: this.ioas }));
  }
  /** Requests that are made again and again; `at` puts an address in. */
  mapRequest(length: number): Uint8Array {
    const { size } = uapi.IommuIoasMap;
    const user_va = BigInt(BUFFER_VA);
    return uapi.IommuIoasMap.bytes({
      size,
      flags: FIXED,
      ioas_id: this.ioas,
      user_va,
      length: BigInt(length),
    });
  }
  unmapRequest(length: number, ioas = this.ioas): Uint8Array {
    const { size } = uapi.IommuIoasUnmap;
    return uapi.IommuIoasUnmap.bytes({ size, ioas_id: ioas, length: BigInt(length) });
  }
  copyRequest(length: number, from: number): Uint8Array {
    const { size } = uapi.IommuIoasCopy;
    const target = { dst_ioas_id: this.ioas, src_ioas_id: from, length: BigInt(length) };
    return uapi.IommuIoasCopy.bytes({ size, flags: FIXED, ...target });
  }
}

const alloc = uapi.IommuIoasAlloc.bytes({ size: uapi.IommuIoasAlloc.size });

/** Puts an address into the member of a request. */
const aim = (bytes: Uint8Array, offset: number, address: number): Uint8Array => {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  view.setUint32(offset, address >>> 0, true);
  view.setUint32(offset + 4, address / 2 ** 32, true);
  return bytes;
};
const MAP_IOVA = uapi.IommuIoasMap.offsets.iova;
const UNMAP_IOVA = uapi.IommuIoasUnmap.offsets.iova;

/** Maps 4 KiB areas until there are `count`; each shares the buffer's pages. */
const populate = (program: Program, from: number, count: number): void => {
  const request = program.mapRequest(4 * KIB);
  for (let i = from; i < count; i += 1)
    program.ioctl(uapi.IOMMU_IOAS_MAP, aim(request, MAP_IOVA, AREAS + i * STRIDE));
};

const mapAndUnmap = (program: Program, length: number): (() => void) => {
  const map = aim(program.mapRequest(length), MAP_IOVA, MEASURED);
  const unmap = aim(program.unmapRequest(length), UNMAP_IOVA, MEASURED);
  return () => {
    program.ioctl(uapi.IOMMU_IOAS_MAP, map);
    program.ioctl(uapi.IOMMU_IOAS_UNMAP, unmap);
  };
};

const copyAndUnmap = (program: Program): (() => void) => {
  const source = program.allocate();
  const { size } = uapi.IommuIoasMap;
  const place = {
    ioas_id: source,
    user_va: BigInt(BUFFER_VA),
    length: BigInt(4 * KIB),
    iova: BigInt(MEASURED),
  };
  program.ioctl(uapi.IOMMU_IOAS_MAP, uapi.IommuIoasMap.bytes({ size, flags: FIXED, ...place }));
  const copy = program.copyRequest(4 * KIB, source);
  aim(copy, uapi.IommuIoasCopy.offsets.src_iova, MEASURED);
  aim(copy, uapi.IommuIoasCopy.offsets.dst_iova, MEASURED);
  const unmap = aim(program.unmapRequest(4 * KIB), UNMAP_IOVA, MEASURED);
  return () => {
    program.ioctl(uapi.IOMMU_IOAS_COPY, copy);
    program.ioctl(uapi.IOMMU_IOAS_UNMAP, unmap);
  };
};

const randomAreas = (program: Program, areas: number): (() => void) => {
  const random = new Random(7);
  const map = program.mapRequest(4 * KIB);
  const unmap = program.unmapRequest(4 * KIB);
  return () => {
    const iova = AREAS + random.below(areas) * STRIDE;
    program.ioctl(uapi.IOMMU_IOAS_UNMAP, aim(unmap, UNMAP_IOVA, iova));
    program.ioctl(uapi.IOMMU_IOAS_MAP, aim(map, MAP_IOVA, iova));
  };
};

const option = (program: Program): (() => void) => {
  const { size } = uapi.IommuOption;
  const of = { option_id: uapi.IOMMU_OPTION_RLIMIT_MODE, op: uapi.IOMMU_OPTION_OP_GET };
  const bytes = uapi.IommuOption.bytes({ size, ...of });
  return () => program.ioctl(uapi.IOMMU_OPTION, bytes);
};

const allocAndDestroy = (program: Program): (() => void) => {
  const destroy = uapi.IommuDestroy.bytes({ size: uapi.IommuDestroy.size });
  const view = new DataView(destroy.buffer);
  return () => {
    view.setUint32(uapi.IommuDestroy.offsets.id, program.allocate(), true);
    program.ioctl(uapi.IOMMU_DESTROY, destroy);
  };
};

const iovaRanges = (program: Program): (() => void) => {
  const { size } = uapi.IommuIoasIovaRanges;
  const room = { num_iovas: 8, allowed_iovas: ARGUMENT_VA + 1024n };
  const bytes = uapi.IommuIoasIovaRanges.bytes({ size, ioas_id: program.ioas, ...room });
  return () => program.ioctl(uapi.IOMMU_IOAS_IOVA_RANGES, bytes);
};

/** Nanoseconds of processor time, the middle one of several rounds; the first warms up. */
const measure = (action: () => void, count: number): number => {
  const rounds: number[] = [];
  for (let round = 0; round <= ROUNDS; round += 1) {
    const start = process.cpuUsage();
    for (let i = 0; i < count; i += 1) action();
    const { user, system } = process.cpuUsage(start);
    rounds.push(((user + system) * 1000) / count);
  }
  return median(rounds.slice(1));
};

/** What Linux 7.2 takes for each, in nanoseconds: the middle of what was recorded. */
const LINUX = {
  option: [54, 55],
  alloc: [350, 270],
  ranges: [94, 107],
  "4 KiB": [268, 864],
  "2 MiB": [261, 21_500],
  "64 MiB": [320, 620_000],
  copy: [271, 195],
  "10000": [893, 1861],
  "100000": [1970, 3033],
} as const;

/** In this process; `mapped`: a domain of 2 KiB pages follows the areas. */
const inProcess = (mapped: boolean): BenchRow[] => {
  const banks = createMemory({ ramBytes: 1024 * MIB });
  const driver = new MockDriver(banks);
  const program = new Program(banks, driver);
  if (mapped) program.attachMock();
  const rows: BenchRow[] = [];
  const row = (what: string, key: keyof typeof LINUX, action: () => void, count: number) => {
    const ours = measure(action, count);
    const baseline = LINUX[key][mapped ? 1 : 0];
    const name = `${what}${mapped ? ", mock domain" : ""}`;
    rows.push({ name, ours, baseline, unit: "ns", ratio: ours / baseline });
  };
  const lengths = [
    ["4 KiB", 4 * KIB, 40_000],
    ["2 MiB", 2 * MIB, mapped ? 4000 : 40_000],
    ["64 MiB", 64 * MIB, mapped ? 200 : 40_000],
  ] as const;
  row("an empty ioctl (option get)", "option", option(program), 200_000);
  row("IOAS alloc + destroy", "alloc", allocAndDestroy(program), 40_000);
  row("IOVA_RANGES", "ranges", iovaRanges(program), 100_000);
  for (const [size, length, count] of lengths)
    row(`map + unmap ${size}`, size, mapAndUnmap(program, length), count);
  row("copy + unmap 4 KiB", "copy", copyAndUnmap(program), 40_000);
  let live = 0;
  // The mock IOMMU ends at 2 GiB.
  for (const areas of mapped ? ([10_000, 100_000] as const) : ([10_000, 100_000, 1_000_000] as const)) {
    populate(program, live, areas);
    live = areas;
    const key = areas === 10_000 ? "10000" : "100000";
    for (const [size, length, count] of lengths)
      row(`map + unmap ${size}, ${areas} areas`, size, mapAndUnmap(program, length), count / 2);
    row(`random unmap + map, ${areas} areas`, key, randomAreas(program, areas), 40_000);
  }
  program.file.close();
  banks.close();
  return rows;
};

const here = (path: string): string => fileURLToPath(new URL(path, import.meta.url));

const run = (command: string, ...args: string[]): string => {
  const { status, stdout, stderr, error } = spawnSync(command, args, { encoding: "utf8" });
  if (status !== 0) throw new Error(`${command} ${args.join(" ")}: ${error?.message ?? stderr}`);
  return stdout;
};

/** Lines "ioctls nanoseconds name" of the client: what one round of each takes, and of how many calls it is. */
const readFigures = (
  output: string,
): { readonly calls: number; readonly ns: number; readonly name: string }[] =>
  output
    .trim()
    .split("\n")
    .map((line) => {
      const [calls, ns, ...name] = line.split(" ");
      return { calls: Number(calls), ns: Number(ns), name: name.join(" ") };
    });

const throughLibrary = (softiommu: string): BenchRow[] => {
  const folder = mkdtempSync(join(tmpdir(), "softiommu-bench-"));
  try {
    const client = join(folder, "iommufd");
    run("cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-o", client, here("c/iommufd.c"));
    const rounds = Array.from({ length: ROUNDS }, () =>
      readFigures(run(process.execPath, softiommu, "run", "--machine", "mock", "--", client)),
    );
    return rounds[0]!.map(({ calls, name }, index) => {
      const ours = median(rounds.map((figures) => figures[index]!.ns)) / 1000;
      const empty = median(rounds.map((figures) => figures[0]!.ns)) / 1000;
      return {
        name: `library: ${name}`,
        ours,
        baseline: empty * calls,
        unit: "µs",
        ratio: ours / (empty * calls),
      };
    });
  } finally {
    rmSync(folder, { recursive: true });
  }
};

/** Needs `cc`. */
export const iommufdBench = async (softiommu: string): Promise<BenchRow[]> => [
  ...inProcess(false),
  ...inProcess(true),
  ...throughLibrary(softiommu),
];
