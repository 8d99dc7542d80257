/**
 * A handover as our kernel reads it at boot, by the kernel's own decoders, with what depends on addresses kept apart.
 *
 * Normalised, so that handovers of two kernels compare: addresses of everything; how a file is cut into folios; the
 * memory around the formats (scratch, size of the FDT's page, which other subtrees there are).
 * @module
 */
import assert from "node:assert/strict";
import { LUO_KHO_ENTRY_NAME } from "../../src/abi/luo.ts";
import { MEMFD_LUO_FH_COMPATIBLE } from "../../src/abi/memfd.ts";
import { orderBytes, PAGE_SIZE } from "../../src/base/units.ts";
import { IncomingHandover } from "../../src/kernel/kho/incoming-handover.ts";
import type { FileDecoder } from "../../src/kernel/liveupdate/file-handler.ts";
import { decodeLiveUpdate } from "../../src/kernel/liveupdate/luo-decoder.ts";
import { type DecodedMemfd, decodeMemfd } from "../../src/kernel/shmem/memfd-decoder.ts";
import type { KhoBootParameters } from "../../src/machine/machine.ts";
import type { Ram } from "../../src/machine/physical-memory.ts";
import { type ObservedFile, sha256 } from "./scenario.ts";

/** What does not depend on who wrote it, nor where. */
export interface ComparableHandover {
  readonly liveupdateNumber: number;
  readonly flbs: readonly string[];
  readonly sessions: readonly { readonly name: string; readonly files: readonly string[] }[];
  readonly files: readonly ObservedFile[];
}

export interface HandoverView {
  readonly comparable: ComparableHandover;
  readonly scratch: readonly { readonly addr: number; readonly size: number }[];
  readonly subtrees: readonly { readonly name: string; readonly bytes: Uint8Array }[];
  /** Frames of each file in its order, with the order of the folio they are in. */
  readonly frames: ReadonlyMap<string, readonly { readonly pfn: number; readonly order: number }[]>;
  /** Pages in preserved blocks, in all, and by what they are. */
  readonly pages: {
    readonly preserved: number;
    readonly files: number;
    /** In structures that describe files and sessions. */
    readonly structures: number;
    /** Preserved pages that nothing points to. */
    readonly unclaimed: number;
  };
}

const MEMFD: FileDecoder<DecodedMemfd> = {
  compatible: MEMFD_LUO_FH_COMPATIBLE,
  flbs: [],
  decode: decodeMemfd,
};

/** @throws {HandoverError} when our kernel would refuse it */
export function viewHandover(ram: Ram, kho: KhoBootParameters): HandoverView {
  const incoming = IncomingHandover.read(ram, kho);
  const luo = incoming.subtree(LUO_KHO_ENTRY_NAME);
  assert(luo !== null, "there is a LUO subtree");
  const decoded = decodeLiveUpdate(
    incoming,
    luo,
    { byCompatible: (name) => (name === MEMFD.compatible ? MEMFD : undefined) },
    { find: () => undefined },
  );
  const frames = new Map<string, { pfn: number; order: number }[]>();
  const files: ObservedFile[] = [];
  for (const session of decoded.sessions)
    for (const { token, data } of session.files) {
      const memfd = data as DecodedMemfd;
      const key = token.toString(16);
      frames.set(key, framesOf(memfd));
      files.push({
        session: session.name,
        token: key,
        sizeBytes: memfd.sizeBytes,
        position: memfd.position,
        seals: memfd.seals,
        sha256: sha256(contentOf(ram, memfd)),
      });
    }
  let preserved = 0;
  for (let i = 0; i < incoming.blocks.count; i++) preserved += 2 ** incoming.blocks.order(i);
  const filePages = [...frames.values()].reduce((sum, list) => sum + list.length, 0);
  const unclaimed = incoming.unclaimedPages();
  return {
    comparable: {
      liveupdateNumber: decoded.liveupdateNumber,
      flbs: decoded.flbs.map((flb) => flb.flb.compatible),
      sessions: decoded.sessions.map((session) => ({
        name: session.name,
        files: session.files.map((file) => file.handler.compatible),
      })),
      files,
    },
    scratch: incoming.scratch.areas,
    subtrees: incoming.subtrees.map(({ name, pa, sizeBytes }) => {
      const bytes = new Uint8Array(sizeBytes);
      ram.read(pa, bytes);
      return { name, bytes };
    }),
    frames,
    pages: {
      preserved,
      files: filePages,
      structures: preserved - filePages - unclaimed,
      unclaimed,
    },
  };
}

function framesOf({ folios }: DecodedMemfd): { pfn: number; order: number }[] {
  const frames = [];
  for (let i = 0; i < folios.count; i++) {
    const order = folios.order[i];
    for (let page = 0; page < 2 ** order; page++)
      frames.push({ pfn: folios.pa[i] / PAGE_SIZE + page, order });
  }
  return frames;
}

function contentOf(ram: Ram, { folios, sizeBytes }: DecodedMemfd): Uint8Array {
  const bytes = new Uint8Array(Math.ceil(sizeBytes / PAGE_SIZE) * PAGE_SIZE);
  for (let i = 0; i < folios.count; i++) {
    const folio = new Uint8Array(orderBytes(folios.order[i]));
    if (folios.isStale[i] === 0) ram.read(folios.pa[i], folio);
    const at = folios.index[i] * PAGE_SIZE;
    // The last folio may reach beyond the end of the file.
    bytes.set(folio.subarray(0, bytes.length - at), at);
  }
  return bytes.subarray(0, sizeBytes);
}
