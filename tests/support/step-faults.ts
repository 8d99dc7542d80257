/**
 * Failing every step in turn: counts the points that are passed from a start on, by phase, and fails one of them.
 *
 * Why not `FaultInjector.record`: an update ends by being thrown out of its kernel, and the points that follow lie in
 * the next one; and a test wants to say in which phase the failed step lay.
 * @module
 */
import { KernelError } from "../../src/base/errno.ts";
import { FaultInjector } from "../../src/base/fault-injector.ts";

/** A step that was passed. */
export interface Step {
  readonly phase: string;
  readonly point: string;
}

/** One injector for all kernels of a machine. */
export class StepFaults extends FaultInjector {
  /** What the points that follow belong to. */
  phase = "";
  /** Points since the last {@link start}. */
  #steps: Step[] = [];
  #fails: (step: Step, index: number) => boolean = () => false;
  #failed: Step | null = null;
  /** Called at every point, armed or not. */
  onPoint: ((point: string) => void) | null = null;

  /** Counts from 0 again, and fails step number `failAt`. */
  start(phase: string, failAt: number): void {
    this.startWhere(phase, (_step, index) => index === failAt);
  }

  /** Counts from 0 again, and fails every step that `fails` picks. */
  startWhere(phase: string, fails: (step: Step, index: number) => boolean): void {
    this.phase = phase;
    this.#steps = [];
    this.#fails = fails;
    this.#failed = null;
  }

  /** Fails nothing any more. @returns the (last) step that was failed; null: none was reached */
  stop(): Step | null {
    this.#fails = () => false;
    return this.#failed;
  }

  /** Points since the last {@link start}. */
  get steps(): readonly Step[] {
    return this.#steps;
  }

  override point(point: string): void {
    this.onPoint?.(point);
    const step = { phase: this.phase, point };
    const index = this.#steps.push(step) - 1;
    if (!this.#fails(step, index)) return;
    this.#failed = step;
    // What a lack of memory looks like, and what everything else looks like.
    const code = /alloc|preserve|grow/.test(point) ? "ENOMEM" : "EIO";
    throw new KernelError(code, "injected", `${this.phase}: ${point} (step ${index})`);
  }
}

/** "preserve 164 (mm:alloc 150, kho:preserve 14), freeze 5 (…)": what was tried. */
export function summary(steps: readonly Step[]): string {
  const phases = new Map<string, Map<string, number>>();
  for (const { phase, point } of steps) {
    const points = phases.get(phase) ?? new Map<string, number>();
    points.set(point, (points.get(point) ?? 0) + 1);
    phases.set(phase, points);
  }
  return [...phases]
    .map(([phase, points]) => {
      const total = [...points.values()].reduce((sum, n) => sum + n, 0);
      return `${phase} ${total} (${[...points].map(([p, n]) => `${p} ${n}`).join(", ")})`;
    })
    .join("; ");
}
