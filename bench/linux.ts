/**
 * (h) Live update on a real Linux in QEMU: PRESERVE_FD and RETRIEVE_FD by folio size, and what the agent adds to them.
 *
 * The processor is emulated, so the times are no machine's; ratios between them are what counts. Both sides of a ratio are of
 * one run: the agent's phase, and the ioctls that the VMM made in it.
 * @module
 */

import type { ProgressEvent } from "../src/agent/control/protocol.ts";
import { assert } from "../src/base/assert.ts";
import { GIB, MIB } from "../src/base/units.ts";
import { decodeProgress, decodeStatus } from "../src/cli/control/agent-results.ts";
import {
  AGENT,
  holdfastIn,
  listening,
  Operator,
  testVm,
  vmEvent,
} from "../tests/linux/agent-host.ts";
import type { Service } from "../tests/linux/guest/orders.ts";
import type { GuestProcess } from "../tests/linux/guest-process.ts";
import { LinuxMachine, programAt, skipReason } from "../tests/linux/rig.ts";
import {
  type BareResult,
  FOLIO_SIZES,
  type FolioSize,
  PART_MARK,
  type TimedPart,
} from "./linux-result.ts";
import { median } from "./measure.ts";
import type { Row } from "./report.ts";

const BYTES = GIB;
/** The first PRESERVE_FD also moves what lies in memory that the kernel keeps for the next one's boot. */
const ROUNDS = 5;
/** Twice the memory, what the kernel keeps free for the next one's boot, processes. */
const RAM_BYTES = 4 * GIB;
const TIMEOUT_MS = 300_000;
/**
 * The agent's part of a phase does not depend on memory, the ioctls' does. The promise is for a host with this much, in 4 KiB
 * folios; huge ones cost next to nothing, so that the agent's part is most of it at any size.
 */
const HOST_GIB = 64;
const OVERHEAD_MAX = 0.05;
const BARE_PROGRAM = "bench/linux-program.ts";
const CALLS = ["PRESERVE_FD", "RETRIEVE_FD"] as const;

/** @returns null when this machine cannot boot one; that is told */
export async function linuxRows(): Promise<Row[] | null> {
  if (skipReason() !== false) return null;
  const bare = await measureBare();
  const phases = [];
  for (const folios of FOLIO_SIZES) phases.push(...(await measureAgent(folios)));
  return [...bareRows(bare), ...phases.map(overheadRow)];
}

async function measureBare(): Promise<BareResult[]> {
  const machine = await LinuxMachine.start({ ramBytes: RAM_BYTES });
  try {
    const before = await machine.spawn(
      programAt(BARE_PROGRAM, "preserve", `${BYTES}`, `${ROUNDS}`),
    );
    await before.line(/^preserved$/, "stdout", TIMEOUT_MS);
    before.write("jump\n");
    await machine.booted(TIMEOUT_MS);
    const after = await machine.run(
      programAt(BARE_PROGRAM, "retrieve", `${BYTES}`),
      {},
      TIMEOUT_MS,
    );
    assert(after.status === 0, `the bare program ended well: ${after.stderr}`);
    return `${before.stdout}${after.stdout}`
      .split("\n")
      .filter((line) => line.startsWith("{"))
      .map((line) => JSON.parse(line) as BareResult);
  } finally {
    machine.close();
  }
}

function bareRows(results: readonly BareResult[]): Row[] {
  const msPerGib = (call: BareResult["call"], folios: FolioSize) =>
    median(
      results.filter((one) => one.call === call && one.folios === folios).map(({ ns }) => ns),
    ) /
    1e6 /
    (BYTES / GIB);
  return CALLS.flatMap((call) =>
    FOLIO_SIZES.map((folios) => ({
      name: `${call}, ${folios} folios`,
      value: `${msPerGib(call, folios).toFixed(1)} ms/GiB`,
      against: "beside 4 KiB folios",
      ratio: msPerGib(call, folios) / msPerGib(call, "4 KiB"),
      limit: "",
      holds: null,
    })),
  );
}

/** A phase of an update by the agent, and what of it the VMM would do without an agent, in nanoseconds. */
interface MeasuredPhase {
  readonly name: "preserve" | "restore";
  readonly folios: FolioSize;
  readonly phaseNs: number;
  readonly ownNs: number;
}

type FinishedPhase = Extract<ProgressEvent, { kind: "phase" }> & { readonly endNs: number };

/** Preserving again and again, in updates that go no further; then restoring, after one that does. */
async function measureAgent(folios: FolioSize): Promise<MeasuredPhase[]> {
  const isHuge = folios === "2 MiB";
  const vm = testVm("vm0", `${BYTES / MIB}M`, ...(isHuge ? ["--huge"] : []));
  const machine = await LinuxMachine.start({
    ramBytes: RAM_BYTES,
    kernelParameters: `transparent_hugepage_shmem=${isHuge ? "advise" : "never"}`,
    services: [AGENT, timed(vm)],
  });
  try {
    await vmEvent(service(machine, "vm0"), "started", TIMEOUT_MS);
    const operator = await Operator.start(machine);
    const preserves: MeasuredPhase[] = [];
    for (let round = 0; round < ROUNDS; round++)
      preserves.push(await preserveOnce(folios, operator, service(machine, "vm0")));
    await machine.spawn(holdfastIn("update"));
    await machine.booted(TIMEOUT_MS);
    return [middle(preserves), await restoreOnce(folios, machine)];
  } finally {
    machine.close();
  }
}

async function preserveOnce(
  folios: FolioSize,
  operator: Operator,
  vm: GuestProcess,
): Promise<MeasuredPhase> {
  const { error, events } = await operator.call("update");
  assert(error?.code === "EIO", `the update ends when its VM is to pause: ${error?.message}`);
  const phase = events.map((event) => decodeProgress(event)).find(isPreserve);
  assert(phase !== undefined, "the agent tells its phases");
  await vmEvent(vm, "unpreserved");
  const [startNs, endNs] = [phase.startNs, phase.endNs];
  // Nothing has jumped: the machine's clock is CLOCK_MONOTONIC.
  const own = parts(vm, "preserve").filter((one) => one.startNs > startNs);
  return { name: "preserve", folios, phaseNs: endNs - startNs, ownNs: total(own) };
}

function isPreserve(event: ProgressEvent | null): event is FinishedPhase {
  return event?.kind === "phase" && event.name === "preserve" && event.endNs !== null;
}

/** From the VMM's connection to the agent until it has its memory. */
async function restoreOnce(folios: FolioSize, machine: LinuxMachine): Promise<MeasuredPhase> {
  const vm = service(machine, "vm0");
  await listening(service(machine, "agent"));
  const retrieved = await vmEvent(vm, "retrieved", TIMEOUT_MS);
  await vm.seen(/"event":"finished"/, TIMEOUT_MS);
  const told = await machine.run(holdfastIn("status", "--json"), {}, TIMEOUT_MS);
  const { phases } = decodeStatus(JSON.parse(told.stdout));
  const boot = phases.find(({ name }) => name === "boot");
  const [connected] = parts(vm, "connect");
  assert(boot !== undefined && connected !== undefined, "all of it was told");
  const startNs = boot.startNs + connected.startNs;
  const ownNs = total(parts(vm, "restore"));
  return { name: "restore", folios, phaseNs: retrieved.atNs - startNs, ownNs };
}

function middle(phases: readonly MeasuredPhase[]): MeasuredPhase {
  const sorted = [...phases].sort((a, b) => a.phaseNs - b.phaseNs);
  return sorted[Math.floor(sorted.length / 2)];
}

function overheadRow({ name, folios, phaseNs, ownNs }: MeasuredPhase): Row {
  const agentNs = phaseNs - ownNs;
  const ofHost = agentNs / (agentNs + ownNs * (HOST_GIB / (BYTES / GIB)));
  const isPromised = folios === "4 KiB";
  const percent = (ofHost * 100).toFixed(1);
  return {
    name: `${name} by the agent, ${folios} folios`,
    value: `${(phaseNs / 1e6).toFixed(1)} ms`,
    against: `of it the VMM's own ${(ownNs / 1e6).toFixed(1)} ms; of ${HOST_GIB} GiB the agent's part is ${percent} %`,
    ratio: phaseNs / ownNs,
    limit: isPromised ? `at most ${OVERHEAD_MAX * 100} % of ${HOST_GIB} GiB` : "",
    holds: isPromised ? ofHost <= OVERHEAD_MAX : null,
  };
}

function timed({ name, argv: [node, ...args] }: Service): Service {
  const [, preload] = programAt("bench/linux-timed.ts");
  const env = { PAUSES_REFUSED: `${ROUNDS}` };
  return { name, argv: [node, "--import", preload, ...args], env };
}

function service(machine: LinuxMachine, name: string): GuestProcess {
  const found = machine.boot.services.get(name);
  assert(found !== undefined, `${name} is a service`);
  return found;
}

function parts({ stderr }: GuestProcess, part: TimedPart["part"]): TimedPart[] {
  return stderr
    .split("\n")
    .filter((line) => line.startsWith(PART_MARK))
    .map((line) => JSON.parse(line.slice(PART_MARK.length)) as TimedPart)
    .filter((one) => one.part === part);
}

function total(timed: readonly TimedPart[]): number {
  return timed.reduce((sum, { startNs, endNs }) => sum + endNs - startNs, 0);
}
