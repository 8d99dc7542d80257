/**
 * The service manager that has started this process (systemd): what it passes on, and what it is told.
 *
 * Why: it keeps descriptors for a service that ends and starts again (the fd store), and a session lives as long as a
 * descriptor of it is open.
 * Source: sd_notify(3), sd_listen_fds(3), sd_pid_notify_with_fds(3)
 * @module
 */
import { isKernelError, KernelError } from "../base/errno.ts";
import { utf8Length } from "../kernel/vfs/user-value.ts";
import { F_SETFD, FD_CLOEXEC, type Ffi, POLLOUT, SOCK_DGRAM } from "./ffi.ts";
import { PollSet } from "./poll-set.ts";
import { SocketMessages } from "./socket-messages.ts";

/** SD_LISTEN_FDS_START */
const FIRST_PASSED_FD = 3;
const NOTIFY_TIMEOUT_NS = 1e9;
/** FDNAME_MAX */
const NAME_BYTES_MAX = 255;

type Environment = Record<string, string | undefined>;

/** A descriptor that came with the start of this process. */
export interface PassedDescriptor {
  readonly fd: number;
  /** As `store` was told, or FileDescriptorName= of the socket unit; "" when it has none. */
  readonly name: string;
}

/**
 * Takes the descriptors that the service manager passes; they are the caller's, and no child inherits them.
 * The variables are removed, so that no child takes them for its own.
 * @throws {KernelError} EBADF the variables name more than there are
 */
export function takePassedDescriptors(ffi: Ffi, environment: Environment): PassedDescriptor[] {
  const { LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES } = environment;
  for (const name of ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"])
    delete environment[name];
  if (LISTEN_PID !== String(process.pid) || !/^\d{1,5}$/.test(LISTEN_FDS ?? "")) return [];
  const names = (LISTEN_FDNAMES ?? "").split(":");
  return Array.from({ length: Number(LISTEN_FDS) }, (_, i) => {
    const fd = FIRST_PASSED_FD + i;
    ffi.fcntl(fd, F_SETFD, FD_CLOEXEC);
    return { fd, name: decodeName(names[i] ?? "") };
  });
}

export class ServiceManager {
  readonly #ffi: Ffi;
  readonly #messages: SocketMessages;
  readonly #path: string;

  private constructor(ffi: Ffi, path: string) {
    this.#ffi = ffi;
    this.#messages = new SocketMessages(ffi);
    this.#path = path;
  }

  /**
   * @returns null when nobody wants to be told
   * @throws {KernelError} EINVAL $NOTIFY_SOCKET is neither a path nor an abstract name
   */
  static fromEnvironment(ffi: Ffi, environment: Environment): ServiceManager | null {
    const path = environment["NOTIFY_SOCKET"];
    if (path === undefined || path === "") return null;
    if (!path.startsWith("/") && !path.startsWith("@"))
      throw new KernelError("EINVAL", "notify", `NOTIFY_SOCKET is "${path}": / or @ must begin it`);
    return new ServiceManager(ffi, path);
  }

  /** The service has started. */
  ready(): void {
    this.#notify("READY=1");
  }

  /** One line for people who ask for the service's status. */
  status(text: string): void {
    this.#notify(`STATUS=${text.replaceAll("\n", " ")}`);
  }

  /** The service begins to stop. */
  stopping(): void {
    this.#notify("STOPPING=1");
  }

  /**
   * Has a copy of a descriptor kept until this service starts again, which then gets it by {@link takePassedDescriptors}.
   * One that is kept already is not kept twice. The unit needs FileDescriptorStoreMax=.
   * @throws {KernelError} EINVAL a name of more than 255 bytes (three for each byte that is not in A-Z a-z 0-9 -_.!~*'())
   */
  store(name: string, fd: number): void {
    this.#notify(`FDSTORE=1\nFDNAME=${encodeName(name)}`, [fd]);
  }

  /** Closes what is kept under that name. */
  remove(name: string): void {
    this.#notify(`FDSTOREREMOVE=1\nFDNAME=${encodeName(name)}`);
  }

  /** @throws {KernelError} ENOENT, ECONNREFUSED nobody is there; EAGAIN it does not take it within a second */
  #notify(message: string, fds: readonly number[] = []): void {
    const socket = this.#ffi.socket(SOCK_DGRAM);
    try {
      this.#ffi.connect(socket, this.#path);
      const bytes = new TextEncoder().encode(message);
      try {
        this.#messages.send(socket, bytes, fds);
      } catch (error) {
        if (!isKernelError(error, "EAGAIN")) throw error;
        this.#ffi.poll(new PollSet([[socket, POLLOUT]]).bytes, NOTIFY_TIMEOUT_NS);
        this.#messages.send(socket, bytes, fds);
      }
    } finally {
      this.#ffi.close(socket);
    }
  }
}

/** Names are printable ASCII without colons there; those of sessions are any UTF-8. */
function encodeName(name: string): string {
  const encoded = utf8Length(name) < 0 ? "" : encodeURIComponent(name);
  if (encoded.length >= 1 && encoded.length <= NAME_BYTES_MAX) return encoded;
  throw new KernelError(
    "EINVAL",
    "notify",
    `"${name}" is no name of a descriptor: 1 to ${NAME_BYTES_MAX} bytes when encoded, not ${encoded.length}`,
  );
}

/** One that was not encoded stays as it is. */
function decodeName(name: string): string {
  try {
    return decodeURIComponent(name);
  } catch (error) {
    if (error instanceof URIError) return name;
    throw error;
  }
}
