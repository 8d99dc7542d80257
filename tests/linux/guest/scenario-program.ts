/**
 * Does a scenario in the guest step by step, before and after the jump: after each step it reports and waits, so that the
 * test can look at memory while nothing here runs.
 *
 * Its argument is the scenario's name. Reports go to standard output, a line each; a line of standard input lets it go on.
 * @module
 */
import { existsSync, readdirSync, readFileSync, readSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { O_RDWR } from "../../../src/abi/uapi/fs.ts";
import { LINUX_REBOOT_CMD_KEXEC, LINUX_REBOOT_CMD_RESTART } from "../../../src/abi/uapi/reboot.ts";
import { LiveUpdateDevice } from "../../../src/agent/live-update-device.ts";
import { isKernelError } from "../../../src/base/errno.ts";
import { createSession, finish, retrieveSession } from "../../../src/host/liveupdate.ts";
import { LinuxHost } from "../../../src/linux/linux-host.ts";
import { finishAll, type MadeSession, preserveAll, retrieveAll } from "../scenario.ts";
import { pagesOf } from "./page-map.ts";
import {
  type FilePages,
  GATED_KERNEL,
  type GuestReport,
  type KhoDebugfs,
  REPORT_MARK,
} from "./reports.ts";

const STDIN = 0;
const DEBUGFS = "/sys/kernel/debug";
const SHMEM_HUGE = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
/** Each line that the kernel prints on its way out takes this long: time to stop it. */
const PRINTK_DELAY_MS = 500;
/** Sessions that fit into one block of the handover. */
const SESSIONS_OF_A_BLOCK = 51;

const host = new LinuxHost();
const { release } = host;

try {
  if (process.argv[2] === "duplicate") fillBlock();
  else if (existsSync(join(DEBUGFS, "kho/in/fdt"))) takeOver();
  else handOver();
} catch (error) {
  report({ stage: "failed", error: error instanceof Error ? `${error.stack}` : String(error) });
}
host.reboot(LINUX_REBOOT_CMD_RESTART);

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

/**
 * In the first kernel the agent asks for a name that is in use, and its sessions must arrive. In the second it is asked for as
 * anybody may: the kernel after that is expected to panic (docs/divergences.md).
 */
function fillBlock(): void {
  const names = Array.from({ length: SESSIONS_OF_A_BLOCK }, (_, i) => `session${i}`);
  const hasArrived = existsSync(join(DEBUGFS, "kho/in/fdt"));
  let arrived = 0;
  let create: (name: string) => number;
  if (hasArrived) {
    const device = host.open("/dev/liveupdate", O_RDWR);
    for (const name of names) finish(host, retrieveSession(host, device, name));
    arrived = names.length;
    create = (name) => createSession(host, device, name);
  } else {
    const device = LiveUpdateDevice.open(host);
    create = (name) => device.create(name);
  }
  for (const name of names) create(name);
  let code = "none";
  try {
    create(names[0]);
  } catch (error) {
    if (!isKernelError(error)) throw error;
    code = error.code;
  }
  report({ stage: "duplicate", arrived, sessions: names.length, code });
  waitToGoOn();
  jump();
}

/** Ends this kernel for one like it. */
function jump(): never {
  host.kexecFileLoad(GATED_KERNEL, null, host.commandLine);
  writeFileSync("/proc/sys/kernel/printk_delay", `${PRINTK_DELAY_MS}`);
  return host.reboot(LINUX_REBOOT_CMD_KEXEC);
}

function pages({ files }: MadeSession): FilePages[] {
  return files.map(({ plan, fd }) => {
    const found = pagesOf(fd, plan.sizeBytes);
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

function readText(path: string): string {
  return readFileSync(path, "utf8").trimEnd();
}

function report(what: GuestReport): void {
  host.print(`${REPORT_MARK}${JSON.stringify(what)}`);
}

/** Until the test has looked. */
function waitToGoOn(): void {
  readSync(STDIN, Buffer.alloc(64));
}
