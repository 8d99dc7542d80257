/**
 * What the test may tell the guest's first process to do, and what that process tells the test: the protocol of the
 * machine's second serial line.
 *
 * A line each, mark and JSON. Orders are answered in their order; events come whenever something happens. Bytes are in base64.
 * @module
 */

/** Before each line, so that nothing else on the line (firmware, half a line of a kernel that has gone) is taken for one. */
export const MARK = "@holdfast ";

/** Longest order: what the kernel's serial driver keeps when its reader is slow. Longer things go into the guest's root. */
export const ORDER_BYTES_MAX = 32 * 1024;

/** Path of the list of services in the guest's root: programs that its first process starts in every boot. */
export const SERVICES_PATH = "/etc/services.json";

/** Where the compiled repository is in the guest: in memory. */
export const PROGRAM_FOLDER = "/dev/program";

/** A program to start. */
export interface Program {
  /** argv[0] is found in PATH; "node" is there. */
  readonly argv: readonly string[];
  /** Added to what every program gets: PATH and HOME. */
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  readonly uid?: number;
  /** Also its only group: there are no supplementary ones. */
  readonly gid?: number;
}

/** A program that init starts by itself. */
export interface Service extends Program {
  readonly name: string;
}

/** A process of the guest, as /proc has it. Those that have ended and wait to be reaped are not told of. */
export interface RunningProcess {
  readonly pid: number;
  readonly parent: number;
  /** Effective. */
  readonly uid: number;
  /** R, S, D, T ... as in proc(5). */
  readonly state: string;
  readonly argv: readonly string[];
}

export interface FileInfo {
  readonly kind: "file" | "folder" | "device" | "socket" | "other";
  readonly sizeBytes: number;
  /** Permission bits. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
}

/** The orders. Each fails with the errno of the system call behind it. */
export interface Orders {
  /** @returns its process id; it has no input until {@link write} */
  spawn(program: Program): number;
  write(pid: number, text: string): void;
  signal(pid: number, signal: string): void;
  processes(): readonly RunningProcess[];
  readFile(path: string): string;
  /** Makes or replaces a file, or writes to one of the kernel's. */
  writeFile(path: string, base64: string): void;
  /** @returns null when there is nothing at the path */
  stat(path: string): FileInfo | null;
  readdir(path: string): readonly string[];
  /** With the folders above it. */
  mkdir(path: string): void;
  rename(from: string, to: string): void;
  /** With everything below it. */
  remove(path: string): void;
  mount(source: string, target: string, type: string, options: string): void;
  umount(target: string): void;
  /** Ends the machine. */
  reset(): void;
}

/** An order on the line. */
export interface OrderLine<K extends keyof Orders = keyof Orders> {
  readonly order: number;
  readonly do: K;
  readonly with: Parameters<Orders[K]>;
}

export type GuestLine =
  /** First in every boot. */
  | {
      readonly event: "hello";
      readonly release: string;
      readonly commandLine: string;
      /** Seconds since this kernel started. */
      readonly uptime: number;
      readonly services: Readonly<Record<string, number>>;
    }
  | { readonly event: "answer"; readonly order: number; readonly result: unknown }
  | {
      readonly event: "refused";
      readonly order: number;
      /** An errno where it has one. */
      readonly code: string;
      readonly message: string;
    }
  /** Before everything else of a process; those of services are in the hello. */
  | { readonly event: "started"; readonly pid: number; readonly argv: readonly string[] }
  | {
      readonly event: "output";
      readonly pid: number;
      readonly stream: "stdout" | "stderr";
      readonly text: string;
    }
  /** After all of its output. */
  | {
      readonly event: "exit";
      readonly pid: number;
      readonly code: number | null;
      readonly signal: string | null;
    };
