/**
 * A VMM's program on the machine smmuv3, with a guest that is nothing but tables in its memory: stage 1 of VMSAv8-64 with
 * 4 KiB pages from level 1 on, one context descriptor a PASID, and the test function to try them with. The program reaches
 * the machine by encoded requests only.
 */
import { expect } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { type EventSink, silent } from "../../src/base/events.ts";
import { WorkQueue } from "../../src/base/scheduler.ts";
import { Cd, Config, S1Dss, Ste } from "../../src/hardware/smmuv3/spec.ts";
import { ModelTask } from "../../src/kernel/model-task.ts";
import { parseMachine } from "../../src/machine/file.ts";
import { Machine } from "../../src/machine/machine.ts";
import { PRESETS } from "../../src/machine/presets.ts";
import { extendedCapabilitiesOf } from "../../src/pci/capability-list.ts";
import { TestCommand, TestRegister, TestStatus } from "../../src/pci/devices/test-function.ts";
import { AtsCapability, AtsControl, Command, ExtendedCapabilityId, Header } from "../../src/pci/spec.ts";
import * as uapi from "../../src/uapi/iommufd.ts";
import type { Members, Struct, StructValue, StructWrite } from "../../src/uapi/struct.ts";
import * as arm from "../../src/uapi/vendor/smmuv3.ts";
import { regionOffset } from "../../src/vfio/regions.ts";
import { CdevClient } from "./cdev-client.ts";

/** The guest's memory: where the program has it, where the guest sees it, and how much. */
export const MEMORY = { va: 0x7000_0000, ipa: 0x4000_0000, bytes: 0x10_0000 } as const;
/** Arguments of requests. */
const SCRATCH = 0x10_0000;
const SCRATCH_BYTES = 0x1_0000;
export const PAGE = 4096;
export const TEST_FUNCTION = "0000:03:00.0";
const DEVICE = 2;
const TEST_PASID_VALID = 0x8000_0000;

export type SteFields = Parameters<typeof Ste.make>[0];
const WORD = 0xffff_ffff_ffff_ffffn;

/** A machine with other guests on it, and the number of the function's file. */
interface Beside {
  readonly machine: Machine;
  readonly scheduler: WorkQueue;
  readonly device: number;
}

export class ArmGuest {
  readonly scheduler: WorkQueue;
  readonly machine: Machine;
  readonly client: CdevClient;
  readonly fd: number;
  readonly device: number;
  /** Number of the device in the iommufd. */
  readonly id: number;
  readonly ioas: number;
  #free = MEMORY.ipa;

  /** On a machine of its own, or, with another function, on one that there is. */
  constructor(text: string = PRESETS.get("smmuv3")!, events: EventSink = silent, beside?: Beside) {
    this.scheduler = beside?.scheduler ?? new WorkQueue();
    this.machine =
      beside?.machine ??
      new Machine(parseMachine(text, "smmuv3"), {
        events,
        clock: new ManualClock(),
        scheduler: this.scheduler,
      });
    const task = new ModelTask(this.machine.memory);
    task.memory.map(MEMORY.va, MEMORY.bytes);
    task.memory.map(SCRATCH, SCRATCH_BYTES);
    this.client = new CdevClient(task, this.machine);
    this.fd = this.client.iommu();
    this.device = this.client.cdev(beside?.device ?? DEVICE);
    this.id = this.client.bind(this.device, this.fd);
    task.pwrite(
      this.device,
      regionOffset(7) + BigInt(Header.COMMAND),
      Uint8Array.of(Command.MEMORY_SPACE | Command.BUS_MASTER, 0),
    );
    this.ioas = this.client.ioas(this.fd);
    this.client.mapAt(this.fd, this.ioas, MEMORY.ipa, MEMORY.va, MEMORY.bytes);
  }

  get task(): ModelTask {
    return this.client.task;
  }

  /** The process dies; nothing may be left. */
  close(): void {
    this.task.exit();
    this.scheduler.run();
    expect(Object.entries(this.machine.live()).filter(([, count]) => count !== 0)).toEqual([]);
    this.machine.close();
  }

  // Requests

  call<F extends Members>(number: number, layout: Struct<F>, members: StructWrite<F>): StructValue<F> {
    const bytes = layout.bytes({ size: layout.size, ...members } as StructWrite<F>);
    this.task.ioctl(this.fd, number, bytes);
    return layout.read(bytes);
  }

  nestParent(): number {
    return this.client.hwpt(this.fd, this.id, this.ioas, uapi.IOMMU_HWPT_ALLOC_NEST_PARENT);
  }

  viommu(parent: number, type: number = arm.IOMMU_VIOMMU_TYPE_ARM_SMMUV3, device = this.id): number {
    const members = { type, dev_id: device, hwpt_id: parent };
    return this.call(uapi.IOMMU_VIOMMU_ALLOC, uapi.IommuViommuAlloc, members).out_viommu_id;
  }

  vdevice(viommu: number, sid: bigint): number {
    const members = { viommu_id: viommu, dev_id: this.id, virt_id: sid };
    return this.call(uapi.IOMMU_VDEVICE_ALLOC, uapi.IommuVdeviceAlloc, members).out_vdevice_id;
  }

  /** A page table of the guest for its stream table entry. */
  nested(
    viommu: number,
    ste: SteFields,
    options: { readonly flags?: number; readonly fault?: number; readonly type?: number } = {},
  ): number {
    return this.nestedOf(viommu, Ste.make(ste), options);
  }

  /** The same for an entry of any bits: its first two words. */
  nestedOf(
    viommu: number,
    value: bigint,
    options: { readonly flags?: number; readonly fault?: number; readonly type?: number } = {},
  ): number {
    const { fault, type = arm.IOMMU_HWPT_DATA_ARM_SMMUV3 } = options;
    const data = arm.IommuHwptArmSmmuv3.bytes({ ste: [value & WORD, (value >> 64n) & WORD] });
    this.task.memory.write(BigInt(SCRATCH), data);
    return this.call(uapi.IOMMU_HWPT_ALLOC, uapi.IommuHwptAlloc, {
      flags: (options.flags ?? 0) | (fault === undefined ? 0 : uapi.IOMMU_HWPT_FAULT_ID_VALID),
      dev_id: this.id,
      pt_id: viommu,
      data_type: type,
      data_len: data.length,
      data_uptr: BigInt(SCRATCH),
      ...(fault !== undefined && { fault_id: fault }),
    }).out_hwpt_id;
  }

  /** The guest's commands; how many were carried out, and the errno. */
  invalidate(
    object: number,
    commands: readonly bigint[],
    options: { readonly type?: number; readonly at?: number } = {},
  ): { readonly done: number; readonly error: string | undefined } {
    const { type = arm.IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3, at = SCRATCH } = options;
    const { size } = arm.IommuViommuArmSmmuv3Invalidate;
    commands.forEach((command, index) => {
      const bytes = arm.IommuViommuArmSmmuv3Invalidate.bytes({ cmd: [command & WORD, command >> 64n] });
      this.task.memory.write(BigInt(SCRATCH + index * size), bytes);
    });
    const bytes = uapi.IommuHwptInvalidate.bytes({
      size: uapi.IommuHwptInvalidate.size,
      hwpt_id: object,
      data_uptr: BigInt(at),
      data_type: type,
      entry_len: size,
      entry_num: commands.length,
    });
    let error: string | undefined;
    try {
      this.task.ioctl(this.fd, uapi.IOMMU_HWPT_INVALIDATE, bytes);
    } catch (thrown) {
      error = (thrown as { readonly code: string }).code;
    }
    return { done: uapi.IommuHwptInvalidate.read(bytes).entry_num, error };
  }

  eventQueue(viommu: number, depth = 64): { readonly id: number; readonly fd: number } {
    const members = { viommu_id: viommu, type: arm.IOMMU_VEVENTQ_TYPE_ARM_SMMUV3, veventq_depth: depth };
    const answer = this.call(uapi.IOMMU_VEVENTQ_ALLOC, uapi.IommuVeventqAlloc, members);
    return { id: answer.out_veventq_id, fd: answer.out_veventq_fd };
  }

  /** Events as four 64-bit words; undefined: some were lost. */
  takeEvents(fd: number): (readonly bigint[] | undefined)[] {
    const header = uapi.IommufdVeventHeader.size;
    const bytes = this.#readFile(fd);
    const events: (readonly bigint[] | undefined)[] = [];
    for (let at = 0; at < bytes.length; ) {
      const { flags } = uapi.IommufdVeventHeader.read(bytes.subarray(at));
      at += header;
      if (flags & uapi.IOMMU_VEVENTQ_FLAG_LOST_EVENTS) events.push(undefined);
      else {
        events.push(arm.IommuVeventArmSmmuv3.read(bytes.subarray(at)).evt);
        at += arm.IommuVeventArmSmmuv3.size;
      }
    }
    return events;
  }

  faultQueue(): { readonly id: number; readonly fd: number } {
    const answer = this.call(uapi.IOMMU_FAULT_QUEUE_ALLOC, uapi.IommuFaultAlloc, {});
    return { id: answer.out_fault_id, fd: answer.out_fault_fd };
  }

  takeFaults(fd: number) {
    const { size } = uapi.IommuHwptPgfault;
    const bytes = this.#readFile(fd);
    return Array.from({ length: bytes.length / size }, (_, index) =>
      uapi.IommuHwptPgfault.read(bytes.subarray(index * size)),
    );
  }

  answerFault(fd: number, cookie: number, code: number): void {
    this.task.memory.write(BigInt(SCRATCH), uapi.IommuHwptPageResponse.bytes({ cookie, code }));
    this.task.writeFrom(fd, BigInt(SCRATCH), uapi.IommuHwptPageResponse.size);
    this.scheduler.run();
  }

  #readFile(fd: number): Uint8Array {
    const count = this.task.readTo(fd, BigInt(SCRATCH), SCRATCH_BYTES - (SCRATCH_BYTES % 40));
    const bytes = new Uint8Array(count);
    this.task.memory.read(BigInt(SCRATCH), bytes);
    return bytes;
  }

  // The guest's memory and tables

  /** A page of the guest's memory that nobody uses yet. */
  page(): number {
    const ipa = this.#free;
    this.#free += PAGE;
    if (this.#free > MEMORY.ipa + MEMORY.bytes) throw new Error("the guest has no more memory");
    return ipa;
  }

  write(ipa: number, bytes: Uint8Array): void {
    this.task.memory.write(BigInt(MEMORY.va + ipa - MEMORY.ipa), bytes);
  }
  read(ipa: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.task.memory.read(BigInt(MEMORY.va + ipa - MEMORY.ipa), bytes);
    return bytes;
  }
  store64(ipa: number, value: bigint): void {
    this.write(ipa, new Uint8Array(BigUint64Array.of(value).buffer));
  }
  load64(ipa: number): bigint {
    return new DataView(this.read(ipa, 8).buffer).getBigUint64(0, true);
  }

  /** A table of stage 1: 39 bits of addresses. */
  table(): number {
    return this.page();
  }

  /** Maps a page of guest memory in a table; 0: nothing is there any more. */
  map(table: number, address: number, ipa: number): void {
    let at = table;
    for (const shift of [30, 21]) {
      const slot = at + (Math.floor(address / 2 ** shift) % 512) * 8;
      const entry = this.load64(slot);
      if (entry & 1n) at = Number(entry & 0xffff_ffff_f000n);
      else {
        at = this.page();
        this.store64(slot, BigInt(at) | 3n);
      }
    }
    // A page, for unprivileged reading and writing, not global, accessed.
    this.store64(at + (Math.floor(address / PAGE) % 512) * 8, ipa === 0 ? 0n : BigInt(ipa) | 0xc43n);
  }

  /** Context descriptors, one for each table: of PASID 0, 1, 2…; where they are. */
  contexts(tables: readonly number[], more: Parameters<typeof Cd.make>[0] = {}): number {
    const at = this.page();
    tables.forEach((table, index) => {
      this.context(at, index, table, more);
    });
    return at;
  }

  context(contexts: number, index: number, table: number, more: Parameters<typeof Cd.make>[0] = {}): void {
    const descriptor = Cd.make({
      ...{ V: table !== 0, AA64: true, T0SZ: 25, EPD1: true, IPS: 4, R: true, A: true },
      ...{ ASID: index + 1, TTB0: table },
      ...more,
    });
    const bytes = new Uint8Array(64);
    Cd.write(bytes, descriptor);
    this.write(contexts + 64 * index, bytes);
  }

  /** The guest's stream table entry for these contexts. */
  stage1(contexts: number, lg2 = 0): SteFields {
    return {
      ...{ V: true, CONFIG: Config.stage1, S1CONTEXTPTR: contexts, S1CDMAX: lg2 },
      S1DSS: lg2 > 0 ? S1Dss.substream0 : 0,
    };
  }

  // The function

  /** What a write of the function to an address comes to. */
  dma(address: number, text: string, pasid?: number): "done" | "fault" | "waits" {
    const bytes = new TextEncoder().encode(text);
    this.#bar(TestRegister.BUFFER, bytes);
    this.#set(TestRegister.SOURCE, 0);
    this.#set(TestRegister.SOURCE + 4, 0);
    this.#set(TestRegister.DESTINATION, address);
    this.#set(TestRegister.DESTINATION + 4, Math.floor(address / 2 ** 32));
    this.#set(TestRegister.LENGTH, bytes.length);
    this.#set(TestRegister.PASID, pasid === undefined ? 0 : (TEST_PASID_VALID | pasid) >>> 0);
    this.#set(TestRegister.COMMAND, TestCommand.WRITE);
    this.scheduler.run();
    return this.dmaState();
  }

  dmaState(): "done" | "fault" | "waits" {
    const bytes = new Uint8Array(4);
    this.task.pread(this.device, regionOffset(0) + BigInt(TestRegister.STATUS), bytes);
    const status = bytes[0];
    if (status === TestStatus.BUSY) return "waits";
    return status === TestStatus.DONE ? "done" : "fault";
  }

  /** Whether the function may ask for translations and keep them. */
  get ats(): boolean {
    const made = this.machine.functions.find(({ name }) => name === TEST_FUNCTION)!;
    const { at } = extendedCapabilitiesOf(made).find(({ id }) => id === ExtendedCapabilityId.ATS)!;
    return (made.configRead(at + AtsCapability.CONTROL, 2) & AtsControl.fields.Enable.mask) !== 0;
  }

  text(ipa: number, length: number): string {
    return new TextDecoder().decode(this.read(ipa, length));
  }

  #bar(offset: number, bytes: Uint8Array): void {
    this.task.pwrite(this.device, regionOffset(0) + BigInt(offset), bytes);
  }
  #set(register: number, value: number): void {
    this.#bar(register, new Uint8Array(Uint32Array.of(value >>> 0).buffer));
  }
}
