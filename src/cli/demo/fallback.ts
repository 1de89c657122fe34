/**
 * The story of guests on a host that does not nest, or that has another IOMMU than they: each guest has a unit and tables of
 * its own, and the VMM copies what they say into mappings whenever the guest invalidates; a guest with a virtio-iommu asks for
 * its mappings. The VMM does not ask what its host has.
 */
import type { GuestDomain } from "../../guest/firmware.ts";
import { TceGuestDriver } from "../../guest/tce/driver.ts";
import type { ShownUnit } from "../../guest/vmm.ts";
import { Protection } from "../../iommu/driver.ts";
import { reached, walk } from "../../trace/walk.ts";
import { brief, refusalOf } from "./brief.ts";
import { claimNothingLeft } from "./endings.ts";
import { GuestStage } from "./guest-stage.ts";
import type { Stage } from "./stage.ts";
import type { Teller } from "./story.ts";

const PAGE = 4096;
/** Within what every host maps: a window of 32-bit addresses, too. */
const IOVA = 0x4000_0000;
/** Of processes. */
const VA = 0x5555_0000_0000;
const RW = Protection.read | Protection.write;
const LARGE_LG2 = 16;
const LARGE = 2 ** LARGE_LG2;
const LARGE_PAGES = LARGE / PAGE;
const TEXT = "bytes of a guest";
const hex = (value: number): string => `0x${value.toString(16)}`;

/** Units that a guest can have, in words. */
export const GUESTS: { readonly [Unit in Exclude<ShownUnit, "none" | "tce-fixed">]: string } = {
  "vtd-legacy": "an Intel VT-d unit in legacy mode",
  vtd: "an Intel VT-d unit in scalable mode",
  smmuv3: "an Arm SMMUv3",
  amdvi: "an AMD-Vi unit",
  zpci: "PCI translation of s390",
  tce: "windows of POWER",
  virtio: "a virtio-iommu",
};

export const fallback = (stage: Stage, teller: Teller): void => {
  for (const [unit, what] of Object.entries(GUESTS) as [keyof typeof GUESTS, string][])
    tellGuest(stage, teller, unit, what);
};

/** The life of one guest. Throws the LinuxError with which the VMM refuses to have it on this host. */
export const tellGuest = (stage: Stage, teller: Teller, unit: ShownUnit, what: string): void => {
  const scene = taking(stage, teller, unit, what);
  booting(scene, teller);
  const { domain, buffer } = mapping(scene, teller);
  straying(scene, teller, domain);
  unmapping(scene, teller, domain, buffer);
  sharing(scene, teller);
  if (scene.guest.driver instanceof TceGuestDriver) widening(scene, teller, scene.guest.driver);
  ending(scene, teller);
};

const taking = (stage: Stage, teller: Teller, unit: ShownUnit, what: string): GuestStage => {
  teller.scene(`A VMM takes a device for a guest with ${what}`);
  const asked = stage.calls.length;
  const scene = new GuestStage(stage, "shadow", { shows: unit });
  teller.say("It tries what its host can do for the device, and then maps the guest's memory for it.");
  teller.show(scene.asked(asked));
  if (scene.vmm.iommu.model === "tce") {
    teller.claim("a function's windows are empty at first", scene.fetch(0x10_0000, 4) === "fault");
    return scene;
  }
  scene.vmm.memory.writeBytes(0x10_0000, Buffer.from(TEXT));
  teller.claim(
    "until the guest says otherwise, its addresses are the device's",
    scene.fetch(0x10_0000, TEXT.length) === TEXT,
  );
  return scene;
};

const booting = (scene: GuestStage, teller: Teller): void => {
  teller.scene("The guest boots, with the IOMMU driver that hosts use");
  const asked = scene.stage.calls.length;
  const { domains } = scene.guest.driver;
  teller.say(
    "It finds a unit by its registers and turns translation on: with tables of its own, or by requests.",
  );
  teller.show(scene.asked(asked));
  teller.claim("the device reaches nothing now", domains === 0 && scene.fetch(0x10_0000, 4) === "fault");
};

interface Mapped {
  readonly domain: GuestDomain;
  readonly buffer: number;
}

const mapping = (scene: GuestStage, teller: Teller): Mapped => {
  const { guest, requester, vmm, stage, device } = scene;
  const { machine } = stage;
  teller.scene("The guest maps a buffer for the device");
  const asked = stage.calls.length;
  const domain = guest.driver.allocatePaging(requester);
  guest.driver.attach(requester, domain);
  const buffer = guest.allocate(1);
  guest.write(buffer, TEXT);
  domain.map(IOVA, buffer, PAGE, RW);
  teller.say(
    `Its page at ${hex(buffer)} is to be at ${hex(IOVA)}: an entry in its table and an invalidation, or a request.`,
  );
  teller.show(scene.asked(asked));
  const told = device.interrupts;
  teller.claim("the device reads the guest's bytes", scene.fetch(IOVA, TEXT.length) === TEXT);
  teller.claim(
    "what it writes, the guest sees",
    scene.store(IOVA + 2048, "from the device") === "done" &&
      guest.read(buffer + 2048, 15) === "from the device",
  );
  teller.claim(
    "the guest's driver was told of the end of each by an interrupt of the device",
    device.interrupts === told + 2,
  );
  const walked = walk(machine, { device: stage.device, iova: BigInt(IOVA), write: true });
  teller.say("The host's unit walks what the VMM has mapped:");
  teller.show(brief(walked));
  const found = walked.steps.at(-1)?.outcome;
  teller.claim(
    "it ends at the host's page behind the guest's",
    found?.ok === true && Number(found.pa) === vmm.task.memory.physical(vmm.ram.va + buffer),
  );
  return { domain, buffer };
};

const straying = (scene: GuestStage, teller: Teller, domain: GuestDomain): void => {
  const { stage, vmm } = scene;
  teller.scene("The guest names memory that is not its own");
  const beyond = IOVA + 16 * PAGE;
  const refused = refusalOf(() => domain.map(beyond, vmm.ram.bytes, PAGE, RW));
  if (refused !== undefined) teller.say(`Its unit says at once that it cannot: ${refused}.`);
  teller.claim("the device does not reach it", scene.store(beyond, "stray") === "fault");
  teller.show(stage.explained.slice(-1));
  if (refused === undefined) domain.unmap(beyond, PAGE);
};

const unmapping = (scene: GuestStage, teller: Teller, domain: GuestDomain, buffer: number): void => {
  const { guest, stage } = scene;
  const { machine, device } = stage;
  teller.scene("The guest takes the buffer away");
  const asked = stage.calls.length;
  domain.unmap(IOVA, PAGE);
  teller.show(scene.asked(asked));
  guest.write(buffer, "out of reach");
  const late = scene.store(IOVA, "too late");
  teller.claim("the device cannot reach it any more", late === "fault", late);
  const kept = guest.read(buffer, 12);
  teller.claim("what the guest keeps there stays", kept === "out of reach", `it reads "${kept}"`);
  teller.claim(
    "nothing of it is in the host's tables",
    !reached(walk(machine, { device, iova: BigInt(IOVA), write: true })),
  );
};

/** A window that the guest asks for besides the one that the function has from the start. */
const widening = (scene: GuestStage, teller: Teller, driver: TceGuestDriver): void => {
  const { guest, requester, stage } = scene;
  teller.scene("The guest asks for a window of 64-bit addresses, with pages of 64 KiB");
  const asked = stage.calls.length;
  const domain = driver.allocatePaging(requester);
  driver.attach(requester, domain);
  const window = driver.createWindow(requester, LARGE_LG2, 30);
  const buffer = guest.allocate(2 * LARGE_PAGES);
  guest.write(buffer + LARGE, TEXT);
  domain.map(window.start, buffer, 2 * LARGE, RW);
  teller.say(`It gets one at ${hex(window.start)}, and puts two TCEs by a list:`);
  teller.show(scene.asked(asked));
  const found = scene.fetch(window.start + LARGE, TEXT.length);
  teller.claim("the device reads the guest's bytes through it", found === TEXT, found);
  driver.removeWindow(requester, window);
  const late = scene.store(window.start + LARGE, "too late");
  teller.claim("when the window is removed the device reaches nothing there", late === "fault", late);
  driver.attach(requester, driver.blocked);
  domain.free();
};

/** Where the guest's unit and the host's both have PASIDs. */
const sharing = (scene: GuestStage, teller: Teller): void => {
  const { guest, requester, stage } = scene;
  teller.scene("A process of the guest shares its addresses with the device");
  if (!scene.hasPasids) {
    teller.say("It would need PASIDs, which the guest's unit or the host's does not have.");
    return;
  }
  const asked = stage.calls.length;
  const process = guest.start("alpha", requester);
  const pasid = guest.bind(requester, process);
  process.reserve(VA, 4);
  process.write(VA, "memory of alpha");
  teller.say(`It has PASID ${pasid}, which is one of the device on the host too, with a copy of its own.`);
  teller.show(scene.asked(asked));
  const found = scene.fetch(VA, 15, pasid);
  teller.claim("the device reads its memory at its own address", found === "memory of alpha", found);
  const page = process.physical(VA);
  process.release(VA, 4);
  guest.write(page, "somebody else's");
  const late = scene.store(VA, "a stray write", pasid);
  teller.claim("and cannot write to pages that it no longer has", late === "fault", late);
  const kept = guest.read(page, 15);
  teller.claim("who gets such a page next finds it as it left it", kept === "somebody else's", `"${kept}"`);
  guest.unbind(requester, process);
  process.exit();
  teller.claim("when it has ended the PASID reaches nothing", scene.fetch(VA, 4, pasid) === "fault");
};

const ending = ({ vmm, stage }: GuestStage, teller: Teller): void => {
  teller.scene("The VMM dies");
  vmm.exit();
  claimNothingLeft(stage, teller);
};
