/**
 * The story of virtual SVA by the interface of 2020: a VMM with a nesting container, a guest whose PASIDs are the host's, and
 * three of its processes that share their addresses with one device. One has its pages brought in, one is killed, one
 * tries the PASIDs of others.
 */
import { QueueDevice } from "../../guest/queue-device.ts";
import { openNode } from "../../guest/vmm-process.ts";
import { ModelTask } from "../../kernel/model-task.ts";
import { formatWalk, walk } from "../../trace/walk.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { ContainerCalls } from "../../viommu/container-calls.ts";
import { claimBlocked, claimNothingLeft } from "./endings.ts";
import { GuestStage, groupPath } from "./guest-stage.ts";
import { type Member, shareAddresses } from "./sharing.ts";
import type { Stage } from "./stage.ts";
import type { Teller } from "./story.ts";

const PAGE = 4096;
/** Of processes, which all use the same addresses. */
const VA = 0x5555_0000_0000;
const PAGES = 16;
/** A PASID that nobody has. */
const NOBODY = 0xf_ffff;
/** Where the guest has bytes for requests without a PASID. */
export const GREETING = 0x10_0000;
export const TEXT = "bytes of a guest";
const hex = (value: number): string => `0x${value.toString(16)}`;

export const vsva = (stage: Stage, teller: Teller): void => {
  const scene = taking(stage, teller);
  const { beta, gamma } = living(scene, teller);
  trying(scene, teller, beta, gamma);
  stealing(scene, teller, gamma);
  ending(scene, teller);
};

/** What the guest does with its processes, whichever interface its VMM has. */
export const living = (
  scene: GuestStage,
  teller: Teller,
): { readonly beta: Member; readonly gamma: Member } => {
  booting(scene, teller);
  const [alpha, beta, gamma] = sharing(scene, teller);
  faulting(scene, teller, beta);
  invalidating(scene, teller, alpha);
  killing(scene, teller, alpha, beta);
  explaining(scene, teller, beta);
  return { beta, gamma };
};

/** A work queue of the machine that can be a guest's. */
const queueOf = ({ machine }: Stage): string | undefined =>
  [...machine.mdevs.devices.values()].find(({ type }) => type === "queue")?.uuid;

const taking = (stage: Stage, teller: Teller): GuestStage => {
  teller.scene("A VMM selects nesting and takes a device for its guest");
  const queue = queueOf(stage);
  const scene = new GuestStage(stage, "bound", { others: queue ? [queue] : [] });
  const { vmm, requester } = scene;
  teller.say(
    "A container of the nesting type maps all of the guest's memory, and says what may lie above that.",
  );
  teller.show(scene.asked(0));
  const { vtd, pasidBits, ats } = requester.info;
  teller.claim(
    "the capability says that tables are VT-d's, and has PASIDs and page requests",
    vtd !== undefined && pasidBits > 0 && ats,
    `PASIDs of ${pasidBits} bits`,
  );
  vmm.memory.writeBytes(GREETING, Buffer.from(TEXT));
  teller.claim(
    "without a PASID the guest's addresses are the device's",
    scene.fetch(GREETING, TEXT.length) === TEXT,
  );
  return scene;
};

const booting = (scene: GuestStage, teller: Teller): void => {
  teller.scene("The guest boots, with the IOMMU driver that hosts use");
  const { guest, vmm } = scene;
  for (const device of vmm.devices) guest.driver.attach(device, guest.driver.identity);
  teller.say(
    "Its kernel lets requests without a PASID pass: in a container they cannot have a table of the guest.",
  );
  teller.claim("they reach the guest's memory as before", scene.fetch(GREETING, TEXT.length) === TEXT);
  teller.claim("with a PASID the device reaches nothing", scene.fetch(VA, 4, NOBODY) === "fault");
};

const sharing = (scene: GuestStage, teller: Teller): [Member, Member, Member] => {
  const { guest, requester, vmm } = scene;
  teller.scene("Three processes of the guest share their addresses with the device");
  const asked = scene.stage.calls.length;
  const queue = vmm.devices[1];
  const member = (name: string): Member => {
    // What has no page requests cannot have a table that waits for pages.
    const process = guest.start(name, name === "gamma" && queue ? queue : requester);
    const pasid = guest.bind(requester, process);
    process.reserve(VA, PAGES);
    process.write(VA, `memory of ${name}`);
    teller.say(`${name} has PASID ${pasid}, and "memory of ${name}" at ${hex(VA)}.`);
    return { name, process, pasid };
  };
  const members: [Member, Member, Member] = [member("alpha"), member("beta"), member("gamma")];
  teller.say("The guest asks its unit for each PASID, the VMM the host. Each table is bound to its PASID:");
  teller.show(scene.asked(asked));
  for (const one of members) shareAddresses(scene, teller, one, VA);
  const found = members.map(({ process }) => process.read(VA + 256, 17));
  teller.claim(
    "none of them sees what was written for another",
    members.every(({ name }, at) => found[at]!.startsWith(`written for ${name}`)),
  );
  return members;
};

const faulting = (scene: GuestStage, teller: Teller, { process, pasid }: Member): void => {
  const { guest, stage } = scene;
  const [answered, faults] = [guest.answered.success, process.faults];
  teller.scene("Pages of beta come when the device asks for them");
  const address = VA + 4 * PAGE - 6;
  const text = "across two new pages";
  const asked = stage.calls.length;
  const result = scene.store(address, text, pasid);
  teller.say(
    "It asks for both at once: the host's page request queue, the ring of the device's fault region, the guest's",
  );
  teller.say("page request queue, the guest's page fault handler; and the answer goes the same way back.");
  teller.show(scene.asked(asked));
  teller.claim("the guest answered for both pages at once", guest.answered.success === answered + 1);
  teller.claim("beta has two pages more", process.faults === faults + 2);
  teller.claim("the device went on where it had stopped", result === "done", result);
  const found = process.physical(address) >= 0 ? process.read(address, text.length) : "nothing";
  teller.claim("and its bytes are there", found === text, `"${found}"`);
  teller.claim(
    "an address that beta has nothing for is refused, by the guest itself",
    scene.fetch(VA + 1024 * PAGE, 4, pasid) === "fault" && guest.answered.invalid > 0,
  );
};

const invalidating = (scene: GuestStage, teller: Teller, { process, pasid }: Member): void => {
  const { guest, stage } = scene;
  teller.scene("alpha gives memory back");
  const asked = stage.calls.length;
  const page = process.physical(VA);
  process.release(VA, PAGES);
  teller.say(
    "Its table has lost the entry, and the invalidation goes to the container, by PASID and address:",
  );
  teller.show(scene.asked(asked));
  guest.write(page, "somebody else's");
  const after = scene.store(VA, "a stray write", pasid);
  teller.claim("the device cannot write to a page alpha no longer has", after === "fault", after);
  const kept = guest.read(page, 15);
  teller.claim("who gets such a page next finds it as it left it", kept === "somebody else's", `"${kept}"`);
  process.reserve(VA, PAGES);
  process.write(VA, "alpha once more");
};

const killing = (scene: GuestStage, teller: Teller, alpha: Member, beta: Member): void => {
  const { guest, requester, stage, device } = scene;
  teller.scene("alpha is killed in the middle of a transfer");
  const asked = stage.calls.length;
  const [domains, { success, invalid }] = [guest.driver.domains, { ...guest.answered }];
  // The first page is there, the second is not.
  device.fetch(VA, 2 * PAGE, alpha.pasid);
  stage.work.run(1);
  const [during, moved] = [device.poll(), device.moved];
  guest.unbind(requester, alpha.process);
  alpha.process.exit();
  stage.settle();
  const result = device.result === "busy" ? device.poll() : device.result;
  teller.say("Its PASID table entry goes: the table is unbound, and the PASID is the host's again:");
  teller.show(scene.asked(asked));
  teller.claim(
    "the device had read one page and waited for the next, which nobody brings any more",
    during === "busy" && moved === PAGE,
    `${during}, ${moved} bytes`,
  );
  teller.claim(
    "the transfer ends all the same, and not well",
    result === "fault" && guest.answered.success === success && guest.answered.invalid === invalid,
    result,
  );
  teller.claim("its table is gone in the guest", guest.driver.domains === domains - 1);
  const late = scene.fetch(VA, 4, alpha.pasid);
  teller.claim(`with PASID ${alpha.pasid} the device reaches nothing`, late === "fault", late);
  const text = "memory of beta";
  teller.claim("beta goes on", scene.fetch(VA, text.length, beta.pasid) === text);
};

const explaining = (scene: GuestStage, teller: Teller, { process, pasid }: Member): void => {
  const { stage, vmm } = scene;
  teller.scene("One access, entry by entry");
  teller.say("Every entry of beta's table is at a guest address, which the container's table translates:");
  const told = walk(stage.machine, { device: stage.device, iova: BigInt(VA), write: true, pasid });
  teller.show(formatWalk(told));
  const outcome = told.steps.at(-1)?.outcome;
  const page = process.physical(VA);
  teller.claim(
    "it is the page that beta's own table names, where the VMM's memory has it",
    outcome?.ok === true && Number(outcome.pa) === vmm.task.memory.physical(vmm.ram.va + page),
  );
};

/** gamma has a work queue for itself, a mediated device. */
const trying = (scene: GuestStage, teller: Teller, beta: Member, gamma: Member): void => {
  const { guest, stage, vmm } = scene;
  const device = vmm.devices[1];
  if (!device) return;
  teller.scene("gamma, which has a work queue of its own, tries another's PASID");
  const asked = stage.calls.length;
  guest.bind(device, gamma.process);
  const queue = new QueueDevice(device);
  const copy = { source: VA, destination: VA + 512, length: 15 };
  queue.enable(gamma.pasid);
  queue.submit(copy);
  stage.settle();
  teller.say("The queue is a mediated device with a container of its own, where gamma's table is bound too:");
  teller.show(scene.asked(asked));
  teller.claim(
    "with its own PASID the queue copies within gamma's memory",
    queue.result === "done" && gamma.process.read(VA + 512, 15) === "memory of gamma",
    queue.result,
  );
  queue.submit({ ...copy, pasid: beta.pasid });
  stage.settle();
  teller.claim(`a descriptor with beta's PASID stops it`, queue.result === "stopped", queue.result);
  teller.claim("nothing of beta's was copied", beta.process.read(VA + 512, 6) === "\0".repeat(6));
  queue.enable(beta.pasid);
  teller.claim("and so does beta's PASID in its register", queue.result === "stopped", queue.result);
};

/** The guest's kernel does gamma's bidding, and gives a table to a PASID that is another program's. */
const stealing = (scene: GuestStage, teller: Teller, gamma: Member): void => {
  const { guest, requester, stage } = scene;
  teller.scene("The guest gives a table to a PASID that it was not given");
  const neighbour = new Neighbour(stage);
  teller.say(`Another program of the host has PASID ${neighbour.pasid} now.`);
  const asked = stage.calls.length;
  let refused: unknown;
  try {
    guest.driver.attach(requester, gamma.process.table, neighbour.pasid);
  } catch (error) {
    refused = error;
  }
  teller.show(scene.asked(asked));
  const answer = stage.calls.slice(asked).at(-1)?.error;
  teller.claim("the host refuses: whose PASID it is decides", answer === "EACCES", answer);
  teller.claim("the guest's unit stops at the invalidation that said so", refused instanceof LinuxError);
  const found = scene.fetch(VA, 4, neighbour.pasid);
  teller.claim(`with PASID ${neighbour.pasid} the device reaches nothing`, found === "fault", found);
  neighbour.exit();
};

/** Another program on the host, with a nesting container and a PASID. */
class Neighbour {
  readonly #task: ModelTask;
  readonly pasid: number;

  /** Throws RangeError when the machine has no function for it. */
  constructor(stage: Stage) {
    const { machine } = stage;
    const taken = new Set(machine.core.devices.get(stage.device)!.group.devices.map(({ name }) => name));
    const free = machine.functions.find(({ name }) => !taken.has(name) && machine.vfio.deviceNodes.has(name));
    if (!free) throw new RangeError("the machine has no other function for another program");
    this.#task = new ModelTask(machine.memory, { name: "neighbour" });
    const calls = new ContainerCalls(this.#task);
    const container = openNode(this.#task, machine, "/dev/vfio/vfio");
    calls.open(container, openNode(this.#task, machine, groupPath(stage, free.name)), free.name);
    this.pasid = calls.allocatePasid(container);
  }

  exit(): void {
    this.#task.exit();
  }
}

const ending = ({ stage, vmm }: GuestStage, teller: Teller): void => {
  teller.scene("The VMM dies");
  vmm.exit();
  claimNothingLeft(stage, teller, "nothing is left on the host, and every PASID is free");
  claimBlocked(stage, teller, "device", VA);
};
