/**
 * Loaded before a VMM (`node --import`): prints its live-update ioctls and its connection to the agent, with times on
 * CLOCK_MONOTONIC. PAUSES_REFUSED=N makes the first N updates fail once everything is preserved, so that preserving can be
 * timed again and again.
 * @module
 */
import {
  LIVEUPDATE_SESSION_PRESERVE_FD,
  LIVEUPDATE_SESSION_RETRIEVE_FD,
} from "../src/abi/uapi/liveupdate.ts";
import { KernelError } from "../src/base/errno.ts";
import { LinuxHost } from "../src/linux/linux-host.ts";
import { UnixEndpoint } from "../src/linux/unix-socket.ts";
import { MemoryVm } from "../src/vmm/memory-vm.ts";
import { CALL_MARK, type TimedCall } from "./linux-result.ts";
import { nowNs } from "./measure.ts";

const NAMES = new Map<number, TimedCall["call"]>([
  [LIVEUPDATE_SESSION_PRESERVE_FD, "PRESERVE_FD"],
  [LIVEUPDATE_SESSION_RETRIEVE_FD, "RETRIEVE_FD"],
]);

const { ioctl } = LinuxHost.prototype;
LinuxHost.prototype.ioctl = function (fd, request, argument) {
  const call = NAMES.get(request);
  if (call === undefined) return ioctl.call(this, fd, request, argument);
  return timed(call, () => ioctl.call(this, fd, request, argument));
};

const { connect } = UnixEndpoint;
UnixEndpoint.connect = (ffi, path) => timed("connect", () => connect.call(UnixEndpoint, ffi, path));

let refusals = Number(process.env["PAUSES_REFUSED"] ?? "0");
const { pause } = MemoryVm.prototype;
MemoryVm.prototype.pause = function () {
  if (refusals === 0) return pause.call(this);
  refusals--;
  throw new KernelError("EIO", "pause", "only preserving was wanted");
};

/** Of what succeeds. */
function timed<T>(call: TimedCall["call"], action: () => T): T {
  const startNs = nowNs();
  const result = action();
  const told: TimedCall = { call, startNs, endNs: nowNs() };
  // Not now: it would be part of what is measured.
  setImmediate(() => console.error(`${CALL_MARK}${JSON.stringify(told)}`));
  return result;
}
