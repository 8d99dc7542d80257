/**
 * A device with DMA under way at the jump that nobody preserves: an edu that a user has started and left alone.
 *
 * Its transfer is due 100 ms after the command. What it had written until its kernel was frozen stays; not a byte may
 * follow, in the jump or after it. Without an IOMMU that hangs on bus mastering alone, also when the kernel before has
 * forgotten to turn it off.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { PCI_COMMAND, PCI_COMMAND_MASTER } from "../../src/abi/pci.ts";
import { PAGE_SIZE } from "../../src/base/units.ts";
import type { DeterministicMachine } from "../../src/machine/embedded/deterministic.ts";
import {
  EDU_HOST,
  EDU_ORDINARY,
  EDU_WITH_RMRR,
  EduUser,
  FILLED,
  hostAt,
  waitForTransfer,
} from "../support/edu-user.ts";
import { configRead16, configWrite16, filesOf, readHostState } from "../support/invariants.ts";
import { eduSlot, type Moment, nicSlot, simulate, vmPlans } from "../support/simulated-host.ts";

/** The physical page of the edu's file. */
function filePage({ machine, kernel }: Moment): number {
  assert(kernel !== null, "a kernel tells where its handover is");
  const files = filesOf(readHostState(machine, kernel.kho.bootParameters()));
  const file = files.find(({ label }) => label === "guests:edu-target");
  assert(file !== undefined, "the target is a file");
  return file.extents[0].pa;
}

/** Starts a transfer into its file. @returns the user of the device */
function startIntoFile(moment: Moment): EduUser {
  const user = new EduUser(hostAt(moment), EDU_ORDINARY.slot);
  user.start(user.mapFile());
  return user;
}

/** Starts a transfer into its reserved memory region, the only memory that it reaches: it cannot be attached. */
function startIntoRmrr(moment: Moment): EduUser {
  const target = rmrrPage(moment);
  moment.machine.ram.fill(target, PAGE_SIZE, FILLED);
  const user = new EduUser(hostAt(moment), EDU_WITH_RMRR.slot);
  user.start(target);
  return user;
}

function rmrrPage({ machine }: Moment): number {
  return machine.firmware.rmrrs[0].start;
}

function contents(machine: DeterministicMachine, pa: number): string {
  return Buffer.from(machine.ram.view(pa, PAGE_SIZE)).toString("latin1");
}

const UNTOUCHED = String.fromCharCode(FILLED).repeat(PAGE_SIZE);
const WRITTEN = "\0".repeat(PAGE_SIZE);

const KINDS = [
  {
    name: "writes to a file",
    bdf: EDU_ORDINARY.bdf,
    start: startIntoFile,
    target: filePage,
  },
  {
    name: "writes to its reserved memory region",
    bdf: EDU_WITH_RMRR.bdf,
    start: startIntoRmrr,
    target: rmrrPage,
  },
];

for (const { name, bdf, start, target } of KINDS)
  describe(`an edu that ${name}`, () => {
    test("completes its transfer when there is no update", () => {
      let after = "";
      simulate({
        ...EDU_HOST,
        seed: 31,
        updates: 0,
        look: (moment) => {
          if (moment.point !== "created") return;
          const user = start(moment);
          waitForTransfer(moment);
          after = contents(moment.machine, target(moment));
          user.close();
        },
      });
      assert.equal(after, WRITTEN);
    });

    // From well before its first burst until all 16 are over: the jump meets the transfer at every stage.
    for (const runNs of [1e6, 98.5e6, 99e6, 99.5e6, 99.9e6, 101e6])
      test(`writes nothing from the freeze on when it is not preserved and ran for ${runNs / 1e6} ms`, () => {
        const seen = new Map<string, string>();
        let isMaster = true;
        simulate({
          ...EDU_HOST,
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
        // The ends of the sweep: due long after the jump, and over before it.
        if (runNs < 50e6) assert.equal(seen.get("finished"), UNTOUCHED);
        if (runNs > 100e6) assert.equal(seen.get("finished"), WRITTEN);
      });
  });

describe("an edu without an IOMMU that the previous kernel leaves mastering the bus", () => {
  const { bdf } = EDU_ORDINARY;
  const name = EDU_ORDINARY.slot;
  // The ordinary shutdown stops it; this is done behind the back of the kernel that has ended.
  for (const leavesMastering of [false, true])
    test(`writes nothing in the next kernel, which ${leavesMastering ? "stops it and says so" : "finds it stopped"}`, () => {
      const seen = new Map<string, string>();
      const masters = new Map<string, boolean>();
      const { lines } = simulate({
        seed: 33,
        updates: 1,
        runNs: 1e6,
        vms: vmPlans(1, { noiommu: true }),
        segments: [{ drhd: null, slots: [eduSlot(2), nicSlot(4, "nic0", 2000)] }],
        commandLine: () => "vfio.enable_unsafe_noiommu_mode=1",
        look: (moment) => {
          const { point, machine } = moment;
          if (point === "created") {
            const user = new EduUser(hostAt(moment), EDU_ORDINARY.slot);
            user.mapFile();
            user.start(filePage(moment));
          }
          if (point === "jumped" && leavesMastering) {
            const command = configRead16(machine, 0, bdf, PCI_COMMAND);
            configWrite16(machine, 0, bdf, PCI_COMMAND, command | PCI_COMMAND_MASTER);
          }
          if (point === "finished") waitForTransfer(moment);
          if (point === "booted" || point === "finished") {
            const command = configRead16(machine, 0, bdf, PCI_COMMAND);
            masters.set(`${point} ${moment.update}`, (command & PCI_COMMAND_MASTER) !== 0);
          }
          if (point === "frozen" || point === "finished")
            seen.set(point, contents(machine, filePage(moment)));
        },
      });
      assert.equal(masters.get("booted 1"), false);
      assert.equal(masters.get("finished 1"), false);
      assert.equal(seen.get("frozen"), UNTOUCHED);
      assert.equal(seen.get("finished"), UNTOUCHED);
      assert.deepEqual(
        lines.filter((line) => line.includes(name)),
        leavesMastering ? [`pci: ${name} is not preserved, but could do DMA; it is stopped`] : [],
      );
    });
});
