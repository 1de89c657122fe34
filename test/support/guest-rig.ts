/** A machine with two test functions, a VMM on it and a guest in the VMM: what tests of guests begin with. */
import { ManualClock } from "../../src/base/clock.ts";
import { type EventFields, type EventKind, type EventSink, silent } from "../../src/base/events.ts";
import { WorkQueue } from "../../src/base/scheduler.ts";
import { Guest } from "../../src/guest/guest.ts";
import { TestDevice } from "../../src/guest/test-device.ts";
import type { MemoryMapping } from "../../src/guest/virtual-unit.ts";
import { type ShownUnit, Vmm } from "../../src/guest/vmm.ts";
import { parseDevice, parseMachine, withDevices } from "../../src/machine/file.ts";
import { Machine, type MachineContext } from "../../src/machine/machine.ts";
import { PRESETS } from "../../src/machine/presets.ts";
import type { RecordedCall } from "../../src/viommu/recorded-calls.ts";

export const RAM_BYTES = 16 * 2 ** 20;
const FUNCTIONS = ["0000:7e:00.0", "0000:7f:00.0"] as const;
/** Of a second guest. */
const OTHERS = ["0000:7c:00.0", "0000:7d:00.0"] as const;
/** Requester ids that the guest knows them by. */
export const GUEST_RIDS = [0x0008, 0x0010] as const;

/** What somebody wanted known. */
class NotedEvents implements EventSink {
  readonly on = true;
  readonly noted: { readonly kind: EventKind; readonly fields: EventFields }[] = [];
  emit(kind: EventKind, fields: EventFields): void {
    if (kind === "device") this.noted.push({ kind, fields });
  }
}

export interface RigOptions extends Pick<MachineContext, "unitMemory"> {
  readonly edit?: (text: string) => string;
  readonly shows?: ShownUnit;
  /** What of the guest's memory the VMM maps. */
  readonly maps?: MemoryMapping;
  /** The host's units that the two functions are behind. */
  readonly units?: readonly [string, string];
  /** Another VMM on the machine of this one. */
  readonly beside?: GuestRig;
}

export class GuestRig {
  readonly machine: Machine;
  readonly vmm: Vmm;
  readonly calls: RecordedCall[] = [];
  readonly work: WorkQueue;
  readonly events = new NotedEvents();
  readonly devices: readonly TestDevice[];
  readonly #beside: boolean;
  #guest: Guest | undefined;

  /** `edit`: what of the preset's text is to be otherwise. `shows`: what a shadowed guest has. */
  constructor(
    preset = "vtd-legacy",
    follow: "nested" | "shadow" = "shadow",
    { edit = (text) => text, shows = "vtd-legacy", maps, units, beside, ...more }: RigOptions = {},
  ) {
    const description = parseMachine(edit(PRESETS.get(preset)!), preset);
    const functions = [...FUNCTIONS, ...OTHERS].map((at, index) =>
      parseDevice(`test@${at}${units ? `,unit=${units[index % 2]}` : ""}`),
    );
    this.#beside = beside !== undefined;
    this.work = beside?.work ?? new WorkQueue();
    this.machine =
      beside?.machine ??
      new Machine(withDevices(description, functions), {
        events: silent,
        clock: new ManualClock(),
        scheduler: this.work,
        ...more,
      });
    this.vmm = new Vmm({
      host: this.machine,
      name: "vmm",
      ramBytes: RAM_BYTES,
      devices: (beside ? OTHERS : FUNCTIONS).map((name, index) => ({
        path: this.machine.vfio.deviceNodes.get(name)!.path,
        rid: GUEST_RIDS[index]!,
      })),
      events: this.events,
      follow,
      shows,
      ...(maps && { maps }),
      addressWidth: 46,
      scheduler: this.work,
      record: (call) => this.calls.push(call),
    });
    this.devices = this.vmm.devices.map((bar) => new TestDevice(bar));
  }

  /** Boots the guest when first asked. */
  get guest(): Guest {
    this.#guest ??= new Guest({
      name: "guest",
      memory: this.vmm.memory,
      iommu: this.vmm.iommu,
      devices: this.vmm.devices,
      addressWidth: 46,
      scheduler: this.vmm.processors,
      events: silent,
    });
    return this.#guest;
  }

  /** The guest's drivers are told by interrupts from now on. */
  listen(): void {
    for (const [index, device] of this.devices.entries()) device.listen(this.guest, this.vmm.devices[index]!);
  }

  /** Names of the calls since the last time. */
  takeCalls(): string[] {
    return this.calls.splice(0).map(({ name }) => name);
  }

  /** What the device did with a request of so many bytes. */
  settle(device: TestDevice): string {
    this.work.run();
    return device.result;
  }

  /** Counts of what clients left on the host, when this was the last VMM on it. */
  close(): Record<string, number> {
    this.vmm.exit();
    if (this.#beside) return {};
    const left = Object.fromEntries(Object.entries(this.machine.live()).filter(([, count]) => count !== 0));
    this.machine.close();
    return left;
  }
}
