/**
 * Who goes next in a machine of one thread, and what time it is: both follow from a seed.
 *
 * Time is virtual. Each event of the kernel (a store, a register access, a call) costs a fixed number of
 * nanoseconds and is a point where devices may step; where no kernel runs, time jumps to what is due next.
 * @module
 */
import { assert, BugError } from "../../base/assert.ts";
import { Prng } from "../../base/prng.ts";
import type { Stepper } from "./hardware.ts";

/** Each device step takes this long, so that a device that is always busy cannot stop the clock. */
const STEP_NS = 20;
/** A kernel that halts for longer will never wake. */
const HALT_NS_MAX = 60e9;

/** Virtual time, and the order of devices' steps. */
export class SeededScheduler {
  /** Nanoseconds since power on. */
  nowNs = 0;
  /** For all chance of the machine, so that one seed decides it. */
  readonly prng: Prng;
  #steppers: readonly Stepper[] = [];
  readonly #eventsPerStep: number;
  #eventsLeft = 1;

  /**
   * @param seed - decides everything
   * @param eventsPerStep - mean number of the kernel's events between device steps, at least 1; undefined: 1, 4, 16,
   *   64 or 256 by the seed
   */
  constructor(seed: number, eventsPerStep?: number) {
    this.prng = new Prng(seed);
    const drawn = 4 ** this.prng.below(5);
    this.#eventsPerStep = eventsPerStep ?? drawn;
    assert(this.#eventsPerStep >= 1, `eventsPerStep of ${this.#eventsPerStep}`);
  }

  /** Gives it the devices; they may need its clock to be made, hence not in the constructor. */
  attach(steppers: readonly Stepper[]): void {
    this.#steppers = steppers;
  }

  /** An event of the kernel: time passes, and now and then devices step. */
  tick(costNs: number): void {
    this.nowNs += costNs;
    if (--this.#eventsLeft > 0) return;
    this.#eventsLeft = 1 + this.prng.below(2 * this.#eventsPerStep - 1);
    // Mostly one step; sometimes devices get far ahead of the kernel.
    let steps = this.prng.oneIn(8) ? 1 + this.prng.below(32) : 1;
    while (steps-- > 0 && this.#stepDue()) this.nowNs += STEP_NS;
  }

  /** Only devices run, until the time has passed. */
  runDevices(durationNs: number): void {
    const deadlineNs = this.nowNs + durationNs;
    while (this.nowNs < deadlineNs) this.#idle(deadlineNs);
  }

  /**
   * Only devices run, until something wakes the kernel or the time has passed.
   *
   * @throws {BugError} when nothing ever will
   */
  halt(timeoutNs: number, isAwake: () => boolean): void {
    const startNs = this.nowNs;
    while (!isAwake() && this.nowNs < startNs + timeoutNs) {
      if (this.nowNs - startNs > HALT_NS_MAX)
        throw new BugError("the kernel halts for ever: no interrupt came in a minute");
      this.#idle(startNs + timeoutNs);
    }
  }

  /** One step of a device that is due; without one, time jumps. */
  #idle(deadlineNs: number): void {
    if (this.#stepDue()) {
      this.nowNs += STEP_NS;
      return;
    }
    let dueNs = deadlineNs;
    for (const stepper of this.#steppers) dueNs = Math.min(dueNs, stepper.nextDueNs());
    if (dueNs === Number.POSITIVE_INFINITY)
      throw new BugError("the kernel halts for ever: no timeout, and no device has anything to do");
    this.nowNs = Math.max(this.nowNs + STEP_NS, dueNs);
  }

  /** Steps one of the devices that are due, chosen by chance. @returns whether there was one */
  #stepDue(): boolean {
    const count = this.#steppers.length;
    if (count === 0) return false;
    const first = this.prng.below(count);
    for (let i = 0; i < count; i++) {
      const stepper = this.#steppers[(first + i) % count];
      if (stepper.nextDueNs() > this.nowNs) continue;
      stepper.step(this.nowNs);
      return true;
    }
    return false;
  }
}
