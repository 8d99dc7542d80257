/**
 * What the scenario's program in the guest tells the test: a mark and one JSON object a line.
 * @module
 */
import type { ObservedFile } from "../scenario.ts";

/** Before each report: other lines are none. */
export const REPORT_MARK = "report ";

/** Path of the kernel that the scenario jumps into, which waits at the gate (gate.ts). */
export const GATED_KERNEL = "/boot/vmlinuz-gate";

/** handover: the sessions of `scenario.ts`; duplicate: as many sessions as fill a block, and a name twice. */
export type Scenario = "handover" | "duplicate";

/** debugfs' view of one direction; bytes in base64. */
export interface KhoDebugfs {
  readonly fdt: string | null;
  readonly subtrees: Readonly<Record<string, string>>;
  /** Only of "out". */
  readonly scratch: readonly { readonly addr: number; readonly size: number }[];
}

/** Where the kernel says that a preserved file's pages lie, in the file's order: [first frame, pages]. */
export interface FilePages {
  readonly token: string;
  readonly runs: readonly (readonly [pfn: number, count: number])[];
  /** Pages that are part of a folio of more than one page. */
  readonly compound: number;
}

/** Sessions are preserved; the kernel has not been told to jump. */
export interface PreservedReport {
  readonly stage: "preserved";
  readonly release: string;
  readonly out: KhoDebugfs;
  readonly pages: readonly FilePages[];
}

/** The next kernel is up; nothing is retrieved. */
export interface JumpedReport {
  readonly stage: "jumped";
  readonly release: string;
  readonly in: KhoDebugfs;
  readonly out: KhoDebugfs;
}

/** All files are retrieved and read; nothing is finished. */
export interface RetrievedReport {
  readonly stage: "retrieved";
  readonly files: readonly ObservedFile[];
}

/** All sessions are finished. */
export interface FinishedReport {
  readonly stage: "finished";
  readonly out: KhoDebugfs;
}

/** A block of sessions is full, and one of their names was asked for again. */
export interface DuplicateReport {
  readonly stage: "duplicate";
  /** Sessions that came from the kernel before. */
  readonly arrived: number;
  readonly sessions: number;
  /** What the second CREATE failed with. */
  readonly code: string;
}

/** The program failed. */
export interface FailedReport {
  readonly stage: "failed";
  readonly error: string;
}

export type GuestReport =
  | PreservedReport
  | JumpedReport
  | RetrievedReport
  | FinishedReport
  | DuplicateReport
  | FailedReport;
