/** What the programs in the guest print. @module */

export const FOLIO_SIZES = ["4 KiB", "2 MiB"] as const;
export type FolioSize = (typeof FOLIO_SIZES)[number];

/** One bare ioctl. */
export interface BareResult {
  readonly call: "PRESERVE_FD" | "RETRIEVE_FD";
  readonly folios: FolioSize;
  readonly ns: number;
}

/** Before each line of linux-timed.ts. */
export const PART_MARK = "timed ";

/** What a VMM did by itself, on CLOCK_MONOTONIC: its ioctls, and what is made of their results. */
export interface TimedPart {
  readonly part: "connect" | "preserve" | "restore";
  readonly startNs: number;
  readonly endNs: number;
}
