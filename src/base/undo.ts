/**
 * Undoing in reverse what was done before a failure.
 * @module
 */

/**
 * Runs `action`; if it throws, runs what it has put on the stack, last first, and throws on.
 *
 * An undo step must not fail. Errors that say "the machine has stopped" are thrown by every store that
 * follows, so nothing is undone after the end of a machine.
 *
 * @example
 * const page = withUndo((undo) => {
 *   const pa = mm.alloc(0);
 *   undo(() => mm.free(pa, 0));
 *   kho.preserve(pa, 0);
 *   return pa;
 * });
 */
export function withUndo<T>(action: (undo: (step: () => void) => void) => T): T {
  const steps: (() => void)[] = [];
  try {
    return action((step) => steps.push(step));
  } catch (error) {
    for (let i = steps.length - 1; i >= 0; i--) steps[i]();
    throw error;
  }
}
