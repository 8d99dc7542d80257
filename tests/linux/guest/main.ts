/**
 * The first process of the Linux that tests boot, before and after the jump.
 *
 * It does a scenario step by step; after each step it reports and waits, so that the test can look at memory while
 * nothing here runs.
 * @module
 */
import {
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { type CpioEntry, encodeCpio, withFolders } from "../../../scripts/linux/cpio.ts";
import { O_RDWR } from "../../../src/abi/uapi/fs.ts";
import { LINUX_REBOOT_CMD_KEXEC, LINUX_REBOOT_CMD_RESTART } from "../../../src/abi/uapi/reboot.ts";
import { isKernelError } from "../../../src/base/errno.ts";
import { createSession } from "../../../src/host/liveupdate.ts";
import { finishAll, type MadeSession, preserveAll, retrieveAll } from "../scenario.ts";
import { kexecFileLoad, LinuxHost, mount, pagesOf, readText, reboot } from "./linux-host.ts";
import {
  type FilePages,
  GO_ON,
  type GuestReport,
  type KhoDebugfs,
  REPORT_MARK,
  SCENARIO_PARAMETER,
} from "./reports.ts";

const DEBUGFS = "/sys/kernel/debug";
const SHMEM_HUGE = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
/** Each line that the kernel prints on its way out takes this long: time to stop it. */
const PRINTK_DELAY_MS = 500;
/** Sessions that fit into one block of the handover. */
const SESSIONS_OF_A_BLOCK = 51;

mount("devtmpfs", "/dev", "devtmpfs");
mount("proc", "/proc", "proc");
mount("sysfs", "/sys", "sysfs");
mount("debugfs", DEBUGFS, "debugfs");
const line = openSync("/dev/ttyS1", "r+");
const host = new LinuxHost();
const release = readText("/proc/sys/kernel/osrelease");
const commandLine = readText("/proc/cmdline");

try {
  if (commandLine.includes(`${SCENARIO_PARAMETER}=duplicate`)) fillBlock();
  else if (existsSync(join(DEBUGFS, "kho/in/fdt"))) takeOver();
  else handOver();
} catch (error) {
  report({ stage: "failed", error: error instanceof Error ? `${error.stack}` : String(error) });
}
reboot(LINUX_REBOOT_CMD_RESTART);

function handOver(): void {
  const sessions = preserveAll(host, ({ hugePages }) =>
    writeFileSync(SHMEM_HUGE, hugePages ? "always" : "never"),
  );
  report({ stage: "preserved", release, out: debugfs("out"), pages: sessions.flatMap(pages) });
  waitToGoOn();
  jump();
}

function takeOver(): void {
  report({ stage: "jumped", release, in: debugfs("in"), out: debugfs("out") });
  waitToGoOn();
  const retrieved = retrieveAll(host);
  report({ stage: "retrieved", files: retrieved.files });
  waitToGoOn();
  finishAll(host, retrieved);
  report({ stage: "finished", out: debugfs("out") });
  waitToGoOn();
}

/** The next kernel is expected to panic: see docs/divergences.md. */
function fillBlock(): void {
  const device = host.open("/dev/liveupdate", O_RDWR);
  for (let i = 0; i < SESSIONS_OF_A_BLOCK; i++) createSession(host, device, `session${i}`);
  let code = "none";
  try {
    createSession(host, device, "session0");
  } catch (error) {
    if (!isKernelError(error)) throw error;
    code = error.code;
  }
  report({ stage: "duplicate", sessions: SESSIONS_OF_A_BLOCK, code });
  waitToGoOn();
  jump();
}

/** Ends this kernel for one like it, with the root that this one was booted with. */
function jump(): never {
  const archive = "/tmp/initramfs.cpio";
  writeFileSync(archive, packRoot());
  kexecFileLoad("/boot/bzImage", archive, commandLine);
  writeFileSync("/proc/sys/kernel/printk_delay", `${PRINTK_DELAY_MS}`);
  return reboot(LINUX_REBOOT_CMD_KEXEC);
}

function packRoot(): Uint8Array {
  const entries: CpioEntry[] = ["dev", "proc", "sys", "tmp"].map((path) => ({
    kind: "folder",
    path,
  }));
  entries.push({ kind: "device", path: "dev/console", major: 5, minor: 1 });
  const roots = ["init", "bin", "boot", "lib", "lib64", "node_modules", "program", "usr"];
  for (const root of roots) addFiles(`/${root}`, entries);
  return encodeCpio(withFolders(entries));
}

function addFiles(path: string, entries: CpioEntry[]): void {
  if (!existsSync(path)) return;
  const files =
    path === "/init"
      ? [path]
      : readdirSync(path, { recursive: true, withFileTypes: true })
          .filter((entry) => entry.isFile())
          .map((entry) => join(entry.parentPath, entry.name));
  for (const file of files)
    entries.push({
      kind: "file",
      path: file.slice(1),
      bytes: readFileSync(file),
      executable: true,
    });
}

function pages({ files }: MadeSession): FilePages[] {
  return files.map(({ plan, fd }) => {
    const found = pagesOf(host, fd, plan.sizeBytes);
    const runs: [number, number][] = [];
    for (const { pfn } of found) {
      const last = runs.at(-1);
      if (last !== undefined && last[0] + last[1] === pfn) last[1]++;
      else runs.push([pfn, 1]);
    }
    const compound = found.filter((page) => page.compound).length;
    return { token: plan.token.toString(16), runs, compound };
  });
}

function debugfs(direction: "in" | "out"): KhoDebugfs {
  const folder = join(DEBUGFS, "kho", direction);
  const blob = (path: string) => readFileSync(path).toString("base64");
  const fdt = join(folder, "fdt");
  const subtrees = readdirSync(join(folder, "sub_fdts"));
  const numbers = (name: string) =>
    existsSync(join(folder, name)) ? readText(join(folder, name)).split("\n").map(Number) : [];
  const sizes = numbers("scratch_len");
  return {
    fdt: existsSync(fdt) ? blob(fdt) : null,
    subtrees: Object.fromEntries(
      subtrees.map((name) => [name, blob(join(folder, "sub_fdts", name))]),
    ),
    scratch: numbers("scratch_phys").map((addr, i) => ({ addr, size: sizes[i] })),
  };
}

function report(what: GuestReport): void {
  const bytes = Buffer.from(`${REPORT_MARK}${JSON.stringify(what)}\n`);
  for (let done = 0; done < bytes.length; ) done += writeSync(line, bytes, done);
}

/** Until the test has looked. */
function waitToGoOn(): void {
  const bytes = Buffer.alloc(64);
  let text = "";
  while (!text.includes(`${GO_ON}\n`)) text += bytes.toString("utf8", 0, readSync(line, bytes));
}
