/**
 * Bit layouts: a register, a table entry, a queue record or a command is declared once (name, bits, meaning) and the
 * declaration reads, writes, decodes and prints it. Two views of the same bits: 32-bit words in memory order for hot
 * paths, and one BigInt of the whole structure for everything else. Structures made of C types are in `struct.ts`.
 *
 * Positions are the specification's. By default bit 0 is the least significant one and words are little-endian; the
 * specifications of POWER and s390 count from the most significant bit and store big-endian (`LayoutOptions`).
 */

export type FieldKind = "bit" | "bits" | "address" | "rsvd";

/** Words for the values of a field: `{ 0: "untranslated", 1: "with device TLB" }`. */
export type Meanings = { readonly [value: number]: string };

/** What `bit`, `bits`, `address` and `rsvd` make. Positions are the specification's, both ends included. */
export interface FieldDeclaration {
  readonly kind: FieldKind;
  readonly from: number;
  readonly to: number;
  readonly meaning: string;
  readonly meanings?: Meanings;
  readonly lg2?: number;
}

/** One bit. */
export const bit = (at: number, meaning: string, meanings?: Meanings): FieldDeclaration => ({
  kind: "bit",
  from: at,
  to: at,
  meaning,
  ...(meanings && { meanings }),
});

/** A number in bits `from` to `to`. */
export const bits = (from: number, to: number, meaning: string, meanings?: Meanings): FieldDeclaration => ({
  kind: "bits",
  from,
  to,
  meaning,
  ...(meanings && { meanings }),
});

/**
 * An aligned address of which bits `from` to `to` are stored; its value is the address in bytes. `lg2` says which
 * address bit the lowest stored bit is; by default the one at the same place of its 64-bit word.
 */
export const address = (from: number, to: number, meaning: string, lg2?: number): FieldDeclaration => ({
  kind: "address",
  from,
  to,
  meaning,
  ...(lg2 !== undefined && { lg2 }),
});

/** Bits the specification reserves; they count as not named. */
export const rsvd = (from: number, to: number, meaning = "reserved"): FieldDeclaration => ({
  kind: "rsvd",
  from,
  to,
  meaning,
});

export interface BitField {
  readonly name: string;
  /** Least and most significant bit, counted from the least significant bit of the structure's integer. */
  readonly first: number;
  readonly last: number;
  /** Number of bits. */
  readonly width: number;
  readonly meaning: string;
  readonly meanings: Meanings | undefined;
  readonly kind: FieldKind;
  /** Index, in memory order, of the 32-bit word that holds `first`. */
  readonly word: number;
  /** Where `first` is within that word. */
  readonly shift: number;
  /** The field's bits within that word, unsigned and not shifted down; those of its other words are not in it. */
  readonly mask: number;
  /** For addresses: the address bit that the lowest stored bit stands for; else 0. */
  readonly lg2: number;
  /**
   * The field's value in a structure that begins at index `at` of `words`; exact, or RangeError for a number of more
   * than 53 bits (`of` has no such limit).
   */
  get(words: ArrayLike<number>, at?: number): number;
  /** Stores the value. RangeError when it does not fit, or for an address that has bits the field does not store. */
  set(words: { [index: number]: number }, value: number, at?: number): void;
  /** The field's value in the structure's integer (an address in bytes). */
  of(value: bigint): bigint;
  /** The field's value at its place, to be ORed into the structure's integer. RangeError when it does not fit. */
  put(value: bigint): bigint;
}

/** One decoded field, as an explained step shows it. */
export interface DecodedBits {
  readonly name: string;
  readonly value: bigint;
  readonly meaning?: string;
}

export type Declarations = { readonly [name: string]: FieldDeclaration };

export interface Layout<F extends Declarations = Declarations> {
  readonly name: string;
  /** Size in bytes, and in 32-bit words. */
  readonly bytes: number;
  readonly words: number;
  readonly bigEndian: boolean;
  readonly fields: { readonly [K in keyof F]: BitField };
  /** Every bit that no field names. */
  readonly reserved: bigint;
  /** The integer of a structure in memory; `at` in bytes. RangeError beyond the end. */
  read(bytes: Uint8Array, at?: number): bigint;
  write(bytes: Uint8Array, value: bigint, at?: number): void;
  /** The integer of a structure given as words in memory order, each in the structure's byte order, and back. */
  fromWords(words: ArrayLike<number>, at?: number): bigint;
  toWords(value: bigint, words: { [index: number]: number }, at?: number): void;
  /** The integer with these fields set and everything else zero. */
  make(values: { readonly [K in keyof F]?: bigint | number | boolean }): bigint;
  /** The structure in memory seen as an object with one property a field. */
  view(bytes: Uint8Array, at?: number): { -readonly [K in keyof F]: bigint };
  /** Every named field with the meaning of its value; reserved bits that are set are one more, named "reserved". */
  decode(value: bigint): DecodedBits[];
  /** One line: the fields that are not zero, and the enumerated ones. */
  print(value: bigint): string;
}

export interface LayoutOptions {
  /** Bytes are stored most significant first; word 0 is then the most significant one. */
  readonly bigEndian?: boolean;
  /** The declaration counts bits from the most significant one, which is bit 0. */
  readonly msb0?: boolean;
}

const ones = (width: number): bigint => (1n << BigInt(width)) - 1n;

/** Of a field's bits, those in one word. */
interface Piece {
  readonly word: number;
  readonly shift: number;
  readonly mask: number;
  /** 2 to the power of the value bit this piece begins with. */
  readonly scale: number;
  /** 2 to the power of the piece's width. */
  readonly span: number;
}

const piecesOf = (first: number, last: number, wordOf: (bitAt: number) => number): Piece[] => {
  const pieces: Piece[] = [];
  for (let at = first; at <= last; at = (at | 31) + 1) {
    const end = Math.min(at | 31, last);
    const span = 2 ** (end - at + 1);
    pieces.push({
      word: wordOf(at),
      shift: at & 31,
      mask: ((span - 1) << (at & 31)) >>> 0,
      scale: 2 ** (at - first),
      span,
    });
  }
  return pieces;
};

const getter = (pieces: readonly Piece[], unit: number): BitField["get"] => {
  const [only] = pieces;
  if (pieces.length === 1 && only) {
    const { word, shift, mask } = only;
    return (words, at = 0) => ((words[at + word]! & mask) >>> shift) * unit;
  }
  return (words, at = 0) => {
    let value = 0;
    for (const { word, shift, mask, scale } of pieces)
      value += ((words[at + word]! & mask) >>> shift) * scale;
    return value * unit;
  };
};

const setter = (
  pieces: readonly Piece[],
  unit: number,
  limit: number,
  misfit: (value: number) => RangeError,
): BitField["set"] => {
  const fits = (units: number): boolean => Number.isInteger(units) && units >= 0 && units < limit;
  const [only] = pieces;
  if (pieces.length === 1 && only) {
    const { word, shift, mask } = only;
    return (words, value, at = 0) => {
      const units = value / unit;
      if (!fits(units)) throw misfit(value);
      words[at + word] = ((words[at + word]! & ~mask) | (units << shift)) >>> 0;
    };
  }
  return (words, value, at = 0) => {
    const units = value / unit;
    if (!fits(units)) throw misfit(value);
    for (const { word, shift, mask, scale, span } of pieces) {
      const part = Math.floor(units / scale) % span;
      words[at + word] = ((words[at + word]! & ~mask) | ((part << shift) & mask)) >>> 0;
    }
  };
};

const makeField = (
  layoutName: string,
  name: string,
  declared: FieldDeclaration,
  size: number,
  options: LayoutOptions,
): BitField => {
  const { kind, from, to, meaning, meanings } = declared;
  const where = `${layoutName}.${name}`;
  if (from > to || from < 0 || to >= size)
    throw new TypeError(`${where}: bits ${from} to ${to} are not within 0 to ${size - 1}`);
  const first = options.msb0 ? size - 1 - to : from;
  const last = options.msb0 ? size - 1 - from : to;
  const width = last - first + 1;
  const lg2 = kind === "address" ? (declared.lg2 ?? first % 64) : 0;
  const unit = 2 ** lg2;
  const wordCount = Math.ceil(size / 32);
  const wordOf = (bitAt: number) => (options.bigEndian ? wordCount - 1 - (bitAt >>> 5) : bitAt >>> 5);
  const pieces = piecesOf(first, last, wordOf);
  const lowest = pieces[0]!;
  const tooWide = (): never => {
    throw new RangeError(`${where} has ${width} bits, more than a number holds: use of() and put()`);
  };
  const misfit = (value: number | bigint): RangeError =>
    new RangeError(
      `${value} does not fit ${where}: ${width} bits${unit > 1 ? ` of a multiple of ${unit}` : ""}`,
    );
  return {
    name,
    first,
    last,
    width,
    meaning,
    meanings,
    kind,
    word: lowest.word,
    shift: lowest.shift,
    mask: lowest.mask,
    lg2,
    get: width > 53 ? tooWide : getter(pieces, unit),
    set: width > 53 ? tooWide : setter(pieces, unit, 2 ** width, misfit),
    of: (value) => ((value >> BigInt(first)) & ones(width)) << BigInt(lg2),
    put: (value) => {
      const units = value >> BigInt(lg2);
      if (units << BigInt(lg2) !== value || units < 0n || units > ones(width)) throw misfit(value);
      return units << BigInt(first);
    },
  };
};

const hex = (value: bigint): string => `0x${value.toString(16)}`;

const printField = (field: BitField | undefined, { name, value, meaning }: DecodedBits): string => {
  const number = field?.kind !== "address" && value < 10n ? value.toString() : hex(value);
  return field?.meanings && meaning ? `${name}=${number} (${meaning})` : `${name}=${number}`;
};

/** What the value of a field means; for enumerated fields the word for the value. */
const meaningOf = (field: BitField, value: bigint): string =>
  field.meanings ? (field.meanings[Number(value)] ?? "reserved") : field.meaning;

const readInteger = (bytes: Uint8Array, at: number, size: number, bigEndian: boolean): bigint => {
  let value = 0n;
  for (let i = 0; i < size; i++) {
    const byte = bytes[at + (bigEndian ? i : size - 1 - i)];
    if (byte === undefined) throw new RangeError(`${size} bytes at ${at} are not within ${bytes.length}`);
    value = (value << 8n) | BigInt(byte);
  }
  return value;
};

const writeInteger = (
  bytes: Uint8Array,
  at: number,
  size: number,
  bigEndian: boolean,
  value: bigint,
): void => {
  if (at < 0 || at + size > bytes.length)
    throw new RangeError(`${size} bytes at ${at} are not within ${bytes.length}`);
  for (let i = 0; i < size; i++) {
    bytes[at + (bigEndian ? size - 1 - i : i)] = Number((value >> BigInt(8 * i)) & 0xffn);
  }
};

/** Declares a structure of `bytes` bytes. TypeError when fields overlap or leave the structure. */
export const layout = <const F extends Declarations>(
  name: string,
  bytes: number,
  declarations: F,
  options: LayoutOptions = {},
): Layout<F> => {
  const size = bytes * 8;
  const bigEndian = options.bigEndian ?? false;
  const words = Math.ceil(bytes / 4);
  const all = Object.entries(declarations).map(([key, declared]) =>
    makeField(name, key, declared, size, options),
  );
  let taken = 0n;
  let named = 0n;
  for (const field of all) {
    const mask = ones(field.width) << BigInt(field.first);
    if (taken & mask) throw new TypeError(`${name}.${field.name} overlaps another field`);
    taken |= mask;
    if (field.kind !== "rsvd") named |= mask;
  }
  const reserved = ones(size) & ~named;
  const byName = new Map(all.map((field) => [field.name, field]));
  const shown = all.filter((field) => field.kind !== "rsvd");
  const place = (word: number) => BigInt(32 * (bigEndian ? words - 1 - word : word));

  const decode = (value: bigint): DecodedBits[] => {
    const decoded: DecodedBits[] = shown.map((field) => {
      const number = field.of(value);
      return { name: field.name, value: number, meaning: meaningOf(field, number) };
    });
    const strange = value & reserved;
    if (strange) decoded.push({ name: "reserved", value: strange, meaning: "reserved bits are set" });
    return decoded;
  };

  return {
    name,
    bytes,
    words,
    bigEndian,
    fields: Object.fromEntries(byName) as { readonly [K in keyof F]: BitField },
    reserved,
    read: (from, at = 0) => readInteger(from, at, bytes, bigEndian),
    write: (to, value, at = 0) => writeInteger(to, at, bytes, bigEndian, value),
    fromWords(from, at = 0) {
      let value = 0n;
      for (let word = 0; word < words; word++) value |= BigInt(from[at + word]! >>> 0) << place(word);
      return value;
    },
    toWords(value, to, at = 0) {
      for (let word = 0; word < words; word++) to[at + word] = Number((value >> place(word)) & 0xffff_ffffn);
    },
    make(values) {
      let value = 0n;
      for (const [key, wanted] of Object.entries(values)) {
        const field = byName.get(key);
        if (!field) throw new TypeError(`${name} has no field ${key}`);
        if (wanted !== undefined) value |= field.put(BigInt(wanted));
      }
      return value;
    },
    view(of, at = 0) {
      const seen = {};
      for (const field of all) {
        const hole = ~(ones(field.width) << BigInt(field.first));
        Object.defineProperty(seen, field.name, {
          enumerable: true,
          get: () => field.of(readInteger(of, at, bytes, bigEndian)),
          set: (value: bigint) => {
            const rest = readInteger(of, at, bytes, bigEndian) & hole;
            writeInteger(of, at, bytes, bigEndian, rest | field.put(value));
          },
        });
      }
      return seen as { -readonly [K in keyof F]: bigint };
    },
    decode,
    print(value) {
      const parts = decode(value)
        .filter((one) => one.value !== 0n || byName.get(one.name)?.meanings)
        .map((one) => printField(byName.get(one.name), one));
      return parts.length ? `${name} { ${parts.join(", ")} }` : `${name} { all zero }`;
    },
  };
};
