/**
 * A real Linux kernel under QEMU whose RAM is a file: the guest does one step of its program, reports and waits; the test
 * reads the file meanwhile, and lets the guest go on.
 *
 * The machine is a q35 by emulation (no KVM needed). Serial line 1 is the kernel's console and goes into a log, which
 * every failure shows the end of; serial line 2 carries reports and the word to go on. While the test looks, QEMU is
 * stopped (SIGSTOP), so that memory is still.
 * Lifecycle: `start`, then `next` and `goOn` in turn, then `close`, always. QEMU ends with this process however that
 * ends (setpriv --pdeathsig); files that a killed process has left are removed by the next start.
 * @module
 */
import assert from "node:assert/strict";
import { type ChildProcessWithoutNullStreams, spawn, spawnSync } from "node:child_process";
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statfsSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { buildInitramfs } from "../../scripts/linux/initramfs.ts";
import {
  BUILD_KERNEL_COMMAND,
  findKernel,
  repositoryRoot,
} from "../../scripts/linux/kernel-cache.ts";
import { BOOT_TOOLS, describeMissing } from "../../scripts/linux/tools.ts";
import { LUO_SER } from "../../src/abi/luo.ts";
import { MIB } from "../../src/base/units.ts";
import { findGate, type KhoData, openGate, readKhoData, withGate } from "./gate.ts";
import {
  GO_ON,
  type GuestReport,
  REPORT_MARK,
  SCENARIO_PARAMETER,
  type Scenario,
} from "./guest/reports.ts";

/** RAM of the machine. */
export const RAM_BYTES = 1024 * MIB;
/** Longest time to the next report; ten times what it takes on two busy cores. */
const REPORT_TIMEOUT_MS = 120_000;
const LOG_TAIL_LINES = 60;
const FREEZE_POLL_MS = 5;
const GATE_POLL_MS = 50;
const FOLDER_PREFIX = "holdfast-linux-";

/** For the `skip` of tests that boot a real kernel, as {@link skipUnless}. */
export function skipReason(): string | false {
  return skipUnless("a real Linux kernel", missing());
}

/**
 * For the `skip` of tests that need what a machine may lack: false, or what is missing, which is printed, too.
 *
 * @param what - that they run on
 * @param reason - why they cannot; null when they can
 * @throws {Error} in CI: there they must run
 */
export function skipUnless(what: string, reason: string | null): string | false {
  if (reason === null) return false;
  if (process.env["CI"] === "true")
    throw new Error(`the tests on ${what} must run in CI: ${reason}`);
  console.error(`SKIPPED: tests on ${what}: ${reason}`);
  return reason;
}

function missing(): string | null {
  if (process.platform !== "linux" || process.arch !== "x64") return "needs Linux on x86-64";
  const tools = describeMissing(BOOT_TOOLS);
  if (tools !== null) return tools;
  return findKernel() === null ? `no kernel: ${BUILD_KERNEL_COMMAND}` : null;
}

export class LinuxMachine {
  /** Path of the machine's RAM. */
  readonly ram: string;
  readonly #folder: string;
  readonly #log: string;
  readonly #qemu: ChildProcessWithoutNullStreams;
  readonly #lines: AsyncIterator<string>;
  #errors = "";
  /** Whether it was stopped in reboot(2), where it takes no word. */
  #isInReboot = false;
  /** Where a kernel waits at the gate. */
  #gate: number | null = null;
  readonly #onExit = () => this.#destroy();
  readonly #onSignal = (signal: NodeJS.Signals) => {
    this.#destroy();
    process.kill(process.pid, signal);
  };

  private constructor(folder: string, scenario: Scenario) {
    this.#folder = folder;
    this.ram = join(folder, "ram");
    this.#log = join(folder, "console.log");
    process.on("exit", this.#onExit);
    for (const signal of SIGNALS) process.once(signal, this.#onSignal);
    const kernel = findKernel();
    assert(kernel !== null, "skipReason() said that there is a kernel");
    const initramfs = join(folder, "initramfs.cpio");
    writeInitramfs(initramfs, join(folder, "program"), kernel.bzImage);
    const commandLine = [
      "console=ttyS0 liveupdate=on panic=-1",
      `${SCENARIO_PARAMETER}=${scenario}`,
    ].join(" ");
    const size = `${RAM_BYTES / MIB}M`;
    this.#qemu = spawn("setpriv", [
      ...["--pdeathsig", "KILL", "qemu-system-x86_64"],
      ...["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", size],
      ...["-M", "q35,memory-backend=ram", "-nodefaults", "-nographic", "-no-reboot"],
      ...["-object", `memory-backend-file,id=ram,size=${size},mem-path=${this.ram},share=on`],
      ...["-serial", `file:${this.#log}`, "-serial", "stdio"],
      ...["-kernel", kernel.bzImage, "-initrd", initramfs, "-append", commandLine],
    ]);
    this.#qemu.stderr.on("data", (chunk: Buffer) => {
      this.#errors += chunk.toString();
    });
    // A guest that is gone takes no words; `next` says so.
    this.#qemu.stdin.on("error", () => undefined);
    const lines = createInterface({ input: this.#qemu.stdout });
    this.#lines = lines[Symbol.asyncIterator]();
  }

  /** Powers a machine on. */
  static start(scenario: Scenario): LinuxMachine {
    const parent = folderForRam();
    removeLeftovers(parent);
    return new LinuxMachine(mkdtempSync(join(parent, `${FOLDER_PREFIX}${process.pid}-`)), scenario);
  }

  /**
   * Waits for the guest's next report, which must be of this stage; the guest then waits for {@link goOn}.
   *
   * @throws {Error} with the end of the console's log when another comes, none comes in time, or the guest ends
   */
  async next<S extends GuestReport["stage"]>(
    stage: S,
  ): Promise<Extract<GuestReport, { stage: S }>> {
    const report = await this.#nextReport(stage);
    if (report === null) this.#fail(`the guest ended before "${stage}"`);
    if (report.stage === "failed")
      this.#fail(`the guest failed before "${stage}": ${report.error}`);
    if (report.stage !== stage) this.#fail(`the guest reported "${report.stage}", not "${stage}"`);
    this.#qemu.kill("SIGSTOP");
    return report as Extract<GuestReport, { stage: S }>;
  }

  /**
   * Waits until the kernel has written its sessions in reboot(2) and is about to jump. The guest must have slowed its
   * console down (`printk_delay`), so that there is time between the two.
   *
   * @param luoPa - where its LUO state is
   */
  async frozen(luoPa: number): Promise<void> {
    const fd = openSync(this.ram, "r");
    const word = Buffer.alloc(8);
    const end = Date.now() + REPORT_TIMEOUT_MS;
    try {
      do {
        if (this.#qemu.exitCode !== null) this.#fail("the guest ended before its freeze");
        if (Date.now() > end) this.#fail(`no freeze within ${REPORT_TIMEOUT_MS / 1000} s`);
        await sleep(FREEZE_POLL_MS);
        readSync(fd, word, 0, 8, luoPa + LUO_SER.offset.sessions_pa);
      } while (word.readBigUInt64LE() === 0n);
    } finally {
      closeSync(fd);
    }
    this.#qemu.kill("SIGSTOP");
    if (findGate(this.ram) !== null) this.#fail("the kernel had jumped before it was stopped");
    this.#isInReboot = true;
  }

  /**
   * Waits until the old kernel has jumped and the new one waits at the gate; it passes by {@link goOn}.
   *
   * @returns what the old kernel has told it
   */
  async jumped(): Promise<KhoData> {
    const end = Date.now() + REPORT_TIMEOUT_MS;
    for (;;) {
      this.#gate = findGate(this.ram);
      if (this.#gate !== null) break;
      if (this.#qemu.exitCode !== null) this.#fail("the guest ended before its jump");
      if (Date.now() > end) this.#fail(`no jump within ${REPORT_TIMEOUT_MS / 1000} s`);
      await sleep(GATE_POLL_MS);
    }
    this.#qemu.kill("SIGSTOP");
    return readKhoData(this.ram, this.#gate);
  }

  /** Waits until the machine has ended, by reset or panic. @throws {Error} when the guest reports instead */
  async end(): Promise<void> {
    const report = await this.#nextReport("the end");
    if (report !== null) this.#fail(`the guest reported "${report.stage}" instead of ending`);
  }

  /** Lets the guest take its next step. */
  goOn(): void {
    this.#qemu.kill("SIGCONT");
    if (this.#isInReboot) {
      this.#isInReboot = false;
      return;
    }
    if (this.#gate !== null) {
      openGate(this.ram, this.#gate);
      this.#gate = null;
      return;
    }
    this.#qemu.stdin.write(`${GO_ON}\n`);
  }

  /** What the kernels have printed so far. */
  console(): string {
    return existsSync(this.#log) ? readFileSync(this.#log, "utf8") : "";
  }

  /** Powers the machine off and removes its files. Again is fine. */
  close(): void {
    process.removeListener("exit", this.#onExit);
    for (const signal of SIGNALS) process.removeListener(signal, this.#onSignal);
    this.#destroy();
  }

  #destroy(): void {
    this.#qemu?.kill("SIGKILL");
    rmSync(this.#folder, { recursive: true, force: true });
  }

  async #nextReport(what: string): Promise<GuestReport | null> {
    let timer: NodeJS.Timeout | undefined;
    const timeout = new Promise<"timeout">((resolve) => {
      timer = setTimeout(() => resolve("timeout"), REPORT_TIMEOUT_MS);
    });
    try {
      for (;;) {
        const line = await Promise.race([this.#lines.next(), timeout]);
        if (line === "timeout") this.#fail(`no "${what}" within ${REPORT_TIMEOUT_MS / 1000} s`);
        if (line.done) return null;
        if (!line.value.startsWith(REPORT_MARK)) continue;
        return JSON.parse(line.value.slice(REPORT_MARK.length)) as GuestReport;
      }
    } finally {
      clearTimeout(timer);
    }
  }

  #fail(message: string): never {
    const tail = this.console().split("\n").slice(-LOG_TAIL_LINES).join("\n");
    throw new Error(`${message}\n${this.#errors}\nThe console ends with:\n${tail}`);
  }
}

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** Memory rather than a disk, if there is room. */
function folderForRam(): string {
  if (!existsSync("/dev/shm")) return tmpdir();
  const { bavail, bsize } = statfsSync("/dev/shm");
  return bavail * bsize > 2 * RAM_BYTES ? "/dev/shm" : tmpdir();
}

/** Removes what processes that were killed have left. */
function removeLeftovers(parent: string): void {
  for (const name of readdirSync(parent)) {
    if (!name.startsWith(FOLDER_PREFIX)) continue;
    const pid = Number.parseInt(name.slice(FOLDER_PREFIX.length), 10);
    if (!existsSync(`/proc/${pid}`)) rmSync(join(parent, name), { recursive: true, force: true });
  }
}

/** Compiles the guest's program and packs it. */
function writeInitramfs(path: string, program: string, bzImage: string): void {
  const root = repositoryRoot();
  const tsc = join(root, "node_modules", "typescript", "bin", "tsc");
  const project = join(root, "tests", "linux", "guest", "tsconfig.json");
  const compiled = spawnSync(process.execPath, [tsc, "-p", project, "--outDir", program], {
    encoding: "utf8",
  });
  assert.equal(compiled.status, 0, `the guest's program compiles: ${compiled.stdout}`);
  writeFileSync(join(program, "package.json"), '{"type":"module"}');
  const archives = buildInitramfs(
    program,
    "tests/linux/guest/main.js",
    new Map([["boot/bzImage", withGate(readFileSync(bzImage))]]),
  );
  writeFileSync(path, Buffer.concat(archives));
}
