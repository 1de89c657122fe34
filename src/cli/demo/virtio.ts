/**
 * The story of a guest with a virtio-iommu, on any host: no tables of the guest's, but requests in a virtqueue, which the VMM
 * turns into mappings of the host; and a queue of events, from which the guest learns of what its devices may not do, where
 * the host can tell.
 */
import type { GuestDomain } from "../../guest/firmware.ts";
import { Protection, type UnrecoverableFault } from "../../iommu/driver.ts";
import { reached, walk } from "../../trace/walk.ts";
import { brief, refusalOf } from "./brief.ts";
import { claimNothingLeft } from "./endings.ts";
import { GuestStage } from "./guest-stage.ts";
import type { Stage } from "./stage.ts";
import type { Teller } from "./story.ts";

const PAGE = 4096;
/** Within what every host maps: a window of 32-bit addresses, too. */
const IOVA = 0x4000_0000;
const RW = Protection.read | Protection.write;
const TEXT = "bytes of a guest";
const hex = (value: number | bigint): string => `0x${value.toString(16)}`;

export const virtio = (stage: Stage, teller: Teller): void => {
  const scene = taking(stage, teller);
  booting(scene, teller);
  const mapped = mapping(scene, teller);
  straying(scene, teller, mapped.domain);
  bypassing(scene, teller, mapped);
  unmapping(scene, teller, mapped);
  ending(scene, teller);
};

const taking = (stage: Stage, teller: Teller): GuestStage => {
  teller.scene("A VMM takes a device for a guest with a virtio-iommu");
  const scene = new GuestStage(stage, "shadow", { shows: "virtio" });
  teller.say("It tries what its host can do for the device, and then maps the guest's memory for it.");
  teller.show(scene.asked(0));
  scene.vmm.memory.writeBytes(0x10_0000, Buffer.from(TEXT));
  teller.claim(
    "until the guest says otherwise, its addresses are the device's",
    scene.fetch(0x10_0000, TEXT.length) === TEXT,
  );
  return scene;
};

const booting = (scene: GuestStage, teller: Teller): void => {
  const { stage, requester } = scene;
  teller.scene("The guest boots");
  const asked = stage.calls.length;
  const { driver } = scene.guest;
  teller.say(
    "Its driver settles features with the device, sets two virtqueues up in guest memory, asks what is",
  );
  teller.say(
    "special about the device's addresses (PROBE), and ends the bypass that the VMM had begun with:",
  );
  teller.show(
    driver
      .reserved(requester)
      .map(({ start, length, kind }) => `${hex(start)}-${hex(start + length - 1)} ${kind}`),
  );
  teller.show(scene.asked(asked));
  teller.claim(
    "the guest knows that the addresses of interrupts are not its own to map",
    driver.reserved(requester).some(({ kind }) => kind === "msi"),
  );
  refused(scene, teller, 0x10_0000, "the device reaches nothing now");
};

interface Mapped {
  readonly domain: GuestDomain;
  readonly buffer: number;
}

const mapping = (scene: GuestStage, teller: Teller): Mapped => {
  const { guest, requester, stage, vmm, device } = scene;
  teller.scene("The guest maps a buffer for the device");
  const domain = guest.driver.allocatePaging(requester);
  const buffer = guest.allocate(4);
  guest.write(buffer, TEXT);
  domain.map(IOVA, buffer, 4 * PAGE, RW);
  const asked = stage.calls.length;
  guest.driver.attach(requester, domain);
  teller.say(`Two requests, ATTACH and MAP: its four pages at ${hex(buffer)} are to be at ${hex(IOVA)}.`);
  teller.show(scene.asked(asked));
  const names = stage.calls.slice(asked).map(({ name }) => name);
  teller.claim(
    "the host is asked for one mapping",
    names.filter((name) => name === "IOMMU_IOAS_MAP").length === 1,
  );
  const told = device.interrupts;
  teller.claim("the device reads the guest's bytes", scene.fetch(IOVA, TEXT.length) === TEXT);
  teller.claim(
    "what it writes, the guest sees",
    scene.store(IOVA + 3 * PAGE, "from the device") === "done" &&
      guest.read(buffer + 3 * PAGE, 15) === "from the device",
  );
  teller.claim(
    "the guest's driver was told of the end of each by an interrupt of the device",
    device.interrupts === told + 2,
  );
  const walked = walk(stage.machine, { device: stage.device, iova: BigInt(IOVA), write: true });
  teller.say("The host's unit walks tables of the host's alone:");
  teller.show(brief(walked));
  const found = walked.steps.at(-1)?.outcome;
  teller.claim(
    "they end at the host's page behind the guest's",
    found?.ok === true && Number(found.pa) === vmm.task.memory.physical(vmm.ram.va + buffer),
  );
  return { domain, buffer };
};

/** What the guest may not ask for, and what its device may not do. */
const straying = (scene: GuestStage, teller: Teller, domain: GuestDomain): void => {
  const { vmm, guest, requester } = scene;
  teller.scene("Guest and device go astray");
  const beyond = IOVA + 16 * PAGE;
  const wrong: readonly (readonly [what: string, iova: number, pa: number])[] = [
    ["memory that is not the guest's", beyond, vmm.ram.bytes],
    ["what is mapped already", IOVA + PAGE, 0x10_0000],
    ["addresses that are reserved", guest.driver.reserved(requester)[0]!.start, 0x10_0000],
    ...beyondHost(domain),
  ];
  for (const [what, iova, pa] of wrong) {
    const why = refusalOf(() => domain.map(iova, pa, PAGE, RW));
    teller.claim(`a request to map ${what} is refused`, why !== undefined, why);
  }
  refused(scene, teller, beyond, "the device reaches nothing where nothing is mapped");
};

/** A host whose addresses have all 64 bits has no others. */
const beyondHost = ({ apertures }: GuestDomain): [what: string, iova: number, pa: number][] => {
  const { end } = apertures[0]!;
  return end < 2 ** 64 ? [["addresses that the host does not have", end, 0x10_0000]] : [];
};

/** The device cannot read there, and the guest learns of it where the host can tell. */
const refused = (scene: GuestStage, teller: Teller, address: number, claim: string): void => {
  const { guest, stage, vmm } = scene;
  const told: UnrecoverableFault[] = [];
  guest.driver.onFault = (_device, fault) => told.push(fault);
  const result = scene.fetch(address, 4);
  stage.settle();
  teller.claim(claim, result === "fault", result);
  teller.show(stage.explained.slice(-1));
  if (vmm.backEnd.reports !== true) {
    teller.say("The host has no way to tell the VMM of it, and so nobody tells the guest.");
    return;
  }
  teller.claim(
    "the guest learns of it from its event queue, with the address",
    told.length > 0 && told.every((fault) => fault.address === BigInt(address)),
    told.map((fault) => hex(fault.address ?? 0n)).join(", "),
  );
};

const bypassing = (scene: GuestStage, teller: Teller, { domain, buffer }: Mapped): void => {
  const { guest, requester } = scene;
  teller.scene("The guest lets the device pass");
  guest.driver.attach(requester, guest.driver.identity);
  teller.claim(
    "in a bypass domain the guest's addresses are the device's",
    scene.fetch(buffer, TEXT.length) === TEXT && scene.fetch(IOVA, 4) === "fault",
  );
  guest.driver.attach(requester, domain);
  teller.claim(
    "back in its own, it has what was mapped there, and no more",
    scene.fetch(IOVA, TEXT.length) === TEXT && scene.fetch(buffer, 4) === "fault",
  );
};

const unmapping = (scene: GuestStage, teller: Teller, { domain, buffer }: Mapped): void => {
  const { guest, stage, vmm } = scene;
  const { machine, device } = stage;
  teller.scene("The guest takes the buffer away");
  const asked = stage.calls.length;
  domain.unmap(IOVA, 4 * PAGE);
  teller.say("One request, UNMAP, and one call:");
  teller.show(scene.asked(asked));
  guest.write(buffer, "out of reach");
  const late = scene.store(IOVA, "too late");
  teller.claim("the device cannot reach it any more", late === "fault", late);
  const kept = guest.read(buffer, 12);
  teller.claim("what the guest keeps there stays", kept === "out of reach", `it reads "${kept}"`);
  teller.claim(
    "nothing of it is in the host's tables",
    vmm.backEnd.held === 0 && !reached(walk(machine, { device, iova: BigInt(IOVA), write: true })),
  );
};

const ending = ({ vmm, stage, requester, guest }: GuestStage, teller: Teller): void => {
  teller.scene("The guest gives the device up, and the VMM dies");
  guest.driver.release(requester);
  vmm.exit();
  claimNothingLeft(stage, teller);
};
