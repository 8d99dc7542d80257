import assert from "node:assert/strict";
import { test } from "node:test";
import type { DemoEvent, VmReport } from "./events.ts";
import { type JumpTimes, judge, type NicCounts, phases, type Testimony, toMs } from "./result.ts";

const VM: VmReport = {
  name: "vm0",
  nic: 0,
  memoryBytes: 2 ** 30,
  received: 1000,
  lost: 0,
  corrupt: 0,
  transmitted: 125,
  dirtied: 5000,
  problems: [],
};
const NIC: NicCounts = {
  sent: 1000,
  missed: 0,
  duringJump: 20,
  dmaFaults: 0,
  transmitted: 125,
  transmitCorrupt: 0,
  transmitGaps: 0,
};
const MS = 1e6;

/** Update `update` begins at 100 ms times its number. */
function updateEvents(update: number): DemoEvent[] {
  const at = update * 100 * MS;
  const phase = (name: string, startNs: number, endNs: number): DemoEvent => ({
    event: "phase",
    update,
    name,
    startNs: at + startNs,
    endNs: at + endNs,
  });
  return [
    phase("preflight", 0, 1 * MS),
    phase("load", 1 * MS, 4 * MS),
    phase("preserve", 4 * MS, 6 * MS),
    phase("pause", 6 * MS, 7 * MS),
    { event: "boot", release: `r${update}`, update, atNs: at + 30 * MS },
    {
      event: "restored",
      update,
      vm: "vm0",
      blackoutNs: (20 + update) * MS,
      guestBytesCopied: 0,
    },
    phase("restore", 30 * MS, 34 * MS),
    phase("finish", 34 * MS, 35 * MS),
    { event: "handover", update, bytes: 1000 * update, guestBytes: 2 ** 30 },
  ];
}

function jumpTimes(update: number): JumpTimes {
  const at = update * 100 * MS;
  return {
    requestedNs: at + 9 * MS,
    endedNs: at + 12 * MS,
    scribbledNs: at + 13 * MS,
    enteredNs: at + 15 * MS,
  };
}

/** Two updates of one VM in which nothing went wrong. */
function good(): Testimony & { events: DemoEvent[]; jumps: JumpTimes[]; nics: NicCounts[] } {
  return {
    place: "embedded",
    requested: { updates: 2, vms: 1, framesPerSecond: 5000 },
    events: [
      { event: "boot", release: "r0", update: 0, atNs: 0 },
      ...updateEvents(1),
      ...updateEvents(2),
      { event: "vm", vm: VM },
      { event: "leaks", leaks: { pages: 0, pins: 0, domains: 0 } },
    ],
    jumps: [jumpTimes(1), jumpTimes(2)],
    nics: [NIC],
    blockedRequests: [0, 0],
  };
}

function withVm(changes: Partial<VmReport>): Testimony {
  const run = good();
  return {
    ...run,
    events: run.events.map((e) =>
      e.event === "vm" ? { event: "vm", vm: { ...VM, ...changes } } : e,
    ),
  };
}

function withNic(changes: Partial<NicCounts>): Testimony {
  return { ...good(), nics: [{ ...NIC, ...changes }] };
}

test("judge() finds nothing wrong where nothing went wrong, and reports in the documented form", () => {
  const { result, transmitted, problems, notes } = judge(good());
  assert.deepEqual([problems, notes], [[], []]);
  assert.deepEqual(transmitted, [125]);
  const { phases: found, ...rest } = result;
  assert.deepEqual(rest, {
    place: "embedded",
    updates: 2,
    vms: [
      {
        name: "vm0",
        memoryBytes: 2 ** 30,
        blackoutMs: [21, 22],
        frames: { sent: 1000, received: 1000, lost: 0, corrupt: 0, duringJump: 20 },
        dmaFaults: 0,
        guestBytesCopied: 0,
      },
    ],
    handover: { bytes: 2000, guestBytes: 2 ** 30 },
    leaks: { pages: 0, pins: 0, domains: 0 },
  });
  assert.deepEqual(
    found.filter((phase) => phase.update === 2),
    [
      ["preflight", 1],
      ["load", 3],
      ["preserve", 2],
      ["pause", 1],
      ["freeze", 2],
      ["stop", 3],
      ["scribble", 1],
      ["enter", 2],
      ["boot", 15],
      ["restore", 4],
      ["finish", 1],
    ].map(([name, ms]) => ({ update: 2, name, ms })),
  );
});

test("judge() names each problem, and counts it", () => {
  const run = good();
  const without = (event: DemoEvent["event"]) => run.events.filter((e) => e.event !== event);
  const cases: [
    what: string,
    testimony: Testimony,
    problem: RegExp,
    lost: number,
    corrupt: number,
  ][] = [
    ["frames missing", withNic({ sent: 1007 }), /^vm0: 7 frames lost$/, 7, 0],
    ["a gap that the guest saw", withVm({ lost: 2 }), /^vm0: 2 frames lost$/, 2, 0],
    [
      "a rate too high for the ring",
      withNic({ sent: 1500, missed: 480 }),
      /^vm0: 500 frames lost; the NIC had no free descriptor for 480: the rate is too high/,
      500,
      0,
    ],
    ["corrupt frames", withVm({ corrupt: 3, received: 997 }), /^vm0: 3 frames corrupt$/, 0, 3],
    [
      "sent and not arrived",
      withNic({ transmitted: 120 }),
      /^vm0: it sent 125 frames, and 120 arrived$/,
      5,
      0,
    ],
    [
      "more arrived than sent",
      withNic({ transmitted: 126 }),
      /^vm0: it sent 125 frames, and 126 arrived$/,
      0,
      1,
    ],
    [
      "corrupt on the way out",
      withNic({ transmitCorrupt: 4 }),
      /^vm0: 4 frames that it sent are corrupt$/,
      0,
      4,
    ],
    [
      "out of order on the way out",
      withNic({ transmitGaps: 2 }),
      /^vm0: 2 gaps in the sequence/,
      2,
      0,
    ],
    ["DMA faults", withNic({ dmaFaults: 1 }), /^vm0: 1 DMA faults$/, 0, 0],
    [
      "blocked DMA that a kernel found on record",
      {
        ...run,
        events: [
          ...run.events,
          {
            event: "faults",
            update: 1,
            functions: [{ function: "0000:00:01.0", reads: 2, writes: 3 }],
            overflows: 0,
          },
        ],
      },
      /^0000:00:01\.0: 2 DMA reads and 3 DMA writes blocked, found by kernel 1$/,
      0,
      0,
    ],
    [
      "DMA faults that were lost",
      {
        ...run,
        events: [...run.events, { event: "faults", update: 2, functions: [], overflows: 4 }],
      },
      /^kernel 2 found that DMA faults were lost 4 times$/,
      0,
      0,
    ],
    [
      "requests that the hardware counted as blocked",
      { ...run, blockedRequests: [0, 6] },
      /^the remapping unit of segment 1 blocked 6 requests$/,
      0,
      0,
    ],
    [
      "no frame in jumps that were long enough for 30",
      withNic({ duringJump: 0 }),
      /^vm0: no frame came into its memory while no kernel existed; 30 were due$/,
      0,
      0,
    ],
    [
      "what the guest's audit found",
      withVm({ problems: ["slot 7 is torn"] }),
      /^vm0: slot 7 is torn$/,
      0,
      0,
    ],
    ["a NIC that does not exist", withVm({ nic: 9 }), /^vm0: the machine has no NIC 9$/, 125, 0],
    [
      "a VM that was not restored",
      { ...run, events: run.events.filter((e) => e.event !== "restored" || e.update !== 2) },
      /^vm0: restored 1 of 2 times$/,
      0,
      0,
    ],
    [
      "memory that moved",
      {
        ...run,
        events: run.events.map((e) =>
          e.event === "restored" ? { ...e, guestBytesCopied: 4096 } : e,
        ),
      },
      /^vm0: 8192 bytes of guest memory moved$/,
      0,
      0,
    ],
    [
      "a failure of the agent",
      {
        ...run,
        events: [
          ...run.events,
          { event: "failure", update: 2, vm: "", phase: "update", message: "EBUSY: freeze: no" },
        ],
      },
      /^update 2: update: EBUSY: freeze: no$/,
      0,
      0,
    ],
    [
      "an update that did not take place",
      { ...run, jumps: run.jumps.slice(1) },
      /^1 of 2 updates/,
      0,
      0,
    ],
    [
      "leaks",
      {
        ...run,
        events: [...without("leaks"), { event: "leaks", leaks: { pages: 3, pins: 0, domains: 0 } }],
      },
      /^3 pages leaked$/,
      0,
      0,
    ],
    [
      "no report at the end",
      { ...run, events: without("leaks") },
      /^the run ended before its report$/,
      0,
      0,
    ],
  ];
  for (const [what, testimony, problem, lost, corrupt] of cases) {
    const { result, problems } = judge(testimony);
    assert.equal(problems.length, 1, `${what}: ${problems.join("; ")}`);
    assert.match(problems[0], problem, what);
    const { frames } = result.vms[0];
    assert.deepEqual({ lost: frames.lost, corrupt: frames.corrupt }, { lost, corrupt }, what);
  }
});

test("judge() notes a VM without frames in jumps that were too short for them", () => {
  const run = withNic({ duringJump: 0 });
  const slow = (framesPerSecond: number) =>
    judge({ ...run, requested: { ...run.requested, framesPerSecond } });
  // 6 ms without a kernel in all.
  assert.equal(slow(3334).problems.length, 1);
  const { problems, notes } = slow(3333);
  assert.deepEqual(problems, []);
  assert.deepEqual(notes, [
    "vm0: no frame came into its memory while no kernel existed; 19 were due",
  ]);
  assert.deepEqual(slow(1).notes.length, 1);
  const none = judge({ ...run, jumps: [], requested: { ...run.requested, updates: 0 } });
  assert.deepEqual(none.notes, []);
});

test("judge() misses a VM that is not there at the end", () => {
  const run = good();
  const gone = judge({ ...run, events: run.events.filter((e) => e.event !== "vm") });
  assert.deepEqual(gone.problems, ["0 of 1 VMs were there at the end"]);
  assert.deepEqual(gone.result.vms, []);
});

test("phases() of a jump whose kernel never came up end at its entry", () => {
  const found = phases([], [jumpTimes(1)]);
  assert.deepEqual(
    found.map(({ name, ms }) => [name, ms]),
    [
      ["freeze", 0],
      ["stop", 3],
      ["scribble", 1],
      ["enter", 2],
      ["boot", 0],
    ],
  );
});

test("toMs() has three decimals", () => {
  assert.equal(toMs(1_234_567), 1.235);
  assert.equal(toMs(0), 0);
});
