/**
 * What the inspector finds in an image, with what depends on addresses kept apart.
 *
 * Normalised, so that handovers of two kernels compare: addresses of everything; how a file is cut into folios; what is
 * around the formats (scratch, previous release, other subtrees).
 * @module
 */
import assert from "node:assert/strict";
import { orderBytes, PAGE_SIZE } from "../../src/base/units.ts";
import { type FileData, readHandover } from "../../src/inspect/handover.ts";
import { openImage } from "../../src/inspect/image/open-image.ts";
import type { RamImage } from "../../src/inspect/image/ram-image.ts";
import type { Problem } from "../../src/inspect/problems.ts";
import type { DecodedMemfd } from "../../src/kernel/shmem/memfd-decoder.ts";
import { type ObservedFile, sha256 } from "./scenario.ts";

/** What does not depend on who wrote it, nor where. */
export interface ComparableHandover {
  readonly liveupdateNumber: number;
  readonly flbs: readonly string[];
  readonly sessions: readonly { readonly name: string; readonly files: readonly string[] }[];
  readonly files: readonly ObservedFile[];
}

export interface HandoverView {
  readonly fdtPa: number;
  readonly memoryMapPa: number;
  /** Null: there is no LUO state. */
  readonly comparable: ComparableHandover | null;
  readonly problems: readonly Problem[];
  readonly subtrees: readonly {
    readonly name: string;
    readonly pa: number;
    readonly bytes: Uint8Array;
  }[];
  /** Frames of each file in its order, with the order of the folio they are in. */
  readonly frames: ReadonlyMap<string, readonly Frame[]>;
  /** Preserved pages: all; those of files; those that nothing names. */
  readonly pages: {
    readonly preserved: number;
    readonly files: number;
    readonly unclaimed: number;
  };
  readonly byOrder: readonly { readonly order: number; readonly blocks: number }[];
  readonly kexecCount: number;
}

export interface Frame {
  readonly pfn: number;
  readonly order: number;
}

/**
 * Inspects an image; the FDT is searched for unless the image says where it is.
 *
 * @param path - a raw file of QEMU's RAM, or an ELF core of our machine
 */
export function viewHandover(path: string): HandoverView {
  const image = openImage(path);
  try {
    return viewImage(image);
  } finally {
    image.close();
  }
}

/** As {@link viewHandover}, of an image that is open. */
export function viewImage(image: RamImage): HandoverView {
  const handover = readHandover(image, { fdtPa: null });
  const { fdt, fdtPa, preserved, liveUpdate, metadata } = handover;
  assert(fdt !== null && fdtPa !== null && preserved !== null, "there is a handover");
  const frames = new Map<string, Frame[]>();
  const files: ObservedFile[] = [];
  for (const session of liveUpdate?.sessions ?? [])
    for (const { token, data } of session.files) {
      const { content } = data as FileData;
      assert.equal(content.kind, "memfd");
      const { memfd } = content as { memfd: DecodedMemfd };
      const key = token.toString(16);
      frames.set(key, framesOf(memfd));
      files.push({
        session: session.name,
        token: key,
        sizeBytes: memfd.sizeBytes,
        position: memfd.position,
        seals: memfd.seals,
        sha256: sha256(contentOf(image, memfd)),
      });
    }
  return {
    fdtPa,
    memoryMapPa: fdt.memoryMapPa,
    comparable: liveUpdate && {
      liveupdateNumber: liveUpdate.liveupdateNumber,
      flbs: liveUpdate.flbs.map(({ flb }) => flb.compatible),
      sessions: liveUpdate.sessions.map((session) => ({
        name: session.name,
        files: session.files.map((file) => file.handler.compatible),
      })),
      files,
    },
    problems: handover.problems.list,
    subtrees: fdt.subtrees.map(({ name, pa, sizeBytes }) => {
      const bytes = new Uint8Array(sizeBytes);
      image.read(pa, bytes);
      return { name, pa, bytes };
    }),
    frames,
    pages: {
      preserved: preserved.bytes / PAGE_SIZE,
      files: [...frames.values()].reduce((sum, list) => sum + list.length, 0),
      unclaimed: preserved.unclaimedBytes / PAGE_SIZE,
    },
    byOrder: preserved.byOrder,
    kexecCount: metadata?.kexecCount ?? 0,
  };
}

function framesOf({ folios }: DecodedMemfd): Frame[] {
  const frames: Frame[] = [];
  for (let i = 0; i < folios.count; i++) {
    const order = folios.order[i];
    for (let page = 0; page < 2 ** order; page++)
      frames.push({ pfn: folios.pa[i] / PAGE_SIZE + page, order });
  }
  return frames;
}

function contentOf(image: RamImage, { folios, sizeBytes }: DecodedMemfd): Uint8Array {
  const bytes = new Uint8Array(Math.ceil(sizeBytes / PAGE_SIZE) * PAGE_SIZE);
  for (let i = 0; i < folios.count; i++) {
    const folio = new Uint8Array(orderBytes(folios.order[i]));
    if (folios.isStale[i] === 0) image.read(folios.pa[i], folio);
    const at = folios.index[i] * PAGE_SIZE;
    // The last folio may reach beyond the end of the file.
    bytes.set(folio.subarray(0, bytes.length - at), at);
  }
  return bytes.subarray(0, sizeBytes);
}
