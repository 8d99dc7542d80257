/**
 * An array of any size in preserved pages, described by a `struct kho_vmalloc`.
 *
 * Source: Linux 7.3 kernel/liveupdate/kexec_handover.c kho_preserve_vmalloc
 * @module
 */
import {
  type KhoVmalloc,
  VmallocWords,
  vmallocChunkCount,
  writeVmalloc,
} from "../../abi/kho-vmalloc.ts";
import { withUndo } from "../../base/undo.ts";
import { PAGE_SIZE } from "../../base/units.ts";
import {
  allocPreservedPage,
  freePreservedPage,
  type PreservedPages,
} from "../liveupdate/block-set.ts";

export interface PreservedArray {
  readonly descriptor: KhoVmalloc;
  /** The array, by offsets from its start. */
  readonly words: VmallocWords;
  free(): void;
}

/**
 * Allocates a zeroed array.
 * @param sizeBytes - at least 1
 * @throws {KernelError} ENOMEM; nothing is then left
 */
export function allocPreservedArray(pages: PreservedPages, sizeBytes: number): PreservedArray {
  const allocated: number[] = [];
  const free = (): void => {
    for (let pa = allocated.pop(); pa !== undefined; pa = allocated.pop())
      freePreservedPage(pages, pa);
  };
  return withUndo((undo) => {
    undo(free);
    const pageCount = Math.ceil(sizeBytes / PAGE_SIZE);
    const chunkCount = vmallocChunkCount(pageCount);
    for (let i = 0; i < pageCount + chunkCount; i++) allocated.push(allocPreservedPage(pages));
    const arrayPages = allocated.slice(0, pageCount);
    const descriptor = writeVmalloc(pages.memory, allocated.slice(pageCount), arrayPages, 0);
    return { descriptor, words: new VmallocWords(pages.memory, arrayPages, 0), free };
  });
}
