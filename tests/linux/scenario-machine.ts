/**
 * A Linux that does a scenario, one step at a time, with its memory still in between: the guest's program reports, the whole
 * machine is held, the test looks into RAM, and lets it go on.
 *
 * The kernel that is jumped into waits at the gate (gate.ts): another moment to look.
 * @module
 */
import { closeSync, openSync, readSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { LUO_SER } from "../../src/abi/luo.ts";
import { findGate, type KhoData, openGate, readKhoData, withGate } from "./gate.ts";
import { GATED_KERNEL, type GuestReport, REPORT_MARK, type Scenario } from "./guest/reports.ts";
import type { GuestProcess } from "./guest-process.ts";
import { LinuxMachine, programAt } from "./rig.ts";

const TIMEOUT_MS = 120_000;
const FREEZE_POLL_MS = 5;
const GATE_POLL_MS = 50;
const SERVICE = "scenario";

/** What the machine waits for. */
type Wait = "report" | "reboot" | "gate" | "boot";

export class ScenarioMachine {
  /** Path of its RAM. */
  readonly ram: string;
  readonly #machine: LinuxMachine;
  #program: GuestProcess;
  #waitsFor: Wait = "report";
  #gate = 0;

  private constructor(machine: LinuxMachine) {
    this.#machine = machine;
    this.ram = machine.ram;
    this.#program = programOf(machine);
  }

  /** Powers a machine on. */
  static async start(scenario: Scenario): Promise<ScenarioMachine> {
    const machine = await LinuxMachine.start({
      ramFile: true,
      services: [
        { name: SERVICE, argv: programAt("tests/linux/guest/scenario-program.ts", scenario) },
      ],
      files: (bzImage) => new Map([[GATED_KERNEL, withGate(bzImage)]]),
    });
    return new ScenarioMachine(machine);
  }

  /**
   * Waits for the program's next report, which must be of this stage, and holds the machine until {@link goOn}.
   *
   * @throws {Error} with the end of the console's log when another comes, none comes in time, or the guest ends
   */
  async next<S extends GuestReport["stage"]>(
    stage: S,
  ): Promise<Extract<GuestReport, { stage: S }>> {
    const machine = this.#machine;
    if (this.#waitsFor === "boot") {
      await machine.booted();
      this.#program = programOf(machine);
    }
    const { input } = await this.#program.line(new RegExp(`^${REPORT_MARK}`));
    const report = JSON.parse(input.slice(REPORT_MARK.length)) as GuestReport;
    if (report.stage === "failed")
      machine.fail(`the guest failed before "${stage}": ${report.error}`);
    if (report.stage !== stage)
      machine.fail(`the guest reported "${report.stage}", not "${stage}"`);
    machine.hold();
    this.#waitsFor = "report";
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
    try {
      await this.#poll("freeze", FREEZE_POLL_MS, () => {
        readSync(fd, word, 0, 8, luoPa + LUO_SER.offset.sessions_pa);
        return word.readBigUInt64LE() === 0n ? null : true;
      });
    } finally {
      closeSync(fd);
    }
    this.#machine.hold();
    if (findGate(this.ram) !== null)
      this.#machine.fail("the kernel had jumped before it was stopped");
    this.#waitsFor = "reboot";
  }

  /**
   * Waits until the old kernel has jumped and the new one waits at the gate; it passes by {@link goOn}.
   *
   * @returns what the old kernel has told it
   */
  async jumped(): Promise<KhoData> {
    this.#gate = await this.#poll("jump", GATE_POLL_MS, () => findGate(this.ram));
    this.#machine.hold();
    this.#waitsFor = "gate";
    return readKhoData(this.ram, this.#gate);
  }

  /** Waits until the machine has ended, by reset or panic. */
  ended(): Promise<void> {
    return this.#machine.ended();
  }

  /** Lets the guest take its next step. */
  goOn(): void {
    this.#machine.letGo();
    if (this.#waitsFor === "report") this.#program.write("\n");
    if (this.#waitsFor !== "gate") return;
    openGate(this.ram, this.#gate);
    this.#waitsFor = "boot";
  }

  /** What the kernels have printed so far. */
  console(): string {
    return this.#machine.console();
  }

  /** Powers the machine off and removes its files. Again is fine. */
  close(): void {
    this.#machine.close();
  }

  async #poll<T>(what: string, everyMs: number, look: () => T | null): Promise<T> {
    for (const end = Date.now() + TIMEOUT_MS; ; await sleep(everyMs)) {
      const found = look();
      if (found !== null) return found;
      if (this.#machine.isEnded) this.#machine.fail(`the guest ended before its ${what}`);
      if (Date.now() > end) this.#machine.fail(`no ${what} within ${TIMEOUT_MS / 1000} s`);
    }
  }
}

function programOf({ boot }: LinuxMachine): GuestProcess {
  const program = boot.services.get(SERVICE);
  if (program === undefined) throw new Error(`the guest has not started ${SERVICE}`);
  return program;
}
