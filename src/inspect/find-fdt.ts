/**
 * Finds KHO's root FDT in memory, where nobody says where it is.
 *
 * It is a page of its own, so the first word of every page of the image is looked at. There may be several: the one
 * that the running kernel came from, the one that it is preparing, and remains of older ones.
 * @module
 */
import { decodeFdt, FDT_HEADER, FDT_MAGIC } from "../abi/fdt.ts";
import { HandoverError } from "../abi/handover-error.ts";
import { decodeKhoFdt, KHO_FDT_COMPATIBLE, KHO_FDT_MAX_BYTES } from "../abi/kho.ts";
import { LUO_KHO_ENTRY_NAME, LUO_SER } from "../abi/luo.ts";
import { alignUp, PAGE_SIZE } from "../base/units.ts";
import { readPreservedTree } from "../kernel/kho/preserved-blocks.ts";
import type { RamImage } from "./image/ram-image.ts";

/** A page that is a KHO FDT of some version. */
export interface FdtCandidate {
  readonly pa: number;
  readonly sizeBytes: number;
  readonly compatible: string;
  /** Whether its tree of preserved pages can be walked without a fault, and has the FDT's own page in it. */
  readonly isTreeWhole: boolean;
  /** Whether it names sessions. */
  readonly hasSessions: boolean;
  /** Of its LUO state; 0 without. */
  readonly liveupdateNumber: number;
}

/** Told of bytes looked at, and of all there are. */
export type OnProgress = (doneBytes: number, totalBytes: number) => void;

const PIECE_BYTES = 4 << 20;
const CANDIDATES_MAX = 64;

/** Looks at all memory. */
export function searchFdts(image: RamImage, onProgress: OnProgress = () => {}): FdtCandidate[] {
  const total = image.backed.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
  const candidates: FdtCandidate[] = [];
  const buffer = new Uint8Array(PIECE_BYTES);
  const words = new DataView(buffer.buffer);
  let done = 0;
  for (const { start, lengthBytes } of image.backed) {
    const end = start + lengthBytes;
    for (let pa = alignUp(start, PAGE_SIZE); pa + PAGE_SIZE <= end; pa += PIECE_BYTES) {
      const bytes = buffer.subarray(0, Math.min(PIECE_BYTES, end - pa));
      image.read(pa, bytes);
      for (let at = 0; at + PAGE_SIZE <= bytes.length; at += PAGE_SIZE) {
        if (words.getUint32(at) !== FDT_MAGIC || candidates.length === CANDIDATES_MAX) continue;
        const candidate = examineFdt(image, pa + at);
        if (candidate !== null) candidates.push(candidate);
      }
      done += bytes.length;
      onProgress(done, total);
    }
  }
  return candidates;
}

/** What lies at an address, if it is a KHO FDT of some version. */
export function examineFdt(image: RamImage, pa: number): FdtCandidate | null {
  const bytes = fdtBytes(image, pa);
  const compatible = bytes === null ? null : compatibleOf(bytes);
  if (bytes === null || compatible === null) return null;
  const unread = { isTreeWhole: false, hasSessions: false, liveupdateNumber: 0 };
  const candidate = { pa, sizeBytes: bytes.length, compatible };
  if (compatible !== KHO_FDT_COMPATIBLE) return { ...candidate, ...unread };
  return { ...candidate, ...unread, ...judge(image, pa, bytes) };
}

function judge(image: RamImage, pa: number, bytes: Uint8Array) {
  try {
    const { memoryMapPa, subtrees } = decodeKhoFdt(bytes);
    const luo = subtrees.find(({ name }) => name === LUO_KHO_ENTRY_NAME);
    const ser =
      luo !== undefined && image.contains(luo.pa, LUO_SER.sizeBytes)
        ? LUO_SER.read(image, luo.pa)
        : null;
    const sessions = {
      hasSessions: ser !== null && ser.sessions_pa !== 0,
      liveupdateNumber: ser?.liveupdate_num ?? 0,
    };
    try {
      const { blocks } = readPreservedTree(image, memoryMapPa);
      return { ...sessions, isTreeWhole: blocks.find(pa) >= 0 };
    } catch (error) {
      if (!(error instanceof HandoverError)) throw error;
      return sessions;
    }
  } catch (error) {
    if (!(error instanceof HandoverError)) throw error;
    return {};
  }
}

/** The bytes of the FDT at an address, as its header says; null when there is none. */
export function fdtBytes(image: RamImage, pa: number): Uint8Array | null {
  if (pa % 8 !== 0 || !image.contains(pa, PAGE_SIZE)) return null;
  const page = new Uint8Array(PAGE_SIZE);
  image.read(pa, page);
  const words = new DataView(page.buffer);
  if (words.getUint32(FDT_HEADER.magic) !== FDT_MAGIC) return null;
  const size = words.getUint32(FDT_HEADER.totalsize);
  return size > KHO_FDT_MAX_BYTES ? page : page.slice(0, size);
}

/** The root's `compatible` if it is one of KHO. */
function compatibleOf(bytes: Uint8Array): string | null {
  try {
    const value = decodeFdt(bytes).properties.get("compatible");
    const text = value === undefined ? "" : String.fromCharCode(...value.subarray(0, 32));
    return /^kho-v[0-9]+\0$/.test(text) ? text.slice(0, -1) : null;
  } catch (error) {
    if (!(error instanceof HandoverError)) throw error;
    return null;
  }
}

/**
 * The candidate to look into: with a whole tree before others; then one with sessions; then the one of the latest
 * live update; then the lowest address. So of a kernel that has taken a handover over, and may have reused what the
 * tree was made of, what it prepares for the next kernel is chosen.
 */
export function chooseFdt(candidates: readonly FdtCandidate[]): FdtCandidate | null {
  const known = candidates.filter(({ compatible }) => compatible === KHO_FDT_COMPATIBLE);
  const sorted = (known.length > 0 ? known : candidates).toSorted(
    (a, b) =>
      Number(b.isTreeWhole) - Number(a.isTreeWhole) ||
      Number(b.hasSessions) - Number(a.hasSessions) ||
      b.liveupdateNumber - a.liveupdateNumber ||
      a.pa - b.pa,
  );
  return sorted[0] ?? null;
}
