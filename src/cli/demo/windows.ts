/**
 * The story of windows on a POWER host: one address space with two apertures, entries in the window that an address is in, what
 * the bridge says of accesses that are wrong, a page table whose windows and pages a program chose (extension `apertures`), and
 * a guest of POWER, which puts its entries by calls of its hypervisor.
 */
import { walk } from "../../trace/walk.ts";
import { HostCalls } from "../../viommu/host-calls.ts";
import { brief, refusalOf } from "./brief.ts";
import { claimNothingLeft, isBlocked } from "./endings.ts";
import { tellGuest } from "./fallback.ts";
import { GuestStage } from "./guest-stage.ts";
import type { Stage } from "./stage.ts";
import type { Teller } from "./story.ts";

const PAGE = 4096;
const LARGE_LG2 = 21;
const LARGE = 2 ** LARGE_LG2;
const GiB = 2 ** 30;
/** In the window of 32-bit addresses, and where the other one begins. */
const LOW = GiB;
const HIGH = 2 ** 59;
/** In the program's memory. */
const BUFFER = 0x10_0000;
const TEXT = "bytes of a program";
const hex = (value: number): string => `0x${value.toString(16)}`;

export const windows = (stage: Stage, teller: Teller): void => {
  const program = taking(stage, teller);
  const ioas = mapping(program, teller);
  straying(program, teller, ioas);
  unmapping(program, teller, ioas);
  choosing(program, teller, ioas);
  ending(program, teller);
  tellGuest(stage, teller, "tce-fixed", "windows of POWER");
};

interface Program {
  readonly scene: GuestStage;
  readonly calls: HostCalls;
}

const taking = (stage: Stage, teller: Teller): Program => {
  teller.scene("A program takes a device of a POWER host");
  const scene = new GuestStage(stage, "shadow", { shows: "none" });
  const { calls } = scene.vmm;
  if (!(calls instanceof HostCalls)) throw new TypeError("the program does not use iommufd");
  return { scene, calls };
};

const mapping = ({ scene, calls }: Program, teller: Teller): number => {
  const { stage, vmm, requester } = scene;
  const asked = stage.calls.length;
  const ioas = calls.allocateIoas();
  calls.attach(requester.fd, ioas);
  const { ranges, alignment } = calls.iovaRanges(ioas);
  teller.say(
    "It asks which addresses an address space has: two apertures, one for each window of the device.",
  );
  teller.show(ranges.map(({ start, end }) => `${hex(start)} to ${hex(end)}, pages of ${alignment} bytes`));
  teller.claim(
    "both windows are there: 2 GiB from 0 on, and 1 TiB high up",
    JSON.stringify(ranges) ===
      JSON.stringify([
        { start: 0, end: 2 * GiB },
        { start: HIGH, end: HIGH + 2 ** 40 },
      ]),
  );
  vmm.memory.writeBytes(BUFFER, Buffer.from(TEXT));
  for (const iova of [LOW, HIGH]) calls.map(ioas, { iova, va: vmm.ram.va + BUFFER, length: PAGE });
  teller.say("It maps the same page in each:");
  teller.show(scene.asked(asked));
  for (const [iova, which] of [
    [LOW, "low"],
    [HIGH, "high"],
  ] as const) {
    const found = scene.fetch(iova, TEXT.length);
    teller.claim(`the device reads the bytes through the ${which} window`, found === TEXT, found);
    teller.show(brief(walk(stage.machine, { device: stage.device, iova: BigInt(iova), write: true })));
  }
  const between = refusalOf(() => calls.map(ioas, { iova: 4 * GiB, va: vmm.ram.va, length: PAGE }));
  teller.claim("what lies between them cannot be mapped", between !== undefined, between);
  return ioas;
};

/** Each kind of error of the bridge. */
const straying = ({ scene, calls }: Program, teller: Teller, ioas: number): void => {
  const { stage, vmm } = scene;
  teller.scene("The device does what it may not");
  calls.map(ioas, { iova: LOW + PAGE, va: vmm.ram.va, length: PAGE, writable: false });
  for (const [iova, what, says] of [
    [LOW + PAGE, "a write where only reading is allowed", "TCE access fault"],
    [LOW + 2 * PAGE, "a write where there is no TCE", "TCE page fault"],
    [2 ** 58, "a write beyond the table of the window", "IODA error"],
  ] as const) {
    const found = scene.store(iova, "stray");
    const told = stage.explained.slice(-1);
    teller.claim(`${what} is refused: ${says}`, found === "fault" && told[0]?.includes(says) === true);
    teller.show(told);
  }
};

const unmapping = ({ scene, calls }: Program, teller: Teller, ioas: number): void => {
  teller.scene("The program takes the page back");
  calls.unmap(ioas, LOW, PAGE);
  const late = scene.store(LOW, "too late");
  teller.claim("the device cannot reach it through the low window", late === "fault", late);
  teller.claim("the other window has it still", scene.fetch(HIGH, TEXT.length) === TEXT);
};

/** A page table with windows of the program's choice, for a while. */
const choosing = ({ scene, calls }: Program, teller: Teller, before: number): void => {
  const { stage, vmm, requester } = scene;
  teller.scene("The program asks for a window with pages of 2 MiB");
  const asked = stage.calls.length;
  const ioas = calls.allocateIoas();
  const low = { start: 0, length: 2 * GiB, pageLg2: 12, levels: 2 };
  const hwpt = calls.allocateWindows(requester.id, ioas, [
    low,
    { start: HIGH, length: 2 ** 36, pageLg2: LARGE_LG2, levels: 1 },
  ]);
  calls.attach(requester.fd, hwpt);
  const small = refusalOf(() => calls.map(ioas, { iova: HIGH, va: vmm.ram.va, length: PAGE }));
  calls.map(ioas, { iova: HIGH, va: vmm.ram.va, length: LARGE });
  calls.map(ioas, { iova: LOW, va: vmm.ram.va, length: PAGE });
  teller.show(scene.asked(asked));
  teller.claim("a small page does not fit into it", small?.includes(hex(LARGE)) === true, small);
  teller.claim("beside it small pages are mapped as before", scene.fetch(LOW, 4) !== "fault");
  const found = scene.fetch(HIGH + BUFFER, TEXT.length);
  teller.claim("the device reads the bytes in the large page", found === TEXT, found);
  const walked = walk(stage.machine, { device: stage.device, iova: BigInt(HIGH + BUFFER), write: true });
  teller.show(brief(walked));
  const tces = walked.steps.filter(({ what, note }) => what === "TCE" && note?.includes(hex(LARGE)));
  teller.claim("one TCE is all of it", tces.length === 1);
  calls.attach(requester.fd, before);
  calls.destroy(hwpt);
  calls.destroy(ioas);
  teller.say("And gives it back: the device has its old windows again.");
  const late = scene.store(HIGH + BUFFER, "too late");
  teller.claim("the large page is reached no more", late === "fault", late);
  teller.claim("what the old windows have is there", scene.fetch(HIGH, TEXT.length) === TEXT);
};

const ending = ({ scene: { vmm, stage } }: Program, teller: Teller): void => {
  teller.scene("The program ends without tidying up");
  vmm.exit();
  claimNothingLeft(stage, teller, "nothing is left on the host", isBlocked(stage, HIGH));
};
