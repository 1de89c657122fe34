/**
 * The story of a guest with private memory (SEV-SNP) and a device of its host: why the large pages fail that were mapped when it
 * was launched, with the leaf and the entry of the reverse map table side by side; and what helps. That the guest is such a one
 * is known to its VMM, and to nobody below.
 */
import type { MachineDescription } from "../../machine/schema.ts";
import { type WalkStep, walk } from "../../trace/walk.ts";
import { IommuIoasMap } from "../../uapi/iommufd.ts";
import { HostCalls } from "../../viommu/host-calls.ts";
import { brief, refusalOf } from "./brief.ts";
import { claimNothingLeft } from "./endings.ts";
import { GuestStage } from "./guest-stage.ts";
import { type Buffer, type Cost, SecureLife, tableBytes, type Way } from "./secure-life.ts";
import { Stage } from "./stage.ts";
import type { Teller } from "./story.ts";

const PAGE = 4096;
const LARGE = 2 ** 21;
/** RMP_PAGE_FAULT */
const RMP_FAULT = 0xd;

const NAIVE: Way = { name: "everything at the start, in large pages", maps: "whole" };
const FORCED: Way = { name: "everything; the kernel has 4 KiB for all", maps: "whole" };
const SMALL: Way = { name: "(a) everything; the VMM asks for 4 KiB", maps: "small" };
const DIRECT: Way = { name: "(b) what is shared, by the VMM", maps: "shared" };
const VIRTIO: Way = { name: "(b) what is shared, by a virtio-iommu", maps: "shared", virtio: true };

/** What a life came to, and what page tables an ordinary guest has on the same host. */
interface Told {
  readonly name: string;
  readonly cost: Cost;
  readonly ordinary: number;
}

export const snp = (stage: Stage, teller: Teller): void => {
  const { description } = stage.machine;
  const large = ordinaryTables(description, stage);
  const told: Told[] = [{ name: NAIVE.name, cost: naive(stage, teller), ordinary: large }];
  const small = withoutHugePages(description);
  told.push({
    name: FORCED.name,
    cost: forced(small, stage, teller),
    ordinary: ordinaryTables(small, stage),
  });
  told.push({ name: SMALL.name, cost: asked(stage, teller), ordinary: large });
  told.push({ name: DIRECT.name, cost: direct(stage, teller), ordinary: large });
  told.push({ name: VIRTIO.name, cost: virtio(stage, teller), ordinary: large });
  comparing(teller, told);
  ending(stage, teller);
};

// What goes wrong

const naive = (stage: Stage, teller: Teller): Cost => {
  teller.scene("A guest is launched, and its VMM maps all of its memory for a device");
  const life = new SecureLife(stage, NAIVE);
  const { secure, secret } = life;
  teller.say("The VMM maps memory so for any guest. This guest's is private: every page is the guest's own.");
  teller.show(mapsOf(life, 0));
  teller.claim(
    "the reverse map table has the guest's memory in pages of 2 MiB",
    [0, LARGE].every((gpa) => secure.entry(gpa).bytes === LARGE),
  );
  teller.claim("and the IOMMU's table has it in one of 4 MiB", leafBytes(life, secret) === 2 * LARGE);
  teller.claim("the device cannot reach what is private", life.isKeptFrom(secret));
  teller.show(stage.explained.slice(-1));
  splitting(life, teller);
  mismatching(life, teller);
  meetingLuck(life, teller);
  life.takeBack(life.packets);
  teller.claim("what is private again the device cannot reach", life.isKeptFrom(life.packets));
  return ended(life);
};

const splitting = (life: SecureLife, teller: Teller): void => {
  const { secure, ring, scene } = life;
  const { counts } = scene.stage.machine.snp!;
  teller.scene("The guest makes a page shared, for requests to its device");
  const [asked, split] = [scene.stage.calls.length, counts.split];
  life.share(ring);
  teller.show(mapsOf(life, asked));
  teller.claim("the host has split the large page in the reverse map table", counts.split === split + 1);
  const around = [secure.entry(ring.gpa), secure.entry(ring.gpa + PAGE)];
  teller.claim(
    "the page is nobody's now, and the next one the guest's still, each by itself",
    around[0]!.entry === 0n && around[1]!.entry !== 0n && around[1]!.bytes === PAGE,
  );
};

const mismatching = (life: SecureLife, teller: Teller): void => {
  const { ring, scene } = life;
  const { stage } = scene;
  teller.scene("The device reads its requests");
  teller.claim("it cannot, though the page is shared", !life.uses(ring));
  teller.show(stage.explained.slice(-1));
  const { code, reason } = stage.faults.at(-1)?.fields ?? {};
  teller.claim(
    "the unit's event is 0xd: a size mismatch",
    code === RMP_FAULT && String(reason).includes("size mismatch"),
  );
  teller.say(
    "Nobody has touched the IOMMU's table. Its leaf, and beside it the entry of the reverse map table:",
  );
  const walked = walk(stage.machine, {
    device: stage.device,
    iova: BigInt(life.address(ring)),
    write: false,
  });
  teller.show(brief(walked).slice(-3));
  const [leaf, entry, end] = walked.steps.slice(-3);
  teller.claim(
    "the leaf is of 4 MiB, the entry of 4 KiB, and a walk says that they do not match",
    bytesOf(leaf) === 2 * LARGE && /of 4 KiB$/.test(entry?.note ?? "") && end?.outcome?.ok === false,
  );
};

const meetingLuck = (life: SecureLife, teller: Teller): void => {
  const { pool, packets, scene } = life;
  teller.scene("The guest shares more: 2 MiB for bounce buffers, 64 KiB for packets");
  life.share(pool);
  teller.claim("bounce buffers are 2 MiB as a whole, and the device has them", life.uses(pool));
  life.share(packets);
  teller.claim("packets are not, and it has not", !life.uses(packets));
  life.weigh();
  const { calls } = scene.vmm;
  const late = refusalOf(() => {
    if (calls instanceof HostCalls) calls.setHugePages(mappedIn(scene.stage), false);
  });
  teller.claim("it is too late to ask for small pages", late?.startsWith("EINVAL") ?? false, late);
};

/** The IOAS that was last mapped in. */
const mappedIn = ({ calls }: Stage): number =>
  IommuIoasMap.read(calls.findLast(({ name }) => name === "IOMMU_IOAS_MAP")!.given).ioas_id;

// What helps

const forced = (description: MachineDescription, { broken, calls }: Stage, teller: Teller): Cost => {
  teller.scene("What was proposed first: the kernel makes pages of 4 KiB in every domain of VFIO");
  teller.say("Such a kernel boots with amd_iommu=nohugepages (machine file: huge-pages: false).");
  const stage = new Stage(description, broken);
  try {
    const life = new SecureLife(stage, FORCED);
    living(life, teller);
    return ended(life);
  } finally {
    calls.push(...stage.calls);
    stage.close();
  }
};

const asked = (stage: Stage, teller: Teller): Cost => {
  teller.scene("(a) The VMM knows its guest, and asks for pages of 4 KiB");
  const from = stage.calls.length;
  const life = new SecureLife(stage, SMALL);
  teller.show(mapsOf(life, from));
  living(life, teller);
  return ended(life);
};

const direct = (stage: Stage, teller: Teller): Cost => {
  teller.scene("(b) The VMM maps what the guest shares, when it does");
  const life = new SecureLife(stage, DIRECT);
  teller.claim("nothing is mapped or pinned at the start", pinned(stage) === 0);
  living(life, teller);
  return ended(life);
};

const virtio = (stage: Stage, teller: Teller): Cost => {
  teller.scene("(b) The guest has a virtio-iommu, and maps what it shares itself");
  teller.say("The device of the VMM lets nothing pass untranslated (it does not offer BYPASS_CONFIG).");
  const life = new SecureLife(stage, VIRTIO);
  teller.claim("nothing is mapped or pinned at the start", pinned(stage) === 0);
  living(life, teller);
  return ended(life);
};

/** The life of a guest whose VMM does it right. */
const living = (life: SecureLife, teller: Teller): void => {
  const { ring, pool, packets, secret, scene } = life;
  const from = scene.stage.calls.length;
  for (const buffer of [ring, pool, packets]) life.share(buffer);
  teller.show(mapsOf(life, from));
  const works = [ring, pool, packets].map((buffer) => life.uses(buffer));
  teller.claim(
    "the device has everything that is shared, each page and the 64 KiB and 2 MiB",
    works.every((one) => one),
  );
  const large = life.way.maps === "shared";
  teller.claim(
    large ? "in leaves as large as what is shared is" : "in leaves of 4 KiB, all of it",
    [ring, pool, packets].every((buffer) => leafBytes(life, buffer) === (large ? buffer.length : PAGE)),
  );
  life.weigh();
  teller.claim("it cannot reach what is private", life.isKeptFrom(secret));
  givingBack(life, teller);
};

const givingBack = (life: SecureLife, teller: Teller): void => {
  const { packets, scene, way } = life;
  const before = pinned(scene.stage);
  life.unmap(packets);
  if (way.virtio)
    teller.claim(
      "what the guest has unmapped the device cannot reach, shared or not",
      scene.fetch(life.address(packets), packets.text.length) === "fault",
    );
  life.takeBack(packets);
  teller.claim("what is private again it cannot reach", life.isKeptFrom(packets));
  if (way.maps === "shared")
    teller.claim(
      "and that is not pinned any more",
      pinned(scene.stage) === before - packets.length / PAGE,
      `${pinned(scene.stage)} pages are`,
    );
};

const pinned = ({ machine }: Stage): number => machine.live()["pinnedPages"]!;

/** Bytes of the page that an entry maps, as it is explained. */
const bytesOf = (step: WalkStep | undefined): number =>
  Number(/^a page of (0x[0-9a-f]+) bytes/.exec(step?.note ?? "")?.[1] ?? 0);

/** Bytes of the leaf that maps a buffer for the device; 0: none does. */
const leafBytes = (life: SecureLife, buffer: Buffer): number => {
  const { machine, device } = life.scene.stage;
  const { steps } = walk(machine, { device, iova: BigInt(life.address(buffer)), write: false });
  return bytesOf(steps.findLast(({ level }) => level !== undefined));
};

/** Calls since then that change what is mapped, or whose pages are. */
const mapsOf = ({ scene }: SecureLife, from: number): string[] =>
  scene
    .asked(from)
    .filter((line) => /^(IOMMU_IOAS_(UN)?MAP|IOMMU_OPTION|SOFTIOMMU_SNP_PAGE_STATE) /.test(line));

const ended = (life: SecureLife): Cost => {
  const { cost } = life;
  life.end();
  return cost;
};

// What it costs

const withoutHugePages = (description: MachineDescription): MachineDescription => ({
  ...description,
  units: description.units.map((unit) => (unit.model === "amdvi" ? { ...unit, "huge-pages": false } : unit)),
});

/** Bytes of page tables that the host has for a guest whose memory is not private. */
const ordinaryTables = (description: MachineDescription, { broken }: Stage): number => {
  const stage = new Stage(description, broken);
  try {
    const { vmm } = new GuestStage(stage, "shadow", { shows: "none" });
    const bytes = tableBytes(stage, vmm);
    vmm.exit();
    return bytes;
  } finally {
    stage.close();
  }
};

const HEAD = [
  "what is mapped",
  "pages pinned",
  "bytes of tables",
  "calls to map and unmap",
  "shared: failed",
  "private: stopped",
  "tables of an ordinary guest",
] as const;

/** As a table of Markdown. */
const tableOf = (all: readonly Told[]): string[] => {
  const row = (cells: readonly (string | number)[]): string => `| ${cells.join(" | ")} |`;
  return [
    row(HEAD),
    row(HEAD.map(() => "---")),
    ...all.map(({ name, cost, ordinary }) => {
      const { pins, tableBytes: bytes, calls, shared, failed, private: tried, stopped } = cost;
      return row([name, pins, bytes, calls, `${failed} of ${shared}`, `${stopped} of ${tried}`, ordinary]);
    }),
  ];
};

const comparing = (teller: Teller, told: readonly Told[]): void => {
  teller.scene("Side by side");
  teller.say("The same life each time: 529 of 1024 pages are shared when pins and tables are counted.");
  teller.show(tableOf(told));
  const [first, forcedOn, small, ...onlyShared] = told as [Told, Told, Told, ...Told[]];
  teller.claim(
    "private memory is kept from the device in all of them",
    told.every(({ cost }) => cost.private > 0 && cost.stopped === cost.private),
  );
  teller.claim(
    "shared memory is reached in all but the first",
    first.cost.failed > 0 && told.slice(1).every(({ cost }) => cost.failed === 0),
  );
  teller.claim(
    "what is forced on all makes the tables of ordinary guests larger, what their VMMs do not ask for does not",
    forcedOn.ordinary > first.ordinary && small.ordinary === first.ordinary,
    `${forcedOn.ordinary} bytes, and ${small.ordinary}`,
  );
  teller.claim(
    "who maps only what is shared pins only that, and calls more often",
    onlyShared.every(({ cost }) => cost.pins < small.cost.pins && cost.calls > small.cost.calls),
  );
};

const ending = (stage: Stage, teller: Teller): void => {
  teller.scene("The VMMs are gone");
  claimNothingLeft(stage, teller, "nothing is left on the host, and no page is private");
};
