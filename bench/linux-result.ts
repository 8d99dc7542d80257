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
export const CALL_MARK = "timed ";

/** What a VMM did, on CLOCK_MONOTONIC. */
export interface TimedCall {
  readonly call: "PRESERVE_FD" | "RETRIEVE_FD" | "connect";
  readonly startNs: number;
  readonly endNs: number;
}
