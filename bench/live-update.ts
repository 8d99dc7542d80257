/**
 * (c) A live update of one VM, by the size of its memory: the real kernel, agent and VMM on a machine of 1.06 TiB.
 *
 * Guest memory is never touched, and must not matter: what is paid for is extents, tables and devices. The machine is
 * the same for all sizes, so what its own size costs at boot is in all of them.
 * @module
 */
import { LINUX_REBOOT_CMD_POWER_OFF } from "../src/abi/uapi/reboot.ts";
import { Agent } from "../src/agent/agent.ts";
import { assert } from "../src/base/assert.ts";
import { formatBytes, GIB, MIB, TIB } from "../src/base/units.ts";
import type { Host } from "../src/host/host.ts";
import { listVfioDevices } from "../src/host/vfio-devices.ts";
import { boot } from "../src/kernel/boot.ts";
import { RESTORES } from "../src/kernel/restores.ts";
import { InProcessMachine } from "../src/machine/embedded/in-process.ts";
import type { KernelImage, KernelModule, Machine } from "../src/machine/machine.ts";
import type { Guest } from "../src/vmm/guest.ts";
import { VirtualMachine } from "../src/vmm/virtual-machine.ts";
import { median, nowNs } from "./measure.ts";
import type { Row } from "./report.ts";

const SIZES = [GIB, 16 * GIB, 256 * GIB, TIB];
const MACHINE_BYTES = TIB + 64 * GIB;
/** Updates of each size in a round; the first ones are not counted, since code is compiled in them. */
const UPDATES = 100;
const WARM_UP = 30;
/** All sizes are measured by turns, and the best round counts: what else the machine does must not look like a size. */
const ROUNDS = 3;
/** What the promise is about. */
const PHASES = ["preserve", "freeze", "boot", "restore", "swap"] as const;
const OTHERS = ["pause", "scribble", "rebuild", "finish"] as const;

const IMAGE: KernelImage = {
  name: "vmlinuz",
  entry: "bench",
  release: "bench",
  restores: RESTORES,
};
const TARGET = { kernel: `/boot/${IMAGE.name}`, initrd: null, commandLine: "liveupdate=on" };
const MOUNT_POINT = "/mnt/guests";

/** Milliseconds by phase. */
type Times = Map<string, number[]>;

export function updateRows(): Row[] {
  const best = new Map<number, Figures>();
  for (let round = 0; round < ROUNDS; round++)
    for (const bytes of SIZES) {
      const figures = figuresOf(measure(bytes));
      const before = best.get(bytes);
      if (before === undefined || figures.totalMs < before.totalMs) best.set(bytes, figures);
    }
  const smallest = best.get(SIZES[0]);
  return [...best].map(([bytes, { totalMs, phases }]) => {
    const isLast = bytes === SIZES.at(-1);
    const ratio = totalMs / (smallest?.totalMs ?? Number.NaN);
    return {
      name: formatBytes(bytes),
      value: `${totalMs.toFixed(2)} ms`,
      against: phases,
      ratio,
      limit: isLast ? "at most 2 times 1 GiB" : "",
      holds: isLast ? ratio <= 2 : null,
    };
  });
}

interface Figures {
  readonly totalMs: number;
  /** Medians, for a person. */
  readonly phases: string;
}

function figuresOf(times: Times): Figures {
  const ms = (name: string) => {
    const values = times.get(name);
    assert(values !== undefined, `phase ${name} was measured`);
    return median(values.slice(WARM_UP));
  };
  return {
    totalMs: PHASES.reduce((sum, name) => sum + ms(name), 0),
    phases: [...PHASES, ...OTHERS].map((name) => `${name} ${ms(name).toFixed(2)}`).join(", "),
  };
}

/** Updates a host with one VM of that size again and again. */
function measure(vmBytes: number): Times {
  const times: Times = new Map();
  const add = (name: string, ns: number) => {
    const values = times.get(name) ?? [];
    times.set(name, values);
    values.push(ns / 1e6);
  };
  let markNs = 0;
  const lap = (name: string) => {
    const now = nowNs();
    add(name, now - markNs);
    markNs = now;
  };
  const kernel: KernelModule = {
    start(machine, parameters) {
      const isCold = parameters.kho === null;
      markNs = nowNs();
      const host = boot(onRealClock(machine), parameters, { release: "bench" }).spawn();
      if (!isCold) lap("boot");
      return runInit(host, vmBytes, ({ name, startNs, endNs }) => {
        add(name, endNs - startNs);
        markNs = nowNs();
      });
    },
  };
  const machine = new InProcessMachine(
    {
      nodeBytes: [MACHINE_BYTES],
      segments: [
        {
          drhd: { addressBits: 48, superpages: true },
          slots: [{ model: "edu", device: 1, function: 0, rmrrBytes: 0 }],
        },
      ],
      installed: [IMAGE],
    },
    {
      modules: () => kernel,
      onJump: (moment) => lap(moment === "ended" ? "freeze" : "scribble"),
    },
  );
  const status = machine.run(kernel, { commandLine: "liveupdate=on", kho: null });
  assert(status === 0, `the host ended with ${status}`);
  return times;
}

/** Userspace: makes the VM or brings it back, and updates until enough was measured. */
function runInit(host: Host, vmBytes: number, observe: Parameters<typeof Agent.start>[1]): never {
  const taken = Agent.takeOver(host, observe);
  const agent = taken?.agent ?? Agent.start(host, observe);
  host.mkdir(MOUNT_POINT);
  host.mount("guests", MOUNT_POINT, "memfs", "");
  if (taken === null) {
    const [device] = listVfioDevices(host);
    const spec = {
      name: "vm",
      memoryPath: `${MOUNT_POINT}/vm`,
      memoryBytes: vmBytes,
      devicePath: device.path,
      noiommu: false,
    };
    return agent.update([VirtualMachine.create(host, spec, bootGuest)], TARGET);
  }
  const { vms, failures } = agent.restore(taken.journal, {
    open: (session) => VirtualMachine.restore(host, session, bootGuest),
    running: (vm) => assert(vm.guestBytesMoved === 0, "guest memory stays where it is"),
    runOthers: () => {},
  });
  for (const { error } of failures) throw error;
  if (agent.updates < UPDATES) return agent.update(vms, TARGET);
  for (const vm of vms) vm.destroy();
  return host.reboot(LINUX_REBOOT_CMD_POWER_OFF);
}

/** A guest that does nothing: what it would touch is not what is measured. */
function bootGuest(): Guest {
  return {
    step: () => false,
    save: () => new Uint8Array(8),
    audit: () => [],
    shutDown: () => {},
    isAtRest: true,
    counters: { received: 0, lost: 0, corrupt: 0, transmitted: 0, dirtied: 0 },
    nicId: 0,
  };
}

/** The same machine, whose clock is the real one, so that the agent's phases are real times. */
function onRealClock(machine: Machine): Machine {
  const { memory, mmio, interrupts, firmware, serial, kexec } = machine;
  return {
    memory,
    mmio,
    interrupts,
    firmware,
    serial,
    kexec,
    clock: { nowNs },
    powerOff: (status) => machine.powerOff(status),
  };
}

/** Resident memory of this process, for a person. */
export function residentMemory(): string {
  return `${Math.round(process.memoryUsage().rss / MIB)} MiB`;
}
