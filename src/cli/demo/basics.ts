/**
 * The first story: one program, one device, one mapping. What a mapping is, how the unit finds it, what happens to a
 * DMA outside it and to one after it was taken away.
 */
import { reached, walk } from "../../trace/walk.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE } from "../../uapi/vfio.ts";
import { brief } from "./brief.ts";
import { claimNothingLeft } from "./endings.ts";
import { Program } from "./program.ts";
import type { Stage } from "./stage.ts";
import type { Teller } from "./story.ts";
import { TestDevice } from "./test-device.ts";

/** Of the program. */
const VA = 0x7f00_0000_0000;
const PAGE = 4096;
const PAGES = 16;
/** For the device. */
const IOVA = 0x10_0000;
const READ_ONLY_IOVA = 0x20_0000;
const OUTSIDE = 0x40_0000;
const TEXT = "bytes that a program put into its own memory";

const hex = (value: number): string => `0x${value.toString(16)}`;

export const basics = (stage: Stage, teller: Teller): void => {
  const { machine, device } = stage;
  const program = new Program(machine);
  program.task.memory.map(VA, PAGES * PAGE);

  opening(stage, teller, program);
  const driver = new TestDevice(program, () => stage.settle());
  mapping(stage, teller, program);
  reaching(teller, program, driver);
  refusing(stage, teller, program, driver);
  unmapping(stage, teller, program, driver);

  teller.scene("The program ends without tidying up");
  program.task.exit();
  claimNothingLeft(stage, teller, "nothing is left: no pin, no domain, no table, no interrupt");
  teller.claim(
    `${device} is blocked again: an access would be refused`,
    !reached(walk(machine, { device, iova: BigInt(IOVA), write: false })),
  );
};

const opening = ({ machine, device }: Stage, teller: Teller, program: Program): void => {
  const group = machine.core.devices.get(device)!.group.id;
  teller.scene("A program asks for a device");
  teller.say(`It opens /dev/vfio/vfio (a container) and /dev/vfio/${group}, the group of ${device}.`);
  program.container = program.open("/dev/vfio/vfio");
  program.group = program.open(`/dev/vfio/${group}`);
  const early = failure(() => program.map(VA, IOVA, PAGE, VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE));
  teller.claim(
    "mapping before SET_IOMMU fails with EINVAL, whatever is mapped, as on Linux",
    early?.code === "EINVAL",
  );
  if (early) teller.show([`${early.code}: ${early.reason}`]);
  program.setContainer();
  program.setIommu();
  program.openDevice(device);
  teller.say("The group is put into the container, the container gets an IOMMU, the device file is opened.");
};

const mapping = ({ machine, device }: Stage, teller: Teller, program: Program): void => {
  teller.scene("It maps some of its memory for the device");
  const before = walk(machine, { device, iova: BigInt(IOVA), write: true });
  teller.claim(`before, an access to ${hex(IOVA)} would be refused`, !reached(before));
  program.map(VA, IOVA, PAGES * PAGE, VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE);
  teller.say(
    `VFIO_IOMMU_MAP_DMA: ${PAGES} pages at ${hex(VA)} of the program are at ${hex(IOVA)} for the device.`,
  );
  const after = walk(machine, { device, iova: BigInt(IOVA), write: true });
  teller.claim("now the unit finds a page there, table after table:", reached(after));
  teller.show(brief(after));
  const found = after.steps.at(-1)?.outcome;
  const expected = program.task.memory.physical(VA);
  teller.claim(
    "it is the very page of host memory behind the program's address",
    found?.ok === true && Number(found.pa) === expected,
    hex(expected),
  );
};

const reaching = (teller: Teller, program: Program, driver: TestDevice): void => {
  teller.scene("The device uses it");
  program.write(VA, TEXT);
  const fetched = driver.fetch(IOVA, TEXT.length);
  teller.claim("the device reads the program's bytes by DMA", fetched && driver.buffer(TEXT.length) === TEXT);
  const stored = driver.store(IOVA + 5 * PAGE - 8, TEXT.length);
  teller.claim(
    "it writes them back elsewhere, across a page boundary, and the program sees them",
    stored && program.read(VA + 5 * PAGE - 8, TEXT.length) === TEXT,
  );
};

const refusing = (stage: Stage, teller: Teller, program: Program, driver: TestDevice): void => {
  const { machine } = stage;
  const faults = (): number =>
    [...machine.units.values()].reduce((sum, { driver: unit }) => sum + unit.faultCount, 0);
  teller.scene("The device goes astray");
  const before = faults();
  stage.explained.length = 0;
  const stray = driver.store(OUTSIDE, TEXT.length);
  teller.claim(`a DMA to ${hex(OUTSIDE)}, which nobody mapped, is refused`, !stray);
  teller.show(stage.explained);
  teller.claim(
    "the explanation names the requester, the address, and the table entry where it ended",
    stage.explained.some((line) => line.includes(hex(OUTSIDE)) && line.includes("entry at 0x")),
  );
  teller.claim("the unit's fault log told the driver of it", faults() === before + 1);

  program.map(VA + 8 * PAGE, READ_ONLY_IOVA, PAGE, VFIO_DMA_MAP_FLAG_READ);
  program.write(VA + 8 * PAGE, "untouched");
  stage.explained.length = 0;
  const scribbled = driver.store(READ_ONLY_IOVA, TEXT.length);
  teller.claim(
    "a write to a page that is mapped for reading is refused, and changes nothing",
    !scribbled && program.read(VA + 8 * PAGE, 9) === "untouched",
  );
  teller.show(stage.explained);
  teller.claim(
    "the same page can be read",
    driver.fetch(READ_ONLY_IOVA, 9) && driver.buffer(9) === "untouched",
  );
};

const unmapping = (
  { machine, device, explained }: Stage,
  teller: Teller,
  program: Program,
  driver: TestDevice,
): void => {
  teller.scene("The mapping is taken away");
  driver.fetch(IOVA, TEXT.length);
  driver.store(IOVA, TEXT.length); // the unit remembers the page, and that it was written, from here on
  const unmapped = program.unmap(IOVA, PAGES * PAGE);
  teller.claim(
    "VFIO_IOMMU_UNMAP_DMA says how much it was",
    unmapped === PAGES * PAGE,
    `${hex(unmapped)} bytes`,
  );
  program.write(VA, "out of reach");
  explained.length = 0;
  const late = driver.store(IOVA, TEXT.length);
  const kept = program.read(VA, 12);
  teller.claim("the device cannot reach the page any more", !late, late ? "the DMA went through" : "");
  teller.claim(
    "what the program writes there afterwards stays",
    kept === "out of reach",
    `it reads "${kept}"`,
  );
  const after = walk(machine, { device, iova: BigInt(IOVA), write: true });
  teller.claim("tables and caches of the unit agree that nothing is there:", !reached(after));
  teller.show(brief(after));
};

const failure = (work: () => unknown): LinuxError | undefined => {
  try {
    work();
    return undefined;
  } catch (error) {
    if (error instanceof LinuxError) return error;
    throw error;
  }
};
