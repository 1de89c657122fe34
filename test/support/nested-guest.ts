/**
 * A VMM's program on a machine that nests, with a guest that is nothing but tables in its memory, and the test function to try
 * them with. The program reaches the machine by encoded requests only. What tables there are its subclasses say.
 */
import { expect } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { type EventSink, silent } from "../../src/base/events.ts";
import { WorkQueue } from "../../src/base/scheduler.ts";
import { ModelTask } from "../../src/kernel/model-task.ts";
import { parseMachine } from "../../src/machine/file.ts";
import { Machine } from "../../src/machine/machine.ts";
import { extendedCapabilitiesOf } from "../../src/pci/capability-list.ts";
import { TestCommand, TestRegister, TestStatus } from "../../src/pci/devices/test-function.ts";
import { AtsCapability, AtsControl, Command, ExtendedCapabilityId, Header } from "../../src/pci/spec.ts";
import * as uapi from "../../src/uapi/iommufd.ts";
import type { Members, Struct, StructValue, StructWrite } from "../../src/uapi/struct.ts";
import { regionOffset } from "../../src/vfio/regions.ts";
import { CdevClient } from "./cdev-client.ts";

/** The guest's memory: where the program has it, where the guest sees it, and how much. */
export const MEMORY = { va: 0x7000_0000, ipa: 0x4000_0000, bytes: 0x10_0000 } as const;
/** Arguments of requests. */
export const SCRATCH = 0x10_0000;
const SCRATCH_BYTES = 0x1_0000;
export const PAGE = 4096;
/** Bytes of a command. */
const COMMAND_BYTES = 16;
const TEST_PASID_VALID = 0x8000_0000;
/** A guest command's words. */
const WORD = 0xffff_ffff_ffff_ffffn;

/** A machine with other guests on it, and the number of the function's file. */
export interface Beside {
  readonly machine: Machine;
  readonly scheduler: WorkQueue;
  readonly device: number;
}

export interface NestedGuestOptions {
  readonly machine: string;
  /** The machine file. */
  readonly text: string;
  /** Number of the test function's file, and its name. */
  readonly device: number;
  readonly functionName: string;
  readonly events?: EventSink;
  /** Instead of a machine of its own. */
  readonly beside?: Beside | undefined;
}

/** How a nested HWPT is asked for. */
export interface NestedOptions {
  readonly flags?: number;
  readonly fault?: number;
  readonly type?: number;
}

export abstract class NestedGuest {
  readonly scheduler: WorkQueue;
  readonly machine: Machine;
  readonly client: CdevClient;
  readonly fd: number;
  readonly device: number;
  /** Number of the device in the iommufd. */
  readonly id: number;
  readonly ioas: number;
  readonly #functionName: string;
  #free = MEMORY.ipa;

  constructor({ machine, text, device, functionName, events = silent, beside }: NestedGuestOptions) {
    this.#functionName = functionName;
    this.scheduler = beside?.scheduler ?? new WorkQueue();
    this.machine =
      beside?.machine ??
      new Machine(parseMachine(text, machine), {
        events,
        clock: new ManualClock(),
        scheduler: this.scheduler,
      });
    const task = new ModelTask(this.machine.memory);
    task.memory.map(MEMORY.va, MEMORY.bytes);
    task.memory.map(SCRATCH, SCRATCH_BYTES);
    this.client = new CdevClient(task, this.machine);
    this.fd = this.client.iommu();
    this.device = this.client.cdev(beside?.device ?? device);
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

  viommu(parent: number, type: number, device = this.id): number {
    const members = { type, dev_id: device, hwpt_id: parent };
    return this.call(uapi.IOMMU_VIOMMU_ALLOC, uapi.IommuViommuAlloc, members).out_viommu_id;
  }

  vdevice(viommu: number, virtualId: bigint): number {
    const members = { viommu_id: viommu, dev_id: this.id, virt_id: virtualId };
    return this.call(uapi.IOMMU_VDEVICE_ALLOC, uapi.IommuVdeviceAlloc, members).out_vdevice_id;
  }

  /** A nested HWPT for the vendor's data. */
  protected allocateNested(viommu: number, data: Uint8Array, type: number, options: NestedOptions): number {
    const { fault, flags = 0 } = options;
    this.task.memory.write(BigInt(SCRATCH), data);
    return this.call(uapi.IOMMU_HWPT_ALLOC, uapi.IommuHwptAlloc, {
      flags: flags | (fault === undefined ? 0 : uapi.IOMMU_HWPT_FAULT_ID_VALID),
      dev_id: this.id,
      pt_id: viommu,
      data_type: options.type ?? type,
      data_len: data.length,
      data_uptr: BigInt(SCRATCH),
      ...(fault !== undefined && { fault_id: fault }),
    }).out_hwpt_id;
  }

  /** The guest's commands, of 128 bits; how many were carried out, and the errno. */
  protected sendCommands(
    object: number,
    commands: readonly bigint[],
    { type, at = SCRATCH }: { readonly type: number; readonly at?: number | undefined },
  ): { readonly done: number; readonly error: string | undefined } {
    commands.forEach((command, index) => {
      const bytes = new Uint8Array(BigUint64Array.of(command & WORD, command >> 64n).buffer);
      this.task.memory.write(BigInt(SCRATCH + index * COMMAND_BYTES), bytes);
    });
    const bytes = uapi.IommuHwptInvalidate.bytes({
      size: uapi.IommuHwptInvalidate.size,
      hwpt_id: object,
      data_uptr: BigInt(at),
      data_type: type,
      entry_len: COMMAND_BYTES,
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

  faultQueue(): { readonly id: number; readonly fd: number } {
    const answer = this.call(uapi.IOMMU_FAULT_QUEUE_ALLOC, uapi.IommuFaultAlloc, {});
    return { id: answer.out_fault_id, fd: answer.out_fault_fd };
  }

  takeFaults(fd: number) {
    const { size } = uapi.IommuHwptPgfault;
    const bytes = this.readFile(fd);
    return Array.from({ length: bytes.length / size }, (_, index) =>
      uapi.IommuHwptPgfault.read(bytes.subarray(index * size)),
    );
  }

  answerFault(fd: number, cookie: number, code: number): void {
    this.task.memory.write(BigInt(SCRATCH), uapi.IommuHwptPageResponse.bytes({ cookie, code }));
    this.task.writeFrom(fd, BigInt(SCRATCH), uapi.IommuHwptPageResponse.size);
    this.scheduler.run();
  }

  protected readFile(fd: number): Uint8Array {
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
    const made = this.machine.functions.find(({ name }) => name === this.#functionName)!;
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
