/**
 * softiommu as a library. `Machine` is a host of IOMMUs and devices inside this process; `ModelTask` is a process that
 * calls it; `Host` serves a machine to real programs. Descriptions come from YAML (`parseMachine`), from a preset
 * (`PRESETS`) or are written out.
 *
 * ```ts
 * import { Machine, ManualClock, ModelTask, PRESETS, parseMachine, silent, WorkQueue } from "softiommu";
 *
 * const machine = new Machine(parseMachine(PRESETS.get("vtd")!, "vtd"), {
 *   events: silent,
 *   clock: new ManualClock(),
 *   scheduler: new WorkQueue(),
 * });
 * for (const step of machine.explain("0000:01:00.0", 0x1000n, true) ?? []) console.log(step);
 * ```
 */
export { Host, type HostOptions } from "./attach/host.ts";
export { type Clock, ManualClock, monotonic } from "./base/clock.ts";
export { type EventFields, type EventKind, type EventSink, silent } from "./base/events.ts";
export { type Scheduler, WorkQueue } from "./base/scheduler.ts";
export type { Call, DeviceNode, KernelFile, Suspended, Task, UserMemory } from "./kernel/call.ts";
export type { ModelMemory } from "./kernel/model-memory.ts";
export { ModelTask, type ModelTaskOptions, PendingCall } from "./kernel/model-task.ts";
export { BREAKS, type Break } from "./machine/breaks.ts";
export { MachineFileError, parseDevice, parseMachine, withDevices } from "./machine/file.ts";
export { type LiveCounts, Machine, type MachineContext } from "./machine/machine.ts";
export { PRESETS } from "./machine/presets.ts";
export type { DeviceDescription, MachineDescription, UnitDescription } from "./machine/schema.ts";
export { type MachineState, restoreState, StateFileError, saveState } from "./machine/state.ts";
export type { DecodedField, ExplainStep } from "./pagetable/step.ts";
export { explain } from "./trace/explain.ts";
export { Fan, type Listener, type TraceEvent } from "./trace/fan.ts";
export { TraceFile } from "./trace/file.ts";
export { formatWalk, type Walk, type WalkQuestion, type WalkStep, walk } from "./trace/walk.ts";
export { Errno, type ErrnoName, LinuxError } from "./uapi/errno.ts";
export * as iommufd from "./uapi/iommufd.ts";
export * as vfio from "./uapi/vfio.ts";
