/**
 * A VM whose device is moved again and again to newly built tables of the same memory, while frames arrive: the switch of
 * domains after a live update, without the live update.
 *
 * Page sizes change with each: 4 KiB alone (IOMMU_OPTION_HUGE_PAGES off), the largest that fit, and a mixture (the file
 * mapped in random pieces). What a device still uses of old tables it uses of freed pages, which the next ones are made of.
 * @module
 */
import assert from "node:assert/strict";
import { E1000E_DEVICE_ID } from "../../src/abi/e1000e.ts";
import { PCI_COMMAND, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY } from "../../src/abi/pci.ts";
import { O_CREAT, O_RDWR } from "../../src/abi/uapi/fs.ts";
import { LINUX_REBOOT_CMD_POWER_OFF } from "../../src/abi/uapi/reboot.ts";
import { VFIO_PCI_CONFIG_REGION_INDEX } from "../../src/abi/uapi/vfio.ts";
import { Prng } from "../../src/base/prng.ts";
import { MIB, PAGE_SIZE } from "../../src/base/units.ts";
import type { FunctionFaults } from "../../src/cli/demo/events.ts";
import type { Host } from "../../src/host/host.ts";
import * as iommufd from "../../src/host/iommufd.ts";
import { MappedMemory } from "../../src/host/mapped-memory.ts";
import { readTextFile } from "../../src/host/read-file.ts";
import * as vfio from "../../src/host/vfio.ts";
import { listVfioDevices } from "../../src/host/vfio-devices.ts";
import type { GuestCounters } from "../../src/vmm/guest.ts";
import { bootNicGuest } from "../../src/vmm/nic-guest.ts";

/** Its receive buffers are more pages than QEMU's IOTLB has entries, so walks never cease. */
export const MEMORY_BYTES = 32 * MIB;
/** In the guest's receive buffers. */
const HOLE = 3 * MIB;
const LAYOUTS = ["small", "large", "mixed"] as const;
/** Between two switches at least so many frames arrive. */
const FRAMES_BETWEEN = 8;
/** Longer without a frame than a busy computer ever takes: something is broken. */
const SILENCE_NS = 2e9;
const PIECES_MAX = 12;

/** What is asked for. */
export interface SwitchPlan {
  readonly switches: number;
  readonly seed: number;
  /** The new tables lack a page that the device uses. */
  readonly hasHole: boolean;
}

/** What came of it. */
export interface SwitchReport {
  readonly switches: number;
  readonly frames: GuestCounters;
  /** What the guest found wrong in its memory. */
  readonly audit: readonly string[];
  /** Faults that the kernel took from the unit. */
  readonly faults: number;
  readonly seconds: number;
}

/** Runs the plan as init, prints a {@link SwitchReport}, and powers off. */
export function switchDomains(host: Host, plan: SwitchPlan): never {
  const startNs = host.clockNs();
  const vm = new SwitchedVm(host, plan);
  let switches = 0;
  while (switches < plan.switches && vm.runUntilFrames()) {
    switches++;
    vm.switchTo(LAYOUTS[switches % LAYOUTS.length]);
  }
  // A device whose DMA was blocked may do nothing any more, and never come to rest.
  if (vm.runUntilFrames()) vm.comeToRest();
  const { functions, overflows } = JSON.parse(
    readTextFile(host, "/sys/kernel/debug/holdfast/faults"),
  ) as { functions: readonly FunctionFaults[]; overflows: number };
  const report: SwitchReport = {
    switches,
    frames: vm.guest.counters,
    audit: vm.guest.audit(),
    faults: functions.reduce((sum, { reads, writes }) => sum + reads + writes, 0) + overflows,
    seconds: (host.clockNs() - startNs) / 1e9,
  };
  host.print(JSON.stringify(report));
  return host.reboot(LINUX_REBOOT_CMD_POWER_OFF);
}

class SwitchedVm {
  readonly guest: ReturnType<typeof bootNicGuest>;
  readonly #host: Host;
  readonly #plan: SwitchPlan;
  readonly #prng: Prng;
  readonly #memory: number;
  readonly #iommufd: number;
  readonly #device: number;
  readonly #deviceId: number;
  #chain: { readonly ioasId: number; readonly hwptId: number };

  constructor(host: Host, plan: SwitchPlan) {
    this.#host = host;
    this.#plan = plan;
    this.#prng = new Prng(plan.seed);
    host.mkdir("/mnt/guests");
    host.mount("guests", "/mnt/guests", "memfs", "");
    this.#memory = host.open("/mnt/guests/vm", O_RDWR | O_CREAT);
    host.ftruncate(this.#memory, MEMORY_BYTES);
    host.fallocate(this.#memory, 0, 0, MEMORY_BYTES);
    const nic = listVfioDevices(host).find(({ deviceId }) => deviceId === E1000E_DEVICE_ID);
    assert(nic !== undefined, "there is a NIC");
    this.#iommufd = host.open("/dev/iommu", O_RDWR);
    this.#device = host.open(nic.path, O_RDWR);
    this.#deviceId = vfio.bindIommufd(host, this.#device, this.#iommufd);
    this.#chain = this.#build("small");
    vfio.attach(host, this.#device, this.#chain.hwptId);
    const config = vfio.openRegion(host, this.#device, VFIO_PCI_CONFIG_REGION_INDEX);
    config.write32(PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    this.guest = bootNicGuest(
      {
        memory: new MappedMemory(host.mmap(this.#memory, 0, MEMORY_BYTES)),
        device: vfio.openRegion(host, this.#device, 0),
        dmaAddress: (offset) => offset,
      },
      null,
    );
  }

  /** Builds tables, moves the device to them, and destroys those that it leaves. */
  switchTo(layout: (typeof LAYOUTS)[number]): void {
    const host = this.#host;
    const old = this.#chain;
    this.#chain = this.#build(layout);
    if (this.#plan.hasHole)
      iommufd.ioasUnmap(host, this.#iommufd, {
        ioasId: this.#chain.ioasId,
        iova: HOLE,
        lengthBytes: PAGE_SIZE,
      });
    vfio.attach(host, this.#device, this.#chain.hwptId);
    iommufd.destroy(host, this.#iommufd, old.hwptId);
    iommufd.destroy(host, this.#iommufd, old.ioasId);
  }

  /** @returns whether frames arrive */
  runUntilFrames(): boolean {
    const { guest } = this;
    const enough = guest.counters.received + FRAMES_BETWEEN;
    const endNs = this.#host.clockNs() + SILENCE_NS;
    while (guest.counters.received < enough) {
      if (this.#host.clockNs() > endNs) return false;
      if (!guest.step()) this.#host.sleep(100_000);
    }
    return true;
  }

  comeToRest(): void {
    this.guest.shutDown();
    const endNs = this.#host.clockNs() + SILENCE_NS;
    while (!this.guest.isAtRest && this.#host.clockNs() < endNs)
      if (!this.guest.step()) this.#host.sleep(100_000);
  }

  #build(layout: (typeof LAYOUTS)[number]): { ioasId: number; hwptId: number } {
    const host = this.#host;
    const ioasId = iommufd.ioasAlloc(host, this.#iommufd);
    if (layout === "small") iommufd.ioasSetHugePages(host, this.#iommufd, ioasId, false);
    const cuts = new Set(layout === "mixed" ? this.#randomCuts() : []);
    // Apart, so that a plan may take it out.
    if (this.#plan.hasHole) for (const cut of [HOLE, HOLE + PAGE_SIZE]) cuts.add(cut);
    const edges = [0, ...[...cuts].sort((a, b) => a - b), MEMORY_BYTES];
    for (let i = 0; i + 1 < edges.length; i++)
      iommufd.ioasMapFile(host, this.#iommufd, {
        ioasId,
        fileFd: this.#memory,
        start: edges[i],
        lengthBytes: edges[i + 1] - edges[i],
        iova: edges[i],
        writable: true,
      });
    const deviceId = this.#deviceId;
    const hwptId = iommufd.hwptAlloc(host, this.#iommufd, { deviceId, ptId: ioasId });
    return { ioasId, hwptId };
  }

  #randomCuts(): number[] {
    const count = 1 + this.#prng.below(PIECES_MAX);
    return Array.from(
      { length: count },
      () => PAGE_SIZE * (1 + this.#prng.below(MEMORY_BYTES / PAGE_SIZE - 1)),
    );
  }
}
