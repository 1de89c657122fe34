/**
 * The story of a guest on a host that nests: the guest has an IOMMU of the host's model, page tables and processes, and the
 * host's unit walks the guest's tables above those of the host. Mapping costs the VMM nothing; what the guest takes away is
 * invalidated.
 */
import type { GuestDomain } from "../../guest/firmware.ts";
import type { GuestProcess } from "../../guest/process.ts";
import { Protection } from "../../iommu/driver.ts";
import { formatWalk, type Walk, walk } from "../../trace/walk.ts";
import { claimBlocked, claimNothingLeft } from "./endings.ts";
import { GuestStage } from "./guest-stage.ts";
import { WORDS, type Words } from "./nested-words.ts";
import { shareAddresses } from "./sharing.ts";
import type { Stage } from "./stage.ts";
import type { Teller } from "./story.ts";

const PAGE = 4096;
const IOVA = 0x1_0000_0000;
/** Of processes, which all use the same addresses. */
const VA = 0x5555_0000_0000;
const RW = Protection.read | Protection.write;
const TEXT = "bytes of a guest";
const hex = (value: number): string => `0x${value.toString(16)}`;

export const nested = (stage: Stage, teller: Teller): void => {
  const scene = taking(stage, teller);
  booting(scene, teller);
  const kernel = mapping(scene, teller);
  const [first, second] = sharing(scene, teller);
  faulting(scene, teller, second);
  invalidating(scene, teller, kernel, first);
  succeeding(scene, teller, first);
  straying(scene, teller, kernel);
  explaining(scene, teller, second);
  releasing(scene, teller);
  ending(scene, teller);
};

const taking = (stage: Stage, teller: Teller): GuestStage => {
  teller.scene("A VMM takes a device for its guest");
  const scene = new GuestStage(stage, "nested");
  if (stage.machine.description.extensions.includes("amd-nesting"))
    teller.say(
      "Linux 7.2 does not nest on AMD's hosts yet: the machine has the extension amd-nesting for that.",
    );
  teller.say(
    "It maps all of the guest's memory once, in a page table made to lie beneath others (NEST_PARENT).",
  );
  teller.show(scene.asked(0));
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
  const { guest } = scene;
  teller.say(wordsOf(scene).boots);
  teller.show(scene.asked(asked));
  teller.claim("the device reaches nothing now", scene.fetch(0x10_0000, 4) === "fault");
  teller.claim("the guest's driver has no domain yet", guest.driver.domains === 0);
};

/** What the guest's kernel maps for a device of its own. */
interface Kernel {
  readonly domain: GuestDomain;
  readonly buffer: number;
}

const mapping = (scene: GuestStage, teller: Teller): Kernel => {
  const { guest, requester, stage, vmm } = scene;
  teller.scene("The guest's kernel maps a buffer for the device");
  let asked = stage.calls.length;
  const domain = guest.driver.allocatePaging(requester);
  guest.driver.attach(requester, domain);
  teller.say(wordsOf(scene).attaches);
  teller.show(scene.asked(asked));
  const buffer = guest.allocate(1);
  guest.write(buffer, TEXT);
  asked = stage.calls.length;
  domain.map(IOVA, buffer, PAGE, RW);
  teller.say(`The guest's page at ${hex(buffer)} is at ${hex(IOVA)} for the device from now on.`);
  const told = scene.device.interrupts;
  teller.claim("the device reads the guest's bytes", scene.fetch(IOVA, TEXT.length) === TEXT);
  teller.claim(
    "what it writes, the guest sees",
    scene.store(IOVA + 2048, "from the device") === "done" &&
      guest.read(buffer + 2048, 15) === "from the device",
  );
  teller.claim(
    "the guest's driver was told of the end of each by an interrupt of the device",
    scene.device.interrupts === told + 2,
  );
  const added = new Set(stage.calls.slice(asked).map(({ name }) => name));
  added.delete("IOMMU_HWPT_INVALIDATE"); // the guest's unit may remember that nothing was there
  teller.claim("the VMM mapped nothing for it", added.size === 0, [...added].join(", "));
  const found = outcomeOf(walk(stage.machine, { device: stage.device, iova: BigInt(IOVA), write: true }));
  const expected = vmm.task.memory.physical(vmm.ram.va + buffer);
  teller.claim("the two tables end at the host's page behind the guest's", found === expected, hex(expected));
  return { domain, buffer };
};

const sharing = (scene: GuestStage, teller: Teller): [GuestProcess, GuestProcess] => {
  const { guest, requester, stage } = scene;
  teller.scene("Two processes of the guest share their addresses with the device");
  const asked = stage.calls.length;
  const processes = ["alpha", "beta"].map((name) => {
    const process = guest.start(name, requester);
    const pasid = guest.bind(requester, process);
    process.reserve(VA, 16);
    process.write(VA, `memory of ${name}`);
    teller.say(`${name} has PASID ${pasid}, and "memory of ${name}" at ${hex(VA)}.`);
    return { name, process, pasid };
  });
  teller.say(wordsOf(scene).shares);
  teller.show(scene.asked(asked));
  for (const one of processes) shareAddresses(scene, teller, one, VA);
  const [alpha, beta] = processes;
  teller.claim(
    "neither process sees what was written for the other",
    alpha!.process.read(VA + 256, 16) !== beta!.process.read(VA + 256, 16),
  );
  const nobody = beta!.pasid + 2;
  teller.claim(
    `with PASID ${nobody}, which nobody has, it reaches nothing`,
    scene.fetch(VA, 4, nobody) === "fault",
  );
  teller.show(stage.explained.slice(-1));
  return [alpha!.process, beta!.process];
};

const faulting = (scene: GuestStage, teller: Teller, process: GuestProcess): void => {
  const { guest, requester, stage } = scene;
  const pasid = guest.bind(requester, process);
  const [before, faults] = [guest.answered.success, process.faults];
  teller.scene("The device touches a page that is not there yet");
  const address = VA + 4 * PAGE - 6;
  const text = "across two new pages";
  const asked = stage.calls.length;
  const result = scene.store(address, text, pasid);
  for (const line of wordsOf(scene).asks) teller.say(line);
  teller.show(scene.asked(asked));
  const { answers } = wordsOf(scene);
  teller.claim(answers.claim, guest.answered.success === before + answers.count);
  teller.claim("its process has two pages more", process.faults === faults + 2);
  teller.claim("the device went on where it had stopped", result === "done", result);
  const found = process.physical(address) >= 0 ? process.read(address, text.length) : "nothing";
  teller.claim("and its bytes are there", found === text, `"${found}"`);
  teller.claim(
    "an address that the process has nothing for is refused, by the guest itself",
    scene.fetch(VA + 1024 * PAGE, 4, pasid) === "fault" && guest.answered.invalid > 0,
  );
  teller.show(stage.explained.slice(-1));
};

const invalidating = (scene: GuestStage, teller: Teller, kernel: Kernel, process: GuestProcess): void => {
  const { guest, requester, stage } = scene;
  teller.scene("The guest takes memory away");
  let asked = stage.calls.length;
  kernel.domain.unmap(IOVA, PAGE);
  teller.say(wordsOf(scene).unmaps);
  teller.show(scene.asked(asked));
  guest.write(kernel.buffer, "out of reach");
  const late = scene.store(IOVA, "too late");
  teller.claim("the device cannot reach it any more", late === "fault", late);
  const kept = guest.read(kernel.buffer, 12);
  teller.claim("what the guest keeps there stays", kept === "out of reach", `it reads "${kept}"`);

  const pasid = guest.bind(requester, process);
  asked = stage.calls.length;
  const page = process.physical(VA);
  process.release(VA, 16);
  teller.say("A process's memory, which the device has written to a moment ago:");
  teller.show(scene.asked(asked));
  guest.write(page, "somebody else's");
  const after = scene.store(VA, "a stray write", pasid);
  teller.claim("the device cannot write to pages the process no longer has", after === "fault", after);
  const next = guest.read(page, 15);
  teller.claim("who gets such a page next finds it as it left it", next === "somebody else's", `"${next}"`);
};

/** A process ends, and another one gets its PASID. */
const succeeding = (scene: GuestStage, teller: Teller, process: GuestProcess): void => {
  const { guest, requester, stage } = scene;
  teller.scene("A PASID changes hands");
  const asked = stage.calls.length;
  const pasid = guest.bind(requester, process);
  const next = guest.start("gamma", requester);
  guest.unbind(requester, process);
  process.exit();
  teller.say(wordsOf(scene).ends);
  teller.show(scene.asked(asked));
  const late = scene.fetch(VA, 4, pasid);
  teller.claim(`with PASID ${pasid} the device reaches nothing`, late === "fault", late);
  next.reserve(VA, 1);
  next.write(VA, "memory of gamma");
  const given = guest.bind(requester, next);
  teller.claim("gamma, which begins as it ends, gets its PASID", given === pasid);
  const found = scene.fetch(VA, 15, pasid);
  teller.claim("with it the device reads the memory of gamma now", found === "memory of gamma", found);
  guest.unbind(requester, next);
  next.exit();
};

const straying = (scene: GuestStage, teller: Teller, { domain }: Kernel): void => {
  const { stage, vmm } = scene;
  teller.scene("The guest names memory that is not its own");
  const beyond = IOVA + 16 * PAGE;
  domain.map(beyond, vmm.ram.bytes, PAGE, RW);
  teller.say(`Its table may say what it likes: ${hex(vmm.ram.bytes)} is beyond its memory.`);
  teller.claim("the host's table says no", scene.store(beyond, "stray") === "fault");
  teller.show(stage.explained.slice(-1));
  domain.unmap(beyond, PAGE);
};

const explaining = (scene: GuestStage, teller: Teller, process: GuestProcess): void => {
  const { guest, requester, stage, vmm } = scene;
  const pasid = guest.bind(requester, process);
  teller.scene("One access, entry by entry");
  teller.say(
    "Every entry of the guest's table is itself at a guest address, which the host's table translates:",
  );
  const told = walk(stage.machine, { device: stage.device, iova: BigInt(VA), write: true, pasid });
  teller.show(formatWalk(told));
  const { steps } = told;
  const guests = steps.flatMap(({ what }, at) => (what.startsWith("guest address") ? [at] : []));
  teller.claim(
    `each of the ${guests.length} guest addresses on the way is looked up in the host's table, entry by entry`,
    guests.length > 1 && guests.every((at) => steps[at + 1]?.level !== undefined),
  );
  const page = process.physical(VA);
  teller.claim(
    "it is the page that the process's own table names, where the VMM's memory has it",
    outcomeOf(told) === vmm.task.memory.physical(vmm.ram.va + page),
  );
};

const releasing = (scene: GuestStage, teller: Teller): void => {
  const { guest, requester, stage } = scene;
  const { releases, told } = wordsOf(scene);
  teller.scene("The guest gives the device up");
  const asked = stage.calls.length;
  guest.driver.release(requester);
  teller.say(releases);
  teller.show(scene.asked(asked));
  const before = guest.driver.faultCount;
  teller.claim("it reaches nothing any more", scene.fetch(IOVA, 4) === "fault");
  if (told !== undefined) teller.claim(told, guest.driver.faultCount > before);
};

const ending = ({ stage, vmm }: GuestStage, teller: Teller): void => {
  teller.scene("The VMM dies");
  vmm.exit();
  claimNothingLeft(stage, teller);
  claimBlocked(stage, teller, "device", IOVA);
};

const wordsOf = ({ vmm }: GuestStage): Words => {
  const { model } = vmm.iommu;
  if (model === "zpci" || model === "tce" || model === "virtio" || model === "none")
    throw new RangeError(`${model} has no tables with PASIDs for a host to walk`);
  return WORDS[model];
};

/** The host physical address that a walk ended at; undefined: it was refused. */
const outcomeOf = ({ steps }: Walk): number | undefined => {
  const outcome = steps.at(-1)?.outcome;
  return outcome?.ok === true ? Number(outcome.pa) : undefined;
};
