/**
 * C structures of the interfaces: declared once with the names and types of the header, they give size, offsets,
 * reader, writer, view and printer. Members lie where a C compiler for x86-64 puts them (natural alignment); a
 * member named `""` is an anonymous union whose members are the structure's own. What these interfaces do not use is
 * not here: C bit fields, packing, pointers to anything but user memory.
 *
 * Reading and writing beyond the end of the bytes throws a RangeError; what a caller gave is first brought to the
 * full size by `copy.ts`. Integers of 64 bits are bigint, all others number; a value too large for its member
 * loses its upper bits, as in C.
 */

/** Anything with a place in a structure. `T` is what reading gives, `W` what writing takes. */
export interface Codec<T, W = T> {
  /** The C name: "u32", "vfio_info_cap_header". */
  readonly name: string;
  readonly size: number;
  readonly align: number;
  /** Set on a flexible tail: the codec of its elements. */
  readonly element?: Codec<unknown, never>;
  /** Of how many elements an array is made. */
  readonly count?: number;
  readAt(data: DataView, at: number, little: boolean): T;
  /** Touches only what `value` has; padding and missing members stay. */
  writeAt(data: DataView, at: number, value: W, little: boolean): void;
  /** A live value: scalars as they are, structures as views. */
  viewAt(data: DataView, at: number, little: boolean): unknown;
  print(value: T): string;
}

type AnyCodec = Codec<unknown, never>;
export type ValueOf<C> = C extends Codec<infer T, infer _W> ? T : never;
type WritableOf<C> = C extends Codec<infer _T, infer W> ? W : never;

export type Members = { readonly [name: string]: AnyCodec };
type Named<F extends Members> = { -readonly [K in Exclude<keyof F, ""> & string]: ValueOf<F[K]> };
type Anonymous<F extends Members> = F extends { readonly "": infer C } ? ValueOf<C> : unknown;
/** What reading a structure with these members gives. */
export type StructValue<F extends Members> = Named<F> & Anonymous<F>;
type NamedWrite<F extends Members> = { readonly [K in Exclude<keyof F, ""> & string]?: WritableOf<F[K]> };
type AnonymousWrite<F extends Members> = F extends { readonly "": infer C } ? WritableOf<C> : unknown;
/** What writing takes: any member may be missing. */
export type StructWrite<F extends Members> = NamedWrite<F> & AnonymousWrite<F>;

type InnerNames<C> = C extends Struct<infer G> ? MemberNames<G> : never;
type MemberNames<F extends Members> =
  | (Exclude<keyof F, ""> & string)
  | (F extends { readonly "": infer C } ? InnerNames<C> : never);

export interface Struct<F extends Members> extends Codec<StructValue<F>, StructWrite<F>> {
  readonly kind: "struct" | "union";
  readonly members: F;
  /** Byte offset of every member, those of anonymous unions included. */
  readonly offsets: { readonly [K in MemberNames<F>]: number };
  /** Offset of the first byte after a member: what `minsz` of a request is counted to. */
  fieldEnd(name: MemberNames<F>): number;
  /** Bytes with `count` elements in the flexible tail. */
  sizeWith(count: number): number;
  read(bytes: Uint8Array, at?: number): StructValue<F>;
  /** Writes the whole structure: padding and missing members become zero. */
  write(bytes: Uint8Array, value: StructWrite<F>, at?: number): void;
  /** New bytes that hold the value, its tail included. */
  bytes(value: StructWrite<F>): Uint8Array<ArrayBuffer>;
  /** The structure in bytes as one line; bytes that are missing count as zero. Never throws. */
  printBytes(bytes: Uint8Array): string;
  /** An object whose properties read and write the bytes: scalars as they are, structures as views, arrays as lists. */
  view(bytes: Uint8Array, at?: number): StructValue<F>;
}

const numberCodec = (
  name: string,
  size: number,
  get: (data: DataView, at: number, little: boolean) => number,
  set: (data: DataView, at: number, value: number, little: boolean) => void,
): Codec<number> => ({
  name,
  size,
  align: size,
  readAt: get,
  writeAt: set,
  viewAt: get,
  print: (value) => (value > 0xffff ? `0x${value.toString(16)}` : String(value)),
});

const bigCodec = (name: string): Codec<bigint> => ({
  name,
  size: 8,
  align: 8,
  readAt: (data, at, little) => data.getBigUint64(at, little),
  writeAt: (data, at, value, little) => data.setBigUint64(at, value, little),
  viewAt: (data, at, little) => data.getBigUint64(at, little),
  print: (value) => `0x${value.toString(16)}`,
});

export const u8 = numberCodec(
  "u8",
  1,
  (d, at) => d.getUint8(at),
  (d, at, v) => d.setUint8(at, v),
);
export const u16 = numberCodec(
  "u16",
  2,
  (d, at, le) => d.getUint16(at, le),
  (d, at, v, le) => d.setUint16(at, v, le),
);
export const u32 = numberCodec(
  "u32",
  4,
  (d, at, le) => d.getUint32(at, le),
  (d, at, v, le) => d.setUint32(at, v, le),
);
/** File descriptors, where −1 means none. */
export const s32 = numberCodec(
  "s32",
  4,
  (d, at, le) => d.getInt32(at, le),
  (d, at, v, le) => d.setInt32(at, v, le),
);
export const u64 = bigCodec("u64");
/** An address in the caller's memory where the header has a pointer and not an integer. */
export const pointer = bigCodec("pointer");

/** A set of flags: a number that prints as the names of its bits, with what has no name in hexadecimal. */
export const flags = <T extends number | bigint>(
  codec: Codec<T>,
  names: { readonly [name: string]: number },
): Codec<T> => ({
  ...codec,
  print(value) {
    let rest = BigInt(value);
    const parts: string[] = [];
    for (const [name, bitMask] of Object.entries(names)) {
      const mask = BigInt(bitMask);
      if (mask === 0n || (rest & mask) !== mask) continue;
      parts.push(name);
      rest &= ~mask;
    }
    if (rest || !parts.length) parts.push(rest ? `0x${rest.toString(16)}` : "0");
    return parts.join("|");
  },
});

/** One of several values: a number that prints as the name of its value. */
export const oneOf = <T extends number | bigint>(
  codec: Codec<T>,
  names: { readonly [name: string]: number },
): Codec<T> => ({
  ...codec,
  print(value) {
    const found = Object.entries(names).find(([, known]) => BigInt(known) === BigInt(value));
    return found ? found[0] : codec.print(value);
  },
});

const printList = (values: readonly unknown[], print: (value: unknown) => string): string => {
  const shown = values.slice(0, 8).map(print);
  if (values.length > 8) shown.push(`… ${values.length} in all`);
  return `[${shown.join(", ")}]`;
};

/** A C array. Writing takes a shorter list; the rest stays. */
export const array = <T, W>(of: Codec<T, W>, count: number): Codec<T[], readonly W[]> => ({
  name: `${of.name}[${count}]`,
  size: of.size * count,
  align: of.align,
  element: of as AnyCodec,
  count,
  readAt: (data, at, little) =>
    Array.from({ length: count }, (_, i) => of.readAt(data, at + i * of.size, little)),
  viewAt: (data, at, little) =>
    Array.from({ length: count }, (_, i) => of.viewAt(data, at + i * of.size, little)),
  writeAt(data, at, values, little) {
    if (values.length > count) throw new RangeError(`${values.length} elements for ${of.name}[${count}]`);
    values.forEach((value, i) => {
      of.writeAt(data, at + i * of.size, value, little);
    });
  },
  print: (values) => printList(values, (value) => of.print(value as T)),
});

/** A flexible array at the end of a structure (`T data[]`); `counted` names the member that holds its length. */
export interface Tail<T, W> extends Codec<T[], readonly W[]> {
  readonly element: AnyCodec;
  readonly counted: string | undefined;
}

/**
 * A flexible array member. Reading takes as many elements as the member named by `counted` says, or without it as
 * many as there are, and never more than the bytes hold.
 */
export const tail = <T, W>(of: Codec<T, W>, counted?: string): Tail<T, W> => {
  const list = (data: DataView, at: number): number =>
    Math.max(0, Math.floor((data.byteLength - at) / of.size));
  return {
    name: `${of.name}[]`,
    size: 0,
    align: of.align,
    element: of as AnyCodec,
    counted,
    readAt: (data, at, little) => array(of, list(data, at)).readAt(data, at, little),
    viewAt: (data, at, little) => array(of, list(data, at)).viewAt(data, at, little),
    writeAt: (data, at, values, little) => array(of, values.length).writeAt(data, at, values, little),
    print: (values) => printList(values, (value) => of.print(value as T)),
  };
};

const isTail = (codec: AnyCodec): codec is Tail<unknown, never> => "counted" in codec;

const roundUp = (value: number, align: number): number => Math.ceil(value / align) * align;

const dataView = (bytes: Uint8Array): DataView =>
  new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** A member as it was laid out. */
interface Slot {
  readonly name: string;
  readonly offset: number;
  readonly codec: AnyCodec;
}

interface LaidOut {
  readonly slots: readonly Slot[];
  readonly size: number;
  readonly align: number;
}

const layOut = (members: Members, kind: "struct" | "union"): LaidOut => {
  const slots: Slot[] = [];
  let end = 0;
  let align = 1;
  for (const [name, codec] of Object.entries(members)) {
    const offset = kind === "union" ? 0 : roundUp(end, codec.align);
    slots.push({ name, offset, codec });
    end = Math.max(end, offset + codec.size);
    align = Math.max(align, codec.align);
  }
  return { slots, size: roundUp(end, align), align };
};

type Loose = Record<string, unknown>;

/** Reads the counted tail within its count, everything else whole. */
const readSlot = (slot: Slot, data: DataView, at: number, little: boolean, soFar: Loose, live: boolean) => {
  const { codec } = slot;
  const place = at + slot.offset;
  if (isTail(codec) && codec.counted !== undefined) {
    const room = Math.max(0, Math.floor((data.byteLength - place) / codec.element.size));
    const list = array(codec.element, Math.min(room, Number(soFar[codec.counted])));
    return live ? list.viewAt(data, place, little) : list.readAt(data, place, little);
  }
  return live ? codec.viewAt(data, place, little) : codec.readAt(data, place, little);
};

type ReadSlots = (data: DataView, at: number, little: boolean) => Loose;

/**
 * A reader of these members as one object literal, every offset a constant: reading is on the way of every call. It is
 * source that is compiled once, made of nothing but the declaration.
 */
const compileReader = (slots: readonly Slot[]): ReadSlots => {
  const members = slots.map(
    ({ name, offset }, i) => `${JSON.stringify(name)}: read${i}(data, at + ${offset}, little)`,
  );
  const readers = slots.map((_, i) => `read${i}`);
  const source = `"use strict"; return (data, at, little) => ({ ${members.join(", ")} });`;
  return new Function(...readers, source)(...slots.map(({ codec }) => codec.readAt)) as ReadSlots;
};

export interface StructOptions {
  /** Byte order of the members; without it, that of the structure around it, and little-endian outermost. */
  readonly endian?: "little" | "big";
}

const define = <const F extends Members>(
  kind: "struct" | "union",
  name: string,
  members: F,
  options: StructOptions,
): Struct<F> => {
  const { slots, size, align } = layOut(members, kind);
  const order = (inherited: boolean) => (options.endian ? options.endian === "little" : inherited);
  const places = new Map<string, { readonly offset: number; readonly end: number }>();
  for (const { name: member, offset, codec } of slots) {
    if (member !== "") {
      places.set(member, { offset, end: offset + codec.size });
      continue;
    }
    const inner = codec as unknown as Struct<Members>;
    for (const [innerName, innerOffset] of Object.entries(inner.offsets))
      places.set(innerName, { offset: offset + innerOffset, end: offset + inner.fieldEnd(innerName) });
  }
  const flexible = slots.find((slot) => isTail(slot.codec));

  /** Made when it is first used: many structures are never read. */
  let readPlain: ReadSlots | undefined;
  const plain = slots.every(({ name: member, codec }) => member !== "" && !isTail(codec));

  const readAt = (data: DataView, at: number, inherited: boolean): StructValue<F> => {
    const little = order(inherited);
    if (plain) {
      readPlain ??= compileReader(slots);
      return readPlain(data, at, little) as StructValue<F>;
    }
    const value: Loose = {};
    for (const slot of slots) {
      const one = readSlot(slot, data, at, little, value, false);
      if (slot.name === "") Object.assign(value, one);
      else value[slot.name] = one;
    }
    return value as StructValue<F>;
  };

  const writeAt = (data: DataView, at: number, value: StructWrite<F>, inherited: boolean): void => {
    const little = order(inherited);
    const given = value as Loose;
    for (const { name: member, offset, codec } of slots) {
      const one = member === "" ? given : given[member];
      if (one !== undefined) codec.writeAt(data, at + offset, one as never, little);
    }
  };

  const viewAt = (data: DataView, at: number, inherited: boolean): StructValue<F> => {
    const little = order(inherited);
    const seen: Loose = {};
    for (const slot of slots) {
      if (slot.name === "") {
        const inner = slot.codec.viewAt(data, at + slot.offset, little) as object;
        Object.defineProperties(seen, Object.getOwnPropertyDescriptors(inner));
        continue;
      }
      Object.defineProperty(seen, slot.name, {
        enumerable: true,
        get: () => readSlot(slot, data, at, little, seen, true),
        set: (value: never) => slot.codec.writeAt(data, at + slot.offset, value, little),
      });
    }
    return seen as StructValue<F>;
  };

  const tailLength = (value: StructWrite<F>): number => {
    const given = flexible && (value as Loose)[flexible.name];
    return Array.isArray(given) ? given.length : 0;
  };
  const sizeWith = (count: number) =>
    flexible ? Math.max(size, flexible.offset + count * flexible.codec.element!.size) : size;

  const print = (value: StructValue<F>): string => {
    const parts: string[] = [];
    const given = value as Loose;
    for (const { name: member, codec } of slots) {
      if (/^(__.*|pad|padding\d*|reserved|argsz)$/.test(member)) continue;
      if (member === "") parts.push(codec.print(value).slice(2, -2));
      else parts.push(`${member}=${codec.print(given[member])}`);
    }
    return `{ ${parts.join(kind === "union" ? " | " : ", ")} }`;
  };

  return {
    kind,
    name,
    size,
    align,
    members,
    offsets: Object.fromEntries(
      [...places].map(([key, place]) => [key, place.offset]),
    ) as Struct<F>["offsets"],
    fieldEnd: (member) => places.get(member)!.end,
    sizeWith,
    readAt,
    writeAt,
    viewAt,
    print,
    read: (from, at = 0) => readAt(dataView(from), at, true),
    printBytes(from) {
      let whole = from;
      if (from.length < size) {
        whole = new Uint8Array(size);
        whole.set(from);
      }
      return print(readAt(dataView(whole), 0, true));
    },
    write(to, value, at = 0) {
      const whole = sizeWith(tailLength(value));
      if (at < 0 || at + whole > to.length)
        throw new RangeError(`struct ${name} (${whole} bytes) at ${at} is not within ${to.length} bytes`);
      to.fill(0, at, at + whole);
      writeAt(dataView(to), at, value, true);
    },
    bytes(value) {
      const made = new Uint8Array(sizeWith(tailLength(value)));
      writeAt(dataView(made), 0, value, true);
      return made;
    },
    view: (of, at = 0) => viewAt(dataView(of), at, true),
  };
};

/** Declares a C structure under its C name. */
export const struct = <const F extends Members>(
  name: string,
  members: F,
  options: StructOptions = {},
): Struct<F> => define("struct", name, members, options);

/**
 * A union: reading gives every member's view of the same bytes. When writing give the one that is meant; of several
 * the last wins where they overlap.
 */
export const union = <const F extends Members>(members: F): Struct<F> =>
  define("union", "union", members, {});
