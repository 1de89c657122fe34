/**
 * No fault of a mock device is lost: over random page requests, events, answers, detaches, closed files and kills every
 * group of page requests is answered once, and every event is read or missing between the numbers of those that were.
 */
import { expect, it } from "vitest";
import { type MockProcess, MockRig } from "../../../test/support/mock-rig.ts";
import { outcome } from "../../../test/support/vfio-client.ts";
import { Random } from "../../base/clock.ts";
import * as uapi from "../../uapi/iommufd.ts";
import * as mock from "../../uapi/iommufd-mock.ts";

/** Detaches, replacements, events that did not fit, closed files and kills. */
const DISTURBANCES = 10_000;
const DEPTH = 3;
const INTO = 0x80_0000;
const ROOM = 64 * uapi.IommuHwptPgfault.size;
const EVENT_BYTES = 4;

class Vmm {
  readonly p: MockProcess;
  readonly device: number;
  readonly mockDevice: number;
  /** A page table with faults on a vIOMMU, and the address space alone, which reports none. */
  readonly nested: number;
  readonly ioas: number;
  readonly #viommu: number;
  #fault: number | undefined;
  events: { readonly id: number; readonly fd: number } | undefined;
  readonly waiting: number[] = [];
  #next = 0;

  constructor(rig: MockRig) {
    const p = rig.spawn();
    this.p = p;
    this.ioas = p.ioas();
    const { out_idev_id, out_stdev_id } = p.device(this.ioas);
    this.device = out_idev_id;
    this.mockDevice = out_stdev_id;
    const parent = p.hwpt(this.device, this.ioas, { flags: uapi.IOMMU_HWPT_ALLOC_NEST_PARENT });
    this.#viommu = p.viommu(this.device, parent);
    p.vdevice(this.#viommu, this.device, 7);
    const { out_fault_id, out_fault_fd } = p.faultQueue();
    this.#fault = out_fault_fd;
    const flags = uapi.IOMMU_HWPT_FAULT_ID_VALID;
    this.nested = p.nested(this.device, this.#viommu, { flags, fault_id: out_fault_id });
    this.replace(this.nested);
    this.listen();
  }

  listen(): void {
    if (this.events) return;
    const { out_veventq_id: id, out_veventq_fd: fd } = this.p.eventQueue(this.#viommu, DEPTH);
    this.events = { id, fd };
    this.#next = 0;
  }

  deafen(): void {
    if (!this.events) return;
    this.p.task.close(this.events.fd);
    this.p.destroy(this.events.id);
    this.events = undefined;
  }

  closeFaults(): void {
    if (this.#fault !== undefined) this.p.task.close(this.#fault);
    this.#fault = undefined;
  }

  replace(pt: number): void {
    this.p.test(mock.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, this.mockDevice, {
      mock_domain_replace: { pt_id: pt },
    });
  }

  /** Groups that were read. */
  readFaults(): number {
    if (this.#fault === undefined) return 0;
    const { size } = uapi.IommuHwptPgfault;
    const count = this.p.task.readTo(this.#fault, BigInt(INTO), ROOM);
    const bytes = new Uint8Array(count);
    this.p.task.memory.read(BigInt(INTO), bytes);
    for (let at = 0; at < count; at += size) this.waiting.push(uapi.IommuHwptPgfault.read(bytes, at).cookie);
    return count / size;
  }

  /** Whether the host took the answer: it may have given one itself. */
  answer(cookie: number, code: number): boolean {
    if (this.#fault === undefined) return false;
    const bytes = uapi.IommuHwptPageResponse.bytes({ cookie, code });
    this.p.put(bytes, INTO);
    return outcome(() => this.p.task.writeFrom(this.#fault!, BigInt(INTO), bytes.length)) === bytes.length;
  }

  /** Events that were read, and that were missing. */
  readEvents(): { readonly read: number; readonly missing: number } {
    const seen = { read: 0, missing: 0 };
    if (!this.events) return seen;
    const count = this.p.task.readTo(this.events.fd, BigInt(INTO), ROOM);
    const bytes = new Uint8Array(count);
    this.p.task.memory.read(BigInt(INTO), bytes);
    const header = uapi.IommufdVeventHeader;
    for (let at = 0; at < count; ) {
      const { flags, sequence } = header.read(bytes, at);
      const marker = (flags & uapi.IOMMU_VEVENTQ_FLAG_LOST_EVENTS) !== 0;
      seen.missing += sequence - this.#next + (marker ? 1 : 0);
      seen.read += marker ? 0 : 1;
      this.#next = sequence + 1;
      at += header.size + (marker ? 0 : EVENT_BYTES);
    }
    return seen;
  }
}

it("page requests are answered once, events are read or counted as lost", { timeout: 120_000 }, () => {
  const rig = new MockRig();
  const random = new Random(5);
  let vmm = new Vmm(rig);
  const groups = { asked: 0, answered: 0, success: 0, read: 0, saidYes: 0 };
  const events = { told: 0, read: 0, missing: 0 };
  rig.driver.onPageResponse = (_device, { code }) => {
    groups.answered += 1;
    if (code === "success") groups.success += 1;
  };
  const readEvents = (): void => {
    const { read, missing } = vmm.readEvents();
    events.read += read;
    events.missing += missing;
  };
  const ask = (): void => {
    const trigger_iopf = {
      dev_id: vmm.device,
      pasid: 0xffff_ffff,
      grpid: random.below(512),
      perm: 1,
      addr: 0x1000n,
    };
    vmm.p.test(mock.IOMMU_TEST_OP_TRIGGER_IOPF, vmm.mockDevice, { trigger_iopf });
    groups.asked += 1;
  };
  const tell = (): void => {
    const trigger_vevent = { dev_id: vmm.device };
    const done = outcome(() => vmm.p.test(mock.IOMMU_TEST_OP_TRIGGER_VEVENT, vmm.device, { trigger_vevent }));
    if (typeof done === "object") events.told += 1;
  };
  const disturb = (): void => {
    switch (random.below(24)) {
      case 0:
        readEvents(); // what is not read of a queue that goes, nobody counts
        vmm.p.exit();
        vmm = new Vmm(rig);
        break;
      case 1:
        vmm.closeFaults();
        vmm.waiting.length = 0;
        break;
      case 2:
        readEvents();
        vmm.deafen();
        break;
      case 3:
        vmm.listen();
        break;
      default:
        vmm.replace(random.below(2) === 0 ? vmm.nested : vmm.ioas);
    }
  };
  for (let disturbed = 0; disturbed + events.missing < DISTURBANCES; ) {
    const what = random.below(6);
    if (what < 2) {
      disturb();
      disturbed += 1;
    } else if (what === 2) for (let more = random.below(8); more > 0; more--) tell();
    else if (what === 3) for (let more = random.below(8); more > 0; more--) ask();
    else if (what === 4) groups.read += vmm.readFaults();
    else {
      if (random.below(3) === 0) readEvents();
      for (const cookie of vmm.waiting.splice(0, random.below(8))) {
        const success = random.below(2) === 0;
        if (vmm.answer(cookie, success ? 0 : 1) && success) groups.saidYes += 1;
      }
    }
    expect(groups.answered).toBeLessThanOrEqual(groups.asked);
  }
  readEvents();
  vmm.p.exit();
  expect(groups.answered).toBe(groups.asked);
  expect(groups.success).toBe(groups.saidYes);
  expect(events.read + events.missing).toBe(events.told);
  for (const count of [...Object.values(groups), ...Object.values(events)])
    expect(count).toBeGreaterThan(100);
  expect(Object.entries(rig.live()).filter(([, count]) => count !== 0)).toEqual([]);
  rig.close();
});
