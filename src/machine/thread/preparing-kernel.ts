/**
 * A kernel that prepares itself until it is wanted, for the test that a jump ends this.
 *
 * It tells what it knew while preparing, and powers off.
 * @module
 */
import type { KernelModule } from "../machine.ts";

const seen = { rounds: 0 };

export const prepare: KernelModule["prepare"] = (isWanted) => {
  const sleep = new Int32Array(new SharedArrayBuffer(4));
  do {
    seen.rounds++;
    Atomics.wait(sleep, 0, 0, 1);
  } while (!isWanted());
};

export const start: KernelModule["start"] = (machine) => {
  machine.serial.writeLine(seen.rounds > 0 ? "prepared" : "not prepared");
  return machine.powerOff(0);
};
