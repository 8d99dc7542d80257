/**
 * A monotonic clock that goes on through a kexec.
 *
 * Why: CLOCK_MONOTONIC begins anew in every kernel, and an update is measured across two of them. A counter that a kexec
 * does not reset bridges the gap: the kernel that is loaded gets a moment of both on its command line.
 * Lifecycle: 1. the first process of a boot adds what the counter has done since that moment; 2. it leaves the sum in a
 *   file, so that all processes of that boot have one clock; 3. when the next kernel is loaded, `parameter` goes with it.
 * Accuracy: within a boot it is CLOCK_MONOTONIC. Over a jump by the TSC it is off by the error of the frequency, measured against
 *   CLOCK_MONOTONIC (0.3 ppm over the shortest time, 0.001 ppm over 10 s, on an idle machine), times the time since the load:
 *   18 µs a minute at the worst. By CLOCK_REALTIME, which is set from the RTC at boot, it is off by up to a second and more.
 * Not trusted: the command line and the file. What is wrong there gives a clock that begins with this boot.
 * @module
 */
import { linkSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { isIndex } from "../base/units.ts";
import type { BootCounter } from "./boot-counter.ts";
import { makeFolder } from "./folder.ts";

const PARAMETER = "holdfast.clock";
const PARAMETER_PATTERN = /(^|\s)holdfast\.clock=(\S*)/g;
/** Counter, what it read, what the clock read then, counts per second. */
const VALUE_PATTERN = /^(tsc|realtime):(\d{1,20}):(\d{1,16}):(\d{1,12})$/;
const FILE_NAME = "clock";
/** A frequency is measured over at least this long. */
const BASELINE_NS = 200e6;
/** Pairs of reads of which the closest counts. */
const READS = 16;
/** No counter of any machine is slower or faster. */
const HZ_MIN = 1e6;
const HZ_MAX = 1e11;
/** By how much clocks of one machine may differ over a boot: an RTC counts seconds, frequencies are adjusted. */
const SLACK_NS = 2e9;
const SLACK_RATIO = 1e-3;

/** One moment, by both. */
interface Moment {
  readonly count: number;
  readonly monotonicNs: number;
}

export interface ClockOptions {
  /** Best first. */
  readonly counters: readonly [BootCounter, ...BootCounter[]];
  /** CLOCK_MONOTONIC. */
  readonly monotonicNs: () => number;
  /** Blocks. */
  readonly sleep: (timeoutNs: number) => void;
  /** Where the processes of this boot agree; made when it is missing, but not what it is in. */
  readonly folder: string;
  /** /proc/cmdline */
  readonly commandLine: string;
  /** /proc/sys/kernel/random/boot_id */
  readonly bootId: string;
}

export class ContinuousClock {
  readonly #counter: BootCounter;
  readonly #monotonicNs: () => number;
  readonly #sleep: (timeoutNs: number) => void;
  readonly #first: Moment;
  /** What this clock read when CLOCK_MONOTONIC was 0; 0 when it begins with this boot. */
  readonly bootedAtNs: number;

  constructor(options: ClockOptions) {
    const { counters, monotonicNs, sleep, folder, commandLine, bootId } = options;
    this.#counter = counters[0];
    this.#monotonicNs = monotonicNs;
    this.#sleep = sleep;
    this.#first = moment(this.#counter, monotonicNs);
    this.bootedAtNs = agree(folder, bootId, () =>
      Math.round(bridgedNs(commandLine, counters, monotonicNs)),
    );
  }

  /** What carries this clock over the next kexec. */
  get source(): BootCounter["name"] {
    return this.#counter.name;
  }

  nowNs(): number {
    return this.bootedAtNs + this.#monotonicNs();
  }

  /**
   * For the next kernel's command line. Its frequency is measured since this clock was made; where that is too short a
   * time, it waits until it is not.
   */
  parameter(): string {
    const { name } = this.#counter;
    const restNs = this.#first.monotonicNs + BASELINE_NS - this.#monotonicNs();
    // Nanoseconds need no measurement.
    if (name === "tsc" && restNs > 0) this.#sleep(restNs);
    const now = moment(this.#counter, this.#monotonicNs);
    const seconds = (now.monotonicNs - this.#first.monotonicNs) / 1e9;
    const hz = name === "tsc" ? (now.count - this.#first.count) / seconds : 1e9;
    const clockNs = Math.round(this.bootedAtNs + now.monotonicNs);
    return `${PARAMETER}=${name}:${BigInt(Math.round(now.count))}:${clockNs}:${Math.round(hz)}`;
  }
}

/** A command line without the clock's parameter. */
export function hideClock(commandLine: string): string {
  return commandLine.replace(PARAMETER_PATTERN, "").trimStart();
}

/** The narrowest of some reads of the counter around CLOCK_MONOTONIC: nothing interrupted that one. */
function moment(counter: BootCounter, monotonicNs: () => number): Moment {
  let best: Moment = { count: 0, monotonicNs: 0 };
  let narrowest = Number.POSITIVE_INFINITY;
  for (let i = 0; i < READS; i++) {
    const before = counter.read();
    const now = monotonicNs();
    const width = counter.read() - before;
    if (width < 0 || width >= narrowest) continue;
    narrowest = width;
    best = { count: before + width / 2, monotonicNs: now };
  }
  return best;
}

/** What the clock of the kernel before read when this one's began; 0 when the command line does not tell. */
function bridgedNs(
  commandLine: string,
  counters: readonly BootCounter[],
  monotonicNs: () => number,
): number {
  const value = [...commandLine.matchAll(PARAMETER_PATTERN)].at(-1)?.[2] ?? "";
  const [, name, ...numbers] = VALUE_PATTERN.exec(value) ?? [];
  const counter = counters.find((one) => one.name === name);
  if (counter === undefined) return 0;
  const [countThen, clockThenNs, hz] = numbers.map(Number);
  if (!(hz >= HZ_MIN && hz <= HZ_MAX) || !Number.isSafeInteger(clockThenNs)) return 0;
  const now = moment(counter, monotonicNs);
  const elapsedNs = ((now.count - countThen) / hz) * 1e9;
  // That moment was before this boot. One that was not is of another machine, or from before a reset.
  if (elapsedNs < now.monotonicNs * (1 - SLACK_RATIO) - SLACK_NS) return 0;
  const bootedAtNs = clockThenNs + elapsedNs - now.monotonicNs;
  return isIndex(Math.round(bootedAtNs), Number.MAX_SAFE_INTEGER) ? bootedAtNs : 0;
}

/**
 * The value that the first process of this boot has found. One that may not write there (a VMM without privileges, before
 * the agent has started) has its own, which differs by microseconds.
 */
function agree(folder: string, bootId: string, find: () => number): number {
  const path = join(folder, FILE_NAME);
  const known = readAgreed(path, bootId);
  if (known !== null) return known;
  const bootedAtNs = find();
  const own = `${path}.${process.pid}`;
  try {
    makeFolder(folder);
    writeFileSync(own, JSON.stringify({ bootId, bootedAtNs }), { flag: "wx", mode: 0o644 });
  } catch (error) {
    // EEXIST: of a process with this one's number, which was killed here or is of another pid namespace.
    if (isNodeError(error, ["EACCES", "EROFS", "ENOENT", "ENOSPC", "EEXIST"])) return bootedAtNs;
    throw error;
  }
  try {
    linkSync(own, path);
    return bootedAtNs;
  } catch (error) {
    if (!isNodeError(error, ["EEXIST"])) throw error;
    // Another process was first, or the file is of another boot.
    const theirs = readAgreed(path, bootId);
    if (theirs === null) renameSync(own, path);
    return theirs ?? bootedAtNs;
  } finally {
    rmSync(own, { force: true });
  }
}

/** Null when there is none of this boot. */
function readAgreed(path: string, bootId: string): number | null {
  try {
    const value: unknown = JSON.parse(readFileSync(path, "utf8"));
    if (typeof value !== "object" || value === null) return null;
    const { bootId: boot, bootedAtNs } = value as Record<string, unknown>;
    return boot === bootId && isIndex(bootedAtNs, Number.MAX_SAFE_INTEGER) ? bootedAtNs : null;
  } catch (error) {
    if (error instanceof SyntaxError || isNodeError(error, ["ENOENT", "EACCES"])) return null;
    throw error;
  }
}

function isNodeError(error: unknown, codes: readonly string[]): boolean {
  return error instanceof Error && "code" in error && codes.includes(String(error.code));
}
