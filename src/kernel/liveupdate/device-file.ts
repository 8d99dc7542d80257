/**
 * /dev/liveupdate: where sessions are created and retrieved. One opener at a time.
 *
 * Errnos, in order: ENOTTY an unknown request (upstream gives EINVAL, against its own uAPI header); EFAULT the
 * argument is unreadable; ENOTTY the number with another encoding; EINVAL too small a size; E2BIG unknown bytes
 * are set; EMFILE no descriptor is free; then those of the request.
 * Source: Linux 7.3 kernel/liveupdate/luo_core.c luo_ioctl
 * @module
 */
import type { UserArgument } from "../../abi/uapi/ioctl.ts";
import {
  LIVEUPDATE_IOCTL_CREATE_SESSION,
  LIVEUPDATE_IOCTL_CREATE_SESSION_ARG,
  LIVEUPDATE_IOCTL_RETRIEVE_SESSION,
  LIVEUPDATE_IOCTL_RETRIEVE_SESSION_ARG,
} from "../../abi/uapi/liveupdate.ts";
import { CharacterDeviceFile } from "../vfs/character-device-file.ts";
import type { FdTable, File } from "../vfs/file.ts";
import { copyStructFromUser, copyStructToUser } from "../vfs/user-argument.ts";
import { checkRequest } from "./ioctl-request.ts";

/** What the device does; {@link LiveUpdate} is it. */
export interface SessionDirectory {
  createSession(name: string): File;
  retrieveSession(name: string): File;
}

const REQUESTS = [LIVEUPDATE_IOCTL_CREATE_SESSION, LIVEUPDATE_IOCTL_RETRIEVE_SESSION];

export class DeviceFile extends CharacterDeviceFile {
  readonly kind = "liveupdate";
  readonly #sessions: SessionDirectory;
  readonly #onRelease: () => void;

  constructor(sessions: SessionDirectory, onRelease: () => void) {
    super();
    this.#sessions = sessions;
    this.#onRelease = onRelease;
  }

  override ioctl(request: number, argument: UserArgument, fds: FdTable): number {
    checkRequest("liveupdate", REQUESTS, request, argument);
    const isCreate = request === LIVEUPDATE_IOCTL_CREATE_SESSION;
    const op = isCreate ? "LIVEUPDATE_IOCTL_CREATE_SESSION" : "LIVEUPDATE_IOCTL_RETRIEVE_SESSION";
    const layout = isCreate
      ? LIVEUPDATE_IOCTL_CREATE_SESSION_ARG
      : LIVEUPDATE_IOCTL_RETRIEVE_SESSION_ARG;
    const value = copyStructFromUser(layout, argument, layout.sizeBytes, op);
    fds.ensureRoom();
    // A name that is unterminated or not UTF-8 is one that no session can have.
    const name = value.name ?? "";
    const file = isCreate
      ? this.#sessions.createSession(name)
      : this.#sessions.retrieveSession(name);
    const fd = fds.install(file);
    copyStructToUser(layout, argument, { ...value, fd });
    return 0;
  }

  protected override release(): void {
    this.#onRelease();
  }
}
