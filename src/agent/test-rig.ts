/**
 * A host for tests of the agent: live-update sessions, memfds and files in ordinary memory, every call counted, any of
 * them failed on demand.
 *
 * Why beside the real kernel: here a test sees exactly which calls an agent makes, and fails each of them; and sessions are
 * Linux 7.3's, with its defect: CREATE_SESSION adds a block before it looks whether the name is in use, and an empty block
 * panics the next kernel.
 * Source: Linux 7.3 kernel/liveupdate/luo_session.c, kho_block.c
 * @module
 */
import { blockCapacity } from "../abi/kho-block.ts";
import { LUO_SESSION_SER } from "../abi/luo.ts";
import { encodeUtf8 } from "../abi/struct.ts";
import {
  LIVEUPDATE_IOCTL_CREATE_SESSION,
  LIVEUPDATE_IOCTL_CREATE_SESSION_ARG,
  LIVEUPDATE_IOCTL_RETRIEVE_SESSION,
  LIVEUPDATE_SESSION_FINISH,
  LIVEUPDATE_SESSION_GET_NAME,
  LIVEUPDATE_SESSION_GET_NAME_ARG,
  LIVEUPDATE_SESSION_PRESERVE_FD,
  LIVEUPDATE_SESSION_PRESERVE_FD_ARG,
  LIVEUPDATE_SESSION_RETRIEVE_FD,
} from "../abi/uapi/liveupdate.ts";
import { ByteWords } from "../abi/words.ts";
import { type ErrnoCode, KernelError } from "../base/errno.ts";
import type { Host } from "../host/host.ts";

/** What a jump looks like from inside: each call that is made after it throws this too. */
export class Jumped extends Error {}

/** The next kernel does not come up. */
export class Panicked extends Error {}

/** Sessions in one block. */
export const SESSIONS_PER_BLOCK = blockCapacity(LUO_SESSION_SER.sizeBytes);

/** An open file; descriptors share it. */
interface FakeFile {
  readonly kind: "liveupdate" | "session" | "memfd" | "iommufd" | "file";
  bytes: Uint8Array;
  at: number;
  /** Descriptors and sessions that hold it. */
  references: number;
  readonly session: FakeSession | null;
}

interface FakeSession {
  readonly name: string;
  readonly direction: "outgoing" | "incoming";
  isRetrieved: boolean;
  readonly files: Map<bigint, FakeFile>;
  /** Tokens of the files that somebody has taken out of it. */
  readonly taken: Set<bigint>;
}

export class FakeHost {
  /** Files by path. */
  readonly images = new Map<string, string | Uint8Array>();
  /** Inodes of files by path, where it matters. */
  readonly inodes = new Map<string, number>();
  /** Names of calls, in order. */
  readonly calls: string[] = [];
  /** Sessions of this kernel. */
  readonly outgoing = new Map<string, FakeSession>();
  /** Sessions of the kernel before that are not finished. */
  readonly incoming = new Map<string, FakeSession>();
  /** Names of sessions that were finished by FINISH. */
  readonly finished: string[] = [];
  /** Names of sessions that ended, finished or not, while files were in them that nobody had retrieved. */
  readonly discarded: string[] = [];
  /** What a test's VMs undid. */
  readonly undone: string[] = [];
  /** Kinds of files that the kernel can preserve. */
  readonly handlers = new Set<string>(["memfd"]);
  hasIommu = false;
  commandLine = "";
  bootedAtNs: number | null = null;
  loaded: { kernel: string; initrd: string | null; commandLine: string } | null = null;
  /** Fails calls: given the name and the number of the call since the start. */
  fails: (call: string, index: number) => ErrnoCode | null = () => null;
  readonly host: Host;
  readonly #descriptors = new Map<number, FakeFile>();
  /** Blocks for outgoing sessions. */
  #blocks = 0;
  #nowNs = 0;
  #hasEnded = false;

  constructor() {
    const fake = this;
    const calls = {
      release: "fake-1",
      get commandLine() {
        return fake.commandLine;
      },
      get bootedAtNs() {
        return fake.bootedAtNs;
      },
      open: (path: string) => this.#open(path),
      // Undoing consists of these two, which do not fail on Linux either.
      close: (fd: number) => this.#close(fd),
      kexecUnload: () => {
        this.#checkAlive();
        this.loaded = null;
      },
      dup: (fd: number) => {
        this.#count("dup");
        const file = this.#file(fd);
        file.references++;
        return this.#install(file);
      },
      read: (fd: number, target: Uint8Array) => {
        const file = this.#file(fd);
        const piece = file.bytes.subarray(file.at, file.at + target.length);
        target.set(piece);
        file.at += piece.length;
        return piece.length;
      },
      pread: (fd: number, target: Uint8Array, offset: number) => {
        const piece = this.#file(fd).bytes.subarray(offset, offset + target.length);
        target.set(piece);
        return piece.length;
      },
      pwrite: (fd: number, bytes: Uint8Array, offset: number) => {
        this.#count("pwrite");
        this.#file(fd).bytes.set(bytes, offset);
        return bytes.length;
      },
      memfdCreate: () => {
        this.#count("memfdCreate");
        return this.#install(newFile("memfd"));
      },
      ftruncate: (fd: number, length: number) => {
        this.#count("ftruncate");
        this.#file(fd).bytes = new Uint8Array(length);
      },
      fallocate: () => this.#count("fallocate"),
      fstat: (fd: number) => {
        const { kind, bytes } = this.#file(fd);
        return { kind: kind === "file" ? "file" : "anonymous", sizeBytes: bytes.length };
      },
      stat: (path: string) => ({
        inode: this.inodes.get(path) ?? 1,
        sizeBytes: this.#bytesAt(path).length,
      }),
      readdir: (path: string) => [
        ...new Set(
          [...this.images.keys()]
            .filter((name) => name.startsWith(`${path}/`))
            .map((name) => name.slice(path.length + 1).split("/")[0]),
        ),
      ],
      ioctl: (fd: number, request: number, argument: { bytes: Uint8Array }) =>
        this.#ioctl(this.#file(fd), request, argument.bytes),
      kexecFileLoad: (kernel: string, initrd: string | null, commandLine: string) => {
        this.#count("kexecFileLoad");
        this.loaded = { kernel, initrd, commandLine };
      },
      reboot: () => {
        this.#count("reboot");
        this.#hasEnded = true;
        throw new Jumped();
      },
      clockNs: () => {
        this.#nowNs += 1000;
        return this.#nowNs;
      },
    };
    this.host = calls as unknown as Host;
  }

  get openFiles(): number {
    return this.#descriptors.size;
  }

  /** Descriptors of sessions. */
  get openSessions(): number {
    return [...this.#descriptors.values()].filter(({ kind }) => kind === "session").length;
  }

  /**
   * The next kernel: it has what was preserved, and nothing else.
   * @throws {Panicked} when a block for sessions holds none
   */
  afterJump(): FakeHost {
    const count = this.outgoing.size;
    if (this.#blocks > Math.ceil(count / SESSIONS_PER_BLOCK))
      throw new Panicked(`${this.#blocks} blocks for ${count} sessions: an entry count of 0`);
    const next = new FakeHost();
    for (const [name, session] of this.outgoing) {
      const files = new Map<bigint, FakeFile>();
      for (const [token, file] of session.files)
        files.set(token, { ...file, at: 0, references: 1 });
      next.incoming.set(name, newSession(name, "incoming", files));
    }
    for (const [path, text] of this.images) next.images.set(path, text);
    for (const kind of this.handlers) next.handlers.add(kind);
    next.hasIommu = this.hasIommu;
    next.#nowNs = this.#nowNs;
    return next;
  }

  /** A call that a test's VM makes. */
  vmCall(name: string): void {
    this.#count(name);
  }

  #checkAlive(): void {
    if (this.#hasEnded) throw new Jumped();
  }

  #count(call: string): void {
    this.#checkAlive();
    const code = this.fails(call, this.calls.length);
    this.calls.push(call);
    if (code !== null) throw new KernelError(code, call, "injected");
  }

  #open(path: string): number {
    this.#count(`open ${path}`);
    if (path === "/dev/liveupdate") {
      const isOpen = [...this.#descriptors.values()].some(({ kind }) => kind === "liveupdate");
      if (isOpen) throw new KernelError("EBUSY", "open", path);
      return this.#install(newFile("liveupdate"));
    }
    if (path === "/dev/iommu" && this.hasIommu) return this.#install(newFile("iommufd"));
    return this.#install(newFile("file", this.#bytesAt(path)));
  }

  #bytesAt(path: string): Uint8Array {
    const content = this.images.get(path);
    if (content !== undefined) return typeof content === "string" ? encodeUtf8(content) : content;
    const isDirectory = [...this.images.keys()].some((name) => name.startsWith(`${path}/`));
    if (isDirectory) return new Uint8Array(0);
    throw new KernelError("ENOENT", "open", path);
  }

  #close(fd: number): void {
    this.#checkAlive();
    const file = this.#file(fd);
    this.#descriptors.delete(fd);
    this.#put(file);
  }

  #put(file: FakeFile): void {
    if (--file.references > 0 || file.session === null) return;
    const { session } = file;
    if (session.direction === "outgoing") this.#remove(session);
    else this.#finish(session);
  }

  #ioctl(file: FakeFile, request: number, bytes: Uint8Array): number {
    const words = new ByteWords(bytes);
    // Create and retrieve have the same structure, and so have preserve and retrieve of a file.
    const sessionArg = LIVEUPDATE_IOCTL_CREATE_SESSION_ARG;
    const fileArg = LIVEUPDATE_SESSION_PRESERVE_FD_ARG;
    const op = `ioctl ${request}`;
    if (file.kind === "liveupdate") {
      const name = sessionArg.read(words, 0).name ?? "";
      switch (request) {
        case LIVEUPDATE_IOCTL_CREATE_SESSION:
          this.#count("createSession");
          words.store32(sessionArg.offset.fd, this.#create(name));
          return 0;
        case LIVEUPDATE_IOCTL_RETRIEVE_SESSION:
          this.#count("retrieveSession");
          words.store32(sessionArg.offset.fd, this.#retrieve(name));
          return 0;
        default:
          throw new KernelError("EINVAL", op, "unknown");
      }
    }
    const { session } = file;
    if (session === null) throw new KernelError("ENOTTY", op, file.kind);
    switch (request) {
      case LIVEUPDATE_SESSION_PRESERVE_FD: {
        this.#count("preserveFd");
        checkDirection(session, "outgoing");
        const { fd, token } = fileArg.read(words, 0);
        this.#preserve(session, this.#file(fd), token);
        return 0;
      }
      case LIVEUPDATE_SESSION_RETRIEVE_FD: {
        this.#count("retrieveFd");
        checkDirection(session, "incoming");
        const { token } = fileArg.read(words, 0);
        const found = session.files.get(token);
        if (found === undefined) throw new KernelError("ENOENT", "retrieveFd", session.name);
        found.references++;
        session.taken.add(token);
        words.store32(fileArg.offset.fd, this.#install(found));
        return 0;
      }
      case LIVEUPDATE_SESSION_FINISH:
        this.#count("finish");
        checkDirection(session, "incoming");
        this.#finish(session);
        this.finished.push(session.name);
        return 0;
      case LIVEUPDATE_SESSION_GET_NAME: {
        const arg = LIVEUPDATE_SESSION_GET_NAME_ARG;
        bytes.set(encodeUtf8(session.name), arg.offset.name);
        return 0;
      }
      default:
        throw new KernelError("EINVAL", op, "unknown");
    }
  }

  #create(name: string): number {
    // The defect: the block comes before the name is looked for, and stays.
    if (this.outgoing.size + 1 > this.#blocks * SESSIONS_PER_BLOCK) this.#blocks++;
    if (this.outgoing.has(name)) throw new KernelError("EEXIST", "createSession", name);
    const session = newSession(name, "outgoing", new Map());
    this.outgoing.set(name, session);
    return this.#install(newFile("session", new Uint8Array(0), session));
  }

  #remove(session: FakeSession): void {
    this.outgoing.delete(session.name);
    for (const file of session.files.values()) this.#put(file);
    while (this.#blocks > 0 && this.outgoing.size <= (this.#blocks - 1) * SESSIONS_PER_BLOCK)
      this.#blocks--;
  }

  #retrieve(name: string): number {
    const session = this.incoming.get(name);
    if (session === undefined) throw new KernelError("ENOENT", "retrieveSession", name);
    if (session.isRetrieved) throw new KernelError("EINVAL", "retrieveSession", name);
    session.isRetrieved = true;
    return this.#install(newFile("session", new Uint8Array(0), session));
  }

  #preserve(session: FakeSession, file: FakeFile, token: bigint): void {
    if (session.files.has(token)) throw new KernelError("EEXIST", "preserveFd", String(token));
    if (!this.handlers.has(file.kind)) throw new KernelError("ENOENT", "preserveFd", file.kind);
    const sessions = [...this.outgoing.values(), ...this.incoming.values()];
    if (sessions.some(({ files }) => [...files.values()].includes(file)))
      throw new KernelError("EBUSY", "preserveFd", "it is in a session already");
    file.references++;
    session.files.set(token, file);
  }

  #finish(session: FakeSession): void {
    if (this.incoming.get(session.name) !== session) return;
    this.incoming.delete(session.name);
    const isWhole = [...session.files.keys()].every((token) => session.taken.has(token));
    if (!isWhole) this.discarded.push(session.name);
    for (const file of session.files.values()) this.#put(file);
    session.files.clear();
  }

  #install(file: FakeFile): number {
    let fd = 3;
    while (this.#descriptors.has(fd)) fd++;
    this.#descriptors.set(fd, file);
    return fd;
  }

  #file(fd: number): FakeFile {
    const file = this.#descriptors.get(fd);
    if (file === undefined) throw new KernelError("EBADF", "fd", String(fd));
    return file;
  }
}

function newFile(
  kind: FakeFile["kind"],
  bytes: Uint8Array = new Uint8Array(0),
  session: FakeSession | null = null,
): FakeFile {
  return { kind, bytes, at: 0, references: 1, session };
}

function newSession(
  name: string,
  direction: FakeSession["direction"],
  files: Map<bigint, FakeFile>,
): FakeSession {
  return { name, direction, isRetrieved: false, files, taken: new Set() };
}

function checkDirection(session: FakeSession, wanted: FakeSession["direction"]): void {
  if (session.direction !== wanted)
    throw new KernelError("EINVAL", "ioctl", `session ${session.name} is ${session.direction}`);
}
