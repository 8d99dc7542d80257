/**
 * ELF64 cores: RAM as `virsh dump --memory-only`, QEMU's dump-guest-memory, /proc/vmcore and our own machine write it.
 *
 * PT_LOAD headers say by p_paddr where a piece of the file belongs. Every number is checked: the file may be anything.
 * Layout of ours: header, program headers, (section header 0 when there are 65535 program headers or more), one
 *   PT_NOTE, then the pieces, page aligned; a PT_LOAD with p_filesz 0 is RAM that nobody ever stored to.
 * Source: elf(5); Linux 7.3 fs/proc/vmcore.c for p_paddr, include/uapi/linux/elf.h for PN_XNUM
 * @module
 */
import { hex, PAGE_SIZE } from "../../base/units.ts";
import { decodeNote, type ImageNote, NOTE_BYTES_MAX, NOTE_NAME, NOTE_TYPE } from "./image-note.ts";
import { readFully, type Segment } from "./ram-image.ts";

const HEADER_BYTES = 64;
const PROGRAM_HEADER_BYTES = 56;
const SECTION_HEADER_BYTES = 64;
const ET_CORE = 4;
const EM_X86_64 = 62;
const PT_LOAD = 1;
const PT_NOTE = 4;
/** The number of program headers stands in sh_info of section header 0. */
const PN_XNUM = 0xffff;
const PROGRAM_HEADERS_MAX = 1 << 20;

/** A file that cannot be read as an image at all. */
export class ImageError extends Error {
  constructor(problem: string) {
    super(problem);
    this.name = "ImageError";
  }
}

/** Whether a file begins like an ELF file. */
export function isElf(head: Uint8Array): boolean {
  return head[0] === 0x7f && head[1] === 0x45 && head[2] === 0x4c && head[3] === 0x46;
}

export interface ElfCore {
  readonly segments: readonly Segment[];
  readonly note: ImageNote | null;
  readonly warnings: readonly string[];
}

/** @throws {ImageError} naming the header field */
export function readElfCore(fd: number, fileBytes: number): ElfCore {
  const head = view(fd, 0, HEADER_BYTES, fileBytes, "ELF header");
  if (head.getUint8(4) !== 2) throw new ImageError("ELF EI_CLASS: only 64-bit cores can be read");
  if (head.getUint8(5) !== 1) throw new ImageError("ELF EI_DATA: only little-endian cores");
  const type = head.getUint16(16, true);
  if (type !== ET_CORE) throw new ImageError(`ELF e_type ${type}: not a core file`);
  const size = head.getUint16(54, true);
  if (size !== PROGRAM_HEADER_BYTES) throw new ImageError(`ELF e_phentsize ${size}: not 56`);
  const offset = word64(head, 32);
  const count = programHeaderCount(fd, head, fileBytes);
  const table = view(fd, offset, count * PROGRAM_HEADER_BYTES, fileBytes, "ELF program headers");

  const warnings: string[] = [];
  const loads: Segment[] = [];
  let note: ImageNote | null = null;
  for (let i = 0; i < count; i++) {
    const at = i * PROGRAM_HEADER_BYTES;
    const kind = table.getUint32(at, true);
    const fileOffset = word64(table, at + 8);
    const pa = word64(table, at + 24);
    const inFile = word64(table, at + 32);
    const lengthBytes = word64(table, at + 40);
    const name = `ELF program header ${i}`;
    if (kind === PT_NOTE) {
      const found = findNote(fd, fileOffset, inFile, fileBytes);
      if (typeof found === "string") warnings.push(`${name}: the ${NOTE_NAME} note ${found}`);
      else note ??= found;
    }
    if (kind !== PT_LOAD || lengthBytes === 0) continue;
    if (!(pa <= 2 ** 52 && lengthBytes <= 2 ** 52 && pa + lengthBytes <= 2 ** 52))
      throw new ImageError(`${name}: p_paddr ${hex(pa)} + ${hex(lengthBytes)} is no address`);
    if (!(inFile <= lengthBytes)) throw new ImageError(`${name}: p_filesz exceeds p_memsz`);
    const present = Math.max(0, Math.min(inFile, fileBytes - fileOffset));
    if (present < inFile)
      warnings.push(`${name}: the file ends ${inFile - present} bytes before ${hex(pa + inFile)}`);
    loads.push({ pa, lengthBytes, fileOffset, fileBytes: present });
  }
  if (loads.length === 0) throw new ImageError("ELF: no program header of memory (PT_LOAD)");
  return { segments: withoutOverlaps(loads), note, warnings };
}

function programHeaderCount(fd: number, head: DataView, fileBytes: number): number {
  let count = head.getUint16(56, true);
  if (count === PN_XNUM) {
    const section = view(
      fd,
      word64(head, 40),
      SECTION_HEADER_BYTES,
      fileBytes,
      "ELF section header 0",
    );
    count = section.getUint32(44, true);
  }
  if (count > PROGRAM_HEADERS_MAX) throw new ImageError(`ELF e_phnum: ${count} program headers`);
  return count;
}

/**
 * Sorted, each byte of memory once. Where headers overlap (a vmcore's kernel text lies in RAM too) both say the same,
 * so what is there already stays.
 */
function withoutOverlaps(loads: readonly Segment[]): Segment[] {
  const sorted = loads.toSorted((a, b) => a.pa - b.pa || b.lengthBytes - a.lengthBytes);
  const apart: Segment[] = [];
  let end = 0;
  for (const load of sorted) {
    const skip = Math.max(0, end - load.pa);
    if (skip >= load.lengthBytes) continue;
    apart.push({
      pa: load.pa + skip,
      lengthBytes: load.lengthBytes - skip,
      fileOffset: load.fileOffset + skip,
      fileBytes: Math.max(0, load.fileBytes - skip),
    });
    end = load.pa + load.lengthBytes;
  }
  return apart;
}

/** @returns our note; null when there is none; or what is wrong with it */
function findNote(
  fd: number,
  offset: number,
  lengthBytes: number,
  fileBytes: number,
): ImageNote | string | null {
  // Other dumpers' notes hold registers of every CPU; ours comes first in its segment.
  const end = Math.min(lengthBytes, NOTE_BYTES_MAX, Math.max(0, fileBytes - offset));
  const bytes = new Uint8Array(end);
  readFully(fd, bytes, offset);
  const words = new DataView(bytes.buffer);
  for (let at = 0; at + 12 <= end; ) {
    const nameBytes = words.getUint32(at, true);
    const descBytes = words.getUint32(at + 4, true);
    const type = words.getUint32(at + 8, true);
    const descAt = at + 12 + align4(nameBytes);
    if (descAt + descBytes > end) return null;
    const name = String.fromCharCode(...bytes.subarray(at + 12, at + 12 + Math.min(nameBytes, 16)));
    if (type === NOTE_TYPE && name === `${NOTE_NAME}\0`)
      return decodeNote(bytes.subarray(descAt, descAt + descBytes));
    at = descAt + align4(descBytes);
  }
  return null;
}

/** A piece of RAM that a core is to hold. */
export interface CorePiece {
  readonly pa: number;
  readonly lengthBytes: number;
  /** Whether its bytes are written; else it is RAM that is zero. */
  readonly isInFile: boolean;
}

/** @returns everything before the pieces' bytes, and where each piece's bytes belong */
export function encodeElfCore(
  pieces: readonly CorePiece[],
  note: Uint8Array,
): { readonly head: Uint8Array; readonly offsets: readonly number[] } {
  const count = pieces.length + 1;
  const isMany = count >= PN_XNUM;
  const tableEnd = HEADER_BYTES + count * PROGRAM_HEADER_BYTES;
  const noteAt = tableEnd + (isMany ? SECTION_HEADER_BYTES : 0);
  const name = new TextEncoder().encode(`${NOTE_NAME}\0`);
  const noteBytes = 12 + align4(name.length) + align4(note.length);
  const start = Math.ceil((noteAt + noteBytes) / PAGE_SIZE) * PAGE_SIZE;
  const head = new Uint8Array(start);
  const words = new DataView(head.buffer);
  const put64 = (at: number, value: number) => words.setBigUint64(at, BigInt(value), true);
  head.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  words.setUint16(16, ET_CORE, true);
  words.setUint16(18, EM_X86_64, true);
  words.setUint32(20, 1, true);
  put64(32, HEADER_BYTES);
  if (isMany) {
    put64(40, tableEnd);
    words.setUint16(58, SECTION_HEADER_BYTES, true);
    words.setUint16(60, 1, true);
    words.setUint32(tableEnd + 44, count, true);
  }
  words.setUint16(52, HEADER_BYTES, true);
  words.setUint16(54, PROGRAM_HEADER_BYTES, true);
  words.setUint16(56, Math.min(count, PN_XNUM), true);

  words.setUint32(HEADER_BYTES, PT_NOTE, true);
  put64(HEADER_BYTES + 8, noteAt);
  put64(HEADER_BYTES + 32, noteBytes);
  words.setUint32(noteAt, name.length, true);
  words.setUint32(noteAt + 4, note.length, true);
  words.setUint32(noteAt + 8, NOTE_TYPE, true);
  head.set(name, noteAt + 12);
  head.set(note, noteAt + 12 + align4(name.length));

  const offsets: number[] = [];
  let fileOffset = start;
  for (const [i, { pa, lengthBytes, isInFile }] of pieces.entries()) {
    const at = HEADER_BYTES + (i + 1) * PROGRAM_HEADER_BYTES;
    words.setUint32(at, PT_LOAD, true);
    words.setUint32(at + 4, 6, true);
    put64(at + 8, fileOffset);
    put64(at + 24, pa);
    put64(at + 32, isInFile ? lengthBytes : 0);
    put64(at + 40, lengthBytes);
    put64(at + 48, PAGE_SIZE);
    offsets.push(fileOffset);
    if (isInFile) fileOffset += lengthBytes;
  }
  return { head, offsets };
}

function align4(value: number): number {
  return Math.ceil(value / 4) * 4;
}

function word64(words: DataView, at: number): number {
  return Number(words.getBigUint64(at, true));
}

function view(
  fd: number,
  offset: number,
  lengthBytes: number,
  fileBytes: number,
  what: string,
): DataView {
  if (!(offset + lengthBytes <= fileBytes))
    throw new ImageError(`${what}: the file ends before it`);
  const bytes = new Uint8Array(lengthBytes);
  readFully(fd, bytes, offset);
  return new DataView(bytes.buffer);
}
