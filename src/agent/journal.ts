/**
 * What the agent remembers through a live update: in a memfd that it preserves like any other file.
 *
 * Why: the agent ends with its kernel; the one that starts in the next must know which machines to restore and
 * how far the update got, from preserved memory alone.
 * @module
 */

/** A step of an update with its time on the clock that goes on through a kexec. */
export interface PhaseRecord {
  readonly update: number;
  readonly name: string;
  readonly startNs: number;
  readonly endNs: number;
}

/** A virtual machine in the journal. */
export interface VmRecord {
  /** Also the name of its session. */
  readonly name: string;
  /** When its guest was stopped, on the same clock. */
  readonly pausedAtNs: number;
}

/** Changes with {@link Journal}. */
export const JOURNAL_FORMAT = "holdfast-journal-v1";

export interface Journal {
  readonly format: typeof JOURNAL_FORMAT;
  /** Updates begun since the cold boot. */
  readonly update: number;
  readonly fromRelease: string;
  readonly toRelease: string;
  readonly vms: readonly VmRecord[];
  readonly phases: readonly PhaseRecord[];
  /** What the program that runs the agent wants to find again; its own business. */
  readonly userData: unknown;
}

/** Bytes of one slot of the journal's record. */
export const JOURNAL_SLOT_BYTES = 256 * 1024;
/** The agent's own session, and the token of the journal in it. */
export const AGENT_SESSION = "holdfast-agent";
export const JOURNAL_TOKEN = 1n;
