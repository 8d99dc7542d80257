/**
 * The file of a session: preserves, retrieves and finishes what is in it.
 *
 * Errnos, in order: ENOTTY an unknown request (upstream gives EINVAL, against its own uAPI header); EFAULT the
 * argument is unreadable; ENOTTY the number with another encoding; EINVAL a request of the other direction, or
 * too small a size; E2BIG unknown bytes are set; EBUSY the jump is under way; then those of the request.
 * Source: Linux 7.3 kernel/liveupdate/luo_session.c luo_session_ioctl
 * @module
 */
import { encodeUtf8 } from "../../abi/struct.ts";
import type { UserArgument } from "../../abi/uapi/ioctl.ts";
import {
  LIVEUPDATE_SESSION_FINISH,
  LIVEUPDATE_SESSION_FINISH_ARG,
  LIVEUPDATE_SESSION_GET_NAME,
  LIVEUPDATE_SESSION_GET_NAME_ARG,
  LIVEUPDATE_SESSION_PRESERVE_FD,
  LIVEUPDATE_SESSION_PRESERVE_FD_ARG,
  LIVEUPDATE_SESSION_RETRIEVE_FD,
  LIVEUPDATE_SESSION_RETRIEVE_FD_ARG,
} from "../../abi/uapi/liveupdate.ts";
import { KernelError } from "../../base/errno.ts";
import { type FdTable, File } from "../vfs/file.ts";
import { copyStructFromUser, copyStructToUser } from "../vfs/user-argument.ts";
import type { IncomingSession } from "./incoming-session.ts";
import { checkRequest } from "./ioctl-request.ts";
import type { OutgoingSession } from "./outgoing-session.ts";

/** A session that was created, or one that was retrieved. */
export type AnySession =
  | { readonly direction: "outgoing"; readonly session: OutgoingSession }
  | { readonly direction: "incoming"; readonly session: IncomingSession };

/** Says when sessions cannot be used any more. */
export interface FreezeGuard {
  assertNotFrozen(op: string): void;
}

const REQUESTS = [
  LIVEUPDATE_SESSION_PRESERVE_FD,
  LIVEUPDATE_SESSION_RETRIEVE_FD,
  LIVEUPDATE_SESSION_FINISH,
  LIVEUPDATE_SESSION_GET_NAME,
];

export class SessionFile extends File {
  readonly kind = "session";
  readonly #guard: FreezeGuard;
  readonly #target: AnySession;
  readonly #onRelease: () => void;

  constructor(guard: FreezeGuard, target: AnySession, onRelease: () => void) {
    super();
    this.#guard = guard;
    this.#target = target;
    this.#onRelease = onRelease;
  }

  override ioctl(request: number, argument: UserArgument, fds: FdTable): number {
    checkRequest("session", REQUESTS, request, argument);
    switch (request) {
      case LIVEUPDATE_SESSION_PRESERVE_FD:
        this.#preserveFd(argument, fds);
        break;
      case LIVEUPDATE_SESSION_RETRIEVE_FD:
        this.#retrieveFd(argument, fds);
        break;
      case LIVEUPDATE_SESSION_FINISH:
        this.#finish(argument);
        break;
      default:
        this.#getName(argument);
    }
    return 0;
  }

  #outgoing(op: string): OutgoingSession {
    if (this.#target.direction === "outgoing") return this.#target.session;
    throw new KernelError("EINVAL", op, "the session is from the previous kernel");
  }

  #incoming(op: string): IncomingSession {
    if (this.#target.direction === "incoming") return this.#target.session;
    throw new KernelError("EINVAL", op, "the session is not from the previous kernel");
  }

  #preserveFd(argument: UserArgument, fds: FdTable): void {
    const op = "LIVEUPDATE_SESSION_PRESERVE_FD";
    const session = this.#outgoing(op);
    const layout = LIVEUPDATE_SESSION_PRESERVE_FD_ARG;
    const { fd, token } = copyStructFromUser(layout, argument, layout.sizeBytes, op);
    this.#guard.assertNotFrozen(op);
    session.preserve(() => fds.get(fd), token);
  }

  #retrieveFd(argument: UserArgument, fds: FdTable): void {
    const op = "LIVEUPDATE_SESSION_RETRIEVE_FD";
    const session = this.#incoming(op);
    const layout = LIVEUPDATE_SESSION_RETRIEVE_FD_ARG;
    const value = copyStructFromUser(layout, argument, layout.sizeBytes, op);
    this.#guard.assertNotFrozen(op);
    fds.ensureRoom();
    const fd = fds.install(session.incomingFile(value.token).get());
    copyStructToUser(layout, argument, { ...value, fd });
  }

  #finish(argument: UserArgument): void {
    const op = "LIVEUPDATE_SESSION_FINISH";
    const session = this.#incoming(op);
    const layout = LIVEUPDATE_SESSION_FINISH_ARG;
    const { reserved } = copyStructFromUser(layout, argument, layout.sizeBytes, op);
    this.#guard.assertNotFrozen(op);
    if (reserved !== 0) throw new KernelError("EINVAL", op, `reserved is ${reserved}, not 0`);
    session.finish();
  }

  #getName(argument: UserArgument): void {
    const op = "LIVEUPDATE_SESSION_GET_NAME";
    const layout = LIVEUPDATE_SESSION_GET_NAME_ARG;
    const value = copyStructFromUser(layout, argument, layout.sizeBytes, op);
    this.#guard.assertNotFrozen(op);
    if (value.reserved !== 0)
      throw new KernelError("EINVAL", op, `reserved is ${value.reserved}, not 0`);
    copyStructToUser(layout, argument, { ...value, name: encodeUtf8(this.#target.session.name) });
  }

  protected override release(): void {
    this.#onRelease();
  }
}
