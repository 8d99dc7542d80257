/**
 * A real Linux kernel under QEMU whose first process does what the test orders: it starts programs, sends signals, reads files.
 * A kexec in the guest is a new boot of the same machine, in which that process says hello again.
 *
 * The machine is a q35 by emulation (no KVM needed). Serial line 1 is the kernel's console and goes into a log, which
 * every failure shows the end of; serial line 2 carries orders and events (guest/orders.ts). Its root is a folder of this
 * machine, read-only (guest-root.ts). With `ramFile`, RAM is a file that a test can read while the machine is held.
 * Lifecycle: `start`, then `close`, always. QEMU ends with this process however that ends (setpriv --pdeathsig); files that
 * a killed process has left are removed by the next start.
 * @module
 */
import assert from "node:assert/strict";
import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statfsSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { BUILD_KERNEL_COMMAND, findKernel } from "../../scripts/linux/kernel-cache.ts";
import { BOOT_TOOLS, describeMissing } from "../../scripts/linux/tools.ts";
import { GIB, MIB } from "../../src/base/units.ts";
import { bootCounters } from "../../src/linux/boot-counter.ts";
import { loadFfi } from "../../src/linux/ffi.ts";
import { skipUnless } from "../support/skip.ts";
import {
  type GuestLine,
  MARK,
  ORDER_BYTES_MAX,
  type Orders,
  PROGRAM_FOLDER,
  type Program,
  SERVICES_PATH,
  type Service,
} from "./guest/orders.ts";
import { GuestProcess, type ProcessMachine } from "./guest-process.ts";
import { emptyInitramfs, INIT_PATH, writeGuestRoot } from "./guest-root.ts";

/** RAM of a machine that is not told otherwise. */
export const RAM_BYTES = GIB;
/** Longest time to whatever is waited for; ten times what it takes on two busy cores. */
const TIMEOUT_MS = 120_000;
const LOG_TAIL_LINES = 60;
const TRANSCRIPT_LINES = 40;
const TRANSCRIPT_COLUMNS = 500;
const FOLDER_PREFIX = "holdfast-linux-";
const ROOT_TAG = "root";

/** For the `skip` of tests that boot a real kernel, as {@link skipUnless}. */
export function skipReason(): string | false {
  return skipUnless("a real Linux kernel", missing());
}

function missing(): string | null {
  if (process.platform !== "linux" || process.arch !== "x64") return "needs Linux on x86-64";
  const tools = describeMissing(BOOT_TOOLS);
  if (tools !== null) return tools;
  return findKernel() === null ? `no kernel: ${BUILD_KERNEL_COMMAND}` : null;
}

export interface MachineOptions {
  /** Default: {@link RAM_BYTES}. */
  readonly ramBytes?: number;
  /** Whether RAM is a file, {@link LinuxMachine.ram}; offsets are addresses in machines of at most 2 GiB. */
  readonly ramFile?: boolean;
  /** Added to the kernel's command line, behind `liveupdate=on`. */
  readonly kernelParameters?: string;
  /** Added to `-M q35`: "kernel-irqchip=split". */
  readonly machine?: string;
  /** QEMU's arguments for more hardware. */
  readonly devices?: readonly string[];
  /** What the guest's first process starts in every boot. */
  readonly services?: readonly Service[];
  /** Files of the guest's root by their paths, from the kernel that it boots. */
  readonly files?: (bzImage: Buffer) => ReadonlyMap<string, string | Uint8Array>;
}

/** A kernel whose first process has said hello. */
export interface Boot {
  /** 1 is the cold one. */
  readonly number: number;
  readonly release: string;
  readonly commandLine: string;
  /** Seconds from this kernel's start to its first process's hello. */
  readonly uptime: number;
  readonly services: ReadonlyMap<string, GuestProcess>;
}

/** What a program that was run to its end has left. */
export interface Outcome {
  readonly status: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** An order that the guest's first process could not carry out. */
export class OrderError extends Error {
  readonly code: string;
  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}

type Hello = Extract<GuestLine, { event: "hello" }>;
type Answer = Extract<GuestLine, { event: "answer" | "refused" }>;

export class LinuxMachine implements ProcessMachine {
  /** Path of the machine's RAM, with `ramFile`. */
  readonly ram: string;
  /** The guest's root, on this machine. */
  readonly root: string;
  readonly #folder: string;
  readonly #log: string;
  readonly #qemu: ChildProcessWithoutNullStreams;
  readonly #options: MachineOptions;
  #errors = "";
  /** The end of what went over the serial line, both ways. */
  readonly #transcript: string[] = [];
  readonly #boots: Boot[] = [];
  /** How many of them {@link booted} has told. */
  #bootsTold = 0;
  readonly #processes = new Map<number, GuestProcess>();
  /** By order; null until it comes. */
  readonly #answers = new Map<number, Answer | null>();
  #orders = 0;
  #isEnded = false;
  /** What is waited for; each looks whether it is there whenever something happens. */
  readonly #waiting = new Set<() => void>();
  readonly #onExit = () => this.#destroy();
  readonly #onSignal = (signal: NodeJS.Signals) => {
    this.#destroy();
    process.kill(process.pid, signal);
  };

  private constructor(folder: string, options: MachineOptions) {
    this.#folder = folder;
    this.#options = options;
    this.ram = join(folder, "ram");
    this.root = join(folder, "root");
    this.#log = join(folder, "console.log");
    process.on("exit", this.#onExit);
    for (const signal of SIGNALS) process.once(signal, this.#onSignal);
    const kernel = findKernel();
    assert(kernel !== null, "skipReason() said that there is a kernel");
    this.#makeRoot(readFileSync(kernel.bzImage));
    this.#qemu = spawn("setpriv", [
      ...["--pdeathsig", "KILL", "qemu-system-x86_64"],
      ...this.#hardware(),
      ...["-kernel", kernel.bzImage, "-append", this.#commandLine()],
    ]);
    this.#qemu.stderr.on("data", (chunk: Buffer) => {
      this.#errors += chunk.toString();
    });
    // A guest that is gone takes no orders; whoever waits for the answer is told.
    this.#qemu.stdin.on("error", () => undefined);
    createInterface({ input: this.#qemu.stdout }).on("line", (line) => this.#hear(line));
    this.#qemu.once("close", () => {
      this.#isEnded = true;
      this.#endProcesses();
      this.#look();
    });
  }

  /** Powers a machine on and waits for its first process. */
  static async start(options: MachineOptions = {}): Promise<LinuxMachine> {
    const ramBytes = options.ramBytes ?? RAM_BYTES;
    const parent = folderFor(options.ramFile === true ? ramBytes : 0);
    removeLeftovers(parent);
    const folder = mkdtempSync(join(parent, `${FOLDER_PREFIX}${process.pid}-`));
    const machine = new LinuxMachine(folder, options);
    try {
      await machine.booted();
    } catch (error) {
      machine.close();
      throw error;
    }
    return machine;
  }

  /** Waits for the next boot: after a jump that was begun. The first one is {@link start}'s. */
  async booted(timeoutMs?: number): Promise<Boot> {
    const number = this.#bootsTold + 1;
    const find = () => this.#boots[number - 1] ?? null;
    const boot = await this.until(`hello of boot ${number}`, find, timeoutMs);
    this.#bootsTold = number;
    return boot;
  }

  /** The kernel that runs, or has run last. */
  get boot(): Boot {
    const boot = this.#boots.at(-1);
    assert(boot !== undefined, "start() has waited for the first");
    return boot;
  }

  /** Waits until the machine has ended, by reset, power off or panic. @throws {Error} when it boots once more instead */
  async ended(timeoutMs?: number): Promise<void> {
    const boots = this.#boots.length;
    const find = () => {
      if (this.#boots.length > boots) this.fail("the guest booted again instead of ending");
      return this.#isEnded || null;
    };
    await this.until("end of the machine", find, timeoutMs);
  }

  /** Starts a program in the guest. @param argv - "node" and a path below {@link PROGRAM_FOLDER}, mostly */
  async spawn(argv: readonly string[], options: Omit<Program, "argv"> = {}): Promise<GuestProcess> {
    const pid = await this.order("spawn", { argv, ...options });
    const process = this.#processes.get(pid);
    assert(process !== undefined, "made when the answer came");
    return process;
  }

  /** Runs a program in the guest to its end. */
  async run(
    argv: readonly string[],
    options: Omit<Program, "argv"> = {},
    timeoutMs?: number,
  ): Promise<Outcome> {
    const process = await this.spawn(argv, options);
    const { code, signal } = await process.ended(timeoutMs);
    return { status: code, signal, stdout: process.stdout, stderr: process.stderr };
  }

  /** Orders something and waits until it is done. @throws {OrderError} with the errno of what failed */
  async order<K extends keyof Orders>(
    name: K,
    ...args: Parameters<Orders[K]>
  ): Promise<ReturnType<Orders[K]>> {
    const order = this.#send(name, args);
    this.#answers.set(order, null);
    const what = `answer to ${name} ${JSON.stringify(args)}`;
    const answer = await this.until(what, () => this.#answers.get(order) ?? null);
    this.#answers.delete(order);
    if (answer.event === "refused")
      throw new OrderError(answer.code, `${name} ${JSON.stringify(args)}: ${answer.message}`);
    return answer.result as ReturnType<Orders[K]>;
  }

  /** Orders something whose answer may not come any more, because it ends the machine. */
  send<K extends keyof Orders>(name: K, ...args: Parameters<Orders[K]>): void {
    this.#send(name, args);
  }

  async readFile(path: string): Promise<string> {
    return Buffer.from(await this.order("readFile", path), "base64").toString();
  }

  async writeFile(path: string, text: string): Promise<void> {
    await this.order("writeFile", path, Buffer.from(text).toString("base64"));
  }

  /** Puts a file into the guest's root, which it sees in its next boot for certain, and now if it never looked for it. */
  put(path: string, content: string | Uint8Array): void {
    const file = join(this.root, path);
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, content);
  }

  /** Stops the whole machine, so that its memory is still. */
  hold(): void {
    this.#qemu.kill("SIGSTOP");
  }

  letGo(): void {
    this.#qemu.kill("SIGCONT");
  }

  get isEnded(): boolean {
    return this.#isEnded;
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

  /**
   * Waits for something that the guest does.
   *
   * @param find - looks whether it has happened, after every event; null while it has not; may throw
   * @throws {Error} with the ends of console and serial line when it does not come in time or cannot come any more
   */
  until<T>(what: string, find: () => T | null, timeoutMs: number = TIMEOUT_MS): Promise<T> {
    return new Promise((resolve, reject) => {
      const settle = (action: () => void) => {
        this.#waiting.delete(look);
        clearTimeout(timer);
        action();
      };
      const look = () => {
        try {
          const found = find();
          if (found !== null) settle(() => resolve(found));
          else if (this.#isEnded) this.fail(`the machine ended: no ${what}`);
        } catch (error) {
          settle(() => reject(error));
        }
      };
      const timer = setTimeout(() => {
        settle(() => reject(this.#failure(`no ${what} within ${timeoutMs / 1000} s`)));
      }, timeoutMs);
      this.#waiting.add(look);
      look();
    });
  }

  /** Fails with the ends of console and serial line. */
  fail(message: string): never {
    throw this.#failure(message);
  }

  #failure(message: string): Error {
    const tail = this.console().split("\n").slice(-LOG_TAIL_LINES).join("\n");
    return new Error(
      `${message}\n${this.#errors}\nThe console ends with:\n${tail}\n` +
        `The serial line ends with:\n${this.#transcript.join("\n")}`,
    );
  }

  #hardware(): string[] {
    const { ramBytes = RAM_BYTES, ramFile = false, machine, devices = [] } = this.#options;
    const size = `${ramBytes / MIB}M`;
    const ram = ramFile
      ? `memory-backend-file,id=ram,size=${size},mem-path=${this.ram},share=on`
      : `memory-backend-ram,id=ram,size=${size}`;
    const q35 = ["q35", "memory-backend=ram", ...(machine === undefined ? [] : [machine])];
    return [
      ...["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", size],
      ...["-M", q35.join(","), "-object", ram, "-nodefaults", "-nographic", "-no-reboot"],
      ...["-serial", `file:${this.#log}`, "-serial", "stdio"],
      ...devices,
      ...["-fsdev", `local,id=root,path=${this.root},security_model=none,readonly=on`],
      ...["-device", `virtio-9p-pci,fsdev=root,mount_tag=${ROOT_TAG}`],
    ];
  }

  #commandLine(): string {
    return [
      "console=ttyS0 printk.time=1 panic=-1 liveupdate=on",
      tscParameters(),
      // What has been read stays in the guest's memory: nobody changes it there.
      `root=${ROOT_TAG} rootfstype=9p rootflags=trans=virtio,version=9p2000.L,cache=loose,msize=262144`,
      `ro init=${INIT_PATH}`,
      this.#options.kernelParameters ?? "",
    ]
      .join(" ")
      .trim();
  }

  #makeRoot(bzImage: Buffer): void {
    const { services = [], files = () => new Map() } = this.#options;
    mkdirSync(this.root);
    writeGuestRoot(this.root);
    // Where a distribution has them.
    const release = releaseOf(bzImage);
    this.put(`/boot/vmlinuz-${release}`, bzImage);
    this.put(`/boot/initrd.img-${release}`, emptyInitramfs());
    this.put(SERVICES_PATH, JSON.stringify(services));
    for (const [path, content] of files(bzImage)) this.put(path, content);
  }

  /** @returns its number */
  #send(name: keyof Orders, args: readonly unknown[]): number {
    const order = ++this.#orders;
    const line = `${MARK}${JSON.stringify({ order, do: name, with: args })}`;
    assert(line.length < ORDER_BYTES_MAX, `an order of ${line.length} bytes; put() has no limit`);
    this.#note("> ", line);
    this.#qemu.stdin.write(`${line}\n`);
    return order;
  }

  #hear(text: string): void {
    this.#note("< ", text);
    if (!text.startsWith(MARK)) return;
    let line: GuestLine;
    try {
      line = JSON.parse(text.slice(MARK.length));
    } catch {
      // Half a line of a kernel that was replaced while it wrote, or a broken serial line: what misses it says so.
      return;
    }
    this.#take(line);
    this.#look();
  }

  #take(line: GuestLine): void {
    switch (line.event) {
      case "hello":
        this.#endProcesses();
        this.#boots.push(this.#bootOf(line));
        return;
      case "answer":
      case "refused":
        if (this.#answers.has(line.order)) this.#answers.set(line.order, line);
        return;
      case "started":
        this.#addProcess(line.pid, line.argv);
        return;
      case "output": {
        const process = this.#processes.get(line.pid);
        if (process !== undefined) process[line.stream] += line.text;
        return;
      }
      case "exit": {
        const process = this.#processes.get(line.pid);
        if (process !== undefined)
          process.end = { code: line.code, signal: line.signal, withKernel: false };
        return;
      }
    }
  }

  #bootOf({ release, commandLine, uptime, services }: Hello): Boot {
    const processes = Object.entries(services).map(([name, pid]): [string, GuestProcess] => [
      name,
      this.#addProcess(pid, [name]),
    ]);
    const number = this.#boots.length + 1;
    return { number, release, commandLine, uptime, services: new Map(processes) };
  }

  #addProcess(pid: number, argv: readonly string[]): GuestProcess {
    const process = new GuestProcess(this, pid, argv.join(" "));
    this.#processes.set(pid, process);
    return process;
  }

  /** Every process ends with its kernel. */
  #endProcesses(): void {
    for (const process of this.#processes.values())
      process.end ??= { code: null, signal: null, withKernel: true };
    this.#processes.clear();
  }

  #look(): void {
    for (const look of [...this.#waiting]) look();
  }

  #note(direction: string, line: string): void {
    this.#transcript.push(`${direction}${line.slice(0, TRANSCRIPT_COLUMNS)}`);
    if (this.#transcript.length > TRANSCRIPT_LINES) this.#transcript.shift();
  }

  #destroy(): void {
    this.#qemu?.kill("SIGKILL");
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** Memory rather than a disk, if there is room for twice as much. */
function folderFor(bytes: number): string {
  if (!existsSync("/dev/shm")) return tmpdir();
  const { bavail, bsize } = statfsSync("/dev/shm");
  return bavail * bsize > 2 * (bytes + ROOT_BYTES) ? "/dev/shm" : tmpdir();
}

/**
 * The emulated processor's TSC is this machine's. Where the guest measures its rate by itself it is wrong whenever QEMU has to
 * wait for a processor, and the clock that goes on through a kexec is lost.
 */
function tscParameters(): string {
  const [counter] = bootCounters(loadFfi());
  if (counter.name !== "tsc") return "";
  const start = { count: counter.read(), ns: process.hrtime.bigint() };
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, TSC_MEASURED_MS);
  const ns = Number(process.hrtime.bigint() - start.ns);
  const khz = Math.round(((counter.read() - start.count) / ns) * 1e6);
  return `tsc_early_khz=${khz} tsc=reliable`;
}

const TSC_MEASURED_MS = 50;

/** Of the guest's root, roughly: Node is most of it. */
const ROOT_BYTES = 128 * MIB;

/** Removes what processes that were killed have left. */
function removeLeftovers(parent: string): void {
  for (const name of readdirSync(parent)) {
    if (!name.startsWith(FOLDER_PREFIX)) continue;
    const pid = Number.parseInt(name.slice(FOLDER_PREFIX.length), 10);
    if (!existsSync(`/proc/${pid}`)) rmSync(join(parent, name), { recursive: true, force: true });
  }
}

/**
 * `uname -r` of a kernel image.
 * Source: Linux 7.3 Documentation/arch/x86/boot.rst (kernel_version)
 */
export function releaseOf(bzImage: Buffer): string {
  const start = bzImage.readUInt16LE(0x20e) + 0x200;
  const end = bzImage.indexOf(0, start);
  return bzImage.toString("latin1", start, end).split(" ")[0];
}

/** The command line of a program of this repository: `programAt("src/cli/main.ts", "status")`. */
export function programAt(source: string, ...args: readonly string[]): string[] {
  return ["node", join(PROGRAM_FOLDER, source.replace(/\.ts$/, ".js")), ...args];
}
