/**
 * The first checks of a live update ioctl, before its structure is looked at.
 * @module
 */
import type { UserArgument } from "../../abi/uapi/ioctl.ts";
import { KernelError } from "../../base/errno.ts";

/**
 * Finds out whether a file has this request.
 *
 * The number alone decides whether the argument is read at all, as upstream, so that EFAULT comes before the
 * ENOTTY of a known number with another type or direction.
 * @throws {KernelError} ENOTTY, EFAULT
 */
export function checkRequest(
  kind: string,
  requests: readonly number[],
  request: number,
  argument: UserArgument,
): void {
  const unknown = (): KernelError =>
    new KernelError("ENOTTY", "ioctl", `a ${kind} file has no request ${request}`);
  if (!Number.isInteger(request) || !requests.some((known) => ((known ^ request) & 0xff) === 0))
    throw unknown();
  const bytes = argument?.bytes;
  if (!(bytes instanceof Uint8Array) || bytes.length < 4)
    throw new KernelError("EFAULT", "ioctl", "the argument is not readable memory");
  if (!requests.includes(request)) throw unknown();
}
