/**
 * The ioctls of /dev/liveupdate and of session files.
 *
 * Source: Linux 7.3 include/uapi/linux/liveupdate.h
 * Errnos common to all: ENOTTY the request does not exist; E2BIG bytes that the kernel does not know are set;
 * EOPNOTSUPP a known field has an unknown value; EINVAL a field is wrong; ENOENT no such token; ENOMEM.
 * @module
 */
import { byteArray, cString, s32, struct, token64, u32 } from "../struct.ts";
import { ioctlNumber } from "./ioctl.ts";

export const LIVEUPDATE_IOCTL_TYPE = 0xba;
/** Bytes of a session's name with its NUL. */
export const LIVEUPDATE_SESSION_NAME_LENGTH = 64;

/** On /dev/liveupdate: a new session. */
export const LIVEUPDATE_IOCTL_CREATE_SESSION = ioctlNumber(LIVEUPDATE_IOCTL_TYPE, 0x00);
/** On /dev/liveupdate: a session of the previous kernel. */
export const LIVEUPDATE_IOCTL_RETRIEVE_SESSION = ioctlNumber(LIVEUPDATE_IOCTL_TYPE, 0x01);
/** On a created session: preserves a file. */
export const LIVEUPDATE_SESSION_PRESERVE_FD = ioctlNumber(LIVEUPDATE_IOCTL_TYPE, 0x40);
/** On a retrieved session: gives a file back. */
export const LIVEUPDATE_SESSION_RETRIEVE_FD = ioctlNumber(LIVEUPDATE_IOCTL_TYPE, 0x41);
/** On a retrieved session: its files are ordinary from here on. */
export const LIVEUPDATE_SESSION_FINISH = ioctlNumber(LIVEUPDATE_IOCTL_TYPE, 0x42);
/** On any session. */
export const LIVEUPDATE_SESSION_GET_NAME = ioctlNumber(LIVEUPDATE_IOCTL_TYPE, 0x43);

/** `fd` is output. The name is NUL-terminated within the field; null as a value where it is not. */
export const LIVEUPDATE_IOCTL_CREATE_SESSION_ARG = struct("liveupdate_ioctl_create_session", {
  size: u32,
  fd: s32,
  name: cString(LIVEUPDATE_SESSION_NAME_LENGTH),
});

/** `fd` is output. */
export const LIVEUPDATE_IOCTL_RETRIEVE_SESSION_ARG = struct("liveupdate_ioctl_retrieve_session", {
  size: u32,
  fd: s32,
  name: cString(LIVEUPDATE_SESSION_NAME_LENGTH),
});

export const LIVEUPDATE_SESSION_PRESERVE_FD_ARG = struct("liveupdate_session_preserve_fd", {
  size: u32,
  fd: s32,
  token: token64,
});

/** `fd` is output. */
export const LIVEUPDATE_SESSION_RETRIEVE_FD_ARG = struct("liveupdate_session_retrieve_fd", {
  size: u32,
  fd: s32,
  token: token64,
});

export const LIVEUPDATE_SESSION_FINISH_ARG = struct("liveupdate_session_finish", {
  size: u32,
  /** Must be 0. */
  reserved: u32,
});

/** `name` is output, so what userspace left there does not matter. */
export const LIVEUPDATE_SESSION_GET_NAME_ARG = struct("liveupdate_session_get_name", {
  size: u32,
  /** Must be 0. */
  reserved: u32,
  name: byteArray(LIVEUPDATE_SESSION_NAME_LENGTH),
});
