/**
 * Kernels that are broken on purpose, each in one way: the simulation must say so. A checker that passes them is none.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { O_CREAT, O_RDWR } from "../../src/abi/uapi/fs.ts";
import { contextEntryAddress } from "../../src/abi/vtd/root-context.ts";
import { MIB, PAGE_SIZE } from "../../src/base/units.ts";
import { DomainIds } from "../../src/kernel/iommu/domain-ids.ts";
import { RemappingUnit } from "../../src/kernel/iommu/remapping-unit.ts";
import { Store } from "../../src/kernel/memfs/store.ts";
import { EDU_HOST, EDU_ORDINARY, EduUser, hostAt, waitForTransfer } from "../support/edu-user.ts";
import { filesOf, type HostState, readHostState } from "../support/invariants.ts";
import type { FileExtent } from "../support/physical-map.ts";
import {
  type Moment,
  type Point,
  type SimulationOptions,
  simulate,
} from "../support/simulated-host.ts";

const NIC_BDF = 0x100;

function stateAt({ machine, kernel }: Pick<Moment, "machine" | "kernel">): HostState {
  assert(kernel !== null, "a kernel tells where its handover is");
  return readHostState(machine, kernel.kho.bootParameters());
}

/** The extent of vm0's memory that begins at an offset. */
function memoryOf(moment: Moment, offset = 0): FileExtent {
  const file = filesOf(stateAt(moment)).find(({ label }) => label === "guests:vm0");
  const extent = file?.extents.find((e) => e.offset === offset);
  assert(extent !== undefined, `vm0's memory has an extent at ${offset}`);
  return extent;
}

/** Where the context entry of vm0's NIC is. */
function contextEntryOf(moment: Pick<Moment, "machine" | "kernel">): number {
  const [unit] = stateAt(moment).units;
  // Bus 0's context table comes first, then the one of the first root port.
  return contextEntryAddress(unit.contextTables[1], NIC_BDF);
}

/** A run that must fail at this point with this message. */
function detects(point: Point, message: RegExp, options: Partial<SimulationOptions>): void {
  assert.throws(
    () => simulate({ seed: 41, updates: 1, ...options }),
    (error: unknown) => {
      assert.ok(error instanceof assert.AssertionError, String(error));
      assert.match(error.message, new RegExp(`at "${point}"`));
      assert.match(error.message, message);
      return true;
    },
  );
}

/** Runs `action` with a method of a class replaced. */
function withMethod<T extends object, K extends keyof T>(
  prototype: T,
  name: K,
  replacement: T[K],
  action: () => void,
): void {
  const original = prototype[name];
  prototype[name] = replacement;
  try {
    action();
  } finally {
    prototype[name] = original;
  }
}

/** Does something once, at one point of the first kernel's life. */
function once(point: Point, action: (moment: Moment) => void): Partial<SimulationOptions> {
  let done = false;
  return {
    look: (moment) => {
      if (moment.point !== point || done) return;
      done = true;
      action(moment);
    },
  };
}

describe("the simulation notices a kernel", () => {
  test("that clears the context entry of a preserved device when it shuts down", () => {
    detects("frozen", /vm0: 0:100 is not translated/, {
      tamper: (kernel, _update, machine) => {
        const shutdown = kernel.iommu.shutdown.bind(kernel.iommu);
        kernel.iommu.shutdown = () => {
          shutdown();
          machine.ram.store32(contextEntryOf({ machine, kernel }), 0);
        };
      },
    });
  });

  test("that blocks no device when it shuts down", () => {
    detects("frozen", /function 0:10 is translated, but is nobody's/, {
      ...EDU_HOST,
      ...once("created", (moment) => {
        const user = new EduUser(hostAt(moment), EDU_ORDINARY.slot);
        user.start(user.mapFile());
      }),
      tamper: (kernel) => {
        kernel.iommu.shutdown = () => undefined;
      },
    });
  });

  test("that leaves bus mastering to a device that is not preserved", () => {
    detects("frozen", /function 0:10 masters the bus in the jump/, {
      ...EDU_HOST,
      ...once("created", (moment) => {
        const user = new EduUser(hostAt(moment), EDU_ORDINARY.slot);
        user.start(user.mapFile());
      }),
      tamper: (kernel) => {
        kernel.pci.shutdown = () => undefined;
      },
    });
  });

  test("that frees guest memory while a device is mapped to it", () => {
    detects("frozen", /file guests:vm0: 0x[0-9a-f]+ of order 9 is not allocated/, {
      ...once("created", (moment) => {
        const { pa, order } = memoryOf(moment);
        moment.kernel?.mm.free(pa, order);
      }),
    });
  });

  test("that gives guest memory to another file", () => {
    detects("frozen", /belongs to file guests:vm0 and to file guests:thief/, {
      ...once("created", (moment) => {
        const { pa, order } = memoryOf(moment);
        const { kernel } = moment;
        const host = hostAt(moment);
        kernel?.mm.free(pa, order);
        // As the allocator would hand it out: the preserved mark of the first owner is in the way.
        kernel?.kho.unpreserve(pa, order);
        const fd = host.open("/mnt/guests/thief", O_RDWR | O_CREAT);
        host.ftruncate(fd, 40 * MIB);
        host.fallocate(fd, 0, 0, 40 * MIB);
        host.close(fd);
      }),
    });
  });

  test("that frees a page table in use", () => {
    detects(
      "drained",
      /table of the tree at 0x[0-9a-f]+: 0x[0-9a-f]+ of order 0 is not allocated/,
      {
        ...once("finished", (moment) => {
          const { tree } = functionOf(moment);
          moment.kernel?.mm.free(tree.tables[1], 0);
        }),
      },
    );
  });

  test("that forgets to preserve guest memory", () => {
    detects("frozen", /file guests:vm0: 0x[0-9a-f]+ is not preserved/, {
      ...once("created", (moment) => {
        const { pa, order } = memoryOf(moment);
        moment.kernel?.kho.unpreserve(pa, order);
      }),
    });
  });

  test("that maps a device to another page", () => {
    detects("frozen", /vm0: 0:100 reaches/, {
      ...once("created", (moment) => {
        const { tree } = functionOf(moment);
        const leafTable = tree.tables[tree.tables.length - 1];
        const { ram } = moment.machine;
        const other = ram.load32(leafTable + 8);
        ram.store32(leafTable, other);
      }),
    });
  });

  test("that writes to guest memory in the jump", () => {
    detects("jumped", /guests:vm0: the page at 0x[0-9a-f]+ has changed in the jump/, {
      ...once("frozen", (moment) => {
        moment.machine.ram.store32(memoryOf(moment).pa, 0xbad);
      }),
    });
  });

  test("that writes to a page table in the jump", () => {
    detects("jumped", /preserved block: the page at 0x[0-9a-f]+ has changed in the jump/, {
      ...once("frozen", (moment) => {
        // A bit that hardware ignores: no device would ever notice.
        const { ram } = moment.machine;
        const { tree } = functionOf(moment);
        ram.store32(tree.top, ram.load32(tree.top) | (1 << 8));
      }),
    });
  });

  test("that damages frames before the guest has seen them", () => {
    detects("drained", /vm0: [0-9]+ frames corrupt/, {
      look: (moment) => {
        if (moment.point !== "booted" || moment.update !== 1) return;
        // Receive buffers lie from 2 MiB on, 2 KiB each.
        const { pa } = memoryOf(moment, 2 * MIB);
        for (let at = pa; at < pa + 2 * MIB; at += 2048) moment.machine.ram.store8(at + 60, 0xee);
      },
    });
  });

  test("that leaks a page", () => {
    detects("ended", /1 pages leaked/, {
      tamper: (kernel, update) => {
        if (update === 1) kernel.mm.alloc(0);
      },
    });
  });

  test("that leaks a pin of a memfd", () => {
    detects("ended", /1 pins leaked/, {
      tamper: (kernel, update) => {
        if (update !== 1) return;
        const memfd = kernel.shmem.memfdCreate("pinned", 0);
        memfd.truncate(PAGE_SIZE);
        memfd.shmem.hold(0, PAGE_SIZE);
        memfd.put();
      },
    });
  });

  test("that leaks the ids of domains", () => {
    withMethod(
      DomainIds.prototype,
      "free",
      () => undefined,
      () => detects("ended", /[1-9][0-9]* domains leaked/, {}),
    );
  });

  test("that leaks a domain that nobody uses", () => {
    detects("ended", /[1-9][0-9]* domains leaked/, {
      tamper: (kernel, update) => {
        if (update === 1) kernel.iommu.allocDomain(kernel.pci.functions[0]);
      },
    });
  });

  test("that does not pin the memory of a VM", () => {
    withMethod(
      Store.prototype,
      "pin",
      () => () => undefined,
      () => detects("created", /truncation of \/mnt\/guests\/vm0 is not refused/, {}),
    );
  });

  test("that lets a device run into a fault", () => {
    detects("frozen", /segment 0: [0-9]+ DMA faults/, {
      ...EDU_HOST,
      ...once("created", (moment) => {
        const user = new EduUser(hostAt(moment), EDU_ORDINARY.slot);
        user.start(user.mapFile() + 16 * PAGE_SIZE);
        waitForTransfer(moment);
        user.close();
      }),
    });
  });
});

describe("memory that was unmapped and freed under a device that goes on writing", () => {
  /** The edu writes to its page, which is unmapped and freed; then it writes there again. */
  const options = (): Partial<SimulationOptions> => ({
    ...EDU_HOST,
    updates: 0,
    mayFault: true,
    ...once("created", (moment) => {
      const user = new EduUser(hostAt(moment), EDU_ORDINARY.slot);
      const iova = user.mapFile();
      user.start(iova);
      waitForTransfer(moment);
      // Until here the file is there, and may be written to ...
      moment.check();
      user.unmapFile();
      // ... and from here on not.
      moment.check();
      user.start(iova);
      waitForTransfer(moment);
      user.close();
    }),
  });

  test("is not written to", () => {
    const { machine } = simulate({ seed: 42, updates: 0, ...options() });
    assert.ok((machine.hardware.vtds[0]?.statistics.faults ?? 0) > 0, "the second one is blocked");
  });

  test("is seen to be written to when the kernel does not flush", () => {
    withMethod(
      RemappingUnit.prototype,
      "flushRange",
      () => undefined,
      () =>
        detects("drained", /hardware wrote 256 bytes at 0x[0-9a-f]+ after "created"/, options()),
    );
  });
});

/** vm0's NIC as hardware translates it. */
function functionOf(moment: Moment): HostState["units"][number]["functions"][number] {
  const found = stateAt(moment)
    .units.flatMap((unit) => unit.functions)
    .find(({ bdf }) => bdf === NIC_BDF);
  assert(found !== undefined, "vm0's NIC is translated");
  return found;
}
