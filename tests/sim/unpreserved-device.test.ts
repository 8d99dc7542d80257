/**
 * A device with DMA under way at the jump that nobody preserves: an edu that a user has started and left alone.
 *
 * Its transfer is due 100 ms after the command. What it had written until its kernel was frozen stays; not a byte may
 * follow, in the jump or after it.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import {
  EDU_BUFFER,
  EDU_BUFFER_BYTES,
  EDU_DEVICE_ID,
  EDU_DMA_CMD,
  EDU_DMA_COUNT,
  EDU_DMA_DST,
  EDU_DMA_RUN,
  EDU_DMA_SRC,
  EDU_DMA_TO_MEMORY,
} from "../../src/abi/edu.ts";
import { PCI_COMMAND, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY } from "../../src/abi/pci.ts";
import { O_CREAT, O_RDWR } from "../../src/abi/uapi/fs.ts";
import { VFIO_PCI_CONFIG_REGION_INDEX } from "../../src/abi/uapi/vfio.ts";
import { PAGE_SIZE } from "../../src/base/units.ts";
import type { Host } from "../../src/host/host.ts";
import * as iommufd from "../../src/host/iommufd.ts";
import { MappedMemory } from "../../src/host/mapped-memory.ts";
import * as vfio from "../../src/host/vfio.ts";
import { listVfioDevices } from "../../src/host/vfio-devices.ts";
import type { DeterministicMachine } from "../../src/machine/embedded/deterministic.ts";
import { configRead16, filesOf, functionKey, readHostState } from "../support/invariants.ts";
import {
  eduSlot,
  type Moment,
  nicSlot,
  type SimulationOptions,
  simulate,
  vmPlans,
} from "../support/simulated-host.ts";

const WITH_RMRR = { slot: "0000:00:01.0", bdf: 1 << 3 };
const ORDINARY = { slot: "0000:00:02.0", bdf: 2 << 3 };
const DUE_NS = 100e6;
const IOVA = 0x10_0000;
const FILE = "edu-target";
const FILLED = 0x5a;

const OPTIONS: Omit<SimulationOptions, "seed" | "updates"> = {
  vms: vmPlans(1),
  // Few frames: the VM waits for the edu's 100 ms, and its ring must not overflow.
  framesPerSecond: 2000,
  segments: [
    {
      drhd: { addressBits: 48, superpages: true },
      slots: [eduSlot(1, 2 * PAGE_SIZE), eduSlot(2), nicSlot(4, "nic0", 2000)],
    },
  ],
  others: new Set([functionKey(0, ORDINARY.bdf)]),
  mayFault: true,
};

/** Opens an edu as its user does and starts a transfer of zeros to `address`. @returns what ends its use */
function startTransfer(
  host: Host,
  slot: string,
  attach: (device: number, iommu: number) => void,
  address: number,
): () => void {
  const found = listVfioDevices(host).find((d) => d.slot === slot && d.deviceId === EDU_DEVICE_ID);
  assert(found !== undefined, `an edu at ${slot}`);
  const device = host.open(found.path, O_RDWR);
  const iommu = host.open("/dev/iommu", O_RDWR);
  vfio.bindIommufd(host, device, iommu);
  attach(device, iommu);
  const config = vfio.openRegion(host, device, VFIO_PCI_CONFIG_REGION_INDEX);
  config.write32(PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
  const bar = vfio.openRegion(host, device, 0);
  bar.write32(EDU_DMA_SRC, EDU_BUFFER);
  bar.write32(EDU_DMA_DST, address);
  bar.write32(EDU_DMA_COUNT, EDU_BUFFER_BYTES);
  bar.write32(EDU_DMA_CMD, EDU_DMA_RUN | EDU_DMA_TO_MEMORY);
  return () => {
    host.close(device);
    host.close(iommu);
  };
}

/** The ordinary edu, attached to an IOAS over a file of the guests' store. */
function startOrdinary(host: Host): () => void {
  const file = host.open(`/mnt/guests/${FILE}`, O_RDWR | O_CREAT);
  host.ftruncate(file, PAGE_SIZE);
  host.fallocate(file, 0, 0, PAGE_SIZE);
  const mapping = new MappedMemory(host.mmap(file, 0, PAGE_SIZE));
  for (let at = 0; at < PAGE_SIZE; at += 4) mapping.store32(at, FILLED * 0x01010101);
  mapping.unmap();
  return startTransfer(
    host,
    ORDINARY.slot,
    (device, iommu) => {
      const ioasId = iommufd.ioasAlloc(host, iommu);
      iommufd.ioasMapFile(host, iommu, {
        ioasId,
        fileFd: file,
        start: 0,
        lengthBytes: PAGE_SIZE,
        iova: IOVA,
        writable: true,
      });
      vfio.attach(host, device, ioasId);
      host.close(file);
    },
    IOVA,
  );
}

/** The edu with reserved memory regions: it cannot be attached, and its DMA goes to these. */
function startWithRmrr(host: Host, machine: DeterministicMachine): () => void {
  const { start } = machine.firmware.rmrrs[0];
  machine.ram.fill(start, PAGE_SIZE, FILLED);
  return startTransfer(host, WITH_RMRR.slot, () => {}, start);
}

/** Lets the VM run until the transfer must be over. */
function waitForTransfer(moment: Moment): void {
  const { vms } = moment;
  const host = processOf(moment.host);
  const endNs = host.clockNs() + 1.2 * DUE_NS;
  while (host.clockNs() < endNs) {
    for (const vm of vms) vm.step();
    host.sleep(200_000);
  }
}

function processOf(host: Host | null): Host {
  assert(host !== null, "userspace runs");
  return host;
}

/** The target's physical page. */
function targetOf(moment: Moment): number {
  const { machine, kernel } = moment;
  assert(kernel !== null, "a kernel tells where its handover is");
  const files = filesOf(readHostState(machine, kernel.kho.bootParameters()));
  const file = files.find(({ label }) => label === `guests:${FILE}`);
  assert(file !== undefined, "the target is a file");
  return file.extents[0].pa;
}

function contents(machine: DeterministicMachine, pa: number): string {
  return Buffer.from(machine.ram.view(pa, PAGE_SIZE)).toString("latin1");
}

const KINDS = [
  {
    name: "that writes to a user's file",
    bdf: ORDINARY.bdf,
    start: ({ host }: Moment) => startOrdinary(processOf(host)),
    target: targetOf,
  },
  {
    name: "that writes to its reserved memory region",
    bdf: WITH_RMRR.bdf,
    start: ({ host, machine }: Moment) => startWithRmrr(processOf(host), machine),
    target: ({ machine }: Moment) => machine.firmware.rmrrs[0].start,
  },
] as const;

for (const { name, bdf, start, target } of KINDS)
  describe(`an edu ${name}`, () => {
    test("completes its transfer when there is no update", () => {
      let after = "";
      simulate({
        ...OPTIONS,
        seed: 31,
        updates: 0,
        look: (moment) => {
          if (moment.point !== "created") return;
          const stop = start(moment);
          waitForTransfer(moment);
          after = contents(moment.machine, target(moment));
          stop();
        },
      });
      assert.equal(after, "\0".repeat(PAGE_SIZE));
    });

    // From well before its first burst until all 16 are over: the jump meets the transfer at every stage.
    for (const runNs of [1e6, 98.5e6, 99e6, 99.5e6, 99.9e6, 100e6])
      test(`writes nothing from the freeze on when it is not preserved and runs for ${runNs / 1e6} ms`, () => {
        const seen = new Map<string, string>();
        let isMaster = true;
        simulate({
          ...OPTIONS,
          seed: 32,
          updates: 1,
          runNs,
          look: (moment) => {
            const { point, machine } = moment;
            if (point === "created") start(moment);
            if (point === "finished") waitForTransfer(moment);
            if (point === "frozen" || point === "finished")
              seen.set(point, contents(machine, target(moment)));
            if (point === "jumped")
              isMaster = (configRead16(machine, 0, bdf, PCI_COMMAND) & PCI_COMMAND_MASTER) !== 0;
          },
        });
        assert.equal(isMaster, false);
        assert.equal(seen.size, 2);
        assert.equal(seen.get("finished"), seen.get("frozen"));
        if (runNs < 50e6)
          assert.equal(seen.get("finished"), String.fromCharCode(FILLED).repeat(PAGE_SIZE));
      });
  });
