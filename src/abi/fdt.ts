/**
 * Flattened device trees: the format of KHO's root.
 *
 * Why: the tree comes from another kernel, so the reader trusts nothing: it checks every offset, size,
 * token and string before it returns anything.
 * Source: Devicetree Specification v0.4 §5 (format version 17, compatible with 16); the order of the blocks
 * is libfdt's.
 * Layout: all words big endian
 *   | header 40 B | memory reservation block, 8-aligned | structure block, 4-aligned | strings block |
 * Not modelled: memory reservations (written empty, checked and ignored when read), NOP tokens are skipped.
 * @module
 */
import { assert } from "../base/assert.ts";
import { alignUp, hex } from "../base/units.ts";
import { HandoverError } from "./handover-error.ts";

/** One node. Property values are raw bytes: their byte order is their own. */
export interface FdtNode {
  /** The root's is empty. */
  readonly name: string;
  readonly properties: ReadonlyMap<string, Uint8Array>;
  readonly children: readonly FdtNode[];
}

/** Byte offset of each word of struct fdt_header. */
export const FDT_HEADER = {
  magic: 0,
  totalsize: 4,
  off_dt_struct: 8,
  off_dt_strings: 12,
  off_mem_rsvmap: 16,
  version: 20,
  last_comp_version: 24,
  boot_cpuid_phys: 28,
  size_dt_strings: 32,
  size_dt_struct: 36,
} as const;

export const FDT_MAGIC = 0xd00dfeed;
const FDT_HEADER_BYTES = 40;
const FDT_VERSION = 17;
const FDT_LAST_COMPATIBLE_VERSION = 16;
const RESERVE_ENTRY_BYTES = 16;

const FDT_BEGIN_NODE = 1;
const FDT_END_NODE = 2;
const FDT_PROP = 3;
const FDT_NOP = 4;
const FDT_END = 9;

/** KHO's tree has two levels; a limit keeps an untrusted one from exhausting the stack. */
const MAX_DEPTH = 16;
const MAX_NAME_BYTES = 255;
const NAME = /^[0-9A-Za-z,._+\-@#?]+$/;

/**
 * Encodes a tree, packed.
 *
 * @param strings - property names in the order that the strings block is to have; names that are missing
 *   follow in order of first use
 */
export function encodeFdt(root: FdtNode, strings: readonly string[] = []): Uint8Array {
  const offsets = new Map<string, number>();
  let stringsBytes = 0;
  const addString = (name: string): void => {
    if (offsets.has(name)) return;
    assert(NAME.test(name), `"${name}" is no property name`);
    offsets.set(name, stringsBytes);
    stringsBytes += name.length + 1;
  };
  strings.forEach(addString);

  const words: number[] = [];
  const pushBytes = (bytes: ArrayLike<number>, lengthBytes: number): void => {
    for (let i = 0; i < lengthBytes; i += 4) {
      const word =
        ((bytes[i] ?? 0) << 24) |
        ((bytes[i + 1] ?? 0) << 16) |
        ((bytes[i + 2] ?? 0) << 8) |
        (bytes[i + 3] ?? 0);
      words.push(word >>> 0);
    }
  };
  const pushNode = (node: FdtNode): void => {
    words.push(FDT_BEGIN_NODE);
    pushBytes(asciiBytes(node.name), node.name.length + 1);
    for (const [name, value] of node.properties) {
      addString(name);
      words.push(FDT_PROP, value.length, offsets.get(name) ?? 0);
      pushBytes(value, value.length);
    }
    for (const child of node.children) {
      assert(NAME.test(child.name), `"${child.name}" is no node name`);
      pushNode(child);
    }
    words.push(FDT_END_NODE);
  };
  pushNode(root);
  words.push(FDT_END);

  const reserveOffset = FDT_HEADER_BYTES;
  const structOffset = reserveOffset + RESERVE_ENTRY_BYTES;
  const stringsOffset = structOffset + 4 * words.length;
  const bytes = new Uint8Array(stringsOffset + stringsBytes);
  const view = new DataView(bytes.buffer);
  view.setUint32(FDT_HEADER.magic, FDT_MAGIC);
  view.setUint32(FDT_HEADER.totalsize, bytes.length);
  view.setUint32(FDT_HEADER.off_dt_struct, structOffset);
  view.setUint32(FDT_HEADER.off_dt_strings, stringsOffset);
  view.setUint32(FDT_HEADER.off_mem_rsvmap, reserveOffset);
  view.setUint32(FDT_HEADER.version, FDT_VERSION);
  view.setUint32(FDT_HEADER.last_comp_version, FDT_LAST_COMPATIBLE_VERSION);
  view.setUint32(FDT_HEADER.size_dt_strings, stringsBytes);
  view.setUint32(FDT_HEADER.size_dt_struct, 4 * words.length);
  words.forEach((word, index) => {
    view.setUint32(structOffset + 4 * index, word);
  });
  for (const [name, offset] of offsets) bytes.set(asciiBytes(name), stringsOffset + offset);
  return bytes;
}

/**
 * Decodes a tree.
 *
 * @param bytes - the tree and whatever follows it
 * @throws {HandoverError} naming the header word, or the path of the node or property
 */
export function decodeFdt(bytes: Uint8Array): FdtNode {
  const header = decodeHeader(bytes);
  return new StructureReader(bytes, header).read();
}

interface Blocks {
  readonly structOffset: number;
  readonly structEnd: number;
  readonly stringsOffset: number;
  readonly stringsEnd: number;
}

function decodeHeader(bytes: Uint8Array): Blocks {
  if (bytes.length < FDT_HEADER_BYTES)
    throw new HandoverError("fdt_header", `${bytes.length} bytes are too few for it`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const word = (name: keyof typeof FDT_HEADER): number => view.getUint32(FDT_HEADER[name]);
  const refuse = (name: keyof typeof FDT_HEADER, problem: string): never => {
    throw new HandoverError(`fdt_header.${name}`, `${hex(word(name))} ${problem}`);
  };

  if (word("magic") !== FDT_MAGIC) refuse("magic", `is not ${hex(FDT_MAGIC)}`);
  if (word("version") < FDT_VERSION) refuse("version", `is below ${FDT_VERSION}`);
  if (word("last_comp_version") > FDT_VERSION) refuse("last_comp_version", "is too new");
  const total = word("totalsize");
  if (total < FDT_HEADER_BYTES) refuse("totalsize", "does not even hold the header");
  if (total > bytes.length) refuse("totalsize", `exceeds the ${bytes.length} bytes handed over`);

  const structOffset = word("off_dt_struct");
  if (structOffset % 4 !== 0) refuse("off_dt_struct", "is not aligned to 4");
  if (structOffset < FDT_HEADER_BYTES) refuse("off_dt_struct", "lies in the header");
  const structEnd = structOffset + word("size_dt_struct");
  if (word("size_dt_struct") % 4 !== 0) refuse("size_dt_struct", "is not a multiple of 4");
  if (structEnd > total) refuse("size_dt_struct", "reaches beyond totalsize");

  const stringsOffset = word("off_dt_strings");
  if (stringsOffset < FDT_HEADER_BYTES) refuse("off_dt_strings", "lies in the header");
  const stringsEnd = stringsOffset + word("size_dt_strings");
  if (stringsEnd > total) refuse("size_dt_strings", "reaches beyond totalsize");
  if (stringsOffset < structEnd && structOffset < stringsEnd)
    refuse("off_dt_strings", "overlaps the structure block");

  const reserveOffset = word("off_mem_rsvmap");
  if (reserveOffset % 8 !== 0) refuse("off_mem_rsvmap", "is not aligned to 8");
  if (reserveOffset < FDT_HEADER_BYTES) refuse("off_mem_rsvmap", "lies in the header");
  for (let at = reserveOffset; ; at += RESERVE_ENTRY_BYTES) {
    if (at + RESERVE_ENTRY_BYTES > total) refuse("off_mem_rsvmap", "names a block without end");
    let isEnd = true;
    for (let i = 0; i < RESERVE_ENTRY_BYTES; i += 4) isEnd &&= view.getUint32(at + i) === 0;
    if (isEnd) break;
  }
  return { structOffset, structEnd, stringsOffset, stringsEnd };
}

/** Reads the tokens of the structure block, none twice. */
class StructureReader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #blocks: Blocks;
  #at: number;

  constructor(bytes: Uint8Array, blocks: Blocks) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#blocks = blocks;
    this.#at = blocks.structOffset;
  }

  read(): FdtNode {
    const token = this.#token("fdt");
    if (token !== FDT_BEGIN_NODE) throw new HandoverError("fdt", `begins with token ${token}`);
    const root = this.#node("fdt", "", 1);
    if (this.#token("fdt") !== FDT_END) throw new HandoverError("fdt", "has no END token");
    if (this.#at !== this.#blocks.structEnd)
      throw new HandoverError("fdt_header.size_dt_struct", "the structure ends before it");
    return root;
  }

  /** The rest of a node after its BEGIN_NODE token. */
  #node(parentPath: string, expectedName: string | null, depth: number): FdtNode {
    if (depth > MAX_DEPTH) throw new HandoverError(parentPath, `nodes deeper than ${MAX_DEPTH}`);
    const name = this.#inlineName(parentPath);
    if (expectedName === null ? !NAME.test(name) : name !== expectedName)
      throw new HandoverError(parentPath, `"${name}" is not a valid node name here`);
    const path = depth === 1 ? "fdt:/" : `${parentPath}${depth === 2 ? "" : "/"}${name}`;
    const properties = new Map<string, Uint8Array>();
    const children: FdtNode[] = [];
    const names = new Set<string>();
    for (;;) {
      const token = this.#token(path);
      if (token === FDT_END_NODE) return { name, properties, children };
      if (token === FDT_BEGIN_NODE) {
        const child = this.#node(path, null, depth + 1);
        if (names.has(child.name)) throw new HandoverError(path, `two nodes "${child.name}"`);
        names.add(child.name);
        children.push(child);
      } else if (token === FDT_PROP) {
        if (children.length > 0) throw new HandoverError(path, "a property after a child node");
        const [key, value] = this.#property(path);
        if (properties.has(key)) throw new HandoverError(path, `two properties "${key}"`);
        properties.set(key, value);
      } else throw new HandoverError(path, `unexpected token ${token}`);
    }
  }

  #property(path: string): [string, Uint8Array] {
    const lengthBytes = this.#word(path);
    const name = this.#string(this.#word(path), path);
    const start = this.#at;
    if (lengthBytes > this.#blocks.structEnd - start)
      throw new HandoverError(
        `${path}.${name}`,
        `${lengthBytes} bytes reach beyond the structure block`,
      );
    this.#at += alignUp(lengthBytes, 4);
    return [name, this.#bytes.slice(start, start + lengthBytes)];
  }

  /** A name in the structure block, NUL-terminated and padded. */
  #inlineName(path: string): string {
    const text = this.#text(this.#at, this.#blocks.structEnd, path);
    this.#at = alignUp(this.#at + text.length + 1, 4);
    return text;
  }

  /** A name in the strings block. */
  #string(offset: number, path: string): string {
    const { stringsOffset, stringsEnd } = this.#blocks;
    if (offset >= stringsEnd - stringsOffset)
      throw new HandoverError(path, `property name at ${hex(offset)}, beyond the strings block`);
    const text = this.#text(stringsOffset + offset, stringsEnd, path);
    if (!NAME.test(text)) throw new HandoverError(path, `"${text}" is not a valid property name`);
    return text;
  }

  #text(start: number, end: number, path: string): string {
    let text = "";
    for (let at = start; at < end && text.length <= MAX_NAME_BYTES; at++) {
      const byte = this.#bytes[at];
      if (byte === 0) return text;
      if (byte < 0x20 || byte > 0x7e) throw new HandoverError(path, "a name that is not ASCII");
      text += String.fromCharCode(byte);
    }
    throw new HandoverError(path, "a name without end");
  }

  #token(path: string): number {
    let token = FDT_NOP;
    while (token === FDT_NOP) token = this.#word(path);
    return token;
  }

  #word(path: string): number {
    if (this.#at + 4 > this.#blocks.structEnd)
      throw new HandoverError(path, "the structure block ends within it");
    const word = this.#view.getUint32(this.#at);
    this.#at += 4;
    return word;
  }
}

/** A string property's value: its characters and a NUL. */
export function fdtString(text: string): Uint8Array {
  return Uint8Array.from([...asciiBytes(text), 0]);
}

function asciiBytes(text: string): number[] {
  const bytes: number[] = [];
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    assert(code >= 0x20 && code <= 0x7e, `"${text}" is not ASCII`);
    bytes.push(code);
  }
  return bytes;
}
