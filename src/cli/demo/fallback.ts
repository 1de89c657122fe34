/**
 * The story of a guest on a host that does not nest: the guest has a VT-d unit and its own tables, and the VMM copies what
 * they say into mappings whenever the guest invalidates.
 */
import { Protection } from "../../iommu/driver.ts";
import { reached, walk } from "../../trace/walk.ts";
import { brief } from "./brief.ts";
import { GuestStage } from "./guest-stage.ts";
import type { Stage } from "./stage.ts";
import type { Teller } from "./story.ts";

const PAGE = 4096;
const IOVA = 0x1_0000_0000;
const RW = Protection.read | Protection.write;
const TEXT = "bytes of a guest";
const hex = (value: number): string => `0x${value.toString(16)}`;

export const fallback = (stage: Stage, teller: Teller): void => {
  const { machine, device, calls } = stage;
  teller.scene("A VMM takes a device for its guest");
  const scene = new GuestStage(stage, "shadow");
  teller.show(scene.asked(0));
  const { vmm } = scene;
  vmm.memory.writeBytes(0x10_0000, Buffer.from(TEXT));
  teller.claim(
    "until the guest says otherwise, its addresses are the device's",
    scene.fetch(0x10_0000, TEXT.length) === TEXT,
  );

  teller.scene("The guest boots, with the IOMMU driver that hosts use");
  let asked = calls.length;
  const { guest, requester } = scene;
  teller.say("It finds a unit by its registers, writes a root table and turns translation on.");
  teller.show(scene.asked(asked));
  teller.claim("the device reaches nothing now", scene.fetch(0x10_0000, 4) === "fault");

  teller.scene("The guest maps a buffer for the device");
  asked = calls.length;
  const domain = guest.driver.allocatePaging(requester);
  guest.driver.attach(requester, domain);
  const buffer = guest.allocate(1);
  guest.write(buffer, TEXT);
  domain.map(IOVA, buffer, PAGE, RW);
  teller.say(
    `Its page at ${hex(buffer)} is to be at ${hex(IOVA)}: an entry in its table, and an invalidation.`,
  );
  teller.show(scene.asked(asked));
  teller.claim("the device reads the guest's bytes", scene.fetch(IOVA, TEXT.length) === TEXT);
  teller.claim(
    "what it writes, the guest sees",
    scene.store(IOVA + 2048, "from the device") === "done" &&
      guest.read(buffer + 2048, 15) === "from the device",
  );
  const walked = walk(machine, { device, iova: BigInt(IOVA), write: true });
  teller.say("The host's unit walks the copy that the VMM made:");
  teller.show(brief(walked));
  const found = walked.steps.at(-1)?.outcome;
  teller.claim(
    "it ends at the host's page behind the guest's",
    found?.ok === true && Number(found.pa) === vmm.task.memory.physical(vmm.ram.va + buffer),
  );

  teller.scene("The guest names memory that is not its own");
  const beyond = IOVA + 16 * PAGE;
  domain.map(beyond, vmm.ram.bytes, PAGE, RW);
  teller.claim("the device does not reach it", scene.store(beyond, "stray") === "fault");
  teller.show(stage.explained.slice(-1));
  domain.unmap(beyond, PAGE);

  teller.scene("The guest takes the buffer away");
  asked = calls.length;
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

  teller.scene("The VMM dies");
  vmm.exit();
  const left = Object.entries(machine.live()).filter(([, count]) => count !== 0);
  teller.claim(
    "nothing is left on the host",
    left.length === 0,
    left.map(([what, count]) => `${what}: ${count}`).join(", "),
  );
};
