/**
 * The first process of the Linux that tests boot: mounts what a system has, starts its services, says hello, and does what
 * the test orders over the second serial line.
 *
 * Why: a test of several processes and several kernels reads as one text only if it is on one side. Here is nothing
 * of a test's: what is to run is ordered.
 * @module
 */
import { type ChildProcess, spawn } from "node:child_process";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  type Stats,
  writeFileSync,
  writeSync,
} from "node:fs";
import { createInterface } from "node:readline";
import { ReadStream } from "node:tty";
import koffi from "koffi";
import { LINUX_REBOOT_CMD_RESTART } from "../../../src/abi/uapi/reboot.ts";
import { LinuxHost } from "../../../src/linux/linux-host.ts";
import {
  type FileInfo,
  type GuestLine,
  MARK,
  type OrderLine,
  type Orders,
  type Program,
  type RunningProcess,
  SERVICES_PATH,
  type Service,
} from "./orders.ts";

const SERIAL_LINE = "/dev/ttyS1";
const ENVIRONMENT = { PATH: "/bin", HOME: "/tmp" };

const host = new LinuxHost();
host.mount("proc", "/proc", "proc", "");
host.mount("sysfs", "/sys", "sysfs", "");
host.mount("debugfs", "/sys/kernel/debug", "debugfs", "");
host.mount("tmpfs", "/tmp", "tmpfs", "");
host.mount("tmpfs", "/run", "tmpfs", "mode=0755");

// Two descriptors: the terminal that Node reads does not block, and a write must.
const input = new ReadStream(openSync(SERIAL_LINE, "r+"));
const output = openSync(SERIAL_LINE, "r+");
// Without it the terminal echoes orders, and cuts lines at 4096 bytes.
input.setRawMode(true);

const children = new Map<number, ChildProcess>();

const orders: Orders = {
  spawn(program) {
    const pid = start(program);
    tell({ event: "started", pid, argv: program.argv });
    return pid;
  },
  write(pid, text) {
    childOf(pid).stdin?.write(text);
  },
  signal(pid, signal) {
    process.kill(pid, signal as NodeJS.Signals);
  },
  processes: () =>
    readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name))
      .map((name) => describeProcess(Number(name)))
      .filter((one) => one !== null),
  readFile: (path) => readFileSync(path).toString("base64"),
  writeFile: (path, base64) => writeFileSync(path, Buffer.from(base64, "base64")),
  stat(path) {
    const found = lstatSync(path, { throwIfNoEntry: false });
    return found === undefined ? null : describeFile(found);
  },
  readdir: (path) => readdirSync(path),
  mkdir(path) {
    mkdirSync(path, { recursive: true });
  },
  rename: renameSync,
  remove: (path) => rmSync(path, { recursive: true }),
  mount: (source, target, type, options) => host.mount(source, target, type, options),
  umount: (target) => host.umount(target),
  reset: () => host.reboot(LINUX_REBOOT_CMD_RESTART),
};

// A kernel that jumps has shut the root's device down before it ends: a page of Node that is read in only then is a SIGBUS,
// and that of the first process a panic. (An update of Linux with printk_delay= takes seconds there.)
// Not mlockall(2): V8 gives memory back by madvise(2), which locked memory refuses, and dies of that.
const mlock = koffi.load("libc.so.6").func("int mlock(uintptr_t address, size_t length)");
for (const line of readFileSync("/proc/self/maps", "utf8").split("\n")) {
  const [, first, end] = /^([0-9a-f]+)-([0-9a-f]+) r\S+ \S+ \S+ [1-9]/.exec(line) ?? [];
  if (first === undefined) continue;
  const [address, endAddress] = [BigInt(`0x${first}`), BigInt(`0x${end}`)];
  if (mlock(address, endAddress - address) !== 0)
    throw new Error(`mlock of ${line}: errno ${koffi.errno()}`);
}

const services: readonly Service[] = existsSync(SERVICES_PATH)
  ? JSON.parse(readFileSync(SERVICES_PATH, "utf8"))
  : [];
// The new line ends what the last kernel may have left unfinished.
writeSync(output, "\n");
tell({
  event: "hello",
  release: text("/proc/sys/kernel/osrelease"),
  commandLine: text("/proc/cmdline"),
  uptime: Number.parseFloat(text("/proc/uptime")),
  services: Object.fromEntries(services.map((service) => [service.name, start(service)])),
});
createInterface({ input }).on("line", (line) => {
  if (line.startsWith(MARK)) obey(JSON.parse(line.slice(MARK.length)));
});

function obey<K extends keyof Orders>({ order, do: name, with: args }: OrderLine<K>): void {
  const action = orders[name] as (...given: Parameters<Orders[K]>) => ReturnType<Orders[K]>;
  let result: unknown;
  try {
    result = action(...args);
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    const code = "code" in error ? String(error.code) : "none";
    tell({ event: "refused", order, code, message: error.message });
    return;
  }
  tell({ event: "answer", order, result: result ?? null });
}

function start({ argv, env, cwd, uid, gid }: Program): number {
  const [command, ...args] = argv;
  const child = spawn(command, args, {
    cwd: cwd ?? "/tmp",
    env: { ...ENVIRONMENT, ...env },
    ...(uid === undefined ? {} : { uid }),
    ...(gid === undefined ? {} : { gid }),
  });
  const { pid } = child;
  // Node reports what kept it from starting later, as an event.
  child.once("error", (error) => console.error(`init: ${argv.join(" ")}: ${error.message}`));
  if (pid === undefined) throw new Error(`cannot start ${argv.join(" ")}`);
  children.set(pid, child);
  for (const stream of ["stdout", "stderr"] as const)
    child[stream].setEncoding("utf8").on("data", (text: string) => {
      tell({ event: "output", pid, stream, text });
    });
  // A program that is gone takes no input; its exit is told.
  child.stdin.on("error", () => undefined);
  child.once("close", (code, signal) => {
    children.delete(pid);
    tell({ event: "exit", pid, code, signal });
  });
  return pid;
}

function childOf(pid: number): ChildProcess {
  const child = children.get(pid);
  if (child === undefined) throw new Error(`init has no child ${pid}`);
  return child;
}

function describeProcess(pid: number): RunningProcess | null {
  try {
    const status = readFileSync(`/proc/${pid}/status`, "utf8");
    const field = (name: string) => new RegExp(`^${name}:\\s+(.*)$`, "m").exec(status)?.[1] ?? "";
    const state = field("State")[0];
    const argv = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0").slice(0, -1);
    // Threads of the kernel have no command line.
    if (state === "Z" || argv.length === 0) return null;
    const uid = Number(field("Uid").split(/\s+/)[1]);
    return { pid, parent: Number(field("PPid")), uid, state, argv };
  } catch (error) {
    // It has ended meanwhile.
    if (error instanceof Error && "code" in error && ["ENOENT", "ESRCH"].includes(`${error.code}`))
      return null;
    throw error;
  }
}

function describeFile(stats: Stats): FileInfo {
  return {
    kind: kindOf(stats),
    sizeBytes: stats.size,
    mode: stats.mode & 0o7777,
    uid: stats.uid,
    gid: stats.gid,
  };
}

function kindOf(stats: Stats): FileInfo["kind"] {
  if (stats.isFile()) return "file";
  if (stats.isDirectory()) return "folder";
  if (stats.isSocket()) return "socket";
  return stats.isCharacterDevice() || stats.isBlockDevice() ? "device" : "other";
}

function tell(line: GuestLine): void {
  const bytes = Buffer.from(`${MARK}${JSON.stringify(line)}\n`);
  for (let done = 0; done < bytes.length; ) done += writeSync(output, bytes, done);
}

function text(path: string): string {
  return readFileSync(path, "utf8").trimEnd();
}
