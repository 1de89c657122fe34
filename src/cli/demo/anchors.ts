/**
 * The story of a guest of s390 on a host that takes guests' anchors (`s390-nesting`): guest memory is mapped and pinned once,
 * and from then on the host follows the guest's own tables. It reads them through that one mapping, when the guest registers
 * an anchor or refreshes a range, and a function walks the product. When any of the memory goes, so does what led there.
 */
import { Instructions } from "../../drivers/zpci/instructions.ts";
import type { GuestDomain } from "../../guest/firmware.ts";
import { Protection } from "../../iommu/driver.ts";
import { explainWalk } from "../../pagetable/explain.ts";
import { s390Dat } from "../../pagetable/s390.ts";
import { reached, walk } from "../../trace/walk.ts";
import { HostCalls } from "../../viommu/host-calls.ts";
import { ZpciNested } from "../../viommu/zpci/nested.ts";
import { brief, refusalOf } from "./brief.ts";
import { claimBlocked, claimNothingLeft } from "./endings.ts";
import { GuestStage } from "./guest-stage.ts";
import type { Stage } from "./stage.ts";
import type { Teller } from "./story.ts";

const PAGE = 4096;
const IOVA = 0x1_0000_0000;
const RW = Protection.read | Protection.write;
const TEXT = "bytes of a guest";
const hex = (value: number): string => `0x${value.toString(16)}`;
const format = s390Dat(3);

export const anchors = (stage: Stage, teller: Teller): void => {
  const scene = taking(stage, teller);
  booting(scene, teller);
  const domain = mapping(scene, teller);
  refreshing(scene, teller, domain);
  straying(scene, teller, domain);
  changing(scene, teller, domain);
  unmapping(scene, teller, domain);
  losing(scene, teller, domain);
  ending(scene, teller);
};

/** What the host holds for its clients. */
const held = ({ machine }: Stage) => {
  const { pinnedPages = 0, tableFrames = 0 } = machine.live();
  return { pinnedPages, tableFrames };
};

const taking = (stage: Stage, teller: Teller): GuestStage => {
  teller.scene("A VMM takes a function for its guest");
  const scene = new GuestStage(stage, "nested");
  teller.say(
    "It maps all of the guest's memory once, at its own addresses, in a page table made to lie beneath",
  );
  teller.say("others (NEST_PARENT). That pins it, and nothing later does.");
  teller.show(scene.asked(0));
  const pages = scene.vmm.ram.bytes / PAGE;
  const { pinnedPages } = held(stage);
  teller.claim("every page of the guest is pinned, once", pinnedPages === pages, `${pinnedPages} pages`);
  scene.vmm.memory.writeBytes(0x10_0000, Buffer.from(TEXT));
  teller.claim(
    "until the guest says otherwise, its addresses are the function's",
    scene.fetch(0x10_0000, TEXT.length) === TEXT,
  );
  return scene;
};

const booting = (scene: GuestStage, teller: Teller): void => {
  teller.scene("The guest boots, with the driver that hosts use");
  const asked = scene.stage.calls.length;
  const { domains } = scene.guest.driver;
  teller.say("It says that functions without an anchor are to be refused:");
  teller.show(scene.asked(asked));
  teller.claim("the function reaches nothing now", domains === 0 && scene.fetch(0x10_0000, 4) === "fault");
};

const mapping = (scene: GuestStage, teller: Teller): GuestDomain => {
  const { guest, requester, stage, vmm, device } = scene;
  teller.scene("The guest registers an anchor, and maps a buffer");
  const before = held(stage).pinnedPages;
  let asked = stage.calls.length;
  const domain = guest.driver.allocatePaging(requester);
  guest.driver.attach(requester, domain);
  teller.say("Modify PCI Function Controls: the VMM makes a page table of the host of the guest's anchor.");
  teller.show(scene.asked(asked));
  const buffer = guest.allocate(1);
  guest.write(buffer, TEXT);
  asked = stage.calls.length;
  domain.map(IOVA, buffer, PAGE, RW);
  teller.say(`Its page at ${hex(buffer)} is to be at ${hex(IOVA)}: an entry, and Refresh PCI Translations.`);
  teller.show(scene.asked(asked));
  const names = new Set(stage.calls.slice(asked).map(({ name }) => name));
  teller.claim(
    "the VMM mapped nothing for it",
    [...names].join() === "IOMMU_HWPT_INVALIDATE",
    [...names].join(),
  );
  const told = device.interrupts;
  teller.claim("the function reads the guest's bytes", scene.fetch(IOVA, TEXT.length) === TEXT);
  teller.claim(
    "what it writes, the guest sees",
    scene.store(IOVA + 2048, "from the device") === "done" &&
      guest.read(buffer + 2048, 15) === "from the device",
  );
  teller.claim(
    "the guest's driver was told of the end of each by an interrupt of the function",
    device.interrupts === told + 2,
  );
  teller.claim("no page was pinned for it, and none accounted", held(stage).pinnedPages === before);
  const walked = walk(stage.machine, { device: stage.device, iova: BigInt(IOVA), write: true });
  teller.say("The function walks the product, in tables of the host's alone:");
  teller.show(brief(walked));
  const end = walked.steps.at(-1)?.outcome;
  teller.claim(
    "it ends at the host's page behind the guest's",
    end?.ok === true && Number(end.pa) === vmm.task.memory.physical(vmm.ram.va + buffer),
  );
  return domain;
};

/** Where the guest's own entry for an address is. */
const entryOf = ({ vmm }: GuestStage, { root }: GuestDomain, iova: number): number => {
  let at = 0;
  for (const { address } of explainWalk(format, vmm.memory, root, BigInt(iova), 0)) at = address ?? at;
  return at;
};

const refreshing = (scene: GuestStage, teller: Teller, domain: GuestDomain): void => {
  const { guest, requester, stage, vmm } = scene;
  teller.scene("What is not refreshed is not seen");
  const other = guest.allocate(1);
  guest.write(other, "another page");
  const at = entryOf(scene, domain, IOVA);
  vmm.memory.load64be(at);
  const before = { lo: vmm.memory.lo, hi: vmm.memory.hi };
  vmm.memory.store64be(at, other, 0);
  teller.say(`The guest writes ${hex(other)} into its page-table entry, and says nothing.`);
  const stale = scene.fetch(IOVA, TEXT.length);
  teller.claim("the function still has the page that was there", stale === TEXT, stale);
  const instructions = new Instructions(vmm.iommu, vmm.memory, "guest");
  const refresh = () => instructions.refresh(requester.rid, IOVA, IOVA + PAGE);
  const asked = stage.calls.length;
  refresh();
  teller.show(scene.asked(asked));
  const fresh = scene.fetch(IOVA, 12);
  teller.claim("once the page is refreshed it has the new one", fresh === "another page", fresh);
  vmm.memory.store64be(at, before.lo, before.hi);
  refresh();
  instructions.free();

  const standing = held(stage);
  const calls = stage.calls.length;
  const pages = 64;
  const buffer = guest.allocate(pages);
  domain.map(IOVA + PAGE, buffer, pages * PAGE, RW);
  const now = held(stage);
  teller.claim(
    `${pages} pages more are one refresh, and take no pin and no table of the host's`,
    stage.calls.length === calls + 1 &&
      now.pinnedPages === standing.pinnedPages &&
      now.tableFrames === standing.tableFrames,
    `${stage.calls.length - calls} call`,
  );
  guest.write(buffer + (pages - 1) * PAGE, "the last page");
  const last = scene.fetch(IOVA + pages * PAGE, 13);
  teller.claim("the function reads the last of them", last === "the last page", last);
};

const straying = (scene: GuestStage, teller: Teller, domain: GuestDomain): void => {
  const { stage, vmm } = scene;
  teller.scene("The guest names memory that is not its own");
  const beyond = IOVA + 2 ** 20;
  const asked = stage.calls.length;
  const refused = refusalOf(() => domain.map(beyond, vmm.ram.bytes, PAGE, RW));
  teller.say(`Its table may say what it likes: ${hex(vmm.ram.bytes)} is beyond its memory.`);
  teller.show(scene.asked(asked));
  teller.claim(
    "the host refuses the entry, and the refresh tells the guest so",
    refused !== undefined,
    refused,
  );
  teller.claim("the function does not reach it", scene.store(beyond, "stray") === "fault");
  teller.show(stage.explained.slice(-1));
};

const changing = (scene: GuestStage, teller: Teller, domain: GuestDomain): void => {
  const { guest, requester, stage } = scene;
  teller.scene("The guest changes its anchor");
  const other = guest.driver.allocatePaging(requester);
  const page = guest.allocate(1);
  guest.write(page, "by the other");
  other.map(IOVA, page, PAGE, RW);
  const asked = stage.calls.length;
  guest.driver.attach(requester, other);
  teller.say("Re-registration: the page table of the new anchor comes, and that of the old one goes.");
  teller.show(scene.asked(asked));
  const found = scene.fetch(IOVA, 12);
  teller.claim("the function goes by the other tables, all of them", found === "by the other", found);
  guest.driver.attach(requester, domain);
  other.unmap(IOVA, PAGE);
  other.free();
  const back = scene.fetch(IOVA, TEXT.length);
  teller.claim("and back by the first", back === TEXT, back);
};

const unmapping = (scene: GuestStage, teller: Teller, domain: GuestDomain): void => {
  const { guest, stage, vmm } = scene;
  teller.scene("The guest takes pages away");
  vmm.memory.load64be(entryOf(scene, domain, IOVA + PAGE));
  const page = vmm.memory.lo;
  scene.fetch(IOVA + PAGE, 4);
  const asked = stage.calls.length;
  domain.unmap(IOVA + PAGE, 64 * PAGE);
  teller.show(scene.asked(asked));
  guest.write(page, "out of reach");
  const late = scene.store(IOVA + PAGE, "too late");
  teller.claim("the function cannot reach them any more", late === "fault", late);
  const kept = guest.read(page, 12);
  teller.claim("what the guest keeps there stays", kept === "out of reach", `it reads "${kept}"`);
};

const losing = (scene: GuestStage, teller: Teller, domain: GuestDomain): void => {
  const { stage, vmm } = scene;
  teller.scene("The VMM takes the guest's memory away, while the function uses it");
  if (!(vmm.calls instanceof HostCalls && vmm.backEnd instanceof ZpciNested))
    throw new TypeError("the guest's anchors are not above a host's page table");
  const { calls, backEnd } = vmm;
  scene.store(IOVA, "while it can");
  const asked = stage.calls.length;
  const before = held(stage);
  calls.unmap(backEnd.ioas, 0, vmm.ram.bytes);
  teller.show(scene.asked(asked));
  const now = held(stage);
  teller.claim("every page was given back", before.pinnedPages > 0 && now.pinnedPages === 0);
  teller.claim(
    "what led there from the guest's tables had gone before",
    scene.store(IOVA, "too late") === "fault" &&
      !reached(walk(stage.machine, { device: stage.device, iova: BigInt(IOVA), write: true })),
  );
  calls.map(backEnd.ioas, { iova: 0, va: vmm.ram.va, length: vmm.ram.bytes });
  teller.claim("it does not come back with the memory", scene.fetch(IOVA, 4) === "fault");
  const instructions = new Instructions(vmm.iommu, vmm.memory, "guest");
  instructions.refresh(scene.requester.rid, IOVA, IOVA + PAGE);
  instructions.free();
  const found = scene.fetch(IOVA, 12);
  teller.claim(
    "but when the guest refreshes it",
    found === "while it can" && domain.physical(IOVA) >= 0,
    found,
  );
};

const ending = ({ stage, vmm }: GuestStage, teller: Teller): void => {
  teller.scene("The VMM dies");
  vmm.exit();
  claimNothingLeft(stage, teller);
  claimBlocked(stage, teller, "function", IOVA);
};
