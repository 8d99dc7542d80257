/**
 * Packed C structures, declared once by their fields.
 *
 * Why: a layout that is data can be read, written, printed, and corrupted field by field in a test,
 * from one declaration.
 * @module
 */
import type { WordReader, WordWriter } from "./words.ts";

/** The type of one field: its size and how its bytes become a value. */
export interface FieldType<T> {
  readonly sizeBytes: number;
  read(words: WordReader, at: number): T;
  write(words: WordWriter, at: number, value: T): void;
}

export const u8: FieldType<number> = {
  sizeBytes: 1,
  read: (words, at) => words.load8(at),
  write: (words, at, value) => words.store8(at, value),
};
export const u16: FieldType<number> = {
  sizeBytes: 2,
  read: (words, at) => words.load16(at),
  write: (words, at, value) => words.store16(at, value),
};
export const u32: FieldType<number> = {
  sizeBytes: 4,
  read: (words, at) => words.load32(at),
  write: (words, at, value) => words.store32(at, value),
};
/** A signed 32-bit integer, as a file descriptor is. */
export const s32: FieldType<number> = {
  sizeBytes: 4,
  read: (words, at) => words.load32(at) | 0,
  write: (words, at, value) => words.store32(at, value >>> 0),
};
/** An address, a size or a count: exact up to 2^53, beyond it some number above every limit. */
export const u64: FieldType<number> = {
  sizeBytes: 8,
  read: (words, at) => words.load64(at),
  write: (words, at, value) => words.store64(at, value),
};
/** An opaque 64-bit word: a token, or bit fields wider than 53 bits. */
export const token64: FieldType<bigint> = {
  sizeBytes: 8,
  read: (words, at) => words.loadBig64(at),
  write: (words, at, value) => words.storeBig64(at, value),
};

/**
 * A NUL-terminated string of at most `sizeBytes` - 1 bytes of UTF-8. Reads as null when there is no NUL
 * within the field or the bytes are not UTF-8; bytes after the NUL are not looked at.
 */
export function cString(sizeBytes: number): FieldType<string | null> {
  return {
    sizeBytes,
    read(words, at) {
      const bytes: number[] = [];
      for (let i = 0; i < sizeBytes; i++) {
        const byte = words.load8(at + i);
        if (byte === 0) return decodeUtf8(bytes);
        bytes.push(byte);
      }
      return null;
    },
    write(words, at, value) {
      const bytes = encodeUtf8(value ?? "");
      if (bytes.length >= sizeBytes)
        throw new RangeError(`"${value}" exceeds ${sizeBytes - 1} bytes`);
      for (let i = 0; i < sizeBytes; i++) words.store8(at + i, bytes[i] ?? 0);
    },
  };
}

/** Bytes as they are. */
export function byteArray(sizeBytes: number): FieldType<Uint8Array> {
  return {
    sizeBytes,
    read(words, at) {
      const bytes = new Uint8Array(sizeBytes);
      for (let i = 0; i < sizeBytes; i++) bytes[i] = words.load8(at + i);
      return bytes;
    },
    write(words, at, value) {
      for (let i = 0; i < sizeBytes; i++) words.store8(at + i, value[i] ?? 0);
    },
  };
}

type Fields = Record<string, FieldType<unknown>>;
/** The value of a structure whose fields are `F`. */
export type StructValue<F extends Fields> = {
  [K in keyof F]: F[K] extends FieldType<infer T> ? T : never;
};

/** A packed structure: fields follow one another without padding. */
export interface Struct<F extends Fields> {
  /** Its C name, for messages. */
  readonly name: string;
  readonly sizeBytes: number;
  /** Byte offset of each field. */
  readonly offset: { readonly [K in keyof F]: number };
  readonly fields: F;
  read(words: WordReader, at: number): StructValue<F>;
  write(words: WordWriter, at: number, value: StructValue<F>): void;
}

/** The value type of a declared structure: `type LuoSer = ValueOf<typeof LUO_SER>`. */
export type ValueOf<S> = S extends Struct<infer F> ? StructValue<F> : never;

/** Declares a packed structure; padding is a field like any other. */
export function struct<F extends Fields>(name: string, fields: F): Struct<F> {
  const offset = {} as { [K in keyof F]: number };
  let sizeBytes = 0;
  const keys = Object.keys(fields) as (keyof F & string)[];
  for (const key of keys) {
    offset[key] = sizeBytes;
    sizeBytes += fields[key].sizeBytes;
  }
  return {
    name,
    sizeBytes,
    offset,
    fields,
    read(words, at) {
      const value: Record<string, unknown> = {};
      for (const key of keys) value[key] = fields[key].read(words, at + offset[key]);
      return value as StructValue<F>;
    },
    write(words, at, value) {
      for (const key of keys) fields[key].write(words, at + offset[key], value[key]);
    },
  };
}

/** UTF-8 without Node's or a browser's TextDecoder, which the core's types do not have. @returns null when it is none */
export function decodeUtf8(bytes: readonly number[]): string | null {
  try {
    return decodeURIComponent(bytes.map((b) => `%${b.toString(16).padStart(2, "0")}`).join(""));
  } catch {
    return null;
  }
}

/** UTF-8 bytes of a string. */
export function encodeUtf8(text: string): Uint8Array {
  const escaped = encodeURIComponent(text);
  const bytes: number[] = [];
  for (let i = 0; i < escaped.length; i++) {
    if (escaped[i] === "%") {
      bytes.push(Number.parseInt(escaped.slice(i + 1, i + 3), 16));
      i += 2;
    } else bytes.push(escaped.charCodeAt(i));
  }
  return Uint8Array.from(bytes);
}
