/**
 * A host for tests of the agent: live-update sessions, memfds and images in ordinary memory, every call counted, any of
 * them failed on demand.
 *
 * Why beside the real kernel: here a test sees exactly which calls an agent makes, and fails each of them.
 * @module
 */
import {
  LIVEUPDATE_IOCTL_CREATE_SESSION,
  LIVEUPDATE_IOCTL_CREATE_SESSION_ARG,
  LIVEUPDATE_IOCTL_RETRIEVE_SESSION,
  LIVEUPDATE_SESSION_FINISH,
  LIVEUPDATE_SESSION_PRESERVE_FD,
  LIVEUPDATE_SESSION_PRESERVE_FD_ARG,
  LIVEUPDATE_SESSION_RETRIEVE_FD,
} from "../abi/uapi/liveupdate.ts";
import { ByteWords } from "../abi/words.ts";
import { type ErrnoCode, KernelError } from "../base/errno.ts";
import type { Host } from "../host/host.ts";

/** What a jump looks like from inside: each call that is made after it throws this too. */
export class Jumped extends Error {}

interface FakeFile {
  readonly kind: "liveupdate" | "session" | "memfd" | "image";
  /** Of a session or an image. */
  readonly name: string;
  bytes: Uint8Array;
  at: number;
}

/** A session by its files: what goes through a jump. */
type Session = Map<bigint, FakeFile>;

export class FakeHost {
  /** Text of each image. */
  readonly images = new Map<string, string>();
  /** Names of calls, in order. */
  readonly calls: string[] = [];
  /** Sessions of this kernel. */
  readonly outgoing = new Map<string, Session>();
  /** Sessions of the kernel before. */
  readonly incoming = new Map<string, Session>();
  readonly finished: string[] = [];
  loaded: string | null = null;
  /** Fails calls: given the name and the number of the call since the start. */
  fails: (call: string, index: number) => ErrnoCode | null = () => null;
  readonly host: Host;
  readonly #files = new Map<number, FakeFile>();
  #nowNs = 0;
  #hasEnded = false;

  constructor() {
    const calls = {
      release: "fake-1",
      commandLine: "",
      open: (path: string) => this.#open(path),
      // Undoing consists of these two, which do not fail on Linux either.
      close: (fd: number) => this.#close(fd),
      kexecUnload: () => {
        this.#checkAlive();
        this.loaded = null;
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
      memfdCreate: (name: string) => {
        this.#count("memfdCreate");
        return this.#install({ kind: "memfd", name, bytes: new Uint8Array(0), at: 0 });
      },
      ftruncate: (fd: number, length: number) => {
        this.#count("ftruncate");
        this.#file(fd).bytes = new Uint8Array(length);
      },
      fallocate: () => this.#count("fallocate"),
      fstat: (fd: number) => ({ sizeBytes: this.#file(fd).bytes.length }),
      ioctl: (fd: number, request: number, argument: { bytes: Uint8Array }) =>
        this.#ioctl(this.#file(fd), request, argument.bytes),
      kexecFileLoad: (image: string) => {
        this.#count("kexecFileLoad");
        this.loaded = image;
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
    return this.#files.size;
  }

  /** The next kernel: it has what was preserved, and nothing else. */
  afterJump(): FakeHost {
    const next = new FakeHost();
    for (const [name, session] of this.outgoing) next.incoming.set(name, session);
    for (const [path, text] of this.images) next.images.set(path, text);
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
    if (path === "/dev/liveupdate")
      return this.#install({ kind: "liveupdate", name: path, bytes: new Uint8Array(0), at: 0 });
    const text = this.images.get(path);
    if (text === undefined) throw new KernelError("ENOENT", "open", path);
    const bytes = new TextEncoder().encode(text);
    return this.#install({ kind: "image", name: path, bytes, at: 0 });
  }

  #close(fd: number): void {
    this.#checkAlive();
    const file = this.#file(fd);
    this.#files.delete(fd);
    // As on Linux: an outgoing session that is closed is undone.
    if (file.kind === "session") this.outgoing.delete(file.name);
  }

  #ioctl(file: FakeFile, request: number, bytes: Uint8Array): number {
    const words = new ByteWords(bytes);
    // Create and retrieve have the same structure, and so have preserve and retrieve of a file.
    const sessionArg = LIVEUPDATE_IOCTL_CREATE_SESSION_ARG;
    const fileArg = LIVEUPDATE_SESSION_PRESERVE_FD_ARG;
    switch (request) {
      case LIVEUPDATE_IOCTL_CREATE_SESSION: {
        this.#count("createSession");
        const name = sessionArg.read(words, 0).name ?? "";
        if (this.outgoing.has(name)) throw new KernelError("EEXIST", "createSession", name);
        this.outgoing.set(name, new Map());
        words.store32(sessionArg.offset.fd, this.#installSession(name));
        return 0;
      }
      case LIVEUPDATE_IOCTL_RETRIEVE_SESSION: {
        this.#count("retrieveSession");
        const name = sessionArg.read(words, 0).name ?? "";
        if (!this.incoming.has(name)) throw new KernelError("ENOENT", "retrieveSession", name);
        words.store32(sessionArg.offset.fd, this.#installSession(name));
        return 0;
      }
      case LIVEUPDATE_SESSION_PRESERVE_FD: {
        this.#count("preserveFd");
        const { fd, token } = fileArg.read(words, 0);
        this.outgoing.get(file.name)?.set(token, this.#file(fd));
        return 0;
      }
      case LIVEUPDATE_SESSION_RETRIEVE_FD: {
        this.#count("retrieveFd");
        const found = this.incoming.get(file.name)?.get(fileArg.read(words, 0).token);
        if (found === undefined) throw new KernelError("ENOENT", "retrieveFd", file.name);
        words.store32(fileArg.offset.fd, this.#install({ ...found, at: 0 }));
        return 0;
      }
      case LIVEUPDATE_SESSION_FINISH:
        this.#count("finish");
        this.incoming.delete(file.name);
        this.finished.push(file.name);
        return 0;
      default:
        throw new KernelError("ENOTTY", "ioctl", String(request));
    }
  }

  #installSession(name: string): number {
    return this.#install({ kind: "session", name, bytes: new Uint8Array(0), at: 0 });
  }

  #install(file: FakeFile): number {
    let fd = 3;
    while (this.#files.has(fd)) fd++;
    this.#files.set(fd, file);
    return fd;
  }

  #file(fd: number): FakeFile {
    const file = this.#files.get(fd);
    if (file === undefined) throw new KernelError("EBADF", "fd", String(fd));
    return file;
  }
}
