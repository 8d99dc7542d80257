/** `holdfast testvm`: a VM process to try live updates with. @module */
import { setImmediate, setTimeout } from "node:timers/promises";
import { VM_NAME } from "../../agent/control/protocol.ts";
import { assert } from "../../base/assert.ts";
import { isKernelError } from "../../base/errno.ts";
import { formatBytes, hex, PAGE_SIZE, TIB } from "../../base/units.ts";
import { counted } from "../../inspect/text.ts";
import { loadFfi } from "../../linux/ffi.ts";
import { LinuxHost } from "../../linux/linux-host.ts";
import { MemoryMapping } from "../../linux/memory-mapping.ts";
import { UnixEndpoint } from "../../linux/unix-socket.ts";
import type { HugePageAdvice } from "../../vmm/memory-vm.ts";
import { parse } from "../arguments.ts";
import type { Command } from "../command.ts";
import { SOCKET_PATH } from "../control/agent-options.ts";
import { onEndingSignal } from "../ending-signals.ts";
import { UsageError } from "../usage-error.ts";
import { parseCount, parseSize } from "../values.ts";
import { TestVm, type TestVmEvent } from "./test-vm.ts";

const DEFAULT_MEMORY = "256M";
/** Between two of the guest's steps, when nobody asks for anything: it writes all the time, and leaves time to others. */
const PAUSE_MS = 10;
const NS_PER_MS = 1e6;

const HELP = `A VM that is memory and nothing else, in a process of its own, to try live updates with. Its guest
writes all of its memory over and over, and every byte follows from a seed and the count of pages
written; each page is compared before it is written over. It registers with the agent, goes through
updates, and in the next kernel, started again with the same name, takes its memory out of its
session, runs on, and proves all of it.

Usage: holdfast testvm --name NAME [OPTIONS]

Options:
  --name NAME      Of the VM: 1 to 63 letters, digits, ".", "_" and "-"
  --memory SIZE    Its memory, 4K to 1T, a multiple of 4K (default ${DEFAULT_MEMORY}); a VM that is taken out of a
                   session has what it had
  --huge           Ask for huge pages; /sys/kernel/mm/transparent_hugepage/shmem_enabled must say "advise"
  --seed N         What the guest writes follows from it, 0 to 4294967295 (default 1)
  --iommufd        Open /dev/iommu, as a VM with assigned devices does. An update must preserve it, or be
                   told to go --without iommufd
  --socket PATH    Where the agent listens (default ${SOCKET_PATH})
  --json           Print what happens as JSON, one object in each line
  --help           Show this text

SIGUSR2 has it compare all of its memory at once. SIGINT, SIGTERM and SIGHUP end the VM.

Exit status: 0 it was ended, and nothing was wrong in its memory; 1 something was, or it could neither
begin nor be restored; 2 the options are wrong.`;

export const testvm: Command = {
  name: "testvm",
  summary: "Run a VM process that proves its memory, to try live updates with",
  help: HELP,
  outlivesReader: true,
  async run(args) {
    const { values } = parse({
      args,
      options: {
        name: { type: "string" },
        memory: { type: "string", default: DEFAULT_MEMORY },
        huge: { type: "boolean", default: false },
        seed: { type: "string", default: "1" },
        iommufd: { type: "boolean", default: false },
        socket: { type: "string", default: SOCKET_PATH },
        json: { type: "boolean", default: false },
      },
      allowPositionals: false,
    });
    const { name, memory, huge, seed, iommufd, socket, json } = values;
    if (name === undefined || !VM_NAME.test(name))
      throw new UsageError(
        name === undefined
          ? "--name NAME: the VM needs one"
          : `--name ${name}: must be 1 to 63 letters, digits, ".", "_" and "-", beginning with a letter or digit`,
      );
    const memoryBytes = parseSize("--memory", memory, PAGE_SIZE, TIB);
    if (memoryBytes % PAGE_SIZE !== 0)
      throw new UsageError(`--memory ${memory}: must be a multiple of 4K`);
    const spec = { name, memoryBytes, seed: parseCount("--seed", seed, 0, 2 ** 32 - 1), iommufd };
    try {
      const ffi = loadFfi();
      const vm = new TestVm({
        host: new LinuxHost(ffi),
        spec,
        connect: () => UnixEndpoint.connect(ffi, socket),
        say: (event) => console.log(json ? JSON.stringify(event) : render(event)),
        advise: huge ? adviseHugePages : null,
      });
      await live(vm);
      return vm.isIntact ? 0 : 1;
    } catch (error) {
      if (!isKernelError(error)) throw error;
      console.error(`holdfast: ${error.message}`);
      return 1;
    }
  },
};

const adviseHugePages: HugePageAdvice = (mapping) => {
  assert(mapping instanceof MemoryMapping, "memory of a Linux process");
  mapping.adviseHugePages();
};

/** Until a signal ends it. @throws {KernelError} as {@link TestVm.turn} */
async function live(vm: TestVm): Promise<void> {
  let isEnding = false;
  const end = () => {
    isEnding = true;
  };
  const verify = () => vm.verify();
  const ignore = onEndingSignal(end);
  process.on("SIGUSR2", verify);
  try {
    while (!isEnding) {
      vm.turn(PAUSE_MS * NS_PER_MS);
      // Without an agent there is nothing that a turn waits for.
      await (vm.isRegistered ? setImmediate() : setTimeout(PAUSE_MS));
    }
  } finally {
    ignore();
    process.off("SIGUSR2", verify);
    vm.end();
  }
}

function render(event: TestVmEvent): string {
  return `${event.vm}: ${whatHappened(event)}`;
}

function whatHappened(event: TestVmEvent): string {
  switch (event.event) {
    case "started":
      return `begins with ${formatBytes(event.memoryBytes)}, seed ${event.seed}`;
    case "registered":
      return `known to the agent, after ${counted(event.update, "update")}`;
    case "retrieved":
      return `out of its session, ${counted(event.writes, "page")} written before${
        event.without.length === 0 ? "" : `; without ${event.without.join(", ")}`
      }`;
    case "running":
      return "runs again";
    case "verified":
      return event.damagedPages === 0
        ? `all ${formatBytes(event.bytes)} as they were, to the byte`
        : `DAMAGED: ${damage(event)}`;
    case "damaged":
      return `DAMAGED: ${damage(event)}`;
    case "preserved":
      return event.without.length === 0
        ? "preserved"
        : `preserved without ${event.without.join(", ")}`;
    case "paused":
      return `paused, ${counted(event.writes, "page")} written`;
    case "resumed":
      return "runs again: the update does not happen";
    case "unpreserved":
      return "not preserved any more";
    case "finished":
      return "its session is finished";
    case "problem":
      return event.problem;
  }
}

function damage({
  damagedPages,
  damages,
}: Extract<TestVmEvent, { readonly event: "damaged" | "verified" }>): string {
  const first = damages[0];
  return `${counted(damagedPages, "page")}, first at ${hex(first.offsetBytes)}: ${hex(first.found)} instead of ${hex(first.expected)}`;
}
