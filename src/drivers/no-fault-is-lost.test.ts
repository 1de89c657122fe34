/**
 * No fault is lost. Functions make random accesses under page tables of every kind, while queues of the unit, of the driver and
 * of the VMM are so small that they overflow all the time, and while functions are detached, given other page tables and
 * reset, files are closed and VMMs are killed. Each access that did not go through is found again exactly once: as a record
 * that the VMM read, as an answer that was given without it, in the host's log, or behind a marker that says that records
 * were lost.
 */
import { describe, expect, it } from "vitest";
import { FaultHost, type PlainVendor, STALL_MAX, type Vendor } from "../../test/support/fault-rig.ts";
import { Books, FaultVmm } from "../../test/support/fault-vmm.ts";
import { iovaOf, PlainVmm } from "../../test/support/plain-vmm.ts";
import { Random } from "../base/clock.ts";
import { NO_PASID } from "../hardware/unit.ts";

const PASID = 5;
/** Overflows, detaches, new page tables, resets, closed files and kills, behind each unit. */
const DISTURBANCES = 6_000;
const STEPS = 24;
/** Accesses at a time that no queue has room for. */
const FLOOD = 160;
/** Of each kind of loss there must be more. */
const FEW = 3;
const FIRST_PAGE = 0x10_0000;
const PAGES = 2 ** 22;

/** Times that a unit had no room for what went wrong; one that says only that something did has no number for it. */
const overflowsOf = (driver: FaultHost["driver"]): number => {
  if ("overflows" in driver) return driver.overflows;
  return "faultOverflows" in driver ? driver.faultOverflows : 0;
};

/** What is counted at the unit, by its driver and by VMMs, at one moment. */
type Counts = ReturnType<World["counts"]>;

class World {
  readonly host: FaultHost;
  readonly books = new Books();
  readonly random: Random;
  vmm: FaultVmm;
  /** Detaches, replacements, resets, closed files and kills. */
  disturbed = 0;
  /** In the present epoch: an event queue went, with what was in it; stalls at a time. */
  unread = false;
  mostStalled = 0;
  #page = 0;

  constructor(vendor: Vendor, seed: number) {
    this.host = new FaultHost(vendor);
    this.random = new Random(seed);
    this.vmm = new FaultVmm(this.host, this.books);
  }

  counts() {
    const { host, books } = this;
    const sum = (of: (index: 0 | 1) => number): number => of(0) + of(1);
    const { driver } = host;
    const overflowed = overflowsOf(driver);
    const requests = "pageRequests" in driver ? driver.pageRequests : undefined;
    return {
      faulted: sum((i) => host.functions[i]!.counts.faulted),
      stalled: sum((i) => host.functions[i]!.counts.stalled),
      groups: sum((i) => host.functions[i]!.waits.pages?.groups ?? 0),
      waiting: sum((i) => {
        const { parked, resumed, failed, dropped } = host.functions[i]!.waits;
        return parked - resumed - failed - dropped;
      }),
      ...host.seen,
      logged: driver.faultCount,
      overflowed,
      taken: requests?.taken ?? 0,
      answered: requests?.answered ?? 0,
      refused: requests?.refused ?? 0,
      lostRequests: requests?.overflows ?? 0,
      read: books.read,
      saidYes: books.success,
      saidNo: books.invalid,
      events: books.events,
      missing: books.missing,
    };
  }

  epoch(): void {
    this.unread = false;
    this.mostStalled = 0;
    for (let step = 0; step < STEPS; step++) this.#step();
    this.settle();
  }

  /** Until nobody has anything more to say or to do. */
  settle(): void {
    const { host, vmm, random } = this;
    let busy = true;
    while (busy) {
      busy = host.interrupt();
      busy = vmm.readFaults() || busy;
      busy = vmm.readEvents() || busy;
      busy = vmm.answer(random, true) || busy;
      for (const made of host.functions) busy = made.proceed() || busy;
      this.#watch();
    }
    vmm.unmend();
  }

  #watch(): void {
    const { stalled, resumed, terminated } = this.counts();
    this.mostStalled = Math.max(this.mostStalled, stalled - resumed - terminated);
  }

  #step(): void {
    const { random, host } = this;
    switch (random.below(10)) {
      case 0:
        host.interrupt();
        break;
      case 1:
        this.vmm.readFaults();
        break;
      case 2:
        this.vmm.answer(random);
        break;
      case 3:
        this.vmm.readEvents();
        break;
      case 4:
      case 5:
      case 6:
        for (let more = random.below(4); more >= 0; more--) this.#disturb();
        break;
      case 7:
        for (const made of host.functions) made.proceed();
        break;
      default:
        this.#access();
    }
    this.#watch();
  }

  #access(): void {
    const { random } = this;
    const made = this.host.functions[random.below(2)]!;
    const pasid = random.below(3) === 0 ? PASID : NO_PASID;
    const count = random.below(8) === 0 ? FLOOD : 1 + random.below(20);
    for (let more = count; more > 0; more--) {
      made.begin((FIRST_PAGE + (this.#page % PAGES)) * 4096, pasid);
      this.#page += 1;
    }
  }

  #disturb(): void {
    const { random, vmm } = this;
    const device = random.below(2);
    const pasid = random.below(3) === 0 ? PASID : undefined;
    this.disturbed += 1;
    const what = random.below(40);
    if (what === 0) this.#kill();
    else if (what < 3) vmm.reset(device);
    else if (what < 5) {
      vmm.closeFaults();
      vmm.prepare();
    } else if (what < 7 && vmm.listens) {
      this.unread = true; // nobody reads what was in it
      vmm.deafen();
    } else if (what < 9) vmm.listen();
    else if (what < 16) vmm.detach(device, pasid);
    else vmm.attach(device, vmm.tables[random.below(vmm.tables.length)]!, pasid);
  }

  /** The last VMM dies: nothing is left. */
  end(): void {
    this.vmm.task.exit();
    this.host.interrupt();
    expect(Object.entries(this.host.live()).filter(([, count]) => count !== 0)).toEqual([]);
    this.host.host.memory.close();
  }

  #kill(): void {
    this.unread = true;
    this.vmm.task.exit();
    this.vmm = new FaultVmm(this.host, this.books);
  }
}

/** How much more there is of each than before. */
const between = (before: Counts, after: Counts): Counts =>
  Object.fromEntries(
    Object.entries(after).map(([name, count]) => [name, count - before[name as keyof Counts]]),
  ) as Counts;

/** Every stall ended once, and was told with its own record, or tried again; tells how many were denied unread. */
const checkStalls = (now: Counts, mostStalled: number, where: string): number => {
  expect(now.resumed + now.terminated, where).toBe(now.stalled);
  // Those for which there was no record, because too many waited, were tried again.
  const unrecorded = now.resumed - now.saidYes;
  expect(unrecorded, where).toBeGreaterThanOrEqual(0);
  if (mostStalled <= STALL_MAX) expect(unrecorded, where).toBe(0);
  const deniedUnread = now.stalled - unrecorded - now.read;
  expect(deniedUnread, where).toBeGreaterThanOrEqual(0);
  expect(now.read, where).toBeGreaterThanOrEqual(now.saidYes + now.saidNo);
  return deniedUnread;
};

/** Every group of page requests was answered once; tells how many were denied unread. */
const checkGroups = (now: Counts, where: string): number => {
  expect(now.success + now.invalid, where).toBe(now.groups);
  expect(now.answered + now.refused, where).toBe(now.taken);
  expect(now.read, where).toBeGreaterThanOrEqual(now.saidYes + now.saidNo);
  // What the unit answered itself: its queue was full, so that functions ask again; or they may not ask.
  const again = now.success - now.saidYes;
  expect(again, where).toBeGreaterThanOrEqual(0);
  if (now.lostRequests === 0) expect(again, where).toBe(0);
  const deniedUnread = now.answered - now.read;
  expect(deniedUnread, where).toBeGreaterThanOrEqual(0);
  return deniedUnread;
};

const TIME = { timeout: 300_000 };

describe("no fault is lost: what did not go through is read, an event, denied, in the log, or behind a marker", () => {
  it("SMMUv3: stalls, events of guests and the host's", TIME, () => {
    const world = new World("smmuv3", 7);
    const met = { denied: 0, exact: 0, unitOverflows: 0, behindMarkers: 0, eventsLost: 0 };
    let listening = world.vmm.listens;
    while (world.disturbed + met.unitOverflows < DISTURBANCES) {
      const before = world.counts();
      const listened = listening;
      world.epoch();
      listening = world.vmm.listens;
      const now = between(before, world.counts());
      const where = JSON.stringify(now);
      expect(world.counts().waiting, where).toBe(0);
      met.denied += checkStalls(now, world.mostStalled, where);
      // What ended at once is an event, or in the host's log, or behind a marker, or refused as configured.
      const untold = now.faulted - now.aborted - now.events - now.logged;
      expect(untold, where).toBeGreaterThanOrEqual(0);
      met.unitOverflows += now.overflowed;
      if (world.unread) continue; // nobody knows how much was in the event queue that went
      if (now.overflowed === 0) {
        expect(untold, where).toBe(now.missing);
        met.eventsLost += untold;
        met.exact += 1;
      } else if (listened && listening) {
        // The marker of a unit's overflow counts as one among the numbers of a guest's events.
        const fellOut = now.missing - now.overflowed;
        expect(fellOut, where).toBeGreaterThanOrEqual(0);
        expect(untold, where).toBeGreaterThanOrEqual(fellOut);
        met.eventsLost += fellOut;
        met.behindMarkers += untold - fellOut;
      }
    }
    for (const [what, count] of Object.entries(met)) expect(count, what).toBeGreaterThan(FEW);
    world.end();
  });

  it("VT-d: page requests and recorded faults", TIME, () => {
    const world = new World("vtd", 8);
    const met = { denied: 0, exact: 0, faultOverflows: 0, requestOverflows: 0, behindMarkers: 0 };
    for (let epoch = 0; world.disturbed + met.faultOverflows + met.requestOverflows < DISTURBANCES; epoch++) {
      world.host.prompt = epoch % 3 === 0;
      const before = world.counts();
      world.epoch();
      const now = between(before, world.counts());
      const where = JSON.stringify(now);
      expect(world.counts().waiting, where).toBe(0);
      met.denied += checkGroups(now, where);
      // A page request that may not be made is a fault too, and so is each access that ended at once.
      const forbidden = now.invalid - (now.answered - now.saidYes) - now.refused;
      const untold = now.faulted + forbidden - now.logged;
      expect(untold, where).toBeGreaterThanOrEqual(0);
      // §7.2.1 Faults of one function may share a record that has not been read yet.
      if (untold > 0) expect(now.logged, where).toBeGreaterThan(0);
      if (world.host.prompt) {
        expect([untold, now.overflowed], where).toEqual([0, 0]);
        met.exact += 1;
      }
      met.faultOverflows += now.overflowed;
      met.requestOverflows += now.lostRequests;
      met.behindMarkers += untold;
    }
    for (const [what, count] of Object.entries(met)) expect(count, what).toBeGreaterThan(FEW);
    world.end();
  });

  it("AMD-Vi: page requests and the event log", TIME, () => {
    const world = new World("amdvi", 9);
    const met = { denied: 0, exact: 0, overflows: 0, requestOverflows: 0, behindMarkers: 0 };
    while (world.disturbed + met.overflows + met.requestOverflows < DISTURBANCES) {
      const before = world.counts();
      world.epoch();
      const now = between(before, world.counts());
      const where = JSON.stringify(now);
      expect(world.counts().waiting, where).toBe(0);
      met.denied += checkGroups(now, where);
      // A page request that may not be made is a fault too, and so is each access that ended at once.
      const forbidden = now.invalid - (now.answered - now.saidYes) - now.refused;
      const untold = now.faulted + forbidden - now.logged;
      expect(untold, where).toBeGreaterThanOrEqual(0);
      if (now.overflowed === 0) {
        expect(untold, where).toBe(0);
        met.exact += 1;
      }
      met.overflows += now.overflowed;
      met.requestOverflows += now.lostRequests;
      met.behindMarkers += untold;
    }
    for (const [what, count] of Object.entries(met)) expect(count, what).toBeGreaterThan(FEW);
    world.end();
  });
});

/** Units that tell errors and nothing else; what fails is in the host's log, or behind a marker. */
describe("no error is lost", () => {
  const EPOCHS = 200;

  /** One epoch's accesses and disturbances, until everything was told. */
  const run = (host: FaultHost, vmm: PlainVmm, random: Random): void => {
    for (let step = 0; step < 6; step++) {
      const device = random.below(2);
      const made = host.functions[device]!;
      const what = random.below(12);
      if (what === 0) vmm.reset(device);
      else if (what < 3) vmm.detach(device);
      else if (what < 6) vmm.attach(device, vmm.tables[random.below(vmm.tables.length)]!);
      else if (what < 8) host.interrupt();
      else {
        made.master(true);
        // One page of these is there under some tables, and more under others.
        const count = random.below(6) === 0 ? FLOOD : 1 + random.below(8);
        for (let more = 0; more < count; more++) made.begin(iovaOf(host) + random.below(40) * 4096, NO_PASID);
      }
    }
    while (host.interrupt());
    // That errors were lost is said by the next one: where no table has anything.
    host.functions[0]!.master(true);
    host.functions[0]!.begin(iovaOf(host) + 2 ** 24, NO_PASID);
    while (host.interrupt());
  };

  /** `saysSo`: the unit has a marker for what was lost. */
  const check = (vendor: PlainVendor, saysSo: boolean): void => {
    const host = new FaultHost(vendor);
    const random = new Random(10);
    const met = { done: 0, exact: 0, prompt: 0, lost: 0 };
    let vmm = new PlainVmm(host);
    const count = () => ({
      failed: host.functions.reduce((sum, { counts }) => sum + counts.faulted, 0),
      done: host.functions.reduce((sum, { counts }) => sum + counts.done, 0),
      logged: host.driver.faultCount,
      fell: overflowsOf(host.driver),
    });
    for (let epoch = 0; epoch < EPOCHS; epoch++) {
      host.prompt = epoch % 3 === 0;
      const before = count();
      run(host, vmm, random);
      const after = count();
      const [failed, logged] = [after.failed - before.failed, after.logged - before.logged];
      const fell = after.fell - before.fell;
      const untold = failed - logged;
      const where = JSON.stringify({ epoch, failed, logged, fell });
      expect(untold, where).toBeGreaterThanOrEqual(0);
      if (untold > 0) expect(logged, where).toBeGreaterThan(0);
      if (host.prompt) expect([untold, fell], where).toEqual([0, 0]);
      else if (saysSo) expect(untold > 0, where).toBe(fell > 0);
      met.done += after.done - before.done;
      if (host.prompt) met.prompt += logged;
      else if (untold === 0) met.exact += logged;
      met.lost += untold;
      if (random.below(20) > 0) continue;
      vmm.task.exit();
      vmm = new PlainVmm(host);
    }
    for (const [what, times] of Object.entries(met)) expect(times, what).toBeGreaterThan(FEW);
    vmm.task.exit();
    expect(Object.entries(host.live()).filter(([, left]) => left !== 0)).toEqual([]);
    host.host.memory.close();
  };

  it("s390: each is an error of its own, until 64 wait; then one says that more were lost", TIME, () => {
    check("zpci", true);
  });

  it("POWER: the first of each PE is recorded, and the next one once software has read it", TIME, () => {
    check("tce", false);
  });
});
