/**
 * Where the kernels differ on purpose: what each comes to, both asserted, and the row of docs/divergences.md that says
 * why. A difference that disappears fails a case, and its row goes.
 * @module
 */
import {
  F_SEAL_EXEC,
  F_SEAL_FUTURE_WRITE,
  F_SEAL_GROW,
  F_SEAL_SHRINK,
  F_SEAL_WRITE,
} from "../../src/abi/uapi/fs.ts";
import type { KernelName, Outcome } from "./conformance-case.ts";

export interface Divergence<T> extends Readonly<Record<KernelName, T>> {
  /** The first cell of its row. */
  readonly row: string;
}

export const UNKNOWN_REQUEST: Divergence<Outcome> = {
  row: "ioctl with an unknown number on /dev/liveupdate",
  linux: "EINVAL",
  ours: "ENOTTY",
};

export const NAME_NOT_UTF8: Divergence<Outcome> = {
  row: "session names that are not UTF-8",
  linux: "ok",
  ours: "EINVAL",
};

/** Seals of a memfd made with MFD_NOEXEC_SEAL, after a jump. */
export const NOEXEC_SEALS: Divergence<number> = {
  row: "a memfd with MFD_NOEXEC_SEAL",
  linux: F_SEAL_EXEC | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE,
  ours: F_SEAL_EXEC,
};

/** F_SEAL_GROW added after PRESERVE_FD, after a jump. */
export const LATE_SEALS: Divergence<number> = {
  row: "seals added to a memfd after PRESERVE_FD",
  linux: 0,
  ours: F_SEAL_GROW,
};

export const CUT_WHILE_MAPPED: Divergence<Outcome> = {
  row: "shrinking or punching memfd pages that are mapped or pinned",
  linux: "ok",
  ours: "EBUSY",
};

/** After RETRIEVE_FD, before FINISH. */
export const PUNCH_BEFORE_FINISH: Divergence<Outcome> = {
  row: "punching holes in a retrieved memfd that is sealed as DMA needs it, before its session is finished",
  linux: "ok",
  ours: "EBUSY",
};

export const MAP_PAST_END: Divergence<Outcome> = {
  row: "mmap past the end of a file",
  linux: "ok",
  ours: "EINVAL",
};

/** memfd_create. */
export const HUGETLB: Divergence<Outcome> = {
  row: "MFD_HUGETLB",
  linux: "ok",
  ours: "EINVAL",
};

/** SEEK_DATA from 0 in pages that fallocate gave and nobody wrote. */
export const SEEK_ALLOCATED: Divergence<Outcome> = {
  row: "SEEK_DATA and SEEK_HOLE in memfd pages that were allocated and never written",
  linux: "ENXIO",
  ours: "ok",
};

/** ftruncate to 2^52 bytes and a page. */
export const LARGEST_FILE: Divergence<Outcome> = {
  row: "largest memfd",
  linux: "ok",
  ours: "EFBIG",
};

export const DIVERGENCES: readonly Divergence<unknown>[] = [
  UNKNOWN_REQUEST,
  NAME_NOT_UTF8,
  NOEXEC_SEALS,
  LATE_SEALS,
  CUT_WHILE_MAPPED,
  PUNCH_BEFORE_FINISH,
  MAP_PAST_END,
  HUGETLB,
  SEEK_ALLOCATED,
  LARGEST_FILE,
];
