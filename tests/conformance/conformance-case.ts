/**
 * What a kernel of live update must do, as data: the same cases run on our kernel and on Linux.
 *
 * Why no test runner in it: on Linux the cases of a stage run in the first process of a virtual machine, which reports
 * what came out; the runner that makes a subtest of each case is outside (`our-kernel.test.ts`, `linux.test.ts`).
 * @module
 */
import type { ErrnoCode } from "../../src/base/errno.ts";
import type { Host } from "../../src/host/host.ts";
import type { CaseUser } from "./case-user.ts";

/** Whose behaviour it is. */
export type KernelName = "linux" | "ours";

/**
 * What a case does on one kernel. It fails by throwing.
 *
 * Cases share a kernel: each has session names and files of its own, and leaves open only what it carries on.
 */
export type Stage = (user: CaseUser) => void;

export interface ConformanceCase {
  /** `subject does what when …`; unique. */
  readonly name: string;
  /** For each kernel in a row, one jump after the other; null: nothing to do on that one. */
  readonly stages: readonly (Stage | null)[];
  /** Which of upstream's own tests it takes the place of: files and test names of tools/testing/selftests/liveupdate. */
  readonly kselftests?: readonly string[];
  /** Why a kernel cannot run it. */
  readonly skip?: Readonly<Partial<Record<KernelName, string>>>;
}

/** Fails allocations of the kernel, from outside of it: no call of `Host` can. */
export interface AllocationFaults {
  /**
   * Runs an action whose `nth` step that can run out of memory fails.
   *
   * @param nth - from 1 on
   * @returns whether the action has come that far; if not, nothing failed
   */
  during(nth: number, action: () => void): boolean;
}

/** The kernel that the next stage runs on, as `Host.kexecFileLoad` takes it. */
export interface KexecTarget {
  readonly kernel: string;
  readonly initrd: string | null;
  readonly commandLine: string;
}

/** Where cases run. */
export interface Place {
  readonly kernel: KernelName;
  readonly host: Host;
  readonly faults: AllocationFaults;
  readonly nextKernel: KexecTarget;
}

/** What a call came to. */
export type Outcome = "ok" | ErrnoCode;

/** What came out of one stage of a case; goes over a serial line as JSON. */
export interface StageResult {
  readonly name: string;
  /** From 0 on. */
  readonly stage: number;
  readonly outcome: "passed" | "failed" | "skipped";
  /** Why it failed or was skipped; else empty. */
  readonly detail: string;
  readonly durationMs: number;
}
