/** A guest's table that is bound ends where the container's mappings end: what they lose, the devices have lost. */
import { afterEach, beforeEach, expect, it } from "vitest";
import {
  FIRST,
  type NestingClient,
  NestingRig,
  PAGE,
  type Setup,
  VA,
} from "../../../test/support/nesting-client.ts";

/** In the program: four pages of a table, and two that its leaf can name. */
const PROGRAM = 0x2_0000_0000;
const TABLE_PAGES = 4;
const TABLE = 0x10_0000;
const DATA = 0x20_0000;
const ENTRY = 7n;

let rig: NestingRig;
let client: NestingClient;
let setup: Setup;
let pasid: number;

const mapTable = (): number =>
  client.map(setup.container, { vaddr: PROGRAM, iova: TABLE, size: TABLE_PAGES * PAGE });
const mapData = (page: number): number =>
  client.map(setup.container, { vaddr: PROGRAM + (TABLE_PAGES + page) * PAGE, iova: DATA, size: PAGE });
const fill = (page: number, byte: number): void =>
  client.task.memory.write(BigInt(PROGRAM + (TABLE_PAGES + page) * PAGE), Uint8Array.of(byte));

beforeEach(() => {
  rig = new NestingRig();
  client = rig.client();
  setup = client.setUp(FIRST);
  client.task.memory.map(PROGRAM, (TABLE_PAGES + 2) * PAGE);
  for (let level = TABLE_PAGES; level >= 1; level--) {
    const table = (TABLE_PAGES - level) * PAGE;
    const index = Number((BigInt(VA) >> BigInt(12 + 9 * (level - 1))) & 511n);
    const entry = BigInt(level > 1 ? TABLE + table + PAGE : DATA) | ENTRY;
    const bytes = new Uint8Array(new BigUint64Array([entry]).buffer);
    client.task.memory.write(BigInt(PROGRAM + table + 8 * index), bytes);
  }
  fill(0, 1);
  fill(1, 2);
  mapTable();
  mapData(0);
  pasid = client.allocate(setup.container);
  client.bind(setup.container, pasid, { gpgd: BigInt(TABLE) });
  expect(client.read(setup, VA, pasid)).toBe(1);
});

afterEach(() => {
  client.task.exit();
  expect(rig.left()).toEqual([]);
  rig.machine.close();
});

it("a page that is unmapped is lost at once, and one that is mapped there instead is found", () => {
  client.unmap(setup.container, DATA, PAGE);
  expect(client.read(setup, VA, pasid)).toBe("fault");
  mapData(1);
  expect(client.read(setup, VA, pasid)).toBe(2);
});

it("the guest's table itself is lost when its pages are", () => {
  client.unmap(setup.container, TABLE, TABLE_PAGES * PAGE);
  expect(client.read(setup, VA, pasid)).toBe("fault");
  mapTable();
  expect(client.read(setup, VA, pasid)).toBe(1);
});

it("with all mappings gone the table is bound still, and reaches nothing", () => {
  client.unmapAll(setup.container);
  expect(client.read(setup, VA, pasid)).toBe("fault");
  expect(client.unbind(setup.container, pasid)).toBe(0);
});
