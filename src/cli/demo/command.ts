/**
 * `holdfast demo`: a host that replaces its own kernel while its VMs keep their memory and their NICs keep writing.
 * @module
 */
import { constants } from "node:os";
import { formatBytes } from "../../base/units.ts";
import { parse } from "../arguments.ts";
import type { Command } from "../command.ts";
import { UsageError } from "../usage-error.ts";
import { parseCount } from "../values.ts";
import { version } from "../version.ts";
import type { DemoEvent } from "./events.ts";
import { checkImagePath } from "./image-saver.ts";
import { MACHINE_KINDS } from "./machine-kinds.ts";
import { parseMachine, parseMemory } from "./machine-values.ts";
import { type DemoOptions, runDemo } from "./machines.ts";
import { Narrator, table } from "./render.ts";
import { FRAMES_IN_JUMPS_EXPECTED, judge } from "./result.ts";

const DEFAULTS = { updates: 3, vms: 2, memory: "256M", rate: 5000 };
/** Plus the signal's number, as shells have it. */
const INTERRUPTED = 128;

const HELP = `Replaces the kernel of a hypervisor host while its virtual machines keep their memory and
their assigned network cards keep writing into it; checks every frame and every byte.

The host is built in this process: memory, a VT-d remapping unit, PCI, and NICs that run in a
thread of their own and never wait for a kernel. Each kernel is a thread that ends at its kexec.
Memory that nobody touches costs nothing, so VMs may be larger than this computer.

Usage: holdfast demo [OPTIONS]

Options:
  --machine NAME   embedded (default), or qemu: the same kernels on the VT-d unit and the network
                   cards of QEMU's q35. It must be installed; no frame is lost on the way to a
                   card, so a rate that is too high is only slower
  --updates N      Live updates to perform, 0 to 1000 (default ${DEFAULTS.updates})
  --vms N          Virtual machines, each with a NIC, 1 to 16 (default ${DEFAULTS.vms})
  --memory SIZE    Memory of each VM: 8M to 1T, a multiple of 4K (default ${DEFAULTS.memory})
  --rate N         Frames per second sent to each NIC, 1 to 100000 (default ${DEFAULTS.rate}). One core
                   manages about 20000 with 2 VMs; above that frames are dropped, and reported
  --seed N         One thread and virtual time, replayed exactly by the same seed (0 to 4294967295)
  --save-image FILE  Write memory as it is at each jump, an ELF core for "holdfast inspect"; each
                   replaces the one before unless FILE has %u in it, which becomes the
                   update's number. The next kernel waits for it: blackouts are longer
  --json           Print one JSON object with the result, and nothing else, on standard output
  --help           Show this text

"copied" (guestBytesCopied) counts bytes of guest memory that lie elsewhere after an update than
before it, which is what copying would show as. "in jumps" (duringJump) counts frames that came
into guest memory while no kernel existed: none for a VM is a failure if ${FRAMES_IN_JUMPS_EXPECTED} or more were due.

Exit status: 0 nothing was lost, corrupt, copied, leaked or faulted; 1 something was, and it is
named; 2 the options are wrong; 130, 143 interrupted.`;

export const demo: Command = {
  name: "demo",
  summary: "Live-update a host with running VMs, on the embedded machine or on QEMU",
  help: HELP,
  async run(args) {
    const { options, json } = parseOptions(args);
    // One thread has no time for a handler: there the signal's default ends it at once.
    if (options.seed !== null) return perform(options, json, new AbortController().signal);
    const interrupted = new AbortController();
    let status = 0;
    const interrupt = (signal: NodeJS.Signals) => {
      status = INTERRUPTED + constants.signals[signal];
      interrupted.abort();
    };
    process.once("SIGINT", interrupt);
    process.once("SIGTERM", interrupt);
    try {
      const result = await perform(options, json, interrupted.signal);
      return interrupted.signal.aborted ? status : result;
    } finally {
      process.off("SIGINT", interrupt);
      process.off("SIGTERM", interrupt);
    }
  },
};

function parseOptions(args: readonly string[]): { options: DemoOptions; json: boolean } {
  const values = readArgs(args);
  const memoryBytes = parseMemory(values.memory);
  const machine = parseMachine(values.machine);
  if (machine === "qemu" && values.seed !== undefined)
    throw new UsageError("--seed: QEMU's time cannot be replayed");
  const saveImage = values["save-image"] ?? null;
  if (saveImage !== null) checkImagePath("--save-image", saveImage);
  return {
    json: values.json,
    options: {
      machine,
      updates: parseCount("--updates", values.updates, 0, 1000),
      vms: parseCount("--vms", values.vms, 1, 16),
      memoryBytes,
      framesPerSecond: parseCount("--rate", values.rate, 1, 100_000),
      saveImage,
      seed: values.seed === undefined ? null : parseCount("--seed", values.seed, 0, 2 ** 32 - 1),
    },
  };
}

function readArgs(args: readonly string[]) {
  return parse({
    args,
    options: {
      machine: { type: "string", default: MACHINE_KINDS[0] },
      updates: { type: "string", default: String(DEFAULTS.updates) },
      vms: { type: "string", default: String(DEFAULTS.vms) },
      memory: { type: "string", default: DEFAULTS.memory },
      rate: { type: "string", default: String(DEFAULTS.rate) },
      seed: { type: "string" },
      "save-image": { type: "string" },
      json: { type: "boolean", default: false },
    },
    allowPositionals: false,
  }).values;
}

async function perform(options: DemoOptions, json: boolean, signal: AbortSignal): Promise<number> {
  const show = (line: string) => {
    if (!json) console.log(line);
  };
  const events: DemoEvent[] = [];
  const narrator = new Narrator();
  const { updates, vms, memoryBytes, framesPerSecond } = options;
  show(
    `Holdfast ${version()}: ${vms} VMs of ${formatBytes(memoryBytes)}, ${framesPerSecond} frames/s to each`,
  );
  const run = await runDemo(
    options,
    version(),
    {
      event(event) {
        events.push(event);
        for (const line of narrator.event(event)) show(line);
      },
      log(line) {
        show(`  kernel    ${line}`);
      },
      jump(times, frames) {
        for (const line of narrator.jump(times, frames)) show(line);
      },
    },
    signal,
  );
  if (signal.aborted) {
    console.error("holdfast: interrupted");
    return 1;
  }
  const verdict = judge({
    ...run,
    place: options.machine ?? "embedded",
    requested: { updates, vms, framesPerSecond },
    events,
  });
  if (json) {
    console.log(JSON.stringify(verdict.result));
    for (const problem of verdict.problems) console.error(`holdfast: ${problem}`);
  } else {
    show("");
    show(table(verdict));
    if (run.hashes !== null) {
      if (process.stdout.isTTY) process.stderr.write("hashing all memory that was used ...\r");
      const { log, memory } = run.hashes();
      show(`replay: events ${log}, memory ${memory}`);
    }
  }
  return verdict.problems.length === 0 ? 0 : 1;
}
