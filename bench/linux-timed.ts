/**
 * Loaded before a VMM (`node --import`): prints how long its own part of an update takes, and its connection to the agent, with
 * times on CLOCK_MONOTONIC. PAUSES_REFUSED=N makes the first N updates fail once everything is preserved, so that
 * preserving can be timed again and again.
 * @module
 */
import { KernelError } from "../src/base/errno.ts";
import { UnixEndpoint } from "../src/linux/unix-socket.ts";
import { MemoryVm } from "../src/vmm/memory-vm.ts";
import { PART_MARK, type TimedPart } from "./linux-result.ts";
import { nowNs } from "./measure.ts";

const { connect } = UnixEndpoint;
UnixEndpoint.connect = (ffi, path) => timed("connect", () => connect.call(UnixEndpoint, ffi, path));

const { restore } = MemoryVm;
MemoryVm.restore = (...args) => timed("restore", () => restore.apply(MemoryVm, args));

const { preserve } = MemoryVm.prototype;
MemoryVm.prototype.preserve = function (...args) {
  return timed("preserve", () => preserve.apply(this, args));
};

let refusals = Number(process.env["PAUSES_REFUSED"] ?? "0");
const { pause } = MemoryVm.prototype;
MemoryVm.prototype.pause = function () {
  if (refusals === 0) return pause.call(this);
  refusals--;
  throw new KernelError("EIO", "pause", "only preserving was wanted");
};

/** Of what succeeds. */
function timed<T>(part: TimedPart["part"], action: () => T): T {
  const startNs = nowNs();
  const result = action();
  const told: TimedPart = { part, startNs, endNs: nowNs() };
  // Not now: it would be part of what is measured.
  setImmediate(() => console.error(`${PART_MARK}${JSON.stringify(told)}`));
  return result;
}
