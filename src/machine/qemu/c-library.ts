/**
 * The operating system's C library, called through koffi.
 *
 * Why koffi, and why only when asked for: it is native code that only some uses need (the QEMU machine, real Linux), so
 * it is an optional dependency that is loaded here, on first use, and nowhere else.
 * Source: unix(7)
 * @module
 */
import { createRequire } from "node:module";
import { KernelError, systemCallError } from "../../base/errno.ts";

type Koffi = typeof import("koffi");

const AF_UNIX = 1;
/** struct sockaddr_un: the family, then a path with its NUL. */
const SUN_PATH_BYTES = 108;

/** Functions of the C library, declared by those who call them. */
export interface CLibrary {
  readonly koffi: Koffi;
  readonly func: ReturnType<Koffi["load"]>["func"];
  /** What a function returned. @throws {KernelError} with errno when that is negative */
  checked(op: string, detail: string, result: unknown): number;
}

/**
 * @param who - what needs it, for the message when there is none
 * @param require - how packages are loaded
 * @throws {KernelError} EOPNOTSUPP when koffi or glibc is not installed, or this is not Linux
 */
export function openCLibrary(
  who: string,
  require: (name: string) => unknown = createRequire(import.meta.url),
): CLibrary {
  const lacking = (what: string, cause?: unknown) =>
    new KernelError("EOPNOTSUPP", who, what, { cause });
  if (process.platform !== "linux") throw lacking(`needs Linux, not ${process.platform}`);
  const koffi = attempt(
    () => require("koffi") as Koffi,
    (cause) =>
      lacking(
        "makes system calls with the package koffi, which cannot be loaded: npm install koffi",
        cause,
      ),
  );
  const library = attempt(
    () => koffi.load("libc.so.6"),
    (cause) => lacking("needs the GNU C library, and libc.so.6 cannot be loaded", cause),
  );
  return {
    koffi,
    func: library.func.bind(library),
    checked(op, detail, result) {
      const number = Number(result);
      if (number < 0) throw systemCallError(koffi.errno(), op, detail);
      return number;
    },
  };
}

/**
 * A struct sockaddr_un.
 *
 * @param path - of a socket; one that begins with "@" has no file (the abstract namespace)
 * @throws {KernelError} ENAMETOOLONG above 107 bytes; EINVAL when it is empty or has a NUL
 */
export function unixAddress(path: string): Uint8Array {
  const name = new TextEncoder().encode(path);
  if (name.length >= SUN_PATH_BYTES)
    throw new KernelError(
      "ENAMETOOLONG",
      "socket",
      `${path} has ${name.length} bytes; a socket's path has at most ${SUN_PATH_BYTES - 1}`,
    );
  if (name.length === 0 || name.includes(0))
    throw new KernelError("EINVAL", "socket", "a socket's path is empty or has a NUL");
  const isAbstract = path.startsWith("@");
  // An abstract name ends with the address, a path with its NUL.
  const address = new Uint8Array(2 + name.length + (isAbstract ? 0 : 1));
  new DataView(address.buffer).setUint16(0, AF_UNIX, true);
  address.set(name, 2);
  if (isAbstract) address[2] = 0;
  return address;
}

/** What cannot be loaded throws whatever its loader throws; all of it means that it is not there. */
function attempt<T>(load: () => T, failure: (cause: unknown) => KernelError): T {
  try {
    return load();
  } catch (cause) {
    throw failure(cause);
  }
}
