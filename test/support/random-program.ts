/**
 * Random programs on /dev/iommu with the mock IOMMU: one to three processes with several files make every request, with
 * arguments that are mostly of use, while allocations fail, descriptors are passed and closed, memory goes and
 * processes are killed. Every answer is an errno; what is left at the end is for the caller to see.
 */
import { Random } from "../../src/base/clock.ts";
import { LinuxError } from "../../src/uapi/errno.ts";
import * as uapi from "../../src/uapi/iommufd.ts";
import * as mock from "../../src/uapi/iommufd-mock.ts";
import * as vfio from "../../src/uapi/vfio.ts";
import { DATA, type MockProcess, type MockRig, USER, USER_PAGES } from "./mock-rig.ts";

const PAGE = 4096;
const IOVA = mock.MOCK_APERTURE_START;

type Kind =
  | "ioas"
  | "hwpt"
  | "parent"
  | "nested"
  | "dev"
  | "stdev"
  | "viommu"
  | "fault"
  | "fault-fd"
  | "event-fd"
  | "access"
  | "dma-buf";

/** What a request needs: chance, the process, one of its files, and numbers that were answered before. */
interface Moment {
  readonly chance: Random;
  readonly p: MockProcess;
  readonly fd: number;
  pick(kind: Kind): number;
  keep(kind: Kind, id: number): void;
  /** One of these. */
  of<T>(...choices: readonly T[]): T;
  /** The first IOVA of one of some places, mostly on a page. */
  iova(): number;
  pages(): number;
}

type Step = (m: Moment) => void;

/** How programs begin: with little, or with what others take long to come by. */
const beginnings: readonly Step[] = [
  ({ p, keep }) => keep("ioas", p.ioas()),
  ({ p, keep }) => {
    const ioas = p.ioas();
    keep("ioas", ioas);
    p.map(ioas, IOVA, 4);
    const device = p.device(ioas, mock.MOCK_FLAGS_DEVICE_PASID);
    keep("dev", device.out_idev_id);
    keep("stdev", device.out_stdev_id);
    const [first, second] = [8, 10].map((flags) => p.hwpt(device.out_idev_id, ioas, { flags }));
    keep("hwpt", first!);
    keep("hwpt", second!);
    const mock_domain_replace = { pt_id: first! };
    p.test(mock.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, device.out_stdev_id, { mock_domain_replace });
  },
  ({ p, keep, of }) => {
    const ioas = p.ioas();
    keep("ioas", ioas);
    p.map(ioas, IOVA, 4);
    const { out_idev_id: dev, out_stdev_id: stdev } = p.device(ioas);
    keep("dev", dev);
    keep("stdev", stdev);
    const parent = p.hwpt(dev, ioas, { flags: 1 });
    keep("parent", parent);
    const viommu = p.viommu(dev, parent);
    keep("viommu", viommu);
    p.vdevice(viommu, dev, 1);
    const queue = p.faultQueue();
    keep("fault", queue.out_fault_id);
    keep("fault-fd", queue.out_fault_fd);
    const nested = p.nested(dev, viommu, { flags: of(0, 4), fault_id: queue.out_fault_id });
    keep("nested", nested);
    const mock_domain_replace = { pt_id: nested };
    p.test(mock.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, stdev, { mock_domain_replace });
  },
  ({ p, keep }) => {
    const ioas = p.ioas();
    keep("ioas", ioas);
    p.map(ioas, IOVA, 8);
    const access = p.access(ioas);
    keep("access", access);
    const access_pages = { flags: 1, iova: BigInt(IOVA), length: BigInt(4 * PAGE), uptr: 0n };
    p.test(mock.IOMMU_TEST_OP_ACCESS_PAGES, access, { access_pages });
  },
];

/** A request whose answer is an address space, a HWPT, … */
const making: readonly Step[] = [
  ({ p, fd, keep }) => keep("ioas", p.ioas(fd)),
  (m) => {
    const flags = m.of(0, mock.MOCK_FLAGS_DEVICE_PASID, mock.MOCK_FLAGS_DEVICE_NO_DIRTY);
    const made = m.p.device(m.pick(m.of("ioas", "ioas", "hwpt", "parent")), flags, m.fd);
    m.keep("dev", made.out_idev_id);
    m.keep("stdev", made.out_stdev_id);
    m.keep("hwpt", made.out_hwpt_id);
  },
  (m) => {
    const flags = m.of(0, 1, 1, 2, 3, 4, 8, 9);
    const hwpt = m.p.hwpt(m.pick("dev"), m.pick("ioas"), { flags, fault_id: m.pick("fault") }, m.fd);
    m.keep(flags & 1 ? "parent" : "hwpt", hwpt);
  },
  (m) => {
    const flags = m.of(0, 4, 8);
    const target = m.pick(m.of("parent", "viommu"));
    m.keep("nested", m.p.nested(m.pick("dev"), target, { flags, fault_id: m.pick("fault") }, m.fd));
  },
  ({ p, fd, keep }) => {
    const { out_fault_id, out_fault_fd } = p.faultQueue(fd);
    keep("fault", out_fault_id);
    keep("fault-fd", out_fault_fd);
  },
  ({ p, fd, pick, keep }) => keep("viommu", p.viommu(pick("dev"), pick("parent"), fd)),
  ({ p, fd, pick, chance }) => void p.vdevice(pick("viommu"), pick("dev"), chance.below(3), fd),
  ({ p, fd, pick, keep, chance }) =>
    keep("event-fd", p.eventQueue(pick("viommu"), 1 + chance.below(3), fd).out_veventq_fd),
  (m) => {
    const type = mock.IOMMU_HW_QUEUE_TYPE_SELFTEST as number;
    const at = { nesting_parent_iova: BigInt(m.iova()), length: BigInt(PAGE) };
    const value = { viommu_id: m.pick("viommu"), type, index: m.chance.below(2), ...at };
    m.p.call(uapi.IOMMU_HW_QUEUE_ALLOC, uapi.IommuHwQueueAlloc, value, m.fd);
  },
  ({ p, fd, pick, keep, of }) => keep("access", p.access(pick("ioas"), of(0, 1, 1), fd)),
  ({ p, keep, fd }) => {
    const dmabuf_get = { length: 2 * PAGE, open_flags: 0 };
    const value = { size: mock.IommuTestCmd.size, op: mock.IOMMU_TEST_OP_DMABUF_GET, dmabuf_get };
    keep("dma-buf", p.task.ioctl(fd, mock.IOMMU_TEST_CMD, mock.IommuTestCmd.bytes(value)));
  },
];

/** A request on address spaces. */
const mapping: readonly Step[] = [
  (m) => {
    const how = {
      from: m.chance.below(USER_PAGES - 4),
      fixed: m.of(true, true, false),
      flags: m.of(2, 4, 6, 6),
    };
    m.p.map(m.pick("ioas"), m.iova(), m.pages(), { ...how, fd: m.fd });
  },
  (m) => {
    const file = m.of(m.pick("dma-buf"), m.p.memfd(), m.fd);
    const where = { start: BigInt(m.chance.below(4) * PAGE), length: BigInt(m.pages() * PAGE) };
    const value = { flags: m.of(6, 7), ioas_id: m.pick("ioas"), fd: file, iova: BigInt(m.iova()), ...where };
    m.p.call(uapi.IOMMU_IOAS_MAP_FILE, uapi.IommuIoasMapFile, value, m.fd);
  },
  (m) => {
    const ids = { dst_ioas_id: m.pick("ioas"), src_ioas_id: m.pick("ioas") };
    const where = {
      length: BigInt(m.pages() * PAGE),
      dst_iova: BigInt(m.iova()),
      src_iova: BigInt(m.iova()),
    };
    const value = { flags: m.of(6, 7, 7), ...ids, ...where };
    m.p.call(uapi.IOMMU_IOAS_COPY, uapi.IommuIoasCopy, value, m.fd);
  },
  (m) => {
    const everything = m.chance.below(4) === 0;
    const value = uapi.IommuIoasUnmap.bytes({
      size: uapi.IommuIoasUnmap.size,
      ioas_id: m.pick("ioas"),
      iova: everything ? 0n : BigInt(m.iova()),
      length: everything ? 2n ** 64n - 1n : BigInt(m.pages() * PAGE),
    });
    m.p.task.start(m.fd, uapi.IOMMU_IOAS_UNMAP, value);
  },
  (m) => {
    const range = { start: BigInt(m.iova()), last: BigInt(m.iova() + 2 ** 22) };
    const allowed_iovas = m.p.put(uapi.IommuIovaRange.bytes(range));
    const value = { ioas_id: m.pick("ioas"), num_iovas: m.chance.below(2), allowed_iovas };
    m.p.call(uapi.IOMMU_IOAS_ALLOW_IOVAS, uapi.IommuIoasAllowIovas, value, m.fd);
  },
  (m) => {
    const value = { ioas_id: m.pick("ioas"), num_iovas: m.chance.below(4), allowed_iovas: BigInt(DATA) };
    m.p.call(uapi.IOMMU_IOAS_IOVA_RANGES, uapi.IommuIoasIovaRanges, value, m.fd);
  },
  (m) => {
    const value = { option_id: m.of(0, 1), op: m.of(0, 1), object_id: m.pick("ioas"), val64: m.of(0n, 1n) };
    m.p.call(uapi.IOMMU_OPTION, uapi.IommuOption, value, m.fd);
  },
  (m) => {
    const value = { ioas_id: m.pick("ioas"), op: m.chance.below(3) };
    m.p.call(uapi.IOMMU_VFIO_IOAS, uapi.IommuVfioIoas, value, m.fd);
  },
  ({ p, fd }) => void p.call(uapi.IOMMU_IOAS_CHANGE_PROCESS, uapi.IommuIoasChangeProcess, {}, fd),
  (m) => {
    const value = vfio.VfioIommuType1DmaMap.bytes({
      argsz: vfio.VfioIommuType1DmaMap.size,
      flags: 3,
      vaddr: BigInt(USER),
      iova: BigInt(m.iova()),
      size: BigInt(m.pages() * PAGE),
    });
    m.p.task.ioctl(m.fd, vfio.VFIO_IOMMU_MAP_DMA, value);
  },
  (m) => {
    const value = vfio.VfioIommuType1DmaUnmap.bytes({
      argsz: vfio.VfioIommuType1DmaUnmap.size,
      iova: BigInt(m.iova()),
      size: BigInt(m.pages() * PAGE),
    });
    m.p.task.start(m.fd, vfio.VFIO_IOMMU_UNMAP_DMA, value);
  },
  (m) => void m.p.task.ioctl(m.fd, vfio.VFIO_SET_IOMMU, m.of(1n, 3n)),
  (m) => {
    const add_reserved = { start: BigInt(m.iova()), length: BigInt(PAGE) };
    m.p.test(mock.IOMMU_TEST_OP_ADD_RESERVED, m.pick("ioas"), { add_reserved }, m.fd);
  },
];

/** A request on what is attached. */
const using: readonly Step[] = [
  (m) => {
    const mock_domain_replace = { pt_id: m.pick(m.of("ioas", "hwpt", "parent", "nested")) };
    m.p.test(mock.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, m.pick("stdev"), { mock_domain_replace }, m.fd);
  },
  (m) => {
    const pasid_attach = { pasid: m.of(0, 1, 2, 1024), pt_id: m.pick(m.of("ioas", "hwpt")) };
    m.p.test(mock.IOMMU_TEST_OP_PASID_ATTACH, m.pick("stdev"), { pasid_attach }, m.fd);
  },
  (m) => {
    const pasid_replace = { pasid: m.of(0, 1, 2, 1024), pt_id: m.pick(m.of("ioas", "hwpt")) };
    m.p.test(mock.IOMMU_TEST_OP_PASID_REPLACE, m.pick("stdev"), { pasid_replace }, m.fd);
  },
  (m) => {
    const pasid_detach = { pasid: m.of(0, 1, 2, 1024) };
    m.p.test(mock.IOMMU_TEST_OP_PASID_DETACH, m.pick("stdev"), { pasid_detach }, m.fd);
  },
  (m) => {
    const trigger_iopf = { dev_id: m.pick("dev"), pasid: m.of(0, 0, 1), grpid: m.chance.below(3), perm: 1 };
    m.p.test(mock.IOMMU_TEST_OP_TRIGGER_IOPF, 0, { trigger_iopf: { ...trigger_iopf, addr: 0n } }, m.fd);
  },
  (m) =>
    void m.p.test(mock.IOMMU_TEST_OP_TRIGGER_VEVENT, 0, { trigger_vevent: { dev_id: m.pick("dev") } }, m.fd),
  (m) => void m.p.task.readTo(m.pick("fault-fd"), BigInt(DATA), 40 * m.chance.below(3)),
  (m) => {
    const answer = m.p.put(
      uapi.IommuHwptPageResponse.bytes({ cookie: 1 + m.chance.below(2), code: m.of(0, 1) }),
    );
    m.p.task.writeFrom(m.pick("fault-fd"), answer, 8);
  },
  (m) => void m.p.task.readTo(m.pick("event-fd"), BigInt(DATA), 8 * m.chance.below(5)),
  (m) => {
    const access_pages = {
      flags: m.of(0, 1),
      iova: BigInt(m.iova()),
      length: BigInt(m.pages() * PAGE),
      uptr: 0n,
    };
    m.p.test(mock.IOMMU_TEST_OP_ACCESS_PAGES, m.pick("access"), { access_pages }, m.fd);
  },
  (m) => {
    const destroy_access_pages = { access_pages_id: m.chance.below(3) };
    m.p.test(mock.IOMMU_TEST_OP_DESTROY_ACCESS_PAGES, m.pick("access"), { destroy_access_pages }, m.fd);
  },
  (m) => {
    const access_rw = {
      iova: BigInt(m.iova() + 100),
      length: 5000n,
      uptr: BigInt(DATA),
      flags: m.of(0, 1, 4, 5),
    };
    m.p.test(mock.IOMMU_TEST_OP_ACCESS_RW, m.pick("access"), { access_rw }, m.fd);
  },
  (m) => {
    const access_replace_ioas = { ioas_id: m.pick("ioas") };
    m.p.test(mock.IOMMU_TEST_OP_ACCESS_REPLACE_IOAS, m.pick("access"), { access_replace_ioas }, m.fd);
  },
  (m) => {
    const dmabuf_revoke = { dmabuf_fd: m.pick("dma-buf"), revoked: m.of(0, 1) };
    m.p.test(mock.IOMMU_TEST_OP_DMABUF_REVOKE, 0, { dmabuf_revoke }, m.fd);
  },
  (m) => {
    const value = { hwpt_id: m.pick("hwpt"), flags: m.of(0, 1) };
    m.p.call(uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, uapi.IommuHwptSetDirtyTracking, value, m.fd);
  },
  (m) => {
    const range = { iova: BigInt(m.iova()), length: BigInt(m.pages() * PAGE), page_size: BigInt(PAGE) };
    const value = { hwpt_id: m.pick("hwpt"), flags: m.of(0, 1), ...range, data: BigInt(DATA) };
    m.p.call(uapi.IOMMU_HWPT_GET_DIRTY_BITMAP, uapi.IommuHwptGetDirtyBitmap, value, m.fd);
  },
  (m) => {
    const dirty = { iova: BigInt(m.iova()), length: BigInt(PAGE), page_size: 2048n, uptr: BigInt(DATA) };
    m.p.test(mock.IOMMU_TEST_OP_DIRTY, m.pick("hwpt"), { dirty }, m.fd);
  },
  (m) => {
    const value = { dev_id: m.pick("dev"), data_len: 8, data_uptr: BigInt(DATA) };
    m.p.call(uapi.IOMMU_GET_HW_INFO, uapi.IommuHwInfo, value, m.fd);
  },
  (m) => {
    const data_uptr = m.p.put(mock.IommuHwptInvalidateSelftest.bytes({ flags: 1 }));
    const entries = {
      data_type: mock.IOMMU_HWPT_INVALIDATE_DATA_SELFTEST,
      entry_len: 8,
      entry_num: m.of(0, 1),
    };
    const value = { hwpt_id: m.pick(m.of("nested", "viommu")), data_uptr, ...entries };
    m.p.call(uapi.IOMMU_HWPT_INVALIDATE, uapi.IommuHwptInvalidate, value, m.fd);
  },
  ({ p, fd, chance }) => p.destroy(1 + chance.below(16), fd),
  ({ p, fd, pick, of }) =>
    p.destroy(pick(of("ioas", "hwpt", "parent", "nested", "viommu", "stdev", "fault")), fd),
];

class Program {
  readonly #chance: Random;
  readonly #rig: MockRig;
  readonly #kept = new Map<MockProcess, Map<Kind, number[]>>();

  constructor(rig: MockRig, seed: number) {
    this.#rig = rig;
    this.#chance = new Random(seed);
  }

  run(steps: number): void {
    const chance = this.#chance;
    const processes = [this.#rig.spawn()];
    if (chance.below(3) === 0) processes.push(this.#rig.spawn());
    for (let step = 0; step < steps && processes.length > 0; step += 1) {
      const at = chance.below(processes.length);
      const p = processes[at]!;
      if (chance.below(40) === 0) {
        processes.splice(at, 1);
        p.exit();
        continue;
      }
      if (chance.below(10) === 0) this.#rig.allocations.arm(p.task, 1 + chance.below(12));
      this.#attempt(() => this.#disturb(p, processes));
      this.#attempt(() => this.#request(p));
    }
  }

  /** What happens beside requests. */
  #disturb(p: MockProcess, processes: readonly MockProcess[]): void {
    const chance = this.#chance;
    const { task } = p;
    const anyFd = (): number => task.descriptors[chance.below(task.descriptors.length)] ?? -1;
    switch (chance.below(30)) {
      case 0:
        task.open(this.#rig.iommufd.node);
        break;
      case 1:
        task.close(anyFd());
        break;
      case 2:
        task.dup(anyFd());
        break;
      case 3:
        task.pass(anyFd(), processes[chance.below(processes.length)]!.task);
        break;
      case 4:
        task.memory.unmap(USER + chance.below(USER_PAGES) * PAGE, PAGE);
        break;
      case 5:
        task.memory.map(USER + chance.below(USER_PAGES) * PAGE, PAGE, { private: chance.below(2) === 0 });
        break;
      case 6:
        this.#rig.host.scheduler.run(chance.below(4));
        break;
    }
  }

  #request(p: MockProcess): void {
    const chance = this.#chance;
    const known = this.#kept.get(p);
    const kept = known ?? new Map<Kind, number[]>();
    this.#kept.set(p, kept);
    const steps = known ? [making, mapping, using, using][chance.below(4)]! : beginnings;
    const { descriptors } = p.task;
    steps[chance.below(steps.length)]!({
      chance,
      p,
      fd: chance.below(20) > 0 ? p.fd : (descriptors[chance.below(descriptors.length)] ?? -1),
      pick: (kind) => {
        const some = kept.get(kind);
        if (!some || chance.below(20) === 0) return chance.below(12);
        return some[chance.below(some.length)]!;
      },
      keep: (kind, id) => void kept.set(kind, [...(kept.get(kind) ?? []).slice(-3), id]),
      of: (...choices) => choices[chance.below(choices.length)]!,
      iova: () => IOVA + chance.below(5) * 4 * PAGE + (chance.below(12) === 0 ? 1 : 0),
      pages: () => 4 * (1 + chance.below(2)),
    });
  }

  #attempt(act: () => void): void {
    try {
      act();
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
    }
  }
}

/** Runs a program of so many requests; its processes may still be there. */
export const runRandomProgram = (rig: MockRig, seed: number, steps: number): void =>
  new Program(rig, seed).run(steps);
