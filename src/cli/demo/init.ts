/**
 * The demo's userspace: the first and only process of each of its kernels.
 *
 * On a cold boot it makes the VMs; after an update it brings them back; in between it runs them. When the updates that
 * were asked for are done it stops the guests, audits them, takes everything down and reports.
 * @module
 */

import { LINUX_REBOOT_CMD_POWER_OFF } from "../../abi/uapi/reboot.ts";
import { Agent } from "../../agent/agent.ts";
import { KernelError } from "../../base/errno.ts";
import type { Host } from "../../host/host.ts";
import { readTextFile } from "../../host/read-file.ts";
import type { VirtualMachine } from "../../vmm/virtual-machine.ts";
import { type DemoEvent, type FunctionFaults, type Leaks, planFromCommandLine } from "./events.ts";
import { createGuests, mountGuestStore, restoreGuests } from "./guests.ts";

const DEBUG = "/sys/kernel/debug/holdfast";
/** Sleep between steps when no guest has work. */
const IDLE_NS = 200_000;
/** How long the rings may take to run dry at the end; what is left then is told as lost. */
const DRAIN_NS = 2_000_000_000;

/** Runs until the kernel ends. */
export function demoInit(host: Host): never {
  const plan = planFromCommandLine(host.commandLine);
  const say = (event: DemoEvent) => host.print(JSON.stringify(event));
  const observe = (phase: { update: number; name: string; startNs: number; endNs: number }) =>
    say({ event: "phase", ...phase });

  const atNs = host.clockNs();
  const taken = Agent.takeOver(host, observe);
  const agent = taken?.agent ?? Agent.start(host, observe);
  say({ event: "boot", release: host.release, update: agent.updates, atNs });
  mountGuestStore(host);
  const vms =
    taken === null
      ? createGuests(host, plan)
      : restoreGuests(host, agent, taken.journal, {
          running: (vm, blackoutNs) =>
            say({
              event: "restored",
              update: agent.updates,
              vm: vm.name,
              blackoutNs,
              guestBytesCopied: vm.guestBytesMoved,
            }),
          failed: ({ vm, phase, error }) =>
            say({ event: "failure", update: agent.updates, vm, phase, message: error.message }),
        });
  sayHandover(host, agent, say);

  const image = plan.images[(agent.updates + 1) % plan.images.length];
  // Long before the update: a kernel that has had time to prepare itself boots faster.
  if (agent.updates < plan.updates) host.kexecFileLoad(image, null, host.commandLine);
  runFor(host, vms, plan.runNs, say);
  // What is blocked from here to the jump the next kernel finds at its boot.
  if (agent.updates < plan.updates) sayFaults(host, agent.updates, say);
  if (agent.updates < plan.updates) {
    try {
      agent.update(vms, { kernel: image, initrd: null, commandLine: host.commandLine });
    } catch (error) {
      // Whatever else is thrown ends this kernel: the jump itself, or a bug.
      if (!(error instanceof KernelError)) throw error;
      say({
        event: "failure",
        update: agent.updates + 1,
        vm: "",
        phase: "update",
        message: error.message,
      });
    }
  }
  return finishDemo(host, vms, agent.updates, say);
}

function runFor(
  host: Host,
  vms: readonly VirtualMachine[],
  durationNs: number,
  say: (event: DemoEvent) => void,
): void {
  const sum = (counter: "received" | "transmitted") =>
    vms.reduce((total, vm) => total + vm.guest.counters[counter], 0);
  const before = { received: sum("received"), transmitted: sum("transmitted") };
  const startNs = host.clockNs();
  let nowNs = startNs;
  for (; nowNs < startNs + durationNs; nowNs = host.clockNs()) {
    let busy = false;
    for (const vm of vms) if (vm.step()) busy = true;
    if (!busy) host.sleep(IDLE_NS);
  }
  say({
    event: "ran",
    startNs,
    endNs: nowNs,
    received: sum("received") - before.received,
    transmitted: sum("transmitted") - before.transmitted,
  });
}

function sayHandover(host: Host, agent: Agent, say: (event: DemoEvent) => void): void {
  if (agent.updates === 0) return;
  const handover = JSON.parse(readTextFile(host, `${DEBUG}/handover`)) as {
    bytes: number;
    guestBytes: number;
  };
  say({ event: "handover", update: agent.updates, ...handover });
}

/** Counts are those since boot: of one kernel the last event is to be used. */
function sayFaults(host: Host, update: number, say: (event: DemoEvent) => void): void {
  const faults = JSON.parse(readTextFile(host, `${DEBUG}/faults`)) as {
    functions: readonly FunctionFaults[];
    overflows: number;
  };
  if (faults.functions.length > 0 || faults.overflows > 0)
    say({ event: "faults", update, ...faults });
}

/** Stops the guests, lets the rings run dry, audits, takes everything down, counts what is left. */
function finishDemo(
  host: Host,
  vms: readonly VirtualMachine[],
  update: number,
  say: (event: DemoEvent) => void,
): never {
  for (const vm of vms) vm.guest.shutDown();
  const endNs = host.clockNs() + DRAIN_NS;
  while (!vms.every((vm) => vm.guest.isAtRest) && host.clockNs() < endNs) {
    let busy = false;
    for (const vm of vms) if (vm.step()) busy = true;
    if (!busy) host.sleep(IDLE_NS);
  }
  for (const vm of vms) {
    say({
      event: "vm",
      vm: {
        name: vm.name,
        nic: vm.guest.nicId,
        memoryBytes: vm.memoryBytes,
        ...vm.guest.counters,
        problems: vm.guest.audit(),
      },
    });
    vm.destroy();
  }
  sayFaults(host, update, say);
  const leaks = JSON.parse(readTextFile(host, `${DEBUG}/leaks`)) as Leaks;
  say({ event: "leaks", leaks });
  return host.reboot(LINUX_REBOOT_CMD_POWER_OFF);
}
