/**
 * Every structure, offset, size, enumerator, constant and request number of the interfaces against the facts in `data/`,
 * in both directions. What differs on purpose is in the tables of exceptions, with the reason.
 */
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import * as extensions from "./extensions.ts";
import * as iommufd from "./iommufd.ts";
import * as mock from "./iommufd-mock.ts";
import type { Codec, Struct } from "./struct.ts";
import * as vfio from "./vfio.ts";
import * as vsva from "./vsva.ts";

type AnyCodec = Codec<unknown, never>;
type AnyStruct = Struct<{ readonly [name: string]: AnyCodec }>;
type Exports = { readonly [name: string]: unknown };

interface FactField {
  readonly name: string;
  readonly offset: number;
  readonly type: FactType;
}
type FactType =
  | string
  | { readonly array: number; readonly of: FactType }
  | {
      readonly kind: "struct" | "union";
      readonly size: number;
      readonly name?: string;
      readonly fields?: readonly FactField[];
    };
interface FactStruct {
  readonly size: number;
  readonly fields: readonly FactField[];
}
interface Facts {
  readonly structs?: { readonly [name: string]: FactStruct };
  readonly enums?: { readonly [name: string]: { readonly [name: string]: number | string } };
  readonly constants?: { readonly [name: string]: number | string };
}
interface ExtensionFacts {
  readonly extensions: { readonly [name: string]: Facts };
}

/** Numbers that a double cannot hold are read as strings, so that none is rounded. */
const load = (file: string): unknown =>
  JSON.parse(
    readFileSync(new URL(`./data/${file}.json`, import.meta.url), "utf8").replace(
      /: (\d{16,})/g,
      (_, digits: string) => `: "${digits}"`,
    ),
  );
const factsOf = (file: string): Facts => load(file) as Facts;
const extensionFacts = Object.values((load("extensions") as ExtensionFacts).extensions);
const merged: Facts = {
  structs: Object.assign({}, ...extensionFacts.map((one) => one.structs)),
  constants: Object.assign({}, ...extensionFacts.map((one) => one.constants)),
};

const pascal = (cName: string): string =>
  cName
    .split("_")
    .map((part) => part.charAt(0).toUpperCase() + part.slice(1))
    .join("");
const isStruct = (value: unknown): value is AnyStruct =>
  typeof value === "object" && value !== null && "fieldEnd" in value;

/** Structures of the facts that have another name here. */
const RENAMED: { readonly [cName: string]: { readonly as: string; readonly why: string } } = {
  vfio_info_cap_header_: {
    as: "vfio_info_cap_header",
    why: "the underscore kept two headers apart when the facts were taken; the structure is VFIO's",
  },
};
/** Constants whose value here is not the number in the facts. */
const DIFFERENT: { readonly [name: string]: { readonly value: number | string; readonly why: string } } = {
  VFIO_DEVICE_API_PCI_STRING: { value: "vfio-pci", why: "a string; the facts have where it lay in memory" },
  VFIO_DEVICE_API_PLATFORM_STRING: { value: "vfio-platform", why: "a string, as above" },
  VFIO_DEVICE_API_AMBA_STRING: { value: "vfio-amba", why: "a string, as above" },
  VFIO_DEVICE_API_CCW_STRING: { value: "vfio-ccw", why: "a string, as above" },
  VFIO_DEVICE_API_AP_STRING: { value: "vfio-ap", why: "a string, as above" },
  VFIO_REGION_TYPE_PCI_VENDOR_TYPE: {
    value: 0x8000_0000,
    why: "an int whose sign the facts extended to 64 bits; it is used in a u32",
  },
  VFIO_PCI_DEVID_NOT_OWNED: { value: 0xffff_ffff, why: "−1 that the facts extended; it is used in a u32" },
};
/** What we export beyond the facts. */
const OURS: { readonly [name: string]: string } = {
  SoftiommuFaultRegionHeader: "the facts describe the head of the fault region in words, under notes",
  SoftiommuInfoCapNestingSmmuv3: "vfio_iommu_type1_info_cap_nesting of vsva, with another vendor's part",
  SoftiommuVfioIrqInfo: "the facts say that there is an interrupt of a type; this tells which index it is",
  SoftiommuVfioIrqInfoCapType: "as above",
  SOFTIOMMU_VFIO_IRQ_INFO_CAPS: "as above",
  SOFTIOMMU_VFIO_IRQ_INFO_CAP_TYPE: "as above",
  GUEST_STE_BITS:
    "the header names the fields of an STE that a guest may set in a comment; this is their mask",
  CACHE_INVALIDATION_VALID: "a table made of constants; checked below against the facts' own table",
};

const checkType = (where: string, ours: AnyCodec, fact: FactType, flexible: boolean): void => {
  if (typeof fact === "string") {
    const name = fact === "__u64 *" ? "pointer" : fact;
    expect(ours.name, where).toBe(name);
    return;
  }
  if ("array" in fact) {
    expect(ours.count, `${where}: elements`).toBe(flexible ? undefined : fact.array);
    expect(ours.element, `${where}: an array`).toBeDefined();
    checkType(`${where}[]`, ours.element!, fact.of, false);
    return;
  }
  expect(isStruct(ours), `${where} is a ${fact.kind}`).toBe(true);
  const inner = ours as unknown as AnyStruct;
  expect(inner.kind, where).toBe(fact.kind);
  expect(inner.size, `sizeof ${where}`).toBe(fact.size);
  if (fact.name) expect(inner.name).toBe(RENAMED[fact.name]?.as ?? fact.name);
  if (fact.fields) checkFields(where, inner, fact.fields);
};

const checkFields = (where: string, ours: AnyStruct, facts: readonly FactField[]): void => {
  expect(Object.keys(ours.members), `members of ${where}`).toEqual(facts.map((fact) => fact.name));
  const offsets: { readonly [name: string]: number } = ours.offsets;
  for (const { name, offset, type } of facts) {
    const at = `${where}.${name}`;
    const member = ours.members[name]!;
    if (name !== "") expect(offsets[name], `offsetof ${at}`).toBe(offset);
    else
      for (const inner of Object.keys((member as unknown as AnyStruct).members))
        expect(offsets[inner], `offsetof ${where}.${inner}`).toBe(offset);
    const flexible = typeof type !== "string" && "array" in type && offset === ours.size;
    checkType(at, member, type, flexible);
  }
};

const interfaces: readonly {
  readonly file: string;
  readonly facts: Facts;
  readonly ours: Exports;
  readonly borrowed: Exports;
}[] = [
  { file: "vfio", facts: factsOf("vfio"), ours: vfio, borrowed: {} },
  { file: "iommufd", facts: factsOf("iommufd"), ours: iommufd, borrowed: {} },
  { file: "iommufd-mock", facts: factsOf("iommufd-mock"), ours: mock, borrowed: iommufd },
  { file: "vsva", facts: factsOf("vsva"), ours: vsva, borrowed: vfio },
  { file: "extensions", facts: merged, ours: extensions, borrowed: {} },
];

describe.each(interfaces)("the interface of $file", ({ facts, ours, borrowed }) => {
  const all: Exports = { ...borrowed, ...ours };
  const structs = Object.entries(facts.structs ?? {});
  const constants = { ...Object.assign({}, ...Object.values(facts.enums ?? {})), ...facts.constants };

  it.each(structs)("struct %s has the header's size, members, offsets and types", (name, fact) => {
    const cName = RENAMED[name]?.as ?? name;
    const found = all[pascal(cName)];
    expect(isStruct(found), `${pascal(cName)} is exported`).toBe(true);
    const struct = found as AnyStruct;
    expect(struct.name).toBe(cName);
    expect(struct.size, `sizeof ${name}`).toBe(fact.size);
    checkFields(name, struct, fact.fields);
  });

  it("every enumerator, constant and request number has the header's value", () => {
    expect(Object.keys(constants).length).toBeGreaterThan(10);
    for (const [name, value] of Object.entries(constants))
      expect(all[name], name).toBe(DIFFERENT[name]?.value ?? value);
  });

  it("nothing is exported that the header does not have", () => {
    const known = new Set([...structs.map(([name]) => pascal(name)), ...Object.keys(constants)]);
    const strange = Object.entries(ours)
      .filter(([, value]) => typeof value !== "function")
      .map(([name]) => name)
      .filter((name) => !known.has(name) && !OURS[name]);
    expect(strange).toEqual([]);
  });
});

describe("the cache invalidations of 2020", () => {
  it("which granularity goes with which cache is as the proposal's table says", () => {
    interface Validity {
      readonly validity: { readonly [table: string]: { readonly [cache: string]: readonly string[] } };
    }
    const table = (load("vsva") as Validity).validity["cache invalidation, cache x granularity"]!;
    const constant = (name: string) => (vsva as Exports)[name] as number;
    const expected = Object.entries(table).map(([cache, granularities]) => [
      String(constant(`IOMMU_CACHE_INV_TYPE_${cache}`)),
      granularities.map((one) => constant(`IOMMU_INV_GRANU_${one}`)),
    ]);
    expect(Object.entries(vsva.CACHE_INVALIDATION_VALID)).toEqual(expected);
  });
});
