/**
 * Failures on demand: every step that can fail passes a named point, and a test fails it there.
 *
 * Source: the idea of Linux's fault injection (lib/fault-inject.c).
 * @module
 */

/** Counts the points passed; throws at the one that a test has armed. Unarmed it costs a comparison. */
export class FaultInjector {
  #passed = 0;
  #failAt = -1;
  #names: string[] | null = null;
  #error: ((point: string) => Error) | null = null;

  /**
   * A step that can fail.
   *
   * @param point - "<operation>:<step>", as "luo.preserve:handler"
   */
  point(point: string): void {
    if (this.#error === null && this.#names === null) return;
    this.#names?.push(point);
    if (this.#passed++ === this.#failAt && this.#error !== null) throw this.#error(point);
  }

  /** Makes the `index`-th point passed from now on (0: the next) throw `error(point)`. */
  arm(index: number, error: (point: string) => Error): void {
    this.#passed = 0;
    this.#failAt = index;
    this.#error = error;
  }

  /** Passes all points from now on; whether the armed one was reached. */
  disarm(): boolean {
    const reached = this.#error !== null && this.#passed > this.#failAt;
    this.#error = null;
    this.#failAt = -1;
    return reached;
  }

  /** Runs `action` and lists the points that it passes, in order. */
  record(action: () => void): string[] {
    const names: string[] = [];
    this.#names = names;
    try {
      action();
    } finally {
      this.#names = null;
    }
    return names;
  }
}
