/**
 * The calls of /dev/liveupdate and of session files, typed: for the agent and the VMM, on our kernel and on Linux.
 *
 * Source: Linux 7.3 include/uapi/linux/liveupdate.h
 * @module
 */
import { encodeUtf8, type FieldType, type Struct, type StructValue } from "../abi/struct.ts";
import {
  LIVEUPDATE_IOCTL_CREATE_SESSION,
  LIVEUPDATE_IOCTL_CREATE_SESSION_ARG,
  LIVEUPDATE_IOCTL_RETRIEVE_SESSION,
  LIVEUPDATE_IOCTL_RETRIEVE_SESSION_ARG,
  LIVEUPDATE_SESSION_FINISH,
  LIVEUPDATE_SESSION_FINISH_ARG,
  LIVEUPDATE_SESSION_GET_NAME,
  LIVEUPDATE_SESSION_GET_NAME_ARG,
  LIVEUPDATE_SESSION_NAME_LENGTH,
  LIVEUPDATE_SESSION_PRESERVE_FD,
  LIVEUPDATE_SESSION_PRESERVE_FD_ARG,
  LIVEUPDATE_SESSION_RETRIEVE_FD,
  LIVEUPDATE_SESSION_RETRIEVE_FD_ARG,
} from "../abi/uapi/liveupdate.ts";
import { ByteWords } from "../abi/words.ts";
import { KernelError } from "../base/errno.ts";
import type { Host } from "./host.ts";

/** What of a Host these calls need. */
export type IoctlHost = Pick<Host, "ioctl">;

type Fields = Record<string, FieldType<unknown>>;

/** One ioctl: the structure goes in, and as the kernel left it comes out. */
function call<F extends Fields>(
  host: IoctlHost,
  fd: number,
  request: number,
  layout: Struct<F>,
  value: StructValue<F>,
): StructValue<F> {
  const bytes = new Uint8Array(layout.sizeBytes);
  const words = new ByteWords(bytes);
  layout.write(words, 0, value);
  host.ioctl(fd, request, { bytes });
  return layout.read(words, 0);
}

/**
 * Creates a session whose files outlive the kernel.
 *
 * @param device - /dev/liveupdate, open
 * @param name - 1 to 63 bytes of UTF-8, for the next kernel to retrieve it by
 * @returns the session's file descriptor; closing it gives up all that it preserves
 * @throws {KernelError} EINVAL the name; EEXIST a session has it; ENOMEM; ENOSPC; EMFILE
 */
export function createSession(host: IoctlHost, device: number, name: string): number {
  const layout = LIVEUPDATE_IOCTL_CREATE_SESSION_ARG;
  checkName(name, "EINVAL", "LIVEUPDATE_IOCTL_CREATE_SESSION");
  const value = { size: layout.sizeBytes, fd: -1, name };
  return call(host, device, LIVEUPDATE_IOCTL_CREATE_SESSION, layout, value).fd;
}

/**
 * Retrieves a session that the previous kernel preserved.
 *
 * @returns the session's file descriptor; closing it finishes the session
 * @throws {KernelError} ENOENT no such session; EINVAL it is retrieved already; EMFILE
 */
export function retrieveSession(host: IoctlHost, device: number, name: string): number {
  const layout = LIVEUPDATE_IOCTL_RETRIEVE_SESSION_ARG;
  checkName(name, "ENOENT", "LIVEUPDATE_IOCTL_RETRIEVE_SESSION");
  const value = { size: layout.sizeBytes, fd: -1, name };
  return call(host, device, LIVEUPDATE_IOCTL_RETRIEVE_SESSION, layout, value).fd;
}

/** A name that the structure cannot hold gets the errno that the kernel would give it. */
function checkName(name: string, code: "EINVAL" | "ENOENT", op: string): void {
  if (encodeUtf8(name).length >= LIVEUPDATE_SESSION_NAME_LENGTH || name.includes("\0"))
    throw new KernelError(code, op, `"${name}" exceeds 63 bytes or has a NUL`);
}

/**
 * Preserves a file in a session that was created.
 *
 * @param token - how the next kernel finds it; unique in the session
 * @throws {KernelError} EEXIST the token is used; EBADF; ENOENT no handler for such a file; EBUSY the file is
 *   preserved already, or was retrieved and is not finished; ENOMEM; ENOSPC; EINVAL the session was retrieved;
 *   what the handler adds
 */
export function preserveFd(host: IoctlHost, session: number, fd: number, token: bigint): void {
  const layout = LIVEUPDATE_SESSION_PRESERVE_FD_ARG;
  const value = { size: layout.sizeBytes, fd, token };
  call(host, session, LIVEUPDATE_SESSION_PRESERVE_FD, layout, value);
}

/**
 * Takes a file of a retrieved session over; again gives another descriptor of the same file.
 *
 * @throws {KernelError} ENOENT no such token; EINVAL the session was not retrieved; EMFILE; what the handler adds,
 *   at every later try too
 */
export function retrieveFd(host: IoctlHost, session: number, token: bigint): number {
  const layout = LIVEUPDATE_SESSION_RETRIEVE_FD_ARG;
  const value = { size: layout.sizeBytes, fd: -1, token };
  return call(host, session, LIVEUPDATE_SESSION_RETRIEVE_FD, layout, value).fd;
}

/**
 * Ends a retrieved session: its files are ordinary from here on, and those that nobody retrieved are gone.
 *
 * @throws {KernelError} EBUSY a file cannot be given up yet; nothing has changed then. EINVAL the session was not
 *   retrieved
 */
export function finish(host: IoctlHost, session: number): void {
  const layout = LIVEUPDATE_SESSION_FINISH_ARG;
  call(host, session, LIVEUPDATE_SESSION_FINISH, layout, { size: layout.sizeBytes, reserved: 0 });
}

/** The name of any session. */
export function getName(host: IoctlHost, session: number): string {
  const layout = LIVEUPDATE_SESSION_GET_NAME_ARG;
  const value = {
    size: layout.sizeBytes,
    reserved: 0,
    name: new Uint8Array(LIVEUPDATE_SESSION_NAME_LENGTH),
  };
  const { name } = call(host, session, LIVEUPDATE_SESSION_GET_NAME, layout, value);
  const end = name.indexOf(0);
  return new TextDecoder().decode(name.subarray(0, end < 0 ? name.length : end));
}
